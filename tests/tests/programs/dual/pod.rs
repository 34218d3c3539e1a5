//! `from_pod` in IPv6: who may send, and what is the stack's.

use std::net::Ipv6Addr;

use etherparse::IpNumber;
use overlay_common::{
    counter::Path,
    reason::{Hook, Reason},
};
use overlay_userspace::datapath::run::Verdict;

use super::bed::{
    ALL_NODES, FAR_POD6, GATEWAY6, Inner as _, Ip6, LINK_LOCAL, OTHER_POD6, PEER6, POD6, REMOTE_POD6,
    STRANGER6, UNREADY_POD6, VTEP6, WORLD6, with,
};
use crate::bed::{
    ANCHOR_MAC, Bed, Case, Counted, OTHER_POD_MAC, Out, POD, PORT, REMOTE_POD, from_pod as from_pod4,
};

/// On to the stack.
pub(super) fn case(bed: &Bed, name: &'static str, packet: Vec<u8>) -> Case {
    Case {
        name,
        hook: Hook::FromPod,
        device: bed.devices.pod,
        packet,
        gso: None,
        verdict: Verdict::Pass,
        out: Out::Unchanged,
        counted: Counted::As(Path::PodToStack),
    }
}

pub(super) fn dropped(bed: &Bed, name: &'static str, ip: &Ip6, reason: Reason) -> Case {
    Case { verdict: Verdict::Drop, counted: Counted::Dropped(reason), ..case(bed, name, ip.of_pod()) }
}

fn stack(bed: &Bed, name: &'static str, ip: &Ip6) -> Case {
    case(bed, name, ip.of_pod())
}

fn local(bed: &Bed, name: &'static str, ip: &Ip6) -> Case {
    Case {
        verdict: Verdict::Redirect,
        out: Out::Packet(ip.hop().framed(OTHER_POD_MAC, ANCHOR_MAC)),
        counted: Counted::As(Path::Local),
        ..stack(bed, name, ip)
    }
}

#[test]
fn a_pod_sends_only_with_its_own_address_and_mac() {
    with(|bed| {
        let spoofed =
            |name, src| dropped(bed, name, &Ip6::udp(src, REMOTE_POD6, 53), Reason::PodSourceAddress);
        let own = Ip6::udp(POD6, REMOTE_POD6, 53);
        bed.check(vec![
            spoofed("another pod's address", OTHER_POD6),
            spoofed("a remote pod's address", REMOTE_POD6),
            spoofed("the gateway's address", GATEWAY6),
            spoofed("the node's address", VTEP6),
            spoofed("an address of the world", WORLD6),
            spoofed("a link-local address, to another node", LINK_LOCAL),
            spoofed("no address, to another node", Ipv6Addr::UNSPECIFIED),
            spoofed("the loopback address", Ipv6Addr::LOCALHOST),
            spoofed("a multicast address", ALL_NODES),
            spoofed("a pod that is not complete", UNREADY_POD6),
            // To the maps that is the pod's other address.
            spoofed("its own IPv4 address, mapped", POD.to_ipv6_mapped()),
            Case {
                packet: own.framed(ANCHOR_MAC, OTHER_POD_MAC),
                ..dropped(bed, "a foreign MAC", &own, Reason::PodSourceMac)
            },
            Case {
                device: bed.devices.other_pod,
                ..dropped(bed, "its own address at another pod's device", &own, Reason::PodSourceAddress)
            },
        ]);
    });
}

#[test]
fn local_pods_are_reached_directly() {
    with(|bed| {
        let udp = Ip6::udp(POD6, OTHER_POD6, 53);
        bed.check(vec![
            local(bed, "UDP", &udp),
            local(bed, "TCP", &Ip6::tcp(POD6, OTHER_POD6, 1390)),
            local(bed, "hop limit 2", &Ip6 { hop_limit: 2, ..udp.clone() }),
            local(bed, "the tunnel's port", &Ip6::udp(POD6, OTHER_POD6, PORT)),
            local(bed, "a first fragment", &udp.fragment(0, true)),
            local(bed, "a later fragment", &udp.fragment(185, true)),
            local(bed, "echo", &Ip6::icmp(POD6, OTHER_POD6, 128, [0, 1, 0, 1], b"ping")),
            local(bed, "SCTP", &Ip6 { next_header: IpNumber(132), ..udp.clone() }),
            local(bed, "no payload", &Ip6 { next_header: IpNumber(59), payload: vec![], ..udp.clone() }),
            local(bed, "encrypted", &Ip6 { next_header: IpNumber(50), ..udp }),
        ]);
    });
}

