//! Locks that an agent holds as long as it lives: two on one node, or on the same pins, would undo each other's work. The
//! kernel releases them with the process, however that ends.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use anyhow::Context as _;
use nix::fcntl::{Flock, FlockArg};

use crate::datapath::pins::Pins;

const NAMESPACE: &str = "/proc/thread-self/ns/net";

/// The lock of the calling thread's network namespace; `None` when somebody holds it.
pub(crate) fn namespace() -> anyhow::Result<Option<Flock<File>>> {
    exclusive(Path::new(NAMESPACE))
}

/// The process that holds the lock of this network namespace, as far as it can be seen from here. Asking for the lock
/// itself would be in the way of an agent that starts.
pub(crate) fn holder() -> anyhow::Result<Option<u32>> {
    let inode = fs::metadata(NAMESPACE).with_context(|| format!("look at {NAMESPACE}"))?.ino();
    let locks = fs::read_to_string("/proc/locks").context("read /proc/locks")?;
    Ok(locks.lines().find_map(|line| holder_of(line, inode)))
}

/// `7: FLOCK  ADVISORY  WRITE 1234 00:04:4026531840 0 EOF` (proc(5)); waiting ones have an arrow.
fn holder_of(line: &str, inode: u64) -> Option<u32> {
    let words: Vec<_> = line.split_whitespace().collect();
    let [_, "FLOCK", _, "WRITE", pid, place, ..] = words.as_slice() else { return None };
    let same = place.rsplit(':').next()?.parse() == Ok(inode);
    pid.parse().ok().filter(|pid| same && *pid > 0)
}

/// The lock of the pins, whose root has to be there; `None` when somebody holds it.
pub(crate) fn pins(pins: &Pins) -> anyhow::Result<Option<Flock<File>>> {
    exclusive(pins.root())
}

fn exclusive(path: &Path) -> anyhow::Result<Option<Flock<File>>> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::Error::EWOULDBLOCK)) => Ok(None),
        Err((_, e)) => Err(e).with_context(|| format!("lock {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netns::testing::in_fresh_netns;

    #[test]
    fn the_holder_of_a_namespace_is_seen_without_asking_for_the_lock() {
        in_fresh_netns(|| {
            assert_eq!(holder().unwrap(), None);
            let lock = namespace().unwrap().expect("nobody has it");
            assert_eq!(holder().unwrap(), Some(std::process::id()));
            drop(lock);
            assert_eq!(holder().unwrap(), None);
        });
    }

    #[test]
    fn who_waits_for_a_lock_does_not_hold_it() {
        assert_eq!(holder_of("7: FLOCK  ADVISORY  WRITE 12 00:04:4026531840 0 EOF", 4_026_531_840), Some(12));
        assert_eq!(holder_of("7: -> FLOCK  ADVISORY  WRITE 12 00:04:4026531840 0 EOF", 4_026_531_840), None);
        assert_eq!(holder_of("7: FLOCK  ADVISORY  WRITE 12 00:04:4026531841 0 EOF", 4_026_531_840), None);
        assert_eq!(holder_of("7: POSIX  ADVISORY  WRITE 12 00:04:4026531840 0 EOF", 4_026_531_840), None);
    }
}
