//! The `file` source: the `[[nodes]]` of the configuration file, watched with inotify(7).
//!
//! Watches the directory rather than the file, because editors and Kubernetes replace files by rename (for a `ConfigMap`
//! volume the file is a link into a directory that is swapped). Called by the agent.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

/// Writers that do not rename make several events; wait until they have settled.
const SETTLE: Duration = Duration::from_millis(50);

/// Tells when the file may have changed.
pub struct Watch {
    inotify: AsyncFd<OwnedFd>,
    path: PathBuf,
}

impl Watch {
    /// Begins to watch. Needs a tokio runtime.
    pub fn new(path: &Path) -> anyhow::Result<Self> {
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)
            .context("create an inotify instance")?;
        let events = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ONLYDIR;
        inotify.add_watch(directory, events).with_context(|| format!("watch {}", directory.display()))?;
        let fd = inotify.as_fd().try_clone_to_owned().context("clone the inotify descriptor")?;
        // SAFETY: the descriptor is owned by the AsyncFd and closed only with it.
        let inotify = unsafe { AsyncFd::register(fd) }.context("poll the inotify descriptor")?;
        Ok(Self { inotify, path: path.to_owned() })
    }

    /// The watched file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns when something in the file's directory has changed and then been quiet for a moment.
    pub async fn changed(&mut self) -> io::Result<()> {
        self.drain().await?;
        while let Ok(more) = tokio::time::timeout(SETTLE, self.drain()).await {
            more?;
        }
        Ok(())
    }

    /// Waits for events and forgets them: which file it was does not matter, the whole is read again.
    async fn drain(&mut self) -> io::Result<()> {
        let mut guard = self.inotify.readable().await?;
        let mut buffer = [0_u8; 4096];
        loop {
            match guard.try_io(|fd| nix::unistd::read(fd.get_ref(), &mut buffer).map_err(io::Error::from)) {
                Ok(Ok(_)) => {}
                Ok(Err(e)) => return Err(e),
                Err(_would_block) => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn writes_renames_and_link_swaps_are_noticed() {
        let dir = std::env::temp_dir().join(format!("overlay-watch-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let file = dir.join("overlay.toml");
        fs::write(&file, "1").unwrap();
        runtime().block_on(async {
            let mut watch = Watch::new(&file).unwrap();
            assert!(
                tokio::time::timeout(Duration::from_millis(120), watch.changed()).await.is_err(),
                "quiet"
            );

            fs::write(&file, "2").unwrap();
            tokio::time::timeout(Duration::from_secs(1), watch.changed()).await.unwrap().unwrap();

            fs::write(dir.join("new"), "3").unwrap();
            fs::rename(dir.join("new"), &file).unwrap();
            tokio::time::timeout(Duration::from_secs(1), watch.changed()).await.unwrap().unwrap();

            std::os::unix::fs::symlink("elsewhere", dir.join("link")).unwrap();
            tokio::time::timeout(Duration::from_secs(1), watch.changed()).await.unwrap().unwrap();
        });
        fs::remove_dir_all(dir).unwrap();
    }
}