#[test]
fn what_the_fast_path_does_not_carry_is_the_stacks() {
    with(|bed| {
        let (near, remote) = (Ip6::udp(POD6, OTHER_POD6, 53), Ip6::udp(POD6, REMOTE_POD6, 53));
        bed.check(vec![
            stack(bed, "an expiring packet, to a local pod", &Ip6 { hop_limit: 1, ..near.clone() }),
            stack(bed, "an expiring packet, to a remote pod", &Ip6 { hop_limit: 1, ..remote.clone() }),
            stack(bed, "an expired packet", &Ip6 { hop_limit: 0, ..remote.clone() }),
            stack(bed, "hop-by-hop options, to a local pod", &near.extended(0, 0)),
            stack(bed, "destination options, to a remote pod", &remote.extended(60, 1)),
            stack(bed, "a routing header", &remote.extended(43, 2)),
            stack(
                bed,
                "eight extension headers",
                &(0..7).fold(remote.clone(), |ip, _| ip.extended(60, 0)).extended(0, 0),
            ),
            stack(bed, "options before a fragment", &remote.fragment(185, false).extended(60, 0)),
            stack(bed, "the gateway", &Ip6::udp(POD6, GATEWAY6, 53)),
            stack(bed, "the node", &Ip6::udp(POD6, VTEP6, 53)),
            stack(
                bed,
                "an address of the subnet that nobody has",
                &Ip6::udp(POD6, "fd00:244:0:1::99".parse().unwrap(), 53),
            ),
            stack(bed, "a pod that is not complete", &Ip6::udp(POD6, UNREADY_POD6, 53)),
            stack(bed, "the world", &Ip6::udp(POD6, WORLD6, 53)),
            stack(bed, "a host of the underlay", &Ip6::udp(POD6, STRANGER6, 53)),
            stack(bed, "multicast", &Ip6::udp(POD6, "ff02::fb".parse().unwrap(), 5353)),
            // That is an IPv4 pod of another node to the maps, and nobody here.
            stack(bed, "a remote IPv4 pod, mapped", &Ip6::udp(POD6, REMOTE_POD.to_ipv6_mapped(), 53)),
            dropped(
                bed,
                "a subnet that no node has",
                &Ip6::udp(POD6, "fd00:244:0:77::1".parse().unwrap(), 53),
                Reason::NoNode,
            ),
        ]);
    });
}

/// A node is told by its address and its tunnel: a packet with options has to go through the tunnel too, by way of the anchor.
#[test]
fn extension_headers_to_a_remote_node_take_the_anchor() {
    with(|bed| {
        let ip = Ip6::udp(POD6, PEER6, 53).extended(60, 0);
        bed.check(vec![Case {
            verdict: Verdict::Redirect,
            out: Out::Packet(ip.hop().of_pod()),
            counted: Counted::Nowhere,
            ..stack(bed, "destination options", &ip)
        }]);
    });
}

#[test]
fn a_pod_does_not_speak_to_a_tunnel_port() {
    with(|bed| {
        let to = |dst| Ip6::udp(POD6, dst, PORT);
        let no = |name, ip: &Ip6| dropped(bed, name, ip, Reason::PodTunnelPort);
        bed.check(vec![
            no("of the own node", &to(VTEP6)),
            no("of the gateway", &to(GATEWAY6)),
            no("of a remote node", &to(PEER6)),
            no("of the world, which may be a node behind the masquerade", &to(WORLD6)),
            no("of everybody on the link", &to(ALL_NODES)),
            no("of the link's other end", &Ip6::udp(LINK_LOCAL, "fe80::1".parse().unwrap(), PORT)),
            no("behind destination options", &to(VTEP6).extended(60, 0)),
            no("behind two headers", &to(WORLD6).extended(60, 3).extended(0, 0)),
            no("behind an authentication header", &{
                let mut ip = to(VTEP6).extended(51, 0);
                // It counts words, less two.
                ip.payload[1] = 0;
                ip
            }),
            no("in a first fragment", &to(VTEP6).fragment(0, true)),
            no("in an atomic fragment, to a node", &to(PEER6).fragment(0, false)),
            stack(bed, "a later fragment has no port", &to(VTEP6).fragment(1, false)),
            stack(bed, "TCP has another port 8472", &Ip6 { next_header: IpNumber::TCP, ..to(VTEP6) }),
            dropped(bed, "no room for ports", &Ip6 { payload: vec![0; 2], ..to(VTEP6) }, Reason::Truncated),
            dropped(
                bed,
                "a first fragment without them",
                &Ip6 { payload: vec![17, 0, 0, 1, 0, 0, 0, 9], next_header: IpNumber(44), ..to(VTEP6) },
                Reason::Truncated,
            ),
        ]);
    });
}

#[test]
fn more_extension_headers_than_are_looked_through_are_dropped() {
    with(|bed| {
        let many = |dst| (0..9).fold(Ip6::udp(POD6, dst, PORT), |ip, _| ip.extended(60, 0));
        bed.check(vec![
            dropped(bed, "to the node", &many(VTEP6), Reason::PodExtensions),
            dropped(bed, "to a pod", &many(FAR_POD6), Reason::PodExtensions),
            Case {
                packet: many(VTEP6).of_pod()[..14 + 40 + 5 * 8 + 2].to_vec(),
                ..dropped(bed, "cut off among them", &many(VTEP6), Reason::Truncated)
            },
        ]);
    });
}

#[test]
fn ipv4_goes_on_as_without_ipv6() {
    with(|bed| {
        let ip = crate::bed::Ip::udp(POD, crate::bed::WORLD, 53);
        bed.check(vec![case(bed, "to the world", from_pod4(&ip))]);
    });
}
