//! A path between two nodes that carries less than their own devices: its router says so to the sending node, whose programs
//! tell the pods.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use overlay_tests::lab::{Link, Namespace, WireMode};
use overlay_tests::traffic::drops::Drops;
use overlay_tests::traffic::ping::{self, Probe};
use overlay_tests::traffic::{any_port, pmtu, tcp, udp};

use crate::bed::{self, Bed};

/// What the router between the LANs carries, in bytes; the nodes' devices have 1500.
const PATH: u32 = 1400;
/// What that leaves for the packets of pods.
const INNER: u32 = PATH - 50;

/// A cluster whose `w2` is behind a router that carries [`PATH`] bytes, either way.
fn narrow(mode: WireMode) -> Bed {
    let bed = Bed::on(Link::new(mode));
    let router = bed.cluster.router();
    for dev in ["lan-a", "lan-b"] {
        let route = router.ip(&format!("-4 route show dev {dev} proto kernel"));
        let net = route.split_whitespace().next().expect("a LAN has a route");
        // Locked: a router goes by the device's MTU otherwise (ip-route(8)).
        router.ip(&format!("route replace {net} dev {dev} proto kernel scope link mtu lock {PATH}"));
    }
    bed
}

/// Sends what is too long until somebody says so, by UDP.
#[track_caller]
fn told(from: &Namespace, to: (&Namespace, Ipv4Addr)) -> u32 {
    let far = udp::bind(to.0, any_port(to.1)).unwrap();
    let near = udp::connected(from, far.local_addr().unwrap()).unwrap();
    pmtu::told_mtu(&near, 1450).unwrap()
}

#[test]
fn pods_are_told_what_the_path_carries_and_no_packet_is_lost_without_a_word() {
    let _traffic = bed::quiet();
    let bed = narrow(WireMode::Veth);
    for (from, to) in [("cp", "w2"), ("w2", "cp")] {
        let (near, far) = (bed.pod(from), bed.pod(to));
        let before = Drops::read(bed.node(from));
        assert_eq!(told(near.namespace(), (far.namespace(), far.addr())), INNER, "{from} to {to}");
        let drops = Drops::read(bed.node(from)).since(&before);
        assert!(drops.get("path_mtu").is_some_and(|count| *count > 0), "{drops:?}");

        // What fits arrives. The pod has an exception for this peer now, which others do not have.
        let datagram = |packet| {
            pmtu::unfragmented(near.namespace(), far.namespace(), any_port(far.addr()), packet).unwrap()
        };
        assert!(matches!(datagram(INNER as usize), Probe::Reply(_)), "{from} to {to}");
        assert_eq!(datagram(INNER as usize + 1), Probe::TooLong { mtu: INNER }, "{from} to {to}");

        // A pod that has never sent is told by its gateway at once: the node knows.
        let other = bed.cluster.add_pod(from, "b");
        let echo = ping::unfragmented(other.namespace(), IpAddr::V4(far.addr()), INNER + 1).unwrap();
        assert_eq!(echo, Probe::TooLong { mtu: INNER });
        let echo = ping::unfragmented(other.namespace(), IpAddr::V4(far.addr()), INNER).unwrap();
        assert!(matches!(echo, Probe::Reply(_)), "{echo:?}");
        // As is one that sends to the node itself.
        let other = bed.cluster.add_pod(from, "c");
        let echo = ping::unfragmented(other.namespace(), IpAddr::V4(bed.node(to).address()), 1450).unwrap();
        assert_eq!(echo, Probe::TooLong { mtu: INNER });
    }
    // The other peer's path is as wide as ever.
    let near = bed.pod("cp");
    let echo = ping::unfragmented(near.namespace(), IpAddr::V4(bed.pod("w1").addr()), 1450).unwrap();
    assert!(matches!(echo, Probe::Reply(_)), "{echo:?}");
    bed.expect_no_checksum_errors();
}

#[test]
fn packets_that_may_be_fragmented_arrive() {
    let _traffic = bed::quiet();
    let bed = narrow(WireMode::Veth);
    let (near, far) = (bed.pod("cp"), bed.pod("w2"));
    told(near.namespace(), (far.namespace(), far.addr()));
    // 1450 bytes, and a datagram of which each fragment has as many.
    for payload in ["1422", "4000"] {
        let other = bed.cluster.add_pod("cp", &format!("p{payload}"));
        let arguments = ["-M", "dont", "-s", payload];
        let echo = ping::with(other.namespace(), IpAddr::V4(far.addr()), &arguments).unwrap();
        assert!(matches!(echo, Probe::Reply(_)), "{payload}: {echo:?}");
    }
}

#[test]
fn bulk_transfers_find_their_segment_size() {
    let _traffic = bed::flood();
    for mode in WireMode::ALL {
        let bed = narrow(mode);
        let (near, far) = (bed.pod("cp"), bed.pod("w2"));
        let ends = |at: Ipv4Addr| SocketAddr::new(IpAddr::V4(at), 0);
        for (from, to, at) in [
            (near.namespace(), far.namespace(), ends(far.addr())),
            (far.namespace(), near.namespace(), ends(near.addr())),
            (bed.node("cp").namespace(), far.namespace(), ends(far.addr())),
            (near.namespace(), bed.node("w2").namespace(), ends(bed.node("w2").address())),
        ] {
            let bulk = tcp::bulk(from, to, at, 2).unwrap();
            assert!(bulk.intact(), "{mode:?} {} to {}: {bulk:?}", from.name(), to.name());
        }
        bed.expect_no_checksum_errors();
    }
}
