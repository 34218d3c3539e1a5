//! The TTL of what pods send: each node is one hop, on the fast path as on the stack's.

use std::net::IpAddr;

use etherparse::{NetSlice, SlicedPacket};
use overlay_tests::lab::{Link, Namespace};
use overlay_tests::traffic::capture::Capture;
use overlay_tests::traffic::ping;
use overlay_userspace::family::Family;

use crate::bed::{self, Bed};

/// No arguments: the fast path. A time stamp option, which is IPv4's: the stack's, which alone handles options.
const WAYS: [(Family, &[&str]); 3] =
    [(Family::Ipv4, &[]), (Family::Ipv4, &["-T", "tsonly"]), (Family::Ipv6, &[])];

/// The routers that a packet to `to` passes, found as traceroute does.
#[track_caller]
fn routers(from: &Namespace, to: IpAddr, arguments: &[&str]) -> Vec<IpAddr> {
    let found = (1..=5).map_while(|ttl| ping::expired_at(from, to, ttl, arguments).unwrap());
    let found: Vec<_> = found.collect();
    assert!(found.len() < 5, "never reached: {found:?}");
    found
}

#[test]
fn each_node_on_the_way_is_one_hop_on_either_path() {
    let _traffic = bed::quiet();
    let bed = Bed::dual(Link::default(), Family::Ipv4);
    for node in bed.cluster.nodes() {
        // Six reports to one address are more than a kernel's default (icmp(7)).
        node.namespace().sysctl("net.ipv4.icmp_ratelimit", "0");
        node.namespace().sysctl("net.ipv6.icmp.ratelimit", "0");
    }
    let neighbour = bed.cluster.add_pod("cp", "b");
    let pod = bed.pod("cp").namespace();
    for (family, way) in WAYS {
        let gateway = |node: &str| bed.node(node).gateway_of(family);
        // The router between the LANs carries the tunnel: to the pod it is no hop.
        for to in ["w1", "w2"] {
            let seen = routers(pod, bed.pod(to).addr_of(family), way);
            assert_eq!(seen, [gateway("cp"), gateway(to)], "{family} pod to pod on {to} {way:?}");
            let seen = routers(bed.node("cp").namespace(), bed.pod(to).addr_of(family), way);
            assert_eq!(seen, [gateway(to)], "{family} node to pod on {to} {way:?}");
            let seen = routers(pod, bed.node(to).address_of(family), way);
            assert_eq!(seen, [gateway("cp")], "{family} pod to node {to} {way:?}");
        }
        assert_eq!(routers(pod, neighbour.addr_of(family), way), [gateway("cp")], "{family} {way:?}");
    }
}

/// The TTL with which an echo request for `to`, sent with 64, comes out of the device of the pod.
#[track_caller]
fn arriving_ttl(from: &Namespace, to: (&Namespace, IpAddr), arguments: &[&str]) -> u8 {
    let capture = Capture::start(to.0, "eth0");
    let arguments = [&["-t", "64"], arguments].concat();
    let reply = ping::with(from, to.1, &arguments).unwrap();
    assert!(matches!(reply, ping::Probe::Reply(_)), "{reply:?}");
    let ttls = capture.stop().into_iter().filter(|frame| !frame.outgoing).filter_map(|frame| {
        match SlicedPacket::from_ethernet(&frame.bytes).ok()?.net? {
            NetSlice::Ipv4(ip) if ip.header().destination_addr() == to.1 => Some(ip.header().ttl()),
            NetSlice::Ipv6(ip) if ip.header().destination_addr() == to.1 => Some(ip.header().hop_limit()),
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
    let bed = Bed::dual(Link::default(), Family::Ipv6);
    let neighbour = bed.cluster.add_pod("cp", "b");
    let (pod, node) = (bed.pod("cp").namespace(), bed.node("cp").namespace());
    for (family, way) in WAYS {
        for to in ["w1", "w2"] {
            let far = (bed.pod(to).namespace(), bed.pod(to).addr_of(family));
            assert_eq!(arriving_ttl(pod, far, way), 62, "{family} pod to pod on {to} {way:?}");
            assert_eq!(arriving_ttl(node, far, way), 63, "{family} node to pod on {to} {way:?}");
        }
        let near = (neighbour.namespace(), neighbour.addr_of(family));
        assert_eq!(arriving_ttl(pod, near, way), 63, "{family} {way:?}");
    }
}
