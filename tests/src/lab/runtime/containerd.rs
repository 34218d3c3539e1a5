//! containerd on a node, driven by its own `ctr`.

use std::sync::atomic::AtomicU32;
use std::time::Duration;

use super::container::{Container, Exec, SERVER};
use super::files::{CONTAINERD_CONF, CRUN};
use super::{Daemon, LIMIT, ROOTFS, Runtimes};
use crate::lab::exec::{self, Output};
use crate::lab::within;

/// A running containerd. It and its containers go with the node's runtimes.
#[derive(Debug)]
pub struct Containerd<'a> {
    runtimes: &'a Runtimes,
    _daemon: Daemon,
}

/// A container that `ctr run` waits for: it is `ctr` that calls the plugin, at the start and at the end.
#[derive(Debug)]
pub struct Attended {
    name: String,
    ctr: Daemon,
    /// The container.
    pub container: Container,
}

impl<'a> Containerd<'a> {
    #[track_caller]
    pub(super) fn start(runtimes: &'a Runtimes) -> Self {
        let mut command = runtimes.command("containerd");
        command.args(["--config", CONTAINERD_CONF]);
        let containerd = Self { runtimes, _daemon: runtimes.spawn(command, "containerd") };
        let answers = || containerd.output(&["version"]).status.success();
        within(LIMIT, "containerd answers", answers);
        containerd
    }

    /// Starts a container with the server of [`Container`], on the network that comes first in the configuration
    /// directory.
    #[track_caller]
    pub fn run(&self, name: &str) -> Attended {
        let mut command = self.runtimes.command("ctr");
        command.args(["run", "--rm", "--cni", "--cap-add=CAP_NET_RAW", "--runc-binary", CRUN]);
        // What podman sets for every container.
        command.arg("--env=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.args(["--rootfs", ROOTFS, name]).args(SERVER);
        let mut ctr = self.runtimes.spawn(command, &format!("ctr-{name}"));
        let started = || {
            assert!(
                !ctr.ends_within(Duration::ZERO),
                "ctr run {name} on {}: {}",
                self.runtimes.node,
                self.runtimes.log(&format!("ctr-{name}"))
            );
            self.output(&["task", "ls", "-q"]).stdout.lines().any(|task| task == name)
        };
        within(LIMIT, "ctr starts a task", started);
        let label = format!("containerd's {name} on {}", self.runtimes.node);
        let exec = Exec::Ctr(name.to_owned(), AtomicU32::new(0));
        let container = Container::new(label, self.runtimes.entrance.clone(), exec);
        Attended { name: name.to_owned(), ctr, container }
    }

    /// Kills a container; returns when `ctr` has taken it off the network and removed it.
    #[track_caller]
    pub fn kill(&self, mut attended: Attended) {
        let name = &attended.name;
        self.must(&["task", "kill", "--signal", "SIGKILL", name]);
        assert!(attended.ctr.ends_within(LIMIT), "ctr still waits for {name}, which was killed");
        // It says so when the plugin failed.
        let log = self.runtimes.log(&format!("ctr-{name}"));
        assert!(!log.contains("plugin"), "ctr run {name} on {}: {log}", self.runtimes.node);
        let left = self.must(&["container", "ls", "-q"]);
        assert!(!left.lines().any(|line| line == name), "{name} is still there: {left}");
    }

    #[track_caller]
    fn must(&self, arguments: &[&str]) -> String {
        let out = self.output(arguments);
        assert!(
            out.status.success(),
            "ctr {} on {}: {}{}",
            arguments.join(" "),
            self.runtimes.node,
            out.stdout,
            out.stderr
        );
        out.stdout
    }

    #[track_caller]
    fn output(&self, arguments: &[&str]) -> Output {
        let out = exec::output(self.runtimes.command("ctr").args(arguments), b"", LIMIT);
        out.unwrap_or_else(|error| panic!("cannot run ctr on {}: {error}", self.runtimes.node))
    }
}
