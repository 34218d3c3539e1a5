//! The TTL of what pods send: each node is one hop, on the fast path as on the stack's.

use std::net::{IpAddr, Ipv4Addr};

use etherparse::{NetSlice, SlicedPacket};
use overlay_tests::lab::{Link, Namespace};
use overlay_tests::traffic::capture::Capture;
use overlay_tests::traffic::ping;

use crate::bed::{self, Bed};

/// No arguments: the fast path. A time stamp option: the stack's, which alone handles options.
const WAYS: [&[&str]; 2] = [&[], &["-T", "tsonly"]];

/// The routers that a packet to `to` passes, found as traceroute does.
#[track_caller]
fn routers(from: &Namespace, to: Ipv4Addr, arguments: &[&str]) -> Vec<IpAddr> {
    let found = (1..=5).map_while(|ttl| ping::expired_at(from, IpAddr::V4(to), ttl, arguments).unwrap());
    let found: Vec<_> = found.collect();
    assert!(found.len() < 5, "never reached: {found:?}");
    found
}

#[test]
fn each_node_on_the_way_is_one_hop_on_either_path() {
    let _traffic = bed::quiet();
    let bed = Bed::on(Link::default());
    for node in bed.cluster.nodes() {
        // Six reports to one address are more than a kernel's default (icmp(7)).
        node.namespace().sysctl("net.ipv4.icmp_ratelimit", "0");
    }
    let gateway = |node: &str| IpAddr::V4(bed.node(node).gateway_address());
    let neighbour = bed.cluster.add_pod("cp", "b");
    let pod = bed.pod("cp").namespace();
    for way in WAYS {
        // The router between the LANs carries the tunnel: to the pod it is no hop.
        for to in ["w1", "w2"] {
            let seen = routers(pod, bed.pod(to).addr(), way);
            assert_eq!(seen, [gateway("cp"), gateway(to)], "pod to pod on {to} {way:?}");
            let seen = routers(bed.node("cp").namespace(), bed.pod(to).addr(), way);
            assert_eq!(seen, [gateway(to)], "node to pod on {to} {way:?}");
            let seen = routers(pod, bed.node(to).address(), way);
            assert_eq!(seen, [gateway("cp")], "pod to node {to} {way:?}");
        }
        assert_eq!(routers(pod, neighbour.addr(), way), [gateway("cp")], "{way:?}");
    }
}

/// The TTL with which an echo request for `to`, sent with 64, comes out of the device of the pod.
#[track_caller]
fn arriving_ttl(from: &Namespace, to: (&Namespace, Ipv4Addr), arguments: &[&str]) -> u8 {
    let capture = Capture::start(to.0, "eth0");
    let arguments = [&["-t", "64"], arguments].concat();
    let reply = ping::with(from, IpAddr::V4(to.1), &arguments).unwrap();
    assert!(matches!(reply, ping::Probe::Reply(_)), "{reply:?}");
    let ttls = capture.stop().into_iter().filter(|frame| !frame.outgoing).filter_map(|frame| {
        match SlicedPacket::from_ethernet(&frame.bytes).ok()?.net? {
            NetSlice::Ipv4(ip) if ip.header().destination_addr() == to.1 => Some(ip.header().ttl()),
            _ => None,
        }
    });
    let ttls: Vec<u8> = ttls.collect();
    assert_eq!(ttls.len(), 1, "{ttls:?}");
    ttls[0]
}

#[test]
fn ttl_is_decremented_once_per_node_on_either_path() {
    let _traffic = bed::quiet();
    let bed = Bed::on(Link::default());
    let neighbour = bed.cluster.add_pod("cp", "b");
    let (pod, node) = (bed.pod("cp").namespace(), bed.node("cp").namespace());
    for way in WAYS {
        for to in ["w1", "w2"] {
            let far = (bed.pod(to).namespace(), bed.pod(to).addr());
            assert_eq!(arriving_ttl(pod, far, way), 62, "pod to pod on {to} {way:?}");
            assert_eq!(arriving_ttl(node, far, way), 63, "node to pod on {to} {way:?}");
        }
        assert_eq!(arriving_ttl(pod, (neighbour.namespace(), neighbour.addr()), way), 63, "{way:?}");
    }
}
