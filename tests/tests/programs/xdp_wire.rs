//! `xdp_wire`: what it drops, under the reasons of `from_wire` and `from_tunnel`, and what passes for them to judge.

use std::net::Ipv4Addr;

use etherparse::{EtherType, IpNumber};
use overlay_common::reason::{Hook, Reason};
use overlay_userspace::datapath::run::Verdict;

use crate::bed::{
    Bed, Case, Counted, GATEWAY, Ip, NEXT_HOP_MAC, OTHER_POD, Out, PEER, POD, REMOTE_POD, STRANGER, Tunnel,
    UNREADY_POD, VTEP, WIRE_MAC, WORLD, frame, ipv4_frame,
};

fn inner() -> Ip {
    Ip::udp(REMOTE_POD, POD, 53)
}

fn passed(bed: &Bed, name: &'static str, packet: Vec<u8>) -> Case {
    Case {
        name,
        hook: Hook::XdpWire,
        device: bed.devices.wire,
        packet,
        gso: None,
        verdict: Verdict::Pass,
        out: Out::Unchanged,
        counted: Counted::Nowhere,
    }
}

fn dropped(bed: &Bed, name: &'static str, packet: Vec<u8>, reason: Reason) -> Case {
    Case { verdict: Verdict::Drop, counted: Counted::Dropped(reason), ..passed(bed, name, packet) }
}

fn from(outer: Ipv4Addr, inner: &Ip) -> Vec<u8> {
    let tunnel = Tunnel::arriving(inner);
    Tunnel { outer: Ip { src: outer, ..tunnel.outer.clone() }, ..tunnel }.bytes()
}

fn outer(change: fn(&mut Ip)) -> Vec<u8> {
    let mut tunnel = Tunnel::arriving(&inner());
    change(&mut tunnel.outer);
    tunnel.bytes()
}

#[test]
fn forged_senders_are_dropped_under_the_reasons_of_tc() {
    Bed::with(|bed| {
        let src = |src: Ipv4Addr| Ip { src, ..inner() };
        let with_options = |ip: Ip| Ip { options: vec![1, 1, 1, 0], ..ip };
        let cases = [
            ("from no node", from(STRANGER, &inner()), Reason::UnknownVtep),
            ("from no node, as a local pod", from(STRANGER, &src(OTHER_POD)), Reason::UnknownVtep),
            ("a third node's pod", from(PEER, &src([10, 244, 3, 9].into())), Reason::InnerSource),
            ("a third node", from(PEER, &src([192, 0, 2, 3].into())), Reason::InnerSource),
            ("the world", from(PEER, &src(WORLD)), Reason::InnerSource),
            ("a pod of this node", from(PEER, &src(OTHER_POD)), Reason::InnerSource),
            ("this node itself", from(PEER, &src(VTEP)), Reason::InnerSource),
            ("this node, outside too", from(VTEP, &src(OTHER_POD)), Reason::InnerSource),
            // What from_wire leaves to the anchor, and from_tunnel drops.
            ("inner options", from(STRANGER, &with_options(inner())), Reason::UnknownVtep),
            ("inner options, a third node's pod", from(PEER, &with_options(src(WORLD))), Reason::InnerSource),
        ];
        bed.check(
            cases.into_iter().map(|(name, packet, reason)| dropped(bed, name, packet, reason)).collect(),
        );
    });
}

#[test]
fn what_no_node_may_send_is_dropped() {
    Bed::with(|bed| {
        let to = |dst| Tunnel::arriving(&Ip { dst, ..inner() }).bytes();
        let good = Tunnel::arriving(&inner());
        let vni = |vni| Tunnel { vni, ..good.clone() }.bytes();
        let carrying = |inner_type| Tunnel { inner_type, ..good.clone() }.bytes();
        let plain = |src, dst| ipv4_frame(WIRE_MAC, NEXT_HOP_MAC, &Ip::udp(src, dst, 53));
        let cases = [
            ("another VNI", vni(2), Reason::Vni),
            ("a VNI that differs in its first byte", vni(0x0001_0001), Reason::Vni),
            ("ARP", carrying(EtherType::ARP), Reason::InnerProtocol),
            ("IPv6", carrying(EtherType::IPV6), Reason::InnerProtocol),
            ("a VLAN", carrying(EtherType::VLAN_TAGGED_FRAME), Reason::InnerProtocol),
            ("back to its node", to(REMOTE_POD), Reason::InnerDestination),
            ("to a third node", to([192, 0, 2, 3].into()), Reason::InnerDestination),
            ("to the world", to(WORLD), Reason::InnerDestination),
            ("to all", to([224, 0, 0, 1].into()), Reason::InnerDestination),
            ("a remote pod's, to a pod", plain(REMOTE_POD, POD), Reason::PodAddressOnWire),
            ("a remote pod's, to the node", plain(REMOTE_POD, VTEP), Reason::PodAddressOnWire),
            ("a local pod's", plain(POD, REMOTE_POD), Reason::PodAddressOnWire),
            (
                "a pod's address as outer source of what is not plain",
                {
                    let outer = Ip { src: REMOTE_POD, ..good.outer.clone() };
                    Tunnel { outer, vni: 2, ..good.clone() }.bytes()
                },
                Reason::PodAddressOnWire,
            ),
        ];
        bed.check(
            cases.into_iter().map(|(name, packet, reason)| dropped(bed, name, packet, reason)).collect(),
        );
    });
}

