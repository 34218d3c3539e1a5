//! The plugin called by container runtimes as Debian packages them, on two nodes: what they start reaches everything
//! else, and what they remove leaves nothing behind.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests panic, in helper functions as well, to keep the line number"
)]

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use overlay_tests::lab::runtime::{NETWORK, Peer, PodServer, Runtimes, conflist, plugin};
use overlay_tests::lab::{Cluster, Namespace, Node, exec};
use serde_json::{Value, json};

/// Everything on a node that the plugin may touch, line by line: links, addresses, routes, permanent neighbours, rules,
/// pins and leases. (IPv4: what the kernel does about IPv6 on its own takes its time.)
#[track_caller]
fn state(node: &Node) -> BTreeSet<String> {
    let host = node.namespace();
    let mut lines = BTreeSet::new();
    for words in ["-br link", "-4 -o addr", "-4 route show table all", "neigh show nud permanent"] {
        lines.extend(host.ip(words).lines().map(|line| format!("{words}: {line}")));
    }
    let rules = exec::must(host.command("nft").args(["-s", "list", "ruleset"]), "");
    lines.extend(rules.lines().map(str::to_owned));
    list(node.pins(), &mut lines);
    for what in ["endpoints", "links"] {
        let shown = node.show(what);
        let entries = shown.as_array().unwrap_or_else(|| panic!("overlay {what} shows no list: {shown}"));
        lines.extend(entries.iter().map(|entry| format!("{what}: {entry}")));
    }
    lines
}

/// What `node` has now and did not have before, and the other way round.
#[track_caller]
fn assert_unchanged(node: &Node, before: &BTreeSet<String>) {
    let after = state(node);
    let changes: Vec<_> = after.symmetric_difference(before).collect();
    assert!(changes.is_empty(), "{} is not as it was: {changes:#?}", node.name());
}

fn list(dir: &Path, lines: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).expect("list pins").flatten() {
        if entry.path().is_dir() {
            list(&entry.path(), lines);
        } else {
            lines.insert(entry.path().display().to_string());
        }
    }
}

/// The owner of an address in the node's leases.
#[track_caller]
fn owner(node: &Node, address: Ipv4Addr) -> Option<Value> {
    let endpoints = node.show("endpoints");
    let mut endpoints = endpoints.as_array().expect("a list of endpoints").iter();
    endpoints.find(|endpoint| endpoint["address"] == json!(address)).cloned()
}

#[test]
fn containers_of_podman_and_containerd_and_pods_reach_each_other_on_and_across_nodes() {
    let cluster = Cluster::builder().start();
    let nodes = [cluster.node("w1"), cluster.node("w2")];
    let before = nodes.map(state);
    let runtimes = nodes.map(|node| Runtimes::start(cluster.lab(), node));
    let containerds = runtimes.each_ref().map(Runtimes::containerd);

    let pods = ["w1", "w2"].map(|node| PodServer::start(cluster.lab(), cluster.add_pod(node, "pod")));
    let podmans = runtimes.each_ref().map(|runtimes| runtimes.podman().run("podman", &[NETWORK]));
    let attended = containerds.each_ref().map(|containerd| containerd.run("ctr"));

    let mut peers: Vec<&dyn Peer> = Vec::new();
    for ((pod, podman), attended) in pods.iter().zip(&podmans).zip(&attended) {
        peers.extend([pod as &dyn Peer, podman, &attended.container]);
    }
    for (node, peers) in nodes.iter().zip(peers.chunks(3)) {
        for peer in peers {
            assert!(node.subnet().contains(&peer.addr()), "{} of {}", peer.addr(), peer.label());
            assert!(owner(node, peer.addr()).is_some(), "no lease for {} of {}", peer.addr(), peer.label());
        }
    }
    for from in &peers {
        for to in peers.iter().filter(|to| to.addr() != from.addr()) {
            let way = format!("from {} to {}", from.label(), to.label());
            from.ping(to.addr()).unwrap_or_else(|error| panic!("ping {way}: {error:#}"));
            let seen = from.ask(to.addr()).unwrap_or_else(|error| panic!("TCP {way}: {error:#}"));
            assert_eq!(seen, from.addr(), "the address that the server sees, {way}");
        }
    }

    for (containerd, attended) in containerds.iter().zip(attended) {
        containerd.kill(attended);
    }
    for runtimes in &runtimes {
        runtimes.podman().remove("podman");
    }
    for pod in &pods {
        pod.pod().del();
    }
    for (node, before) in nodes.iter().zip(&before) {
        assert_unchanged(node, before);
    }
}

