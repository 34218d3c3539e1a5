//! The `file` source: the `[[nodes]]` of the configuration file, watched with inotify(7).
//!
//! Watches directories rather than the file, because editors and Kubernetes replace files by rename (for a `ConfigMap`
//! volume the file is a link into a directory that is swapped): the one that holds the path, and where the path is a link,
//! the one that holds the file in the end. What happened does not matter, only that something did. Called by the agent.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::{
    io::unix::AsyncFd,
    time::{Instant, timeout_at},
};

/// Writers that do not rename make several events; wait until they have settled.
const SETTLE: Duration = Duration::from_millis(50);

/// In a directory that is never quiet, wait no longer than this.
const SETTLE_LIMIT: Duration = Duration::from_millis(250);

/// Tells when the file may have changed.
pub struct Watch {
    inotify: Inotify,
    /// A clone of its descriptor, to wait on.
    ready: AsyncFd<OwnedFd>,
    path: PathBuf,
    /// The kernel gives a directory that is watched already the descriptor it has.
    watched: HashSet<WatchDescriptor>,
    /// Set from the first event of a burst until it is reported.
    burst: Option<Burst>,
}

#[derive(Clone, Copy)]
struct Burst {
    quiet_at: Instant,
    limit: Instant,
}

impl Burst {
    fn begin() -> Self {
        let now = Instant::now();
        Self { quiet_at: now + SETTLE, limit: now + SETTLE_LIMIT }
    }
}

