//! The whole proof of the lab in IPv6 alone and in both families, over underlays of either, and in clusters whose nodes differ.

use std::net::IpAddr;

use overlay_tests::lab::{Cluster, Families, Link, Network, Node, WireMode};
use overlay_tests::traffic::capture::Capture;
use overlay_tests::traffic::vxlan::Tunnel;
use overlay_tests::traffic::{any_port, ping, udp};
use overlay_userspace::family::{Family, OfFamily as _};

use crate::bed;
use crate::everywhere::{clsact, prove};

/// The `[network]` table in which nodes with both families talk over IPv6.
fn over_ipv6() -> Network {
    Network { underlay: Some("ipv6".to_owned()), ..Network::default() }
}

#[test]
fn everything_holds_in_ipv6_alone() {
    let _traffic = bed::quiet();
    prove(Cluster::builder().families(Families::Ipv6));
}

#[test]
fn everything_holds_in_ipv6_alone_on_a_nic_wire_with_clsact_filters() {
    let _traffic = bed::quiet();
    let link = Link { checksums: true, ..Link::new(WireMode::Nic) };
    prove(Cluster::builder().families(Families::Ipv6).link(link).network(clsact()));
}

#[test]
fn everything_holds_in_both_families() {
    let _traffic = bed::quiet();
    prove(Cluster::builder().families(Families::Dual));
}

#[test]
fn everything_holds_in_both_families_with_ipv6_first_and_over_ipv6() {
    let _traffic = bed::quiet();
    let stage = prove(Cluster::builder().families(Families::Dual).network(over_ipv6()).primary(Family::Ipv6));
    for pod in stage.pods() {
        let ips = pod.result()["ips"].as_array().expect("a list of addresses");
        let first: Vec<bool> =
            ips.iter().map(|ip| ip["address"].as_str().expect("an address").contains(':')).collect();
        assert_eq!(first, [true, false], "{}", pod.result());
    }
}

#[test]
fn everything_holds_for_pods_of_one_family_over_an_underlay_of_the_other() {
    let _traffic = bed::quiet();
    prove(Cluster::builder().families(Families::Ipv6).underlay(Families::Ipv4));
    prove(Cluster::builder().families(Families::Ipv4).underlay(Families::Ipv6));
}

#[test]
fn everything_holds_for_pods_of_both_families_over_an_underlay_of_one() {
    let _traffic = bed::quiet();
    prove(Cluster::builder().families(Families::Dual).underlay(Families::Ipv4));
    prove(Cluster::builder().families(Families::Dual).underlay(Families::Ipv6));
}

/// The outer destinations of what `cp` sends to pods on another node.
#[track_caller]
fn outer_destinations(cp: &Node, send: impl FnOnce()) -> Vec<IpAddr> {
    let capture = Capture::start(cp.namespace(), Node::DEVICE);
    send();
    let outgoing = capture.stop().into_iter().filter(|frame| frame.outgoing);
    let mut seen: Vec<IpAddr> =
        outgoing.filter_map(|frame| Some(Tunnel::decode(&frame.bytes)?.destination.ip())).collect();
    seen.dedup();
    seen
}

#[test]
fn everything_holds_where_one_node_has_no_ipv6_on_the_underlay() {
    let _traffic = bed::quiet();
    let builder = Cluster::builder().families(Families::Dual).network(over_ipv6());
    let stage = prove(builder.mixed("w1", Families::Dual, Families::Ipv4));
    let node = |name| stage.cluster().node(name);
    let pod = |name: &str| stage.pods().iter().find(|pod| pod.node() == name).expect("a pod on each node");
    // Over what both have: IPv4 with the one, what is preferred with the other.
    for (to, outer) in [("w1", Family::Ipv4), ("w2", Family::Ipv6)] {
        for family in Family::ALL {
            let at = any_port(pod(to).addr_of(family));
            let send = || {
                udp::exchange(pod("cp").namespace(), pod(to).namespace(), at).unwrap();
            };
            assert_eq!(
                outer_destinations(node("cp"), send),
                [node(to).address_of(outer)],
                "{family} to {to}"
            );
        }
    }
}

#[test]
fn everything_holds_where_one_node_has_one_family() {
    let _traffic = bed::quiet();
    for lacking in [Families::Ipv4, Families::Ipv6] {
        let stage = prove(Cluster::builder().families(Families::Dual).mixed("w1", lacking, lacking));
        let pods = stage.pods().iter().filter(|pod| pod.node() == "w1");
        assert!(pods.clone().count() > 0 && pods.clone().all(|pod| Families::of(&pod.addrs()) == lacking));
    }
}

/// Two nodes whose underlay addresses are of different families cannot talk; a third, which has both, talks to both.
#[test]
fn nodes_without_a_common_family_say_so_and_do_not_disturb_others() {
    let _traffic = bed::quiet();
    let cluster = Cluster::builder()
        .families(Families::Dual)
        .mixed("w1", Families::Dual, Families::Ipv4)
        .mixed("w2", Families::Dual, Families::Ipv6)
        .start();
    let [cp, w1, w2] = ["cp", "w1", "w2"].map(|node| cluster.add_pod(node, "a"));
    for family in Family::ALL {
        for other in [&w1, &w2] {
            ping::ping(cp.namespace(), other.addr_of(family)).unwrap();
            ping::ping(other.namespace(), cp.addr_of(family)).unwrap();
        }
    }
    ping::ping(w1.namespace(), w2.addr_of(Family::Ipv4)).unwrap_err();
    for (node, other) in [("w1", "w2"), ("w2", "w1")] {
        let log = cluster.node(node).log();
        let line = log.lines().find(|line| line.contains(&format!("no tunnel to {other}:")));
        assert!(line.is_some(), "{node} does not say that it cannot talk to {other}:\n{log}");
    }
    assert!(w1.addrs().values().all(|addr| w2.addrs().get(addr.family()).is_some()));
}
