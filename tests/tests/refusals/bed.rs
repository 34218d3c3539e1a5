//! One node on a LAN, no agent; its state before and after a refusal.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use aya::programs::{SchedClassifier, TcAttachType};
use ipnet::Ipv4Net;
use overlay_tests::lab::{AgentOptions, ClusterFile, Lab, Lan, Link, Network, Node, NodeEntry, exec};

/// A refusal takes milliseconds; a debug build on a busy machine takes longer.
const LIMIT: Duration = Duration::from_secs(15);

/// Fields drop in order: the lab last.
pub(crate) struct Bed {
    pub(crate) node: Node,
    pub(crate) lan: Lan,
    pub(crate) lab: Lab,
}

impl Bed {
    /// A node that does not forward, as a machine comes, with a good file.
    #[track_caller]
    pub(crate) fn new() -> Self {
        let lab = Lab::new();
        let lan = Lan::new(&lab, "lan", Link::default());
        let underlay = Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 2, 1), 24);
        let node = Node::builder("a", underlay, "10.244.1.0/24".parse().unwrap()).on_lan(&lab, &lan);
        node.namespace().sysctl("net.ipv4.ip_forward", "0");
        // Its addresses change by themselves for a while.
        node.namespace().sysctl("net.ipv6.conf.eth0.disable_ipv6", "1");
        let bed = Self { node, lan, lab };
        bed.write(&Network::default());
        bed
    }

    pub(crate) fn peer() -> NodeEntry {
        NodeEntry {
            name: "b".to_owned(),
            address: Ipv4Addr::new(192, 0, 2, 2).into(),
            subnet: "10.244.2.0/24".parse().unwrap(),
            vtep_mac: None,
        }
    }

    /// The good file's text, with these settings.
    pub(crate) fn text(&self, network: &Network) -> String {
        ClusterFile { network: network.clone(), nodes: vec![self.node.entry(), Self::peer()] }.to_toml()
    }

    #[track_caller]
    pub(crate) fn write(&self, network: &Network) {
        fs::write(self.lab.cluster_file(), self.text(network)).unwrap();
    }

    /// The agent's command line as the lab has it.
    pub(crate) fn agent(&self) -> Command {
        self.node.agent_command(&AgentOptions::default())
    }

    /// The agent, started by `program` with `arguments` of its own: `setpriv`, `setarch`, ….
    pub(crate) fn agent_by(&self, program: &str, arguments: &[&str], binary: Option<&Path>) -> Command {
        let agent = self.agent();
        let mut command = self.node.namespace().command(program);
        command.args(arguments).arg(binary.map_or(agent.get_program(), Path::as_os_str));
        command.args(agent.get_args());
        command
    }

    /// Runs a command that has to refuse: exit status 1, and one line that has all of `words` in it. The node is as before.
    #[track_caller]
    pub(crate) fn refuses(&self, mut command: Command, words: &[&str]) -> String {
        let before = self.state();
        let out = exec::output(&mut command, b"", LIMIT).unwrap();
        assert_eq!(out.status.code(), Some(1), "{}{}", out.stdout, out.stderr);
        assert_eq!(out.stdout, "");
        assert_eq!(out.stderr.lines().count(), 1, "not one line:\n{}", out.stderr);
        for word in words {
            assert!(out.stderr.contains(word), "{word:?} is not in: {}", out.stderr);
        }
        assert!(out.stderr.starts_with("overlay: "), "{}", out.stderr);
        assert_eq!(changes(&before, &self.state()), [""; 0], "{}", out.stderr);
        println!("{}", out.stderr.trim_end());
        out.stderr
    }

    /// Everything that a start changes: links, addresses, routes, neighbours, rules, settings, pins, programs.
    #[track_caller]
    pub(crate) fn state(&self) -> String {
        let host = self.node.namespace();
        let mut state = String::new();
        for words in ["-br link", "-o addr", "route show table all", "neigh show nud permanent"] {
            let _ = writeln!(state, "{}", host.ip(words));
        }
        let rules = exec::must(host.command("nft").args(["-s", "list", "ruleset"]), "");
        let _ = writeln!(state, "{rules}");
        for key in
            ["net.ipv4.ip_forward", "net.ipv4.conf.eth0.forwarding", "net.ipv4.conf.default.forwarding"]
        {
            let _ = writeln!(state, "{key} = {}", host.read_sysctl(key));
        }
        let _ = writeln!(state, "qdisc {}", exec::must(host.command("tc").args(["qdisc", "show"]), ""));
        let mut pins = Vec::new();
        // The directory of the node exists; what is below is the agent's.
        list(self.node.pins().parent().unwrap(), &mut pins);
        pins.sort();
        let _ = writeln!(state, "{pins:#?}");
        let _ = writeln!(state, "{} programs on eth0", self.programs_on("eth0"));
        state
    }

    /// Programs attached to a device by tcx.
    #[track_caller]
    pub(crate) fn programs_on(&self, device: &str) -> usize {
        self.node.namespace().run(|| {
            [TcAttachType::Ingress, TcAttachType::Egress]
                .map(|kind| SchedClassifier::query_tcx(device, kind).unwrap().1.len())
                .iter()
                .sum()
        })
    }
}

/// The lines that two states do not have in common.
pub(crate) fn changes<'a>(before: &'a str, after: &'a str) -> Vec<&'a str> {
    let only = |one: &'a str, other: &'a str| {
        let others: Vec<_> = other.lines().collect();
        one.lines().filter(move |line| !others.contains(line))
    };
    only(before, after).chain(only(after, before)).collect()
}

fn list(directory: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        paths.push(entry.path());
        if entry.file_type().unwrap().is_dir() {
            list(&entry.path(), paths);
        }
    }
}
