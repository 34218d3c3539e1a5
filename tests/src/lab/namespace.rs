//! One network namespace with a name, so that `ip netns exec` works on it, and the ways to act in it.
//!
//! Invariant: the thread that calls never changes its own namespace. Code runs on a short-lived thread
//! ([`Namespace::run`]), programs enter between fork and exec ([`Namespace::command`]). A socket belongs to
//! the namespace in which it was made, so `run` that makes one and hands it out is all that most tools need.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns};

use super::{exec, interrupt};

/// Where iproute2 keeps named network namespaces.
pub const NETNS_DIR: &str = "/run/netns";

/// A handle on a named network namespace; the last handle dropped deletes the name.
#[derive(Clone, Debug)]
pub struct Namespace {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    file: File,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = delete(&self.name) {
            eprintln!("lab: cannot delete network namespace {}: {error}", self.name);
        }
    }
}

impl Namespace {
    /// Makes `/run/netns/<name>`, with `lo` up, reverse path filtering off whatever this machine has as its
    /// default (so that a result does not depend on the distribution), and IPv6 addresses that are usable at once
    /// (nobody else gives addresses out here; RFC 4862 section 5.4 would have each wait a second for an objection).
    #[track_caller]
    pub(super) fn create(name: &str) -> Self {
        interrupt::check();
        // `ip netns add` also makes /run/netns a shared mount point once, under a lock.
        exec::must(Command::new("ip").args(["netns", "add", name]), "");
        let path = Path::new(NETNS_DIR).join(name);
        let file =
            File::open(&path).unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()));
        let namespace = Self { inner: Arc::new(Inner { name: name.to_owned(), file }) };
        namespace.ip("link set dev lo up");
        namespace.sysctl("net.ipv4.conf.all.rp_filter", "0");
        namespace.sysctl("net.ipv4.conf.default.rp_filter", "0");
        namespace.sysctl("net.ipv6.conf.default.accept_dad", "0");
        namespace
    }

    /// The name, as `ip netns` takes it.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The path, as `CNI_NETNS` takes it.
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.inner.name)
    }

    /// Runs `work` on a thread inside the namespace and waits for it; a panic goes on in the caller.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let enter = || {
            self.enter().unwrap_or_else(|error| panic!("cannot enter namespace {}: {error}", self.name()));
            work()
        };
        let result = thread::scope(|scope| {
            let thread = thread::Builder::new().name(self.name().to_owned()).spawn_scoped(scope, enter);
            thread.expect("start thread").join()
        });
        result.unwrap_or_else(|payload| resume_unwind(payload))
    }

    /// A program that will run inside the namespace.
    ///
    /// Cheaper than `ip netns exec`; the difference: the mount namespace, hence `/sys`, stays this process's, so
    /// `/sys/class/net` does not show the namespace. `/proc/sys/net` and `/proc/net` do.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let inner = Arc::clone(&self.inner);
        let mut command = Command::new(program);
        // SAFETY: between fork and exec only setns is called, on a descriptor that the closure keeps open.
        unsafe {
            command.pre_exec(move || setns(&inner.file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from));
        }
        command
    }

    /// Runs `ip <words>` in the namespace; it must succeed.
    #[track_caller]
    pub fn ip(&self, words: &str) -> String {
        exec::must(self.command("ip").args(words.split_whitespace()), "")
    }

    /// Runs many `ip` commands, one per line, in one process; all must succeed.
    #[track_caller]
    pub fn ip_batch(&self, lines: &str) {
        exec::must(self.command("ip").args(["-batch", "-"]), lines);
    }

    /// `ip -json <words>` in the namespace, parsed.
    #[track_caller]
    pub fn ip_json(&self, words: &str) -> serde_json::Value {
        let text = self.ip(&format!("-json {words}"));
        let parsed = serde_json::from_str(if text.trim().is_empty() { "[]" } else { &text });
        parsed.unwrap_or_else(|error| panic!("ip -json {words}: {error}: {text}"))
    }

    /// Sets a sysctl below `net.` (dots or slashes between the parts; slashes where a device name has dots).
    #[track_caller]
    pub fn sysctl(&self, key: &str, value: &str) {
        let path = sysctl_path(key);
        let result = self.run(|| fs::write(&path, value));
        result.unwrap_or_else(|error| panic!("cannot set {key}={value} in {}: {error}", self.name()));
    }

    /// Reads a sysctl below `net.`, without the line end.
    #[track_caller]
    pub fn read_sysctl(&self, key: &str) -> String {
        let path = sysctl_path(key);
        let result = self.run(|| fs::read_to_string(&path));
        let text = result.unwrap_or_else(|error| panic!("cannot read {key} in {}: {error}", self.name()));
        text.trim_end().to_owned()
    }

    /// Moves the calling thread into the namespace, for good.
    fn enter(&self) -> nix::Result<()> {
        setns(&self.inner.file, CloneFlags::CLONE_NEWNET)
    }
}

fn sysctl_path(key: &str) -> PathBuf {
    let key = if key.contains('/') { key.to_owned() } else { key.replace('.', "/") };
    Path::new("/proc/sys").join(key)
}

/// Deletes a name made by `ip netns add`; one that is gone already is fine.
pub(super) fn delete(name: &str) -> io::Result<()> {
    let path = Path::new(NETNS_DIR).join(name);
    match umount2(&path, MntFlags::MNT_DETACH) {
        // EINVAL: a file, but nothing is mounted on it (`ip netns add` was killed half-way).
        Ok(()) | Err(Errno::ENOENT | Errno::EINVAL) => {}
        Err(error) => return Err(error.into()),
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
