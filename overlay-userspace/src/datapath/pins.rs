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

/// The pin root of a node.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Default for Pins {
    fn default() -> Self {
        Self { root: Path::new(BPFFS).join("overlay").join(format!("v{SCHEMA}")) }
    }
}

impl Pins {
    /// Pins below `root`; nothing is looked at yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory of all pins.
    pub fn root(&self) -> &Path {
        &self.root
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
        unpin(&self.program(name))
    }

    /// Removes the pin of a link; without another reference the kernel then detaches it. Missing is fine.
    pub fn remove_link(&self, name: &str) -> Result<(), DatapathError> {
        unpin(&self.link(name))
    }
}

fn unpin(path: &Path) -> Result<(), DatapathError> {
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

/// Pins under a temporary name and renames, so that `path` never dangles and readers see the old or the new object.
pub(super) fn replace(
    path: &Path,
    pin: impl FnOnce(&Path) -> Result<(), DatapathError>,
) -> Result<(), DatapathError> {
    let fresh = path
        .with_file_name(format!("{}_new", path.file_name().map(|n| n.to_string_lossy()).unwrap_or_default()));
    match fs::remove_file(&fresh) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(DatapathError::new(format!("remove {}", fresh.display()), e));
        }
        _ => {}
    }
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
        assert_eq!(Pins::default().map("NODES"), Path::new("/sys/fs/bpf/overlay/v1/maps/NODES"));
    }
}