impl Watch {
    /// Begins to watch. Needs a tokio runtime.
    pub fn new(path: &Path) -> anyhow::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)
            .context("create an inotify instance")?;
        let fd = inotify.as_fd().try_clone_to_owned().context("clone the inotify descriptor")?;
        // SAFETY: the descriptor is owned by the AsyncFd and closed only with it.
        let ready = unsafe { AsyncFd::register(fd) }.context("poll the inotify descriptor")?;
        let mut watch = Self { inotify, ready, path: path.to_owned(), watched: HashSet::new(), burst: None };
        watch.watch_directory(path)?;
        watch.renew();
        // The caller reads the file after this.
        watch.burst = None;
        Ok(watch)
    }

    /// Returns when something beside the file has changed and then been quiet for a moment, or has gone on for a while.
    ///
    /// Cancel-safe: a change is reported also if the future is dropped and another one is made.
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            let Some(Burst { quiet_at, limit }) = self.burst else {
                self.drain().await?;
                self.burst = Some(Burst::begin());
                continue;
            };
            match timeout_at(quiet_at.min(limit), self.drain()).await {
                Ok(more) => {
                    more?;
                    self.burst = Some(Burst { quiet_at: Instant::now() + SETTLE, limit });
                }
                Err(_quiet) => {
                    self.burst = None;
                    self.renew();
                    return Ok(());
                }
            }
        }
    }

    /// Watches where the path leads now, which counts as a change if that is elsewhere: a directory that was removed and
    /// made again, or another target of a link. No event tells of the former; to be called now and then.
    ///
    /// A path that leads nowhere is no error: reading the file says so.
    pub fn renew(&mut self) {
        let path = self.path.clone();
        let _ = self.watch_directory(&path);
        if let Ok(target) = path.canonicalize() {
            let _ = self.watch_directory(&target);
        }
    }

    fn watch_directory(&mut self, file: &Path) -> anyhow::Result<()> {
        let directory = match file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let events = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ONLYDIR;
        let descriptor = self
            .inotify
            .add_watch(directory, events)
            .with_context(|| format!("watch {}", directory.display()))?;
        if self.watched.insert(descriptor) {
            self.burst.get_or_insert_with(Burst::begin);
        }
        Ok(())
    }

    /// Waits for events and forgets them: which file it was does not matter, the whole is read again.
    async fn drain(&self) -> io::Result<()> {
        let mut guard = self.ready.readable().await?;
        let mut buffer = [0_u8; 4096];
        loop {
            match guard.try_io(|fd| nix::unistd::read(fd.get_ref(), &mut buffer).map_err(io::Error::from)) {
                Ok(Ok(_)) => {}
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(e)) => return Err(e),
                Err(_would_block) => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, future::Future, os::unix::fs::symlink};

    use super::*;

    /// A directory of its own for one test, removed at the end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("overlay-watch-{name}-{}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn run(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
    }

    #[track_caller]
    fn assert_in_time(result: Result<io::Result<()>, tokio::time::error::Elapsed>) {
        result.expect("the change is noticed within a second").unwrap();
    }

    async fn noticed(watch: &mut Watch) -> Result<io::Result<()>, tokio::time::error::Elapsed> {
        tokio::time::timeout(Duration::from_secs(1), watch.changed()).await
    }

    async fn is_quiet(watch: &mut Watch) -> bool {
        tokio::time::timeout(Duration::from_millis(120), watch.changed()).await.is_err()
    }

    #[test]
    fn writes_renames_links_and_removals_are_noticed() {
        let scratch = Scratch::new("writes");
        let dir = &scratch.0;
        let file = dir.join("overlay.toml");
        fs::write(&file, "1").unwrap();
        run(async {
            let mut watch = Watch::new(&file).unwrap();
            assert!(is_quiet(&mut watch).await);

            fs::write(&file, "2").unwrap();
            assert_in_time(noticed(&mut watch).await);

            fs::write(dir.join("new"), "3").unwrap();
            fs::rename(dir.join("new"), &file).unwrap();
            assert_in_time(noticed(&mut watch).await);

            symlink("elsewhere", dir.join("link")).unwrap();
            assert_in_time(noticed(&mut watch).await);

            fs::remove_file(&file).unwrap();
            assert_in_time(noticed(&mut watch).await);
            assert!(is_quiet(&mut watch).await);
        });
    }

    #[test]
    fn a_change_survives_a_dropped_future() {
        let scratch = Scratch::new("dropped");
        let file = scratch.0.join("overlay.toml");
        run(async {
            let mut watch = Watch::new(&file).unwrap();
            fs::write(&file, "1").unwrap();
            // Long enough to take the events, too short to report them.
            assert!(tokio::time::timeout(SETTLE / 5, watch.changed()).await.is_err());
            assert_in_time(noticed(&mut watch).await);
        });
    }

    #[test]
    fn a_directory_that_is_never_quiet_does_not_hide_a_change() {
        let scratch = Scratch::new("busy");
        let (file, noise) = (scratch.0.join("overlay.toml"), scratch.0.join("noise"));
        run(async {
            let mut watch = Watch::new(&file).unwrap();
            let busy = async {
                loop {
                    fs::write(&noise, "x").unwrap();
                    tokio::time::sleep(SETTLE / 5).await;
                }
            };
            tokio::select! {
                result = noticed(&mut watch) => assert_in_time(result),
                () = busy => {}
            }
        });
    }

    #[test]
    fn a_link_is_followed_and_a_directory_that_was_made_again_is_watched() {
        let scratch = Scratch::new("link");
        let (near, far) = (scratch.0.join("near"), scratch.0.join("far"));
        fs::create_dir(&near).unwrap();
        fs::create_dir(&far).unwrap();
        let (link, target) = (near.join("overlay.toml"), far.join("target.toml"));
        fs::write(&target, "1").unwrap();
        symlink(&target, &link).unwrap();
        run(async {
            let mut watch = Watch::new(&link).unwrap();
            fs::write(&target, "2").unwrap();
            assert_in_time(noticed(&mut watch).await);

            fs::remove_dir_all(&near).unwrap();
            assert_in_time(noticed(&mut watch).await);
            assert!(is_quiet(&mut watch).await);
            fs::create_dir(&near).unwrap();
            fs::write(&link, "3").unwrap();
            watch.renew();
            assert_in_time(noticed(&mut watch).await);
            watch.renew();
            assert!(is_quiet(&mut watch).await);
        });
    }
}
