//! The host that the plugins run on: the network namespace that they take for the machine's, and where they keep
//! state.
//!
//! Isolated (the default), this process moves into a network and a mount namespace of its own before anything else
//! happens, with `/run/netns` and the state directories empty and private: however the process ends, the kernel
//! removes everything, and nothing of it was seen on the machine. A plugin that needs a daemon cannot work in there: it
//! runs in the current network namespace or in a named one, with the machine's file system.
//!
//! Invariant: [`Host::enter`] runs before the first thread is started; namespaces belong to threads.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use super::exec;

/// Where iproute2 keeps named network namespaces.
const NETNS_DIR: &str = "/run/netns";

/// How long `ip`, `nft` and the like may take.
const TOOL_LIMIT: Duration = Duration::from_secs(10);

/// Which host the plugins are given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scope {
    /// One made for this run, with an `eth0` that leads nowhere for an uplink.
    Isolated,
    /// The current network namespace.
    Here,
    /// A named network namespace, or the path of one.
    Netns(String),
}

/// The host that was entered.
#[derive(Debug)]
pub(crate) struct Host {
    prefix: String,
    counter: AtomicU32,
    state_dirs: Vec<PathBuf>,
    isolated: bool,
}

impl Host {
    /// Enters the host.
    pub(crate) fn enter(scope: &Scope, state_dirs: Vec<PathBuf>) -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root");
        let prefix = format!("cnic-{}-", std::process::id());
        let isolated = *scope == Scope::Isolated;
        let host = Self { prefix, counter: AtomicU32::new(0), state_dirs, isolated };
        match scope {
            Scope::Here => {}
            Scope::Netns(name) => {
                let path =
                    if name.contains('/') { PathBuf::from(name) } else { Path::new(NETNS_DIR).join(name) };
                let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
                setns(file, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("enter network namespace {}", path.display()))?;
            }
            Scope::Isolated => host.isolate()?,
        }
        Ok(host)
    }

    fn isolate(&self) -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
            .context("make a network and a mount namespace")?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make mounts private")?;
        // sysfs shows the network namespace of whoever mounted it.
        mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).context("mount /sys")?;
        for (kind, path) in [("cgroup2", "/sys/fs/cgroup"), ("bpf", "/sys/fs/bpf")] {
            // Few plugins want these, and not every kernel has them.
            let _ = mount(Some(kind), path, Some(kind), MsFlags::empty(), none);
        }
        for dir in [PathBuf::from(NETNS_DIR)].iter().chain(&self.state_dirs) {
            // Stays, empty, where it was missing: removing it would take away the mounts of other runs on it.
            fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
            mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), none)
                .with_context(|| format!("mount a private {}", dir.display()))?;
        }
        for words in [
            "link set lo up",
            "link add eth0 type veth peer name uplink",
            "address add 192.0.2.1/24 dev eth0",
            "link set eth0 up",
            "link set uplink up",
            "route add default via 192.0.2.254 dev eth0",
        ] {
            tool("ip", words)?;
        }
        Ok(())
    }

    /// A name that nothing else on this machine has, for a container.
    pub(crate) fn new_name(&self) -> String {
        format!("{}{}", self.prefix, self.counter.fetch_add(1, Ordering::Relaxed))
    }

    /// Whether a name is one of [`Host::new_name`].
    pub(crate) fn owns(&self, name: &str) -> bool {
        name.starts_with(&self.prefix)
    }

    /// Whether nothing else runs on this host.
    pub(crate) fn is_isolated(&self) -> bool {
        self.isolated
    }

    /// Directories whose listing is part of the host's state.
    pub(crate) fn state_dirs(&self) -> &[PathBuf] {
        &self.state_dirs
    }
}

/// Where a container's network namespace is, as `CNI_NETNS` takes it.
pub(crate) fn netns_path(name: &str) -> String {
    format!("{NETNS_DIR}/{name}")
}

/// Runs a tool with words for arguments; gives its standard output.
///
/// Errors: it is missing, or fails.
pub(crate) fn tool(program: &str, words: &str) -> Result<String> {
    let done = exec::run(Command::new(program).args(words.split_whitespace()), b"", TOOL_LIMIT)
        .with_context(|| format!("run {program}"))?;
    ensure!(done.status.success(), "{program} {words}: {}: {}", done.status, done.stderr.trim());
    Ok(done.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_recognised() {
        let host = Host {
            prefix: "cnic-1-".to_owned(),
            counter: AtomicU32::new(0),
            state_dirs: Vec::new(),
            isolated: true,
        };
        let (first, second) = (host.new_name(), host.new_name());
        assert_ne!(first, second);
        assert!(host.owns(&first) && !host.owns("cnic-12-0"));
    }

    #[test]
    fn a_tool_that_fails_says_why() {
        let error = tool("ip", "link show dev no-such-device").unwrap_err();
        assert!(error.to_string().contains("no-such-device"), "{error}");
        assert!(tool("no-such-program", "").is_err());
    }
}
