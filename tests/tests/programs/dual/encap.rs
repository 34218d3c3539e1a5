//! Into the tunnel, by `from_pod` and `from_host`, in all four ways.

use overlay_common::{
    counter::Path,
    reason::{Hook, Reason},
};
use overlay_userspace::datapath::run::Verdict;

use super::bed::{
    ALL_NODES, CHECKING_MAC, CHECKING_POD6, CHECKING6, FAR_POD6, GATEWAY6, Inner, Ip6, OTHER_POD6, OVER,
    PEER6, POD6, REMOTE_POD6, Tunnel, VTEP6, WORLD6, only_ipv6, with,
};
use crate::bed::{ANCHOR_MAC, Bed, Case, Counted, GATEWAY, Ip, Out, PEER, POD, REMOTE_POD, ip};

/// A pod sends it, and it leaves for the peer.
fn of_pod(bed: &Bed, name: &'static str, peer: std::net::IpAddr, inner: &impl Inner) -> Case {
    Case {
        name,
        hook: Hook::FromPod,
        device: bed.devices.pod,
        packet: inner.of_pod(),
        gso: None,
        verdict: Verdict::Redirect,
        out: Out::Tunnel(Tunnel::leaving(peer, &inner.hop()).bytes()),
        counted: Counted::As(Path::EncapNative),
    }
}

/// The node sends it. The stack has counted the hop already, or the packet begins here.
fn of_host(bed: &Bed, name: &'static str, peer: std::net::IpAddr, inner: &impl Inner) -> Case {
    Case {
        hook: Hook::FromHost,
        device: bed.devices.anchor,
        packet: inner.framed(ANCHOR_MAC, ANCHOR_MAC),
        out: Out::Tunnel(Tunnel::leaving(peer, inner).bytes()),
        ..of_pod(bed, name, peer, &inner.clone())
    }
}

fn dropped(bed: &Bed, name: &'static str, inner: &Ip6, reason: Reason) -> Case {
    Case {
        verdict: Verdict::Drop,
        out: Out::Unchanged,
        counted: Counted::Dropped(reason),
        ..of_host(bed, name, PEER.into(), inner)
    }
}

/// Through the device itself: inner MACs written, tunnel key set.
fn anchored(bed: &Bed, name: &'static str, mac: crate::bed::Mac, inner: &impl Inner) -> Case {
    Case {
        verdict: Verdict::Pass,
        out: Out::Packet(inner.framed(mac, ANCHOR_MAC)),
        counted: Counted::As(Path::EncapAnchor),
        ..of_host(bed, name, PEER.into(), inner)
    }
}

#[test]
fn a_pods_packets_of_either_family_leave_over_the_peers() {
    with(|bed| {
        for (peer, far4, far6) in OVER {
            bed.check(vec![
                of_pod(bed, "IPv4", peer, &Ip::udp(POD, far4, 53)),
                of_pod(bed, "IPv4, the second packet", peer, &Ip::udp(POD, far4, 53)),
                of_pod(bed, "IPv4 TCP of full size", peer, &Ip::tcp(POD, far4, 1390)),
                of_pod(bed, "IPv4, DSCP and ECN", peer, &Ip::udp(POD, far4, 53).class(0xba)),
                of_pod(bed, "IPv6", peer, &Ip6::udp(POD6, far6, 53)),
                of_pod(bed, "IPv6, the second packet", peer, &Ip6::udp(POD6, far6, 53)),
                of_pod(bed, "IPv6 TCP of full size", peer, &Ip6::tcp(POD6, far6, 1370)),
                of_pod(bed, "IPv6, DSCP and ECN", peer, &Ip6::udp(POD6, far6, 53).class(0xba)),
                of_pod(bed, "IPv6, two hops", peer, &Ip6 { hop_limit: 2, ..Ip6::udp(POD6, far6, 53) }),
                of_pod(bed, "IPv6, a first fragment", peer, &Ip6::udp(POD6, far6, 53).fragment(0, true)),
                of_pod(bed, "IPv6, a later fragment", peer, &Ip6::udp(POD6, far6, 53).fragment(185, false)),
                of_pod(bed, "IPv6, echo", peer, &Ip6::icmp(POD6, far6, 128, [0, 7, 0, 1], b"ping")),
                of_pod(
                    bed,
                    "IPv6, the tunnel's port at a pod",
                    peer,
                    &Ip6::udp(POD6, far6, crate::bed::PORT),
                ),
            ]);
        }
    });
}

