//! Who sees which address of a pod: the settings of the masquerade, changed while the agents run.

use std::net::Ipv4Addr;

use overlay_tests::lab::{Namespace, Network, within};
use overlay_tests::traffic::{Seen, tcp, udp};

use crate::bed::{Bed, PERIOD, SOON, WORLD, any_port, expect_idle};

/// What a server sees of pod `a`, by both protocols.
#[track_caller]
fn seen(bed: &Bed, server: &Namespace, address: Ipv4Addr) -> [Ipv4Addr; 2] {
    try_seen(bed, server, address).unwrap()
}

/// The same while the programs and the packet filter change over, one after the other: what passes in between may be lost.
fn try_seen(bed: &Bed, server: &Namespace, address: Ipv4Addr) -> anyhow::Result<[Ipv4Addr; 2]> {
    let pod = bed.pod_a.namespace();
    let source = |seen: Seen| match seen.server_saw.ip() {
        std::net::IpAddr::V4(v4) => v4,
        std::net::IpAddr::V6(v6) => panic!("{v6} is not IPv4"),
    };
    Ok([
        source(tcp::exchange(pod, server, any_port(address))?),
        source(udp::exchange(pod, server, any_port(address))?),
    ])
}

fn rules(bed: &Bed) -> String {
    let mut list = bed.a.namespace().command("nft");
    overlay_tests::lab::exec::must(list.args(["-s", "list", "table", "ip", "overlay"]), "")
}

#[test]
fn destinations_that_are_never_masqueraded_see_the_pod() {
    let bed = Bed::start();
    let (pod, node) = (bed.pod_a.addr(), bed.a.address());
    assert_eq!(seen(&bed, &bed.world, WORLD), [node; 2]);
    bed.world.ip(&format!("route add {} via {node}", bed.a.subnet()));
    let log = bed.a.log_mark();
    // The nodes are on the same network: they are reached through the tunnel all the same.
    let network = Network { no_masquerade: vec!["192.0.2.0/24".parse().unwrap()], ..Network::default() };
    bed.write(&network, &[bed.a.entry(), bed.b.entry()]);
    log.wait_for("network.no_masquerade is 192.0.2.0/24 now, was nothing", SOON);
    within(SOON, "the list", || rules(&bed).contains("192.0.2.0/24"));
    assert_eq!(seen(&bed, &bed.world, WORLD), [pod; 2]);
    assert_eq!(seen(&bed, bed.b.namespace(), bed.b.address()), [pod; 2]);
    expect_idle(&bed.a);
    bed.write_more(&[]);
    within(SOON, "no list", || !rules(&bed).contains("192.0.2.0/24"));
    assert_eq!(seen(&bed, &bed.world, WORLD), [node; 2]);
    bed.expect_traffic();
}

#[test]
fn nodes_see_each_others_addresses_where_they_are_treated_like_the_world() {
    let bed = Bed::start();
    let (pod, node) = (bed.pod_a.addr(), bed.a.address());
    let other = |sees: Ipv4Addr| {
        try_seen(&bed, bed.b.namespace(), bed.b.address()).is_ok_and(|seen| seen == [sees; 2])
    };
    assert!(other(pod));
    let nodes = [bed.a.entry(), bed.b.entry()];
    bed.write(&Network { masquerade_to_nodes: true, ..Network::default() }, &nodes);
    within(PERIOD, "masquerade to the other node", || other(node));
    assert_eq!(seen(&bed, bed.pod_b.namespace(), bed.pod_b.addr()), [pod; 2]);
    assert_eq!(seen(&bed, bed.a.namespace(), node), [pod; 2], "the own node");
    expect_idle(&bed.a);
    bed.write_more(&[]);
    within(PERIOD, "the pod's address to the other node", || other(pod));
    bed.expect_traffic();
}