#[test]
fn podman_attaches_two_networks_and_both_addresses_answer() {
    let cluster = Cluster::builder().start();
    let (near, far) = (cluster.node("w1"), cluster.node("w2"));
    let before = state(near);
    let runtimes = Runtimes::start(cluster.lab(), near);
    let podman = runtimes.podman();
    runtimes.add_network(&conflist("second", "0.4.0", &[plugin(near.pins())]));
    let pods = [near, far].map(|node| PodServer::start(cluster.lab(), cluster.add_pod(node.name(), "pod")));

    // podman asks for the port on both networks.
    let container = podman.run_with("two", &[NETWORK, "second"], &["--publish=18070:80"]);
    let second = container.addresses_of("eth1").expect("list addresses of eth1");
    let [second] = second[..] else { panic!("{second:?} at eth1") };
    let addresses = [container.addr(), second.addr()];
    let settings = &podman.inspect("two")["NetworkSettings"]["Networks"];
    for (address, network) in addresses.into_iter().zip([NETWORK, "second"]) {
        assert_eq!(settings[network]["IPAddress"], json!(address), "{settings:#}");
        assert!(owner(near, address).is_some(), "no lease for {address}");
        for pod in &pods {
            let seen =
                pod.ask(address).unwrap_or_else(|error| panic!("{} to {network}: {error:#}", pod.label()));
            assert_eq!(seen, pod.addr(), "the address that the server sees at {network}");
        }
    }
    let world = cluster.world();
    assert_eq!(ask(world.namespace(), near.address(), 18070), world.address());
    for pod in &pods {
        let seen = container.ask(pod.addr()).expect("reach a pod from a container with two networks");
        assert!(addresses.contains(&seen), "{seen} is not the container's");
    }

    podman.remove("two");
    for pod in &pods {
        pod.pod().del();
    }
    assert_unchanged(near, &before);
}

#[test]
fn podman_restarts_a_container_with_one_lease_as_before() {
    let cluster = Cluster::builder().start();
    let (near, far) = (cluster.node("w1"), cluster.node("w2"));
    let before = state(near);
    let runtimes = Runtimes::start(cluster.lab(), near);
    let podman = runtimes.podman();
    let pod = PodServer::start(cluster.lab(), cluster.add_pod(far.name(), "pod"));

    podman.run("again", &[NETWORK]);
    podman.must(&["restart", "--time", "0", "again"]);
    let container = podman.running("again");
    assert_eq!(container.ask(pod.addr()).expect("reach the pod after a restart"), container.addr());
    assert_eq!(pod.ask(container.addr()).expect("reach the container after a restart"), pod.addr());
    let leases = near.show("endpoints");
    assert_eq!(leases.as_array().map(Vec::len), Some(1), "{leases:#}");

    // Not running when it is removed: the plugin is not to be missed at that point.
    podman.must(&["stop", "--time", "0", "again"]);
    assert_eq!(near.show("endpoints"), json!([]), "a stopped container holds no address");
    podman.remove("again");
    assert_unchanged(near, &before);
}

/// What the server behind `address` and `port` says of who asks it from this namespace.
#[track_caller]
fn ask(client: &Namespace, address: Ipv4Addr, port: u16) -> Ipv4Addr {
    let server = format!("TCP4:{address}:{port},connect-timeout=3");
    let text = exec::must(client.command("socat").args(["-u", "-T", "3", &server, "-"]), "");
    text.trim().parse().unwrap_or_else(|error| panic!("{address} answers {text:?}: {error}"))
}

#[test]
fn podman_publishes_ports_by_the_plugin_alone() {
    let cluster = Cluster::builder().start();
    let (near, far) = (cluster.node("w1"), cluster.node("w2"));
    let before = state(near);
    let runtimes = Runtimes::start(cluster.lab(), near);
    let podman = runtimes.podman();
    let pods = [near, far].map(|node| cluster.add_pod(node.name(), "pod"));

    let options =
        ["--publish=18080:80", "--publish=127.0.0.1:18081:80", "--publish=18090-18099:8090-8099/udp"];
    podman.run_with("web", &[NETWORK], &options);
    assert_eq!(near.show("ports").as_array().map(Vec::len), Some(12));
    let world = cluster.world();
    assert_eq!(ask(world.namespace(), near.address(), 18080), world.address());
    assert_eq!(ask(far.namespace(), near.address(), 18080), far.address());
    for pod in &pods {
        assert_eq!(ask(pod.namespace(), near.address(), 18080), pod.addr());
    }
    for port in [18080, 18081] {
        assert_eq!(ask(near.namespace(), Ipv4Addr::LOCALHOST, port), near.gateway_address());
    }

    podman.remove("web");
    assert_eq!(near.show("ports"), json!([]));
    for pod in &pods {
        pod.del();
    }
    assert_unchanged(near, &before);
}