#[test]
fn the_nodes_own_traffic_of_either_family_enters_the_tunnel() {
    with(|bed| {
        for (peer, far4, far6) in OVER {
            bed.check(vec![
                of_host(bed, "IPv4", peer, &Ip::udp(GATEWAY, far4, 53)),
                of_host(bed, "IPv6", peer, &Ip6::udp(GATEWAY6, far6, 53)),
                of_host(bed, "IPv6 from the node's address", peer, &Ip6::tcp(VTEP6, far6, 1370)),
                of_host(
                    bed,
                    "hop limit 1 goes one hop",
                    peer,
                    &Ip6 { hop_limit: 1, ..Ip6::udp(VTEP6, far6, 53) },
                ),
            ]);
        }
    });
}

#[test]
fn a_pod_reaches_remote_nodes_by_the_tunnel() {
    with(|bed| {
        bed.check(vec![of_pod(bed, "an IPv6 address", PEER6.into(), &Ip6::udp(POD6, PEER6, 53))]);
        bed.reload(|constants| {
            super::bed::dual(constants);
            constants.nodes_masqueraded = true;
        });
        bed.check(vec![Case {
            verdict: Verdict::Pass,
            out: Out::Unchanged,
            counted: Counted::As(Path::PodToStack),
            ..of_pod(bed, "masqueraded by the stack", PEER6.into(), &Ip6::udp(POD6, PEER6, 53))
        }]);
    });
}

#[test]
fn what_has_no_way_is_dropped_under_its_reason() {
    with(|bed| {
        let to = |dst: std::net::Ipv6Addr| Ip6::udp(GATEWAY6, dst, 53);
        bed.check(vec![
            dropped(
                bed,
                "a subnet that no node has",
                &to("fd00:244:0:77::1".parse().unwrap()),
                Reason::NoNode,
            ),
            dropped(bed, "the world, by a wrong route", &to(WORLD6), Reason::NoNode),
            dropped(bed, "an IPv4 pod's, mapped", &to(REMOTE_POD.to_ipv6_mapped()), Reason::NoNode),
            dropped(bed, "multicast", &to(ALL_NODES), Reason::Multicast),
            dropped(bed, "a link's", &to("fe80::1".parse().unwrap()), Reason::NoNode),
            dropped(bed, "the own subnet", &to(OTHER_POD6), Reason::NoEndpoint),
        ]);
    });
}

#[test]
fn a_node_that_wants_checksums_is_the_kernels_to_reach() {
    with(|bed| {
        let inner = Ip6::udp(POD6, CHECKING_POD6, 53);
        bed.check(vec![
            Case {
                out: Out::Packet(inner.hop().of_pod()),
                counted: Counted::Nowhere,
                ..of_pod(bed, "from a pod, to the anchor", CHECKING6.into(), &inner)
            },
            anchored(
                bed,
                "from the host, with a tunnel key",
                CHECKING_MAC,
                &Ip6::udp(GATEWAY6, CHECKING_POD6, 53),
            ),
        ]);
    });
}

#[test]
fn what_cannot_be_encapsulated_natively_is_left_to_the_device() {
    with(|bed| {
        let mac = super::bed::PEER6_MAC;
        bed.check(vec![anchored(
            bed,
            "extension headers",
            crate::bed::PEER_MAC,
            &Ip6::udp(GATEWAY6, REMOTE_POD6, 53).extended(60, 0),
        )]);
        ip("-6 route flush table main");
        bed.check(vec![anchored(bed, "no route", mac, &Ip6::udp(GATEWAY6, FAR_POD6, 53))]);
    });
}

#[test]
fn without_forwarding_the_packet_takes_the_anchor() {
    with(|bed| {
        std::fs::write("/proc/sys/net/ipv6/conf/overlay.1/forwarding", "0").unwrap();
        let inner = Ip6::udp(GATEWAY6, FAR_POD6, 53);
        bed.check(vec![anchored(bed, "over IPv6", super::bed::PEER6_MAC, &inner)]);
    });
}

#[test]
fn a_node_without_ipv4_carries_ipv6_alone() {
    with(|bed| {
        bed.reload(only_ipv6);
        bed.check(vec![
            of_pod(bed, "IPv6", PEER6.into(), &Ip6::udp(POD6, FAR_POD6, 53)),
            Case {
                verdict: Verdict::Drop,
                out: Out::Unchanged,
                counted: Counted::Dropped(Reason::PodProtocol),
                ..of_pod(bed, "IPv4", PEER.into(), &Ip::udp(POD, REMOTE_POD, 53))
            },
            Case {
                verdict: Verdict::Drop,
                out: Out::Unchanged,
                counted: Counted::Dropped(Reason::HostProtocol),
                ..of_host(bed, "IPv4 of the host", PEER.into(), &Ip::udp(GATEWAY, REMOTE_POD, 53))
            },
        ]);
    });
}
