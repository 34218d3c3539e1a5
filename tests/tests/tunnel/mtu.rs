//! The largest packet that needs no fragments, and one byte more.

use std::net::IpAddr;
use std::thread;

use overlay_tests::lab::{Cluster, Link, Namespace, Network, Pod, WireMode};
use overlay_tests::traffic::ping::{self, Probe};
use overlay_tests::traffic::pmtu;

use crate::bed::{self, Bed, any_port};

/// On one LAN and across the router, both directions.
const PAIRS: [(&str, &str); 4] = [("cp", "w1"), ("w1", "cp"), ("cp", "w2"), ("w2", "cp")];

/// Packets of `mtu` bytes pass from pods and nodes to pods; one byte more is refused at the sender, which names `mtu`.
#[track_caller]
fn expect_mtu(bed: &Bed, mtu: u32) {
    let senders = PAIRS.iter().flat_map(|(from, to)| {
        [bed.pod(from).namespace(), bed.node(from).namespace()].map(|near| (near, bed.pod(to)))
    });
    // At once: ping takes a second to see that it has nothing to wait for.
    thread::scope(|scope| {
        for (near, far) in senders {
            scope.spawn(move || expect_mtu_between(near, far, mtu));
        }
    });
}

fn expect_mtu_between(near: &Namespace, far: &Pod, mtu: u32) {
    let what = format!("{} to {}", near.name(), far.namespace().name());
    let echo = |packet| ping::unfragmented(near, IpAddr::V4(far.addr()), packet).unwrap();
    let datagram = |packet: u32| {
        let at = any_port(far.addr());
        pmtu::unfragmented(near, far.namespace(), at, packet as usize).unwrap()
    };
    assert!(matches!(echo(mtu), Probe::Reply(_)), "{what}");
    assert!(matches!(datagram(mtu), Probe::Reply(_)), "{what}");
    assert_eq!(echo(mtu + 1), Probe::TooLong { mtu }, "{what}");
    assert_eq!(datagram(mtu + 1), Probe::TooLong { mtu }, "{what}");
}

#[test]
fn largest_packet_passes_and_one_byte_more_is_refused_at_the_sender() {
    let _traffic = bed::quiet();
    for mode in WireMode::ALL {
        expect_mtu(&Bed::on(Link::new(mode)), 1450);
    }
}

#[test]
fn jumbo_underlay_gives_jumbo_pods() {
    let _traffic = bed::quiet();
    expect_mtu(&Bed::on(Link { mtu: 9000, ..Link::default() }), 8950);
}

#[test]
fn configured_mtu_holds_for_pods_and_nodes() {
    let _traffic = bed::quiet();
    let network = Network { mtu: Some(1400), ..Network::default() };
    expect_mtu(&Bed::start(Cluster::builder().network(network)), 1400);
}
