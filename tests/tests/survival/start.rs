//! Starts that are cut off, or that two agents attempt at once.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use nix::sys::signal::Signal;
use overlay_tests::attached::{Attached, Mode};
use overlay_tests::lab::{
    AgentOptions, Cluster, ClusterFile, Families, Lab, Lan, Link, Network, Node, Pod, exec,
};
use overlay_tests::traffic::ping;
use overlay_tests::traffic::steady::{Pods, Steady, connected};

/// A start is cut off after each of as many equal parts of the time that a whole one takes.
const PARTS: u32 = 8;

/// A LAN of nodes in one cluster, whose agents have never run.
struct Fresh {
    nodes: Vec<Node>,
    _lan: Lan,
    lab: Lab,
}

impl Fresh {
    fn new(count: u8, mode: Mode) -> Self {
        let lab = Lab::new();
        let lan = Lan::new(&lab, "lan", Link::default());
        let node = |number: u8| {
            let underlay = Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 2, 100 + number), 24);
            let subnet = Ipv4Net::new_assert(Ipv4Addr::new(10, 244, number, 0), 24);
            Node::builder(&format!("n{number}"), underlay, subnet).on_lan(&lab, &lan)
        };
        let nodes: Vec<_> = (0..count).map(node).collect();
        let network = Network { attach: Some(mode.name().to_owned()), ..Network::default() };
        lab.write_cluster(&ClusterFile { network, nodes: nodes.iter().map(Node::entry).collect() });
        Self { nodes, _lan: lan, lab }
    }

    /// All nodes are as a first start leaves them, and a pod on each reaches the next one's.
    #[track_caller]
    fn are_whole(&self, mode: Mode) {
        for node in &self.nodes {
            Attached::read(node, mode);
            let pinned = |what: &str| {
                let entries = fs::read_dir(node.pins().join(what)).unwrap();
                let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
                let mut names: Vec<_> = names.collect();
                names.sort();
                names
            };
            let name = node.name();
            assert_eq!(
                pinned("maps"),
                [
                    "CNI_CALLS",
                    "COUNTERS",
                    "DROPS",
                    "ENDPOINTS",
                    "EVENTS",
                    "FLOW_SWITCH",
                    "HOST_PORTS",
                    "LEASE_CURSOR",
                    "LOCAL",
                    "NODES",
                    "NODE_NAMES",
                    "POD_NAMES",
                    "STACK_FLOWS",
                    "TRACE_SWITCH",
                ],
                "{name}"
            );
            assert_eq!(
                pinned("programs"),
                ["from_host", "from_pod", "from_tunnel", "from_wire", "to_pod"],
                "{name}"
            );
            let nodes = node.show("nodes");
            assert_eq!(nodes.as_array().expect("a list").len(), 2 * self.nodes.len(), "{name}");
        }
        let pods: Vec<Pod> = self.nodes.iter().map(|node| node.add_pod(&self.lab, "a")).collect();
        for (from, to) in pods.iter().zip(pods.iter().cycle().skip(1)) {
            ping::ping(from.namespace(), to.addr().into()).unwrap();
        }
    }
}

fn first_starts_are_cut_off(mode: Mode) {
    let fresh = Fresh::new(PARTS as u8 + 1, mode);
    let (whole, cut) = fresh.nodes.split_first().unwrap();
    let part = whole.start_agent() / PARTS;
    for (number, node) in (0..).zip(cut) {
        // Every other one twice: a start cut off on top of one cut off before.
        for _ in 0..=number % 2 {
            node.spawn_agent(&AgentOptions::default());
            thread::sleep(part * number);
            node.kill_agent(Signal::SIGKILL);
        }
    }
    for node in cut {
        node.spawn_agent(&AgentOptions::default());
    }
    for node in cut {
        node.wait_agent_ready();
    }
    fresh.are_whole(mode);
}

#[test]
fn a_first_start_that_is_killed_is_healed_by_the_next() {
    first_starts_are_cut_off(Mode::Tcx);
}

#[test]
fn a_first_start_that_is_killed_is_healed_by_the_next_with_clsact() {
    first_starts_are_cut_off(Mode::Clsact);
}

fn restarts_are_cut_off(mode: Mode, families: Families) {
    let network = Network { attach: Some(mode.name().to_owned()), ..Network::default() };
    let cluster = Cluster::builder().network(network).families(families).start();
    let pods = Pods::new(&cluster);
    let cp = cluster.node("cp");
    let steady = Steady::start(&cluster, &pods, true);
    let before = Attached::read(cp, mode);
    let part = cp.restart_agent() / PARTS;
    cp.kill_agent(Signal::SIGKILL);
    for number in 0..PARTS {
        cp.spawn_agent(&AgentOptions::default());
        thread::sleep(part * number);
        cp.kill_agent(Signal::SIGKILL);
    }
    cp.start_agent();
    Attached::read(cp, mode).adopts(&before);
    steady.lost_nothing();
    connected(&cluster, &cluster.add_pod("cp", "new"), &pods.all());
}

#[test]
fn a_restart_that_is_killed_loses_nothing() {
    restarts_are_cut_off(Mode::Tcx, Families::Ipv4);
}

#[test]
fn a_restart_that_is_killed_loses_nothing_with_clsact() {
    restarts_are_cut_off(Mode::Clsact, Families::Ipv4);
}

#[test]
fn a_restart_that_is_killed_loses_nothing_in_both_families() {
    restarts_are_cut_off(Mode::Tcx, Families::Dual);
}

/// An agent of its own, beside the one that a node may have. Dropping it kills it.
struct Rival {
    child: Child,
    log: PathBuf,
}

impl Rival {
    fn spawn(fresh: &Fresh, node: &Node, name: &str) -> Self {
        let log = fresh.lab.dir().join(format!("{}-{name}.log", node.name()));
        let mut command = node.agent_command(&AgentOptions::default());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap());
        Self { child: exec::spawn_tied(command).unwrap(), log }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn of_two_agents_that_start_at_once_one_is_refused_and_the_other_is_whole() {
    let fresh = Fresh::new(6, Mode::Tcx);
    let pairs: Vec<[Rival; 2]> =
        fresh.nodes.iter().map(|node| ["one", "two"].map(|name| Rival::spawn(&fresh, node, name))).collect();
    let mut winners = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(15);
    for pair in pairs {
        let [mut one, mut two] = pair;
        while !one.has_ended() && !two.has_ended() {
            assert!(Instant::now() < deadline, "both agents run:\n{}\n{}", one.log(), two.log());
            thread::sleep(Duration::from_millis(10));
        }
        let (mut winner, loser) = if one.has_ended() { (two, one) } else { (one, two) };
        let said = loser.log();
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains("another overlay agent is running"), "{said}");
        while !winner.log().contains(" is ready") {
            let late = Instant::now() >= deadline;
            assert!(!winner.has_ended() && !late, "neither agent is ready:\n{}\n{said}", winner.log());
            thread::sleep(Duration::from_millis(10));
        }
        winners.push(winner);
    }
    fresh.are_whole(Mode::Tcx);
}
