//! Network namespaces: opening one by path, and running code inside of it.
//!
//! Invariant: the caller's thread never changes its namespace. What runs inside another one runs on a
//! thread made for it, so that a panic or an early return cannot leave a worker in a pod's namespace.
//! Called by the CNI plugin for `CNI_NETNS`.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    thread,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::statfs::{NSFS_MAGIC, fstatfs},
};

/// The calling thread's own namespace.
const CURRENT: &str = "/proc/thread-self/ns/net";

/// Why a namespace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetNsError {
    /// It does not exist (`NotFound`), or may not be opened.
    #[error("open network namespace {path}: {cause}")]
    Open {
        /// What was to be opened.
        path: PathBuf,
        /// The kernel's reason.
        cause: io::Error,
    },
    /// It is something else: a plain file whose bind mount is gone, or a namespace of another type.
    #[error("{path} is not a network namespace")]
    WrongType {
        /// What was opened.
        path: PathBuf,
    },
    /// It cannot be entered, for lack of privileges or threads.
    #[error("enter network namespace {path}: {cause}")]
    Enter {
        /// What was to be entered.
        path: PathBuf,
        /// The kernel's reason.
        cause: io::Error,
    },
}

/// An open network namespace; stays alive while this does.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    path: PathBuf,
}

impl NetNs {
    /// Opens the namespace at `path`, such as `/run/netns/pod` or `/proc/42/ns/net`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, NetNsError> {
        let path = path.as_ref().to_owned();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(cause) => return Err(NetNsError::Open { path, cause }),
        };
        if is_network_namespace(&file) {
            Ok(Self { file, path })
        } else {
            Err(NetNsError::WrongType { path })
        }
    }

    /// Opens the namespace of the calling thread.
    pub fn current() -> Result<Self, NetNsError> {
        Self::open(CURRENT)
    }

    /// Whether it is the namespace of the calling thread.
    pub fn is_current(&self) -> Result<bool, NetNsError> {
        // The same namespace has the same inode, by whichever path it was opened.
        let identity = |file: &File| file.metadata().map(|metadata| (metadata.dev(), metadata.ino()));
        File::open(CURRENT)
            .and_then(|current| Ok(identity(&current)? == identity(&self.file)?))
            .map_err(|cause| NetNsError::Open { path: CURRENT.into(), cause })
    }

    /// Runs `work` inside of the namespace, on a thread of its own, and waits for it.
    ///
    /// A panic of `work` continues in the caller.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetNsError> {
        let failed = |cause| NetNsError::Enter { path: self.path.clone(), cause };
        thread::scope(|scope| {
            let inside = || {
                setns(&self.file, CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            };
            match thread::Builder::new().name("netns".into()).spawn_scoped(scope, inside) {
                Ok(worker) => match worker.join() {
                    Ok(result) => result.map_err(|errno: nix::Error| failed(errno.into())),
                    Err(panic) => std::panic::resume_unwind(panic),
                },
                Err(cause) => Err(failed(cause)),
            }
        })
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn is_network_namespace(file: &File) -> bool {
    // First the file system: what the ioctl number means to another kind of file is not known.
    if !fstatfs(file).is_ok_and(|info| info.filesystem_type() == NSFS_MAGIC) {
        return false;
    }
    // SAFETY: NS_GET_NSTYPE (Linux 4.11) takes no argument, and the descriptor is open during the call.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), libc::NS_GET_NSTYPE) };
    kind == libc::CLONE_NEWNET
}

/// Namespaces and `ip` for the tests of this crate.
#[cfg(test)]
pub(crate) mod testing {
    use std::process::{Command, Output};

    use nix::sched::unshare;
    use serde_json::Value;

    use super::*;

    /// A namespace that nobody else sees; gone when the last handle is.
    pub(crate) fn fresh_netns() -> NetNs {
        in_fresh_netns(|| NetNs::current().unwrap())
    }

    /// Runs a test on a thread with a network namespace of its own.
    pub(crate) fn in_fresh_netns<T: Send>(test: impl FnOnce() -> T + Send) -> T {
        let result = thread::scope(|scope| {
            scope
                .spawn(|| {
                    unshare(CloneFlags::CLONE_NEWNET).expect("tests need root");
                    test()
                })
                .join()
        });
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs a command, given as words parted by spaces, in the namespace of the calling thread.
    pub(crate) fn run(command: &str) -> String {
        let words: Vec<_> = command.split_whitespace().collect();
        stdout(command, Command::new(words[0]).args(&words[1..]).output().unwrap())
    }

    /// Runs a command with something on its standard input.
    pub(crate) fn run_with_input(command: &str, input: &str) -> String {
        use std::{io::Write as _, process::Stdio};
        let words: Vec<_> = command.split_whitespace().collect();
        let mut child = Command::new(words[0])
            .args(&words[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        stdout(command, child.wait_with_output().unwrap())
    }

    fn stdout(command: &str, output: Output) -> String {
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// `ip <command>`.
    pub(crate) fn ip(command: &str) {
        run(&format!("ip {command}"));
    }

    /// Many commands in one process.
    pub(crate) fn ip_batch(lines: &str) {
        run_with_input("ip -batch -", lines);
    }

    /// `ip -j <command>`.
    pub(crate) fn ip_json(command: &str) -> Value {
        serde_json::from_str(&run(&format!("ip -j {command}"))).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        testing::{fresh_netns, in_fresh_netns, ip},
        *,
    };

    #[test]
    fn work_runs_inside_and_the_caller_stays_where_it_is() {
        let before = NetNs::current().unwrap();
        let pod = fresh_netns();
        assert!(before.is_current().unwrap());
        assert!(!pod.is_current().unwrap());
        let text = String::from("borrowed");
        let inside = pod.run(|| (pod.is_current().unwrap(), text.len())).unwrap();
        assert_eq!(inside, (true, 8));
        assert!(before.is_current().unwrap());
    }

    #[test]
    fn one_namespace_by_two_paths_is_the_same() {
        in_fresh_netns(|| {
            let path = format!("/proc/self/task/{}/ns/net", nix::unistd::gettid());
            assert!(NetNs::open(path).unwrap().is_current().unwrap());
        });
    }

    #[test]
    fn a_namespace_outlives_the_thread_that_made_it() {
        let pod = fresh_netns();
        pod.run(|| ip("link add d0 type veth peer name d0p")).unwrap();
        pod.run(|| ip("link show d0")).unwrap();
    }

    #[test]
    fn other_files_and_other_namespaces_are_refused() {
        for path in ["/proc/self/ns/mnt", "/proc/self/status", "/dev/null", "/"] {
            let error = NetNs::open(path).unwrap_err();
            assert!(matches!(error, NetNsError::WrongType { .. }), "{path}: {error}");
            assert_eq!(error.to_string(), format!("{path} is not a network namespace"));
        }
    }

    #[test]
    fn a_missing_path_is_told_apart() {
        let error = NetNs::open("/run/netns/overlay-test-missing").unwrap_err();
        assert!(
            matches!(&error, NetNsError::Open { cause, .. } if cause.kind() == io::ErrorKind::NotFound),
            "{error}"
        );
    }

    #[test]
    #[should_panic(expected = "inner words")]
    fn a_panic_inside_continues_outside() {
        let _ = fresh_netns().run(|| panic!("inner words"));
    }
}
