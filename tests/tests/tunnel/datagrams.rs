//! Bursts of datagrams, sent as super-packets by `UDP_SEGMENT` as QUIC stacks do, to a receiver that knows nothing of it.

use overlay_tests::lab::{Link, WireMode};
use overlay_tests::traffic::any_port;
use overlay_tests::traffic::paths::Volumes;
use overlay_tests::traffic::udp::{Burst, SEGMENT, SEGMENTS_PER_SEND, Sending, Shape, burst_of};
use overlay_userspace::family::Family;

use crate::bed::{self, Bed};

/// 100 datagrams of 1200 bytes; with [`Sending::Segmented`] these are three super-packets.
const HUNDRED: Shape = Shape { count: 100, size: SEGMENT, per_send: SEGMENTS_PER_SEND };

/// 48 × 1364 bytes and the headers of UDP and IPv4 are 65500 bytes: with the tunnel's 50 more than a length field holds. Over or
/// with IPv6 more so.
/// Two super-packets.
const TOO_LONG: Shape = Shape { count: 96, size: 1364, per_send: 48 };

/// Packets that the nodes' programs have counted during a burst.
#[derive(Debug, PartialEq, Eq)]
struct Counted {
    encap_native: u64,
    encap_anchor: u64,
    decap_native: u64,
    decap_anchor: u64,
}

/// Sends a burst from the pod on `cp` to the one on `to`; each datagram has to arrive, once and unchanged.
#[track_caller]
fn expect_all(family: Family, bed: &Bed, to: &str, shape: Shape, sending: Sending) -> Counted {
    let nodes = [bed.node("cp"), bed.node(to)];
    let before = nodes.map(Volumes::read);
    let (near, far) = (bed.pod("cp"), bed.pod(to));
    let at = any_port(far.addr_of(family));
    let burst = burst_of(near.namespace(), far.namespace(), at, shape, sending).unwrap();
    assert_eq!(
        burst,
        Burst { sent: shape.count, received: shape.count, duplicates: 0, corrupted: 0 },
        "{family} to {to}, {sending:?}"
    );
    bed.expect_no_checksum_errors();
    let [sender, receiver] = [0, 1].map(|end| Volumes::read(nodes[end]).since(&before[end]));
    Counted {
        encap_native: sender.get("encap_native").packets,
        encap_anchor: sender.get("encap_anchor").packets,
        decap_native: receiver.get("decap_native").packets,
        decap_anchor: receiver.get("decap_anchor").packets,
    }
}

/// Receivers on the sender's LAN and behind the router.
const RECEIVERS: [&str; 2] = ["w1", "w2"];

/// Bursts of each kind from pod to pod. Those of `UDP_SEGMENT` are counted as `segmented`.
#[track_caller]
fn expect_bursts_to_arrive(link: Link, segmented: &Counted) {
    expect_bursts_of(Family::Ipv4, &Bed::on(link), segmented);
}

#[track_caller]
fn expect_bursts_of(family: Family, bed: &Bed, segmented: &Counted) {
    for to in RECEIVERS {
        let counted = expect_all(family, bed, to, HUNDRED, Sending::Plain);
        let wanted = Counted { encap_native: 100, encap_anchor: 0, decap_native: 100, decap_anchor: 0 };
        assert_eq!(counted, wanted, "single packets to {to}");

        let counted = expect_all(family, bed, to, HUNDRED, Sending::Segmented);
        assert_eq!(counted, *segmented, "super-packets to {to}");

        // The kernel cuts them before it would write a length that does not fit.
        let counted = expect_all(family, bed, to, TOO_LONG, Sending::Segmented);
        let wanted = Counted { encap_native: 0, encap_anchor: 2, decap_native: 96, decap_anchor: 0 };
        assert_eq!(counted, wanted, "super-packets that are too long to {to}");
    }
}

/// Super-packets cross the wire; only the kernel can decapsulate them without losing datagrams.
#[test]
fn super_packets_on_a_veth_wire_lose_no_datagram() {
    let _traffic = bed::quiet();
    let by_anchor = Counted { encap_native: 3, encap_anchor: 0, decap_native: 0, decap_anchor: 3 };
    expect_bursts_to_arrive(Link::new(WireMode::Veth), &by_anchor);
}

/// What the device of the sender's node cuts is single packets to the receiver's programs.
const CUT: Counted = Counted { encap_native: 3, encap_anchor: 0, decap_native: 100, decap_anchor: 0 };

#[test]
fn super_packets_on_a_nic_wire_lose_no_datagram() {
    let _traffic = bed::quiet();
    expect_bursts_to_arrive(Link::new(WireMode::Nic), &CUT);
}

#[test]
fn super_packets_without_checksum_offload_lose_no_datagram() {
    let _traffic = bed::quiet();
    for mode in WireMode::ALL {
        expect_bursts_to_arrive(Link { checksums: true, ..Link::new(mode) }, &CUT);
    }
}

#[test]
fn super_packets_of_every_family_lose_no_datagram_over_an_underlay_of_either() {
    let _traffic = bed::quiet();
    let by_anchor = Counted { encap_native: 3, encap_anchor: 0, decap_native: 0, decap_anchor: 3 };
    for (link, segmented) in
        [(Link::new(WireMode::Veth), by_anchor), (Link { checksums: true, ..Link::new(WireMode::Nic) }, CUT)]
    {
        let over_ipv6 = Bed::dual(link, Family::Ipv6);
        for family in Family::ALL {
            expect_bursts_of(family, &over_ipv6, &segmented);
        }
        expect_bursts_of(Family::Ipv6, &Bed::dual(link, Family::Ipv4), &segmented);
    }
}
