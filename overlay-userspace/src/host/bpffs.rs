//! The file system that maps, programs and links are pinned on.
//!
//! systemd mounts one at boot; a node without it gets one from here, before the agent starts. Called by the command line.

use std::{io, path::Path};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

/// Mounts a bpffs at `dir` unless there is one; true if it did. Only root may look into it (mode 700), as systemd has it.
///
/// # Errors
///
/// The system's: `NotFound` where the directory does not exist, `PermissionDenied` without `CAP_SYS_ADMIN`.
pub fn ensure(dir: &Path) -> io::Result<bool> {
    if statfs(dir)?.filesystem_type() == BPF_FS_MAGIC {
        return Ok(false);
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), dir, Some("bpf"), flags, Some("mode=700"))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::{fs, thread};

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn a_bpffs_is_mounted_once() {
        let dir = std::env::temp_dir().join(format!("overlay-bpffs-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let place = dir.clone();
        // The mount is in a namespace that ends with the thread.
        let thread = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
            assert!(ensure(&place).unwrap());
            assert!(!ensure(&place).unwrap());
            fs::create_dir(place.join("here")).unwrap();
        });
        let result = thread.join();
        let left = fs::read_dir(&dir).unwrap().count();
        fs::remove_dir(&dir).unwrap();
        result.unwrap();
        assert_eq!(left, 0, "the mount is seen outside of its namespace");
    }

    #[test]
    fn a_directory_that_does_not_exist_is_an_error() {
        let error = ensure(Path::new("/nonexistent/bpf")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
