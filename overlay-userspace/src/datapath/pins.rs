//! Where things are pinned, and removing what is stale there.
//!
//! Below the root: `maps/NODES`, `programs/from_pod`, `links/pod_<device>_from_pod`, `links/wire_<ifindex>_from_wire`,
//! `links/anchor_<ifindex>_from_host`, …. The root ends in the schema version, so that a build with other layouts works
//! beside this one. bpffs allows no dots in names.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use overlay_common::maps::SCHEMA;

use super::DatapathError;

/// The bpffs that systemd mounts.
const BPFFS: &str = "/sys/fs/bpf";

/// The pin root of a node, and the schema of what is pinned there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    root: PathBuf,
    schema: u32,
}

impl Default for Pins {
    fn default() -> Self {
        Self::new(Path::new(BPFFS).join("overlay").join(directory(SCHEMA)))
    }
}

/// The name of a schema's directory.
pub(super) fn directory(schema: u32) -> String {
    format!("v{schema}")
}

/// The schema of a directory of this name.
pub(super) fn schema_of(name: &str) -> Option<u32> {
    let schema = name.strip_prefix('v')?.parse().ok()?;
    (directory(schema) == name).then_some(schema)
}

impl Pins {
    /// Pins of this build's schema; nothing is looked at yet.
    ///
    /// A `root` that is called `v` and a number stands for the place beside it that has the number of this build's
    /// schema, so that configurations need not change with the build.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        let mut root = root.into();
        if root.file_name().and_then(|name| name.to_str()).and_then(schema_of).is_some() {
            root.set_file_name(directory(SCHEMA));
        }
        Self { root, schema: SCHEMA }
    }

    /// The directory of all pins.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The schema of the maps.
    pub const fn schema(&self) -> u32 {
        self.schema
    }

    /// The directory that the schemas of this node have in common; `None` where there is only the one that was named.
    pub fn base(&self) -> Option<&Path> {
        self.root.file_name().and_then(|name| name.to_str()).and_then(schema_of)?;
        self.root.parent()
    }

    /// The pins of another schema of the same node. Of this one, where it can have no others.
    #[must_use]
    pub fn of_schema(&self, schema: u32) -> Self {
        match self.base() {
            Some(base) => Self { root: base.join(directory(schema)), schema },
            None => self.clone(),
        }
    }

    /// The path of a map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.root.join("maps").join(name)
    }

    /// The path of a program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.root.join("programs").join(name)
    }

    /// The path of a link.
    pub fn link(&self, name: &str) -> PathBuf {
        self.root.join("links").join(name)
    }

    /// Creates the directories. Idempotent. Returns the topmost directory that was not there before, for
    /// [`remove`] after a start that failed.
    ///
    /// # Errors
    ///
    /// [`DatapathError::NoBpffs`] when the nearest existing parent is not on a bpffs; then nothing is created.
    pub fn create(&self) -> Result<Option<PathBuf>, DatapathError> {
        self.check()?;
        let topmost = self.root.ancestors().take_while(|dir| !dir.exists()).last().map(Path::to_owned);
        for dir in ["maps", "programs", "links"] {
            let dir = self.root.join(dir);
            fs::create_dir_all(&dir)
                .map_err(|e| DatapathError::new(format!("create {}", dir.display()), e))?;
        }
        Ok(topmost)
    }

    /// Is the root, or where it would be made, on a bpffs?
    pub fn check(&self) -> Result<(), DatapathError> {
        let mut path = self.root.as_path();
        loop {
            match statfs(path) {
                Ok(stat) if stat.filesystem_type() == BPF_FS_MAGIC => return Ok(()),
                Ok(_) => return Err(DatapathError::NoBpffs { path: path.to_owned() }),
                Err(nix::Error::ENOENT) => {}
                Err(e) => {
                    return Err(DatapathError::new(
                        format!("look at {}", path.display()),
                        io::Error::from(e),
                    ));
                }
            }
            let Some(parent) = path.parent() else {
                return Err(DatapathError::NoBpffs { path: self.root.clone() });
            };
            path = parent;
        }
    }

    /// The names of all pinned links.
    pub fn links(&self) -> Result<Vec<String>, DatapathError> {
        let dir = self.root.join("links");
        let failed = |e| DatapathError::new(format!("list {}", dir.display()), e);
        match fs::read_dir(&dir) {
            Ok(entries) => entries
                .map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned()).map_err(failed))
                .collect(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(failed(e)),
        }
    }

    /// Removes the pin of a program, which runs on where it is attached. Missing is fine.
    pub fn remove_program(&self, name: &str) -> Result<(), DatapathError> {
        remove_file(&self.program(name))
    }

    /// Removes the pin of a link; without another reference the kernel then detaches it. Missing is fine.
    pub fn remove_link(&self, name: &str) -> Result<(), DatapathError> {
        remove_file(&self.link(name))
    }
}

/// Removes a pin. Missing is fine.
pub(super) fn remove_file(path: &Path) -> Result<(), DatapathError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(DatapathError::new(format!("remove {}", path.display()), e))
        }
        _ => Ok(()),
    }
}

/// Removes a directory with all pins in it; what nothing else holds is detached and freed. Missing is fine.
pub fn remove(directory: &Path) -> Result<(), DatapathError> {
    match fs::remove_dir_all(directory) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(DatapathError::new(format!("remove {}", directory.display()), e))
        }
        _ => Ok(()),
    }
}

/// The temporary name of [`replace`]; a process that was killed may leave it.
pub(super) fn fresh(path: &Path) -> PathBuf {
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    path.with_file_name(format!("{name}_new"))
}

/// Pins under a temporary name and renames, so that `path` never dangles and readers see the old or the new object.
pub(super) fn replace(
    path: &Path,
    pin: impl FnOnce(&Path) -> Result<(), DatapathError>,
) -> Result<(), DatapathError> {
    let fresh = fresh(path);
    remove_file(&fresh)?;
    pin(&fresh)?;
    fs::rename(&fresh, path).map_err(|e| DatapathError::new(format!("rename {}", fresh.display()), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_that_is_not_on_bpffs_is_refused_and_nothing_is_created() {
        let root = std::env::temp_dir().join(format!("overlay-pins-{}", std::process::id())).join("v1");
        let error = Pins::new(&root).create().unwrap_err();
        assert!(matches!(error, DatapathError::NoBpffs { .. }), "{error}");
        assert!(error.to_string().contains("mount -t bpf"), "{error}");
        assert!(!root.exists());
    }

    #[test]
    fn the_default_root_carries_the_schema() {
        let expected = format!("/sys/fs/bpf/overlay/v{SCHEMA}/maps/NODES");
        assert_eq!(Pins::default().map("NODES"), Path::new(&expected));
    }

    #[test]
    fn a_root_with_a_number_stands_for_that_of_the_build_and_another_for_itself() {
        for number in [0, 1, 77] {
            let pins = Pins::new(format!("/x/v{number}"));
            assert_eq!(pins.root(), Path::new("/x").join(directory(SCHEMA)));
            assert_eq!((pins.base(), pins.schema()), (Some(Path::new("/x")), SCHEMA));
            assert_eq!(pins.of_schema(9).root(), Path::new("/x/v9"));
        }
        for root in ["/x/pins", "/x/v", "/x/v01", "/x/v1a"] {
            let pins = Pins::new(root);
            assert_eq!((pins.root(), pins.base()), (Path::new(root), None));
            assert_eq!(pins.of_schema(9), pins);
        }
    }
}
