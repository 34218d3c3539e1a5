//! `cargo xtask run`: the agent on this node, or with `--lab` a three-node cluster on this machine.
//!
//! Both replace xtask by the program that was built, so that signals and the exit code are its own.

use std::{
    ffi::OsString,
    fs,
    net::{IpAddr, UdpSocket},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::{
    ebpf,
    setup::{self, Part},
    workspace::{self, OBJECT_VARIABLE, Profile, Workspace},
};

#[derive(Args)]
pub(crate) struct Options {
    /// Configuration of the agent
    #[arg(long, value_name = "FILE", default_value = "/etc/overlay/overlay.toml", conflicts_with = "lab")]
    config: PathBuf,
    /// Name of this node in the configuration; by default its host name
    #[arg(long, conflicts_with = "lab")]
    node: Option<String>,
    /// Run a three-node cluster made of network namespaces, and prove that it works
    #[arg(long)]
    lab: bool,
    /// Exit after the table of proofs instead of staying up
    #[arg(long, requires = "lab")]
    once: bool,
    /// Print the proofs as JSON, and nothing else, on standard output
    #[arg(long, requires = "lab")]
    json: bool,
    /// How the wires of the lab behave
    #[arg(long, requires = "lab")]
    wire: Option<Wire>,
    /// Address families of the lab's pods; IPv4 if not said
    #[arg(long, requires = "lab")]
    families: Option<Families>,
    /// Address families of the lab's underlay; those of the pods if not said
    #[arg(long, requires = "lab")]
    underlay: Option<Families>,
    /// More arguments for the program that is run
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Wire {
    /// A veth pair as the kernel makes it
    W1,
    /// Like a network card: segmentation off at the sender, GRO on at the receiver
    W2,
}

#[derive(Clone, Copy, ValueEnum)]
enum Families {
    /// IPv4 alone
    Ipv4,
    /// IPv6 alone
    Ipv6,
    /// Both
    Dual,
}

impl Families {
    const fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
            Self::Dual => "dual",
        }
    }
}

/// Runs the agent or the lab; returns only if that could not be started.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    if options.lab { lab(workspace, options) } else { agent(workspace, options) }
}

fn agent(workspace: &Workspace, options: &Options) -> Result<()> {
    let config = std::path::absolute(&options.config).context("find the current directory")?;
    if !config.is_file() {
        let (node, address) = (host_name(), own_address());
        bail!("{}", advice(&config, &node, address));
    }
    require_root(
        "cargo xtask build --release",
        &format!("target/release/overlay agent --config {}", config.display()),
    )?;
    setup::ensure(&[Part::Host, Part::Bpf, Part::Agent])?;
    let object = ebpf::build(workspace)?;
    let [binary] = workspace.build(Profile::Release, ["overlay"], &object)?;
    let mut command = Command::new(binary);
    command.arg("agent").arg("--config").arg(config);
    if let Some(node) = &options.node {
        command.args(["--node", node]);
    }
    replace_by(command.args(&options.arguments))
}

fn lab(workspace: &Workspace, options: &Options) -> Result<()> {
    require_root("cargo xtask setup", "cargo xtask run --lab")?;
    setup::ensure(&[Part::Host, Part::Bpf, Part::Agent, Part::Lab])?;
    let object = ebpf::build(workspace)?;
    let [overlay, lab] = workspace.build(Profile::Release, ["overlay", "lab"], &object)?;
    let mut command = Command::new(lab);
    command.env("OVERLAY_BIN", overlay).env(OBJECT_VARIABLE, object).arg("run");
    command.args(lab_arguments(options));
    replace_by(command.args(&options.arguments))
}

fn lab_arguments(options: &Options) -> Vec<&'static str> {
    let mut arguments = Vec::new();
    if options.once {
        arguments.push("--once");
    }
    if options.json {
        arguments.push("--json");
    }
    match options.wire {
        Some(Wire::W1) => arguments.extend(["--wire", "w1"]),
        Some(Wire::W2) => arguments.extend(["--wire", "w2"]),
        None => {}
    }
    for (flag, families) in [("--families", options.families), ("--underlay", options.underlay)] {
        arguments.extend(families.iter().flat_map(|families| [flag, families.name()]));
    }
    arguments
}

/// Replaces xtask by a program; returns only if that could not be started.
pub(crate) fn replace_by(command: &mut Command) -> Result<()> {
    let error = command.exec();
    Err(error).with_context(|| format!("start {}", workspace::line(command)))
}

/// Fails early, before a long build, with what to do instead.
pub(crate) fn require_root(prepare: &str, run: &str) -> Result<()> {
    if workspace::is_root() {
        return Ok(());
    }
    bail!("loading eBPF programs needs root: prepare with `{prepare}`, then run as root `{run}`")
}

/// What to do on a node without a configuration.
fn advice(config: &Path, node: &str, address: Option<IpAddr>) -> String {
    let address = address.map_or_else(|| "203.0.113.1".to_owned(), |address| address.to_string());
    format!(
        r#"there is no configuration at {config}

To see overlay work without one, in a three-node cluster on this machine:

    cargo xtask run --lab

To run it on this node, write {config} (the same on every node; name the nodes that there are):

    [network]
    cidr = "10.244.0.0/16"      # addresses of all pods

    [[nodes]]
    name = "{node}"
    address = "{address}"
    subnet = "10.244.1.0/24"    # addresses of the pods on this node

    # [[nodes]]
    # name = "another-node"
    # address = "203.0.113.2"
    # subnet = "10.244.2.0/24"
"#,
        config = config.display()
    )
}

fn host_name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "node-1".to_owned())
}

/// The address that this machine would use towards the world. Connecting a UDP socket sends nothing: it
/// only makes the kernel choose a route and a source address.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).ok()?;
    socket.connect(("192.0.2.1", 9)).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn parse(arguments: &[&str]) -> Result<Options, clap::Error> {
        Line::try_parse_from(["run"].iter().chain(arguments)).map(|line| line.options)
    }

    #[test]
    fn lab_flags_are_passed_on() {
        let flags = ["--once", "--json", "--wire", "w2", "--families", "dual", "--underlay", "ipv6"];
        let options = parse(&[&["--lab"], &flags[..]].concat()).unwrap();
        assert_eq!(lab_arguments(&options), flags);
        assert!(lab_arguments(&parse(&["--lab"]).unwrap()).is_empty());
    }

    #[test]
    fn flags_of_the_lab_need_the_lab_and_those_of_the_agent_exclude_it() {
        for arguments in [
            &["--once"][..],
            &["--json"],
            &["--wire", "w1"],
            &["--families", "ipv6"],
            &["--underlay", "ipv6"],
            &["--lab", "--config", "f"],
        ] {
            assert!(parse(arguments).is_err(), "{arguments:?}");
        }
        let options = parse(&["--config", "f", "--node", "n1", "--", "--pins", "/p"]).unwrap();
        assert_eq!(options.arguments, ["--pins", "/p"]);
    }

    #[test]
    fn a_node_without_configuration_is_told_what_to_write() {
        let text = advice(Path::new("/etc/overlay/overlay.toml"), "n7", Some(IpAddr::from([10, 0, 0, 7])));
        for line in ["cargo xtask run --lab", "name = \"n7\"", "address = \"10.0.0.7\"", "[[nodes]]"] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }
}
