//! podman on a node.

use serde_json::Value;

use super::container::{Container, Exec, SERVER};
use super::{LIMIT, ROOTFS, Runtimes};
use crate::lab::exec::{self, Output};

/// podman, for as long as the node's runtimes live. It has no daemon.
#[derive(Debug, Clone, Copy)]
pub struct Podman<'a> {
    runtimes: &'a Runtimes,
}

impl<'a> Podman<'a> {
    pub(super) fn new(runtimes: &'a Runtimes) -> Self {
        Self { runtimes }
    }

    /// Starts a container with the server of [`Container`] on these networks: the first is its `eth0`, the next `eth1`.
    #[track_caller]
    pub fn run(&self, name: &str, networks: &[&str]) -> Container {
        self.run_with(name, networks, &[])
    }

    /// As [`Podman::run`], with more options of `podman run`.
    #[track_caller]
    pub fn run_with(&self, name: &str, networks: &[&str], options: &[&str]) -> Container {
        // podman would name the devices in any order.
        let devices = (0..).map(|index| format!("eth{index}"));
        let networks = networks.iter().zip(devices);
        let networks: Vec<_> =
            networks.map(|(name, dev)| format!("--network={name}:interface_name={dev}")).collect();
        let mut arguments = vec!["run", "--detach", "--cgroups=disabled", "--cap-add=NET_RAW"];
        arguments.extend(networks.iter().map(String::as_str));
        arguments.extend(options);
        arguments.extend(["--name", name, "--rootfs", ROOTFS]);
        arguments.extend(SERVER);
        self.must(&arguments);
        self.running(name)
    }

    /// The container of this name, which runs.
    #[track_caller]
    pub fn running(&self, name: &str) -> Container {
        let label = format!("podman's {name} on {}", self.runtimes.node);
        Container::new(label, self.runtimes.entrance.clone(), Exec::Podman(name.to_owned()))
    }

    /// Removes a container, running or not.
    #[track_caller]
    pub fn remove(&self, name: &str) {
        self.must(&["rm", "--force", "--time", "0", name]);
    }

    /// What `podman inspect` says of a container.
    #[track_caller]
    pub fn inspect(&self, name: &str) -> Value {
        let text = self.must(&["inspect", name]);
        let parsed: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        parsed[0].clone()
    }

    /// Runs `podman <arguments>`, which must succeed; gives the standard output.
    #[track_caller]
    pub fn must(&self, arguments: &[&str]) -> String {
        let out = self.output(arguments);
        assert!(
            out.status.success(),
            "podman {} on {}: {}: {}{}",
            arguments.join(" "),
            self.runtimes.node,
            out.status,
            out.stdout,
            out.stderr
        );
        out.stdout
    }

    /// Runs `podman <arguments>`.
    #[track_caller]
    pub fn output(&self, arguments: &[&str]) -> Output {
        let out = exec::output(self.runtimes.command("podman").args(arguments), b"", LIMIT);
        out.unwrap_or_else(|error| panic!("cannot run podman on {}: {error}", self.runtimes.node))
    }
}
