//! The file tree of an image, and its layer.
//!
//! Invariant: the same tree gives the same bytes, whoever builds it, whenever: entries are sorted by path, belong to root, and
//! have no time. Every parent of an entry is in the layer, as a directory.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs, io,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use tar::{Builder, EntryType, Header, HeaderMode};

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    Directory,
    File {
        executable: bool,
        content: Vec<u8>,
    },
    /// The text of a symbolic link.
    Link(PathBuf),
}

/// A tree below `/`; paths in it are relative.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RootFs(BTreeMap<PathBuf, Node>);

impl RootFs {
    /// Puts `node` at the absolute `path`, with the directories above. The same again is fine, something else is not.
    pub(crate) fn put(&mut self, path: &Path, node: Node) -> Result<()> {
        let path = relative(path)?;
        let mut above = path.as_path();
        while let Some(parent) = above.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            let present = self.0.entry(parent.to_path_buf()).or_insert(Node::Directory);
            ensure!(*present == Node::Directory, "/{} is no directory in the image", parent.display());
            above = parent;
        }
        match self.0.entry(path) {
            Entry::Vacant(place) => {
                place.insert(node);
            }
            Entry::Occupied(present) => ensure!(
                *present.get() == node,
                "/{} is in the image already, and is not the same",
                present.key().display()
            ),
        }
        Ok(())
    }

    pub(crate) fn file(&mut self, path: &str, content: impl Into<Vec<u8>>) -> Result<()> {
        self.put(Path::new(path), Node::File { executable: false, content: content.into() })
    }

    pub(crate) fn executable(&mut self, path: &str, content: impl Into<Vec<u8>>) -> Result<()> {
        self.put(Path::new(path), Node::File { executable: true, content: content.into() })
    }

    pub(crate) fn link(&mut self, path: &str, target: &str) -> Result<()> {
        self.put(Path::new(path), Node::Link(target.into()))
    }

    /// Whether something is at an absolute path.
    pub(crate) fn contains(&self, path: &str) -> bool {
        self.0.contains_key(Path::new(path.trim_start_matches('/')))
    }

    /// All there is, directories before what is in them, with relative paths.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&Path, &Node)> {
        self.0.iter().map(|(path, node)| (path.as_path(), node))
    }

    /// Writes the tree below a directory, which is made.
    pub(crate) fn write_to(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        for (path, node) in &self.0 {
            let path = dir.join(path);
            match node {
                Node::Directory => fs::create_dir_all(&path),
                Node::Link(target) => symlink(target, &path),
                Node::File { executable, content } => fs::write(&path, content).and_then(|()| {
                    let mode = if *executable { 0o755 } else { 0o644 };
                    fs::set_permissions(&path, fs::Permissions::from_mode(mode))
                }),
            }
            .with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }

    /// The layer: an uncompressed tar archive.
    pub(crate) fn layer(&self) -> Result<Vec<u8>> {
        let mut archive = Builder::new(Vec::new());
        archive.mode(HeaderMode::Deterministic);
        for (path, node) in &self.0 {
            let mut header = Header::new_gnu();
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            let (kind, mode) = match node {
                Node::Directory => (EntryType::Directory, 0o755),
                Node::File { executable: true, .. } => (EntryType::Regular, 0o755),
                Node::File { executable: false, .. } => (EntryType::Regular, 0o644),
                Node::Link(_) => (EntryType::Symlink, 0o777),
            };
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_size(0);
            let written = match node {
                Node::Directory => archive.append_data(&mut header, path, io::empty()),
                Node::Link(target) => archive.append_link(&mut header, path, target),
                Node::File { content, .. } => {
                    header.set_size(content.len() as u64);
                    archive.append_data(&mut header, path, content.as_slice())
                }
            };
            written.with_context(|| format!("add /{} to the layer", path.display()))?;
        }
        archive.into_inner().context("end the layer")
    }
}

fn relative(path: &Path) -> Result<PathBuf> {
    let mut result = PathBuf::new();
    for component in path.components() {
        match component {
            Component::RootDir => {}
            Component::Normal(name) => result.push(name),
            _ => anyhow::bail!("{} is no plain absolute path", path.display()),
        }
    }
    ensure!(path.is_absolute() && result != Path::new(""), "{} is no plain absolute path", path.display());
    Ok(result)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn tree(order: &[usize]) -> RootFs {
        let mut tree = RootFs::default();
        for step in order {
            match step {
                0 => tree.executable("/overlay", "program").unwrap(),
                1 => tree.file("/etc/protocols", "tcp 6 TCP\n").unwrap(),
                _ => tree.link("/lib", "usr/lib").unwrap(),
            }
        }
        tree
    }

    #[test]
    fn the_layer_has_every_entry_with_its_mode_and_nothing_of_its_builder() {
        let layer = tree(&[2, 0, 1]).layer().unwrap();
        let mut archive = tar::Archive::new(layer.as_slice());
        let mut seen = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let header = entry.header().clone();
            assert_eq!(
                (header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap()),
                (0, 0, 0),
                "{header:?}"
            );
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            let path = entry.path().unwrap().display().to_string();
            let link = entry.link_name().unwrap().map(|link| link.display().to_string()).unwrap_or_default();
            seen.push((path, header.mode().unwrap(), content + &link));
        }
        let entry = |path: &str, mode, content: &str| (path.to_owned(), mode, content.to_owned());
        assert_eq!(
            seen,
            [
                entry("etc", 0o755, ""),
                entry("etc/protocols", 0o644, "tcp 6 TCP\n"),
                entry("lib", 0o777, "usr/lib"),
                entry("overlay", 0o755, "program"),
            ]
        );
    }

    #[test]
    fn the_order_of_insertion_does_not_show() {
        assert_eq!(tree(&[0, 1, 2]).layer().unwrap(), tree(&[2, 1, 0]).layer().unwrap());
    }

    #[test]
    fn the_tree_can_be_written_to_a_directory() {
        let dir = std::env::temp_dir().join(format!("overlay-rootfs-{}", std::process::id()));
        let written = tree(&[0, 1, 2]).write_to(&dir);
        let program = fs::metadata(dir.join("overlay")).map(|metadata| metadata.permissions().mode() & 0o777);
        let link = fs::read_link(dir.join("lib"));
        let protocols = fs::read_to_string(dir.join("etc/protocols"));
        fs::remove_dir_all(&dir).unwrap();
        written.unwrap();
        assert_eq!(program.unwrap(), 0o755);
        assert_eq!(link.unwrap(), Path::new("usr/lib"));
        assert_eq!(protocols.unwrap(), "tcp 6 TCP\n");
    }

    #[test]
    fn a_path_holds_one_thing_only() {
        let mut tree = tree(&[0, 1, 2]);
        tree.executable("/overlay", "program").unwrap();
        assert!(tree.executable("/overlay", "another").is_err());
        assert!(tree.file("/overlay/below", "").is_err());
        assert!(tree.file("/lib/below", "").is_err(), "files behind a link have the path that it leads to");
    }

    #[test]
    fn only_plain_absolute_paths_are_taken() {
        for path in ["overlay", "/../overlay", "/", ""] {
            assert!(RootFs::default().file(path, "").is_err(), "{path:?}");
        }
    }
}
