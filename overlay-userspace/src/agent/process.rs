//! The running agent as another process sees it: by the lock that it holds on the pins.
//!
//! `/proc/locks` tells who that is; nothing is asked of the agent, and nobody else's lock is taken, which would keep an
//! agent from starting at that moment.

use std::{fs, os::unix::fs::MetadataExt as _, path::PathBuf};

use crate::datapath::pins::Pins;

/// A running agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    /// Its id, as this process' namespace has it.
    pub(crate) pid: u32,
}

/// The agent that works with these pins; `None` when none does, or none that can be seen from here.
pub(crate) fn find(pins: &Pins) -> Option<Process> {
    let root = fs::metadata(pins.root()).ok()?;
    let locks = fs::read_to_string("/proc/locks").ok()?;
    holder(&locks, root.dev(), root.ino()).map(|pid| Process { pid })
}

/// Who holds a lock of flock(2) on an inode, by the text of `/proc/locks`:
/// `1: FLOCK  ADVISORY  WRITE 708 00:1f:13 0 EOF`, the device in hexadecimal.
fn holder(locks: &str, device: u64, inode: u64) -> Option<u32> {
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let place = format!("{major:02x}:{minor:02x}:{inode}");
    locks.lines().find_map(|line| {
        // A waiting one has an arrow behind its number.
        let mut words = line.split_whitespace().skip(1).peekable();
        if words.next()? != "FLOCK" {
            return None;
        }
        let pid = words.nth(2)?.parse().ok()?;
        (words.next()? == place).then_some(pid)
    })
}

impl Process {
    /// Its arguments, the program first.
    pub(crate) fn arguments(self) -> Option<Vec<String>> {
        let text = fs::read(format!("/proc/{}/cmdline", self.pid)).ok()?;
        let words = text.split(|byte| *byte == 0).filter(|word| !word.is_empty());
        Some(words.map(|word| String::from_utf8_lossy(word).into_owned()).collect())
    }

    /// One variable of the environment that it was started with.
    pub(crate) fn variable(self, name: &str) -> Option<String> {
        let text = fs::read(format!("/proc/{}/environ", self.pid)).ok()?;
        text.split(|byte| *byte == 0).find_map(|entry| {
            let value = entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            Some(String::from_utf8_lossy(value).into_owned())
        })
    }

    /// A path of the agent's, as this process reaches it: the agent may be in a container, or work in another directory.
    pub(crate) fn path(self, path: &std::path::Path) -> PathBuf {
        let base = if path.is_absolute() { "root" } else { "cwd" };
        let relative = path.strip_prefix("/").unwrap_or(path);
        PathBuf::from(format!("/proc/{}/{base}", self.pid)).join(relative)
    }
}

#[cfg(test)]
mod tests {
    use nix::fcntl::{Flock, FlockArg};

    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_found_and_a_waiting_or_other_one_is_not() {
        let path = std::env::temp_dir().join(format!("overlay-lock-{}", std::process::id()));
        let file = fs::File::create(&path).unwrap();
        let meta = file.metadata().unwrap();
        let read = || fs::read_to_string("/proc/locks").unwrap();
        assert_eq!(holder(&read(), meta.dev(), meta.ino()), None);
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap();
        assert_eq!(holder(&read(), meta.dev(), meta.ino()), Some(std::process::id()));
        assert_eq!(holder(&read(), meta.dev(), meta.ino() + 1), None);
        drop(lock);
        fs::remove_file(&path).unwrap();
        let text =
            "1: -> FLOCK  ADVISORY  WRITE 9 00:1f:13 0 EOF\n1: POSIX  ADVISORY  WRITE 8 00:1f:13 0 EOF\n";
        assert_eq!(holder(text, nix::sys::stat::makedev(0, 0x1f), 13), None);
    }

    #[test]
    fn arguments_and_variables_are_those_of_the_process() {
        let own = Process { pid: std::process::id() };
        assert_eq!(own.arguments().unwrap()[0], std::env::args().next().unwrap());
        assert_eq!(own.variable("PATH"), std::env::var("PATH").ok());
        assert_eq!(own.variable("PAT"), None);
        assert!(own.path(std::path::Path::new("/proc/self/stat")).exists());
    }
}