/// Everything that one of the tc programs takes, or that only the kernel can judge.
fn understood_by_others(bed: &Bed) -> Vec<Case> {
    let good = Tunnel::arriving(&inner());
    let arriving = |ip: Ip| Tunnel::arriving(&ip).bytes();
    let mut lying = good.bytes();
    lying[66..68].copy_from_slice(&9000_u16.to_be_bytes());
    let plain = |src, dst| ipv4_frame(WIRE_MAC, NEXT_HOP_MAC, &Ip::udp(src, dst, 53));
    let not_ours = |packet: Vec<u8>| [&[2; 6], &packet[6..]].concat();
    let cases = [
        ("UDP for a pod", good.bytes()),
        ("a first fragment", arriving(Ip { fragment: (0, true), dont_fragment: false, ..inner() })),
        ("a later fragment", arriving(Ip { fragment: (185, false), dont_fragment: false, ..inner() })),
        ("TCP that expires here", arriving(Ip { ttl: 1, ..Ip::tcp(REMOTE_POD, POD, 9) })),
        ("inner options", arriving(Ip { options: vec![1, 1, 1, 0], ..Ip::tcp(REMOTE_POD, POD, 9) })),
        ("from a remote node itself", arriving(Ip { src: PEER, ..inner() })),
        ("for the node itself", arriving(Ip { dst: VTEP, ..inner() })),
        ("for the gateway", arriving(Ip { dst: GATEWAY, ..inner() })),
        ("for an address that nobody has", arriving(Ip { dst: [10, 244, 1, 99].into(), ..inner() })),
        ("for a pod that is not complete", arriving(Ip { dst: UNREADY_POD, ..Ip::tcp(REMOTE_POD, POD, 9) })),
        ("congestion on Not-ECT", outer(|ip| ip.tos = 3)),
        ("cut off", good.bytes()[..80].to_vec()),
        ("cut off in the inner packet", good.bytes()[..good.bytes().len() - 1].to_vec()),
        ("a length that lies", lying),
        ("ARP", frame([0xff; 6], NEXT_HOP_MAC, EtherType::ARP, &[0; 28])),
        ("IPv6", frame(WIRE_MAC, NEXT_HOP_MAC, EtherType::IPV6, &[0x60; 100])),
        (
            "a VLAN",
            frame(WIRE_MAC, NEXT_HOP_MAC, EtherType::VLAN_TAGGED_FRAME, &from(STRANGER, &inner())[12..]),
        ),
        ("the world's", plain(WORLD, POD)),
        ("a node's own address outside of the tunnel", plain(PEER, POD)),
        // Forged, each in a way that only somebody after XDP can tell.
        ("forged, for another host", not_ours(from(STRANGER, &inner()))),
        ("a pod's address, for another host", not_ours(plain(REMOTE_POD, POD))),
        ("forged, to another port", Tunnel { port: 53, ..good.clone() }.bytes()),
        ("forged, to another address", {
            let outer = Ip { src: STRANGER, dst: [192, 0, 2, 77].into(), ..good.outer.clone() };
            Tunnel { outer, ..good.clone() }.bytes()
        }),
        ("forged, without the VNI flag", Tunnel { flags: 0, vni: 2, ..good.clone() }.bytes()),
        ("forged, with an extension", Tunnel { flags: 0x88, vni: 2, ..good.clone() }.bytes()),
        ("forged, outer options", outer(|ip| (ip.src, ip.options) = (STRANGER, vec![1, 1, 1, 0]))),
        ("forged, an outer first fragment", outer(|ip| (ip.src, ip.fragment) = (STRANGER, (0, true)))),
        ("forged, an outer later fragment", outer(|ip| (ip.src, ip.fragment) = (STRANGER, (1, false)))),
        ("forged, TCP on the tunnel's port", outer(|ip| (ip.src, ip.protocol) = (STRANGER, IpNumber::TCP))),
    ];
    cases.into_iter().map(|(name, packet)| passed(bed, name, packet)).collect()
}

#[test]
fn what_others_can_judge_passes_untouched() {
    Bed::with(|bed| {
        let tcp = Tunnel::arriving(&Ip::tcp(REMOTE_POD, POD, 1410)).bytes();
        bed.check(understood_by_others(bed));
        bed.check(vec![passed(bed, "TCP for a pod", tcp)]);
    });
}

#[test]
fn pods_addresses_pass_where_nodes_do_not_masquerade() {
    Bed::with(|bed| {
        bed.reload(|constants| constants.plain_pods = true);
        let plain = ipv4_frame(WIRE_MAC, NEXT_HOP_MAC, &Ip::udp(REMOTE_POD, POD, 53));
        bed.check(vec![
            passed(bed, "a remote pod's", plain),
            dropped(bed, "a forged tunnel packet", from(STRANGER, &inner()), Reason::UnknownVtep),
        ]);
    });
}

#[test]
fn a_dropped_packet_is_described_as_by_tc() {
    Bed::with(|bed| {
        let mut events = bed.events();
        let mut describe = |hook, packet: &[u8]| {
            bed.run(hook, packet, bed.devices.wire);
            let event = events.next_event().expect("a record");
            assert_eq!(event.hook, hook as u8);
            let addresses = (event.outer_src.to_ip(), event.src.to_ip(), event.dst.to_ip());
            let rest = (event.reason, event.protocol, event.ether_type, event.len);
            (addresses, (event.src_port, event.dst_port), rest)
        };
        let plain = ipv4_frame(WIRE_MAC, NEXT_HOP_MAC, &Ip::udp(REMOTE_POD, POD, 53));
        for packet in [from(STRANGER, &inner()), from(PEER, &Ip::udp(WORLD, POD, 9)), plain] {
            assert_eq!(describe(Hook::XdpWire, &packet), describe(Hook::FromWire, &packet));
        }
        let (addresses, ports, _) = describe(Hook::XdpWire, &from(STRANGER, &inner()));
        assert_eq!(addresses, (STRANGER.into(), REMOTE_POD.into(), POD.into()));
        assert_eq!(ports, (40_000, 53));
    });
}
