//! Agents that die, come back, come back different, or come twice, under steady traffic.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use overlay_tests::attached::{Attached, Mode};
use overlay_tests::lab::{AgentOptions, Cluster, ClusterFile, Families, Network, Node, exec};
use overlay_tests::traffic::steady::{Pods, Steady, connected};

/// How long an agent that has to refuse may take.
const REFUSAL: Duration = Duration::from_secs(10);

fn network(mode: Mode) -> Network {
    Network { attach: Some(mode.name().to_owned()), ..Network::default() }
}

fn cluster(mode: Mode) -> Cluster {
    Cluster::builder().network(network(mode)).start()
}

fn attached(cluster: &Cluster, mode: Mode) -> Vec<Attached> {
    cluster.nodes().iter().map(|node| Attached::read(node, mode)).collect()
}

fn agents_die_and_come_back(mode: Mode, families: Families) {
    let cluster = Cluster::builder().network(network(mode)).families(families).start();
    let pods = Pods::new(&cluster);
    let steady = Steady::start(&cluster, &pods, true);
    let before = attached(&cluster, mode);
    for node in cluster.nodes() {
        node.kill_agent(Signal::SIGKILL);
    }
    assert_eq!(attached(&cluster, mode), before);
    thread::sleep(Duration::from_millis(300));

    let new = [cluster.add_pod("cp", "new"), cluster.add_pod("w2", "new")];
    let all: Vec<_> = pods.all().into_iter().chain([&new[0]]).collect();
    connected(&cluster, &new[1], &all);
    connected(&cluster, &new[0], &pods.all());
    let dead = attached(&cluster, mode);
    let endpoints: Vec<_> = cluster.nodes().iter().map(|node| node.show("endpoints")).collect();

    cluster.start_agents();
    for ((node, dead), endpoints) in cluster.nodes().iter().zip(&dead).zip(&endpoints) {
        Attached::read(node, mode).adopts(dead);
        assert_eq!(node.show("endpoints"), *endpoints, "{}", node.name());
    }
    steady.lost_nothing();
    connected(&cluster, &new[0], &all[..4]);
}

#[test]
fn killed_agents_lose_nothing_and_new_pods_start_without_them() {
    agents_die_and_come_back(Mode::best(), Families::Ipv4);
}

#[test]
fn killed_agents_lose_nothing_and_new_pods_start_without_them_with_clsact() {
    agents_die_and_come_back(Mode::Clsact, Families::Ipv4);
}

#[test]
fn killed_agents_lose_nothing_and_new_pods_start_without_them_in_ipv6_alone() {
    agents_die_and_come_back(Mode::best(), Families::Ipv6);
}

#[test]
fn killed_agents_lose_nothing_and_new_pods_start_without_them_in_both_families() {
    agents_die_and_come_back(Mode::best(), Families::Dual);
}

/// A cluster file of this network, beside the one that all others read.
fn file_of(cluster: &Cluster, name: &str, network: Network) -> PathBuf {
    let path = cluster.lab().dir().join(format!("{name}.toml"));
    ClusterFile { network, nodes: cluster.entries() }.write(&path).unwrap();
    path
}

/// Kills the agent of `node` and starts it with another network.
#[track_caller]
fn restart_with(cluster: &Cluster, node: &Node, name: &str, network: Network) {
    node.kill_agent(Signal::SIGKILL);
    let config = Some(file_of(cluster, name, network));
    node.spawn_agent(&AgentOptions { config, ..AgentOptions::default() });
    node.wait_agent_ready();
}

fn mtu_of(node: &Node) -> u64 {
    node.status().expect("overlay status works")["mtu"].as_u64().expect("an MTU")
}

fn configurations_change(mode: Mode) {
    let cluster = cluster(mode);
    let pods = Pods::new(&cluster);
    let cp = cluster.node("cp");

    let steady = Steady::start(&cluster, &pods, true);
    let before = Attached::read(cp, mode);
    restart_with(&cluster, cp, "mtu", Network { mtu: Some(1400), ..network(mode) });
    Attached::read(cp, mode).adopts(&before);
    steady.lost_nothing();
    assert_eq!(mtu_of(cp), 1400);
    let small = cluster.add_pod("cp", "small");
    assert_eq!(small.namespace().ip_json("link show dev eth0")[0]["mtu"], 1400);
    assert_eq!(pods.a.namespace().ip_json("link show dev eth0")[0]["mtu"], 1450);
    connected(&cluster, &small, &pods.all());

    let steady = Steady::start(&cluster, &pods, false);
    let before = Attached::read(cp, mode);
    restart_with(&cluster, cp, "bare", Network { masquerade: false, ..network(mode) });
    Attached::read(cp, mode).adopts(&before);
    steady.lost_nothing();
    let rules = exec::must(cp.namespace().command("nft").args(["list", "table", "ip", "overlay"]), "");
    // What Services need is there, and nothing for the world.
    assert!(rules.contains("chain services") && !rules.contains("chain postrouting"), "{rules}");
}

#[test]
fn a_restart_with_another_configuration_loses_nothing() {
    configurations_change(Mode::Tcx);
}

#[test]
fn a_restart_with_another_configuration_loses_nothing_with_clsact() {
    configurations_change(Mode::Clsact);
}

#[test]
fn a_change_of_the_way_of_attaching_is_no_outage() {
    let cluster = cluster(Mode::Tcx);
    let pods = Pods::new(&cluster);
    let cp = cluster.node("cp");
    for mode in [Mode::Clsact, Mode::Tcx, Mode::Clsact] {
        let steady = Steady::start(&cluster, &pods, true);
        restart_with(&cluster, cp, mode.name(), network(mode));
        Attached::read(cp, mode);
        // A qdisc that is added deactivates its device for a moment (`qdisc_graft`, net/sched/sch_api.c).
        steady.lost_at_most(5);
        let new = cluster.add_pod("cp", "new");
        connected(&cluster, &new, &pods.all());
        new.del();
    }
}

#[test]
fn a_second_agent_is_refused_and_the_first_is_not_disturbed() {
    let cluster = cluster(Mode::Tcx);
    let pods = Pods::new(&cluster);
    let cp = cluster.node("cp");
    let steady = Steady::start(&cluster, &pods, true);
    let (before, pid) = (Attached::read(cp, Mode::Tcx), cp.agent_pid());
    let other = file_of(&cluster, "other", Network { mtu: Some(1300), ..network(Mode::Clsact) });
    for config in [None, Some(other)] {
        let mut second = cp.agent_command(&AgentOptions { config, ..AgentOptions::default() });
        let out = exec::output(&mut second, b"", REFUSAL).unwrap();
        assert_eq!(out.status.code(), Some(1), "{out:?}");
        assert_eq!(out.stderr.lines().count(), 1, "{out:?}");
        assert!(out.stderr.contains("another overlay agent is running"), "{out:?}");
    }
    assert_eq!(Attached::read(cp, Mode::Tcx), before);
    assert_eq!((cp.agent_pid(), mtu_of(cp)), (pid, 1450));
    steady.lost_nothing();
    cp.stop_agent();
}
