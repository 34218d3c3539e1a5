//! `from_pod`: who may send, and where it goes.

use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType};
use overlay_common::{
    counter::Path,
    reason::{Hook, Reason},
};
use overlay_userspace::datapath::run::Verdict;

use crate::bed::{
    ANCHOR_MAC, Bed, Case, Counted, GATEWAY, Ip, Mac, OTHER_POD, OTHER_POD_MAC, Out, PEER, POD, POD_MAC,
    PORT, REMOTE_POD, STRANGER, Tunnel, UNREADY_POD, UNRESOLVED_MAC, UNRESOLVED_POD, VTEP, WORLD, frame,
    from_pod, ipv4_frame,
};

fn case(bed: &Bed, name: &'static str, packet: Vec<u8>) -> Case {
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

fn dropped(bed: &Bed, name: &'static str, packet: Vec<u8>, reason: Reason) -> Case {
    Case { verdict: Verdict::Drop, counted: Counted::Dropped(reason), ..case(bed, name, packet) }
}

fn local(bed: &Bed, name: &'static str, ip: &Ip) -> Case {
    Case {
        verdict: Verdict::Redirect,
        out: Out::Packet(ipv4_frame(OTHER_POD_MAC, ANCHOR_MAC, &ip.hop())),
        counted: Counted::As(Path::Local),
        ..case(bed, name, from_pod(ip))
    }
}

/// The second packet of a node: the first goes by the neighbour subsystem and is the same on the wire.
fn tunnelled(bed: &Bed, name: &'static str, ip: &Ip) -> Case {
    Case {
        verdict: Verdict::Redirect,
        out: Out::Tunnel(Tunnel::leaving(&ip.hop()).bytes()),
        counted: Counted::As(Path::EncapNative),
        ..case(bed, name, from_pod(ip))
    }
}

fn arp(spa: [u8; 4], sha: Mac) -> Vec<u8> {
    let packet = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        ArpOperation::REQUEST,
        &sha,
        &spa,
        &[0; 6],
        &GATEWAY.octets(),
    )
    .unwrap();
    frame([0xff; 6], POD_MAC, EtherType::ARP, &packet.to_bytes())
}

#[test]
fn a_pod_sends_only_with_its_own_address_and_mac() {
    Bed::with(|bed| {
        let spoofed = |src| from_pod(&Ip::udp(src, REMOTE_POD, 53));
        bed.check(vec![
            dropped(bed, "another pod's address", spoofed(OTHER_POD), Reason::PodSourceAddress),
            dropped(bed, "a remote pod's address", spoofed(REMOTE_POD), Reason::PodSourceAddress),
            dropped(bed, "the gateway's address", spoofed(GATEWAY), Reason::PodSourceAddress),
            dropped(bed, "the node's address", spoofed(VTEP), Reason::PodSourceAddress),
            dropped(bed, "an address of the world", spoofed(WORLD), Reason::PodSourceAddress),
            dropped(bed, "no address", spoofed([0, 0, 0, 0].into()), Reason::PodSourceAddress),
            dropped(bed, "a pod that is not complete", spoofed(UNREADY_POD), Reason::PodSourceAddress),
            dropped(
                bed,
                "a foreign MAC",
                ipv4_frame(ANCHOR_MAC, OTHER_POD_MAC, &Ip::udp(POD, REMOTE_POD, 53)),
                Reason::PodSourceMac,
            ),
            dropped(
                bed,
                "a MAC that differs in its last byte",
                ipv4_frame(ANCHOR_MAC, [0x0a, 0x58, 10, 244, 1, 4], &Ip::udp(POD, WORLD, 53)),
                Reason::PodSourceMac,
            ),
            Case {
                device: bed.devices.other_pod,
                ..dropped(
                    bed,
                    "its own address at another pod's device",
                    from_pod(&Ip::udp(POD, WORLD, 53)),
                    Reason::PodSourceAddress,
                )
            },
        ]);
    });
}

#[test]
fn arp_passes_to_the_stack_only_with_the_pods_own_addresses() {
    Bed::with(|bed| {
        bed.check(vec![
            case(bed, "a question for the gateway", arp(POD.octets(), POD_MAC)),
            dropped(
                bed,
                "a foreign protocol address",
                arp(OTHER_POD.octets(), POD_MAC),
                Reason::PodSourceAddress,
            ),
            dropped(
                bed,
                "a foreign hardware address",
                arp(POD.octets(), OTHER_POD_MAC),
                Reason::PodSourceMac,
            ),
            dropped(bed, "cut off", arp(POD.octets(), POD_MAC)[..30].to_vec(), Reason::Truncated),
        ]);
    });
}

#[test]
fn other_protocols_are_dropped_under_their_reason() {
    Bed::with(|bed| {
        bed.check(vec![
            dropped(
                bed,
                "IPv6",
                frame(ANCHOR_MAC, POD_MAC, EtherType::IPV6, &[0x60; 40]),
                Reason::PodProtocol,
            ),
            dropped(
                bed,
                "an unknown type",
                frame(ANCHOR_MAC, POD_MAC, EtherType(0x88b5), &[0; 40]),
                Reason::PodProtocol,
            ),
        ]);
    });
}

#[test]
fn a_pod_on_the_same_node_gets_the_packet_directly() {
    Bed::with(|bed| {
        let udp = Ip::udp(POD, OTHER_POD, 53);
        bed.check(vec![
            local(bed, "UDP", &udp),
            local(bed, "TCP", &Ip::tcp(POD, OTHER_POD, 1000)),
            local(bed, "the tunnel's port at a pod is a port like any other", &Ip::udp(POD, OTHER_POD, PORT)),
            local(bed, "all of DSCP and ECN stays", &Ip { tos: 0xbb, ..udp.clone() }),
            local(bed, "a first fragment", &Ip { fragment: (0, true), dont_fragment: false, ..udp.clone() }),
            local(
                bed,
                "a later fragment",
                &Ip { fragment: (185, false), dont_fragment: false, ..udp.clone() },
            ),
            case(bed, "one that expires is the stack's to answer", from_pod(&Ip { ttl: 1, ..udp.clone() })),
            case(bed, "one with TTL 0 too", from_pod(&Ip { ttl: 0, ..udp.clone() })),
            case(bed, "options are the stack's", from_pod(&Ip { options: vec![1, 1, 1, 0], ..udp.clone() })),
            case(
                bed,
                "an address that nobody has",
                from_pod(&Ip { dst: [10, 244, 1, 99].into(), ..udp.clone() }),
            ),
            case(bed, "a pod that is not complete", from_pod(&Ip { dst: UNREADY_POD, ..udp })),
        ]);
    });
}

#[test]
fn a_pod_on_another_node_is_reached_through_the_tunnel() {
    Bed::with(|bed| {
        let udp = Ip::udp(POD, REMOTE_POD, 53);
        bed.check(vec![
            tunnelled(bed, "the first packet, by the neighbour subsystem", &udp),
            tunnelled(bed, "the second, directly", &udp),
            tunnelled(bed, "TCP of full size", &Ip::tcp(POD, REMOTE_POD, 1410)),
            tunnelled(
                bed,
                "the tunnel's port at a pod is a port like any other",
                &Ip::udp(POD, REMOTE_POD, PORT),
            ),
            tunnelled(bed, "ECT(0) is copied out", &Ip { tos: 0b10, ..udp.clone() }),
            tunnelled(bed, "CE is copied out, DSCP too", &Ip { tos: 46 << 2 | 0b11, ..udp.clone() }),
            tunnelled(bed, "TTL 2 is enough for this hop", &Ip { ttl: 2, ..udp.clone() }),
            tunnelled(
                bed,
                "a first fragment",
                &Ip { fragment: (0, true), dont_fragment: false, ..udp.clone() },
            ),
            tunnelled(
                bed,
                "a later fragment",
                &Ip { fragment: (185, false), dont_fragment: false, ..udp.clone() },
            ),
            case(bed, "one that expires is the stack's to answer", from_pod(&Ip { ttl: 1, ..udp.clone() })),
            case(bed, "options are the stack's", from_pod(&Ip { options: vec![1, 1, 1, 0], ..udp.clone() })),
            dropped(
                bed,
                "a subnet that no node has",
                from_pod(&Ip { dst: [10, 244, 77, 1].into(), ..udp.clone() }),
                Reason::NoNode,
            ),
            tunnelled(bed, "a remote node, with the pod's own address", &Ip { dst: PEER, ..udp }),
        ]);
    });
}

#[test]
fn a_neighbour_that_is_not_resolved_is_left_to_the_neighbour_subsystem() {
    Bed::with(|bed| {
        let ip = Ip::udp(POD, UNRESOLVED_POD, 53);
        let leaving = Tunnel::leaving(&ip.hop());
        let wanted = Tunnel {
            outer: Ip { dst: [192, 0, 2, 3].into(), ..leaving.outer.clone() },
            inner_dst: UNRESOLVED_MAC,
            // The kernel writes the outer MACs when it has resolved the next hop.
            eth_dst: [0; 6],
            eth_src: [0; 6],
            ..leaving
        };
        bed.check(vec![Case { out: Out::Tunnel(wanted.bytes()), ..tunnelled(bed, "unresolved", &ip) }]);
    });
}

#[test]
fn one_packet_per_epoch_drives_the_neighbour_state_machine() {
    Bed::with(|bed| {
        let subnet = [10, 244, 2, 0].into();
        assert_eq!(bed.node(subnet).neigh_epoch, 0);
        bed.run(Hook::FromPod, &from_pod(&Ip::udp(POD, REMOTE_POD, 53)), bed.devices.pod);
        assert_ne!(bed.node(subnet).neigh_epoch, 0, "the epoch of the packet is not kept");
    });
}

#[test]
fn without_a_route_to_the_peer_the_anchor_device_gets_the_packet() {
    Bed::with(|bed| {
        let status =
            std::process::Command::new("ip").args(["route", "del", "192.0.2.0/24"]).status().unwrap();
        assert!(status.success());
        let ip = Ip::udp(POD, REMOTE_POD, 53);
        bed.check(vec![Case {
            verdict: Verdict::Redirect,
            out: Out::Packet(from_pod(&ip.hop())),
            counted: Counted::Nowhere,
            ..case(bed, "no route", from_pod(&ip))
        }]);
    });
}

/// As in `from_wire`: of a kind that `bpf_skb_adjust_room` does not know.
#[test]
fn gso_that_cannot_be_encapsulated_natively_is_left_to_the_anchor_device() {
    Bed::with(|bed| {
        let anchored = |name, ip: &Ip| Case {
            gso: Some((1398, 3)),
            verdict: Verdict::Redirect,
            out: Out::Packet(from_pod(&ip.hop())),
            counted: Counted::Nowhere,
            ..case(bed, name, from_pod(ip))
        };
        bed.check(vec![
            anchored("TCP of an unknown kind", &Ip::tcp(POD, REMOTE_POD, 3000)),
            anchored(
                "neither TCP nor UDP",
                &Ip { protocol: etherparse::IpNumber::SCTP, ..Ip::tcp(POD, REMOTE_POD, 3000) },
            ),
        ]);
    });
}

#[test]
fn host_services_and_world_are_the_stacks() {
    Bed::with(|bed| {
        let to = |dst| from_pod(&Ip::udp(POD, dst, 53));
        bed.check(vec![
            case(bed, "the gateway", to(GATEWAY)),
            case(bed, "the own node", to(VTEP)),
            case(bed, "a Service", to([10, 96, 0, 10].into())),
            case(bed, "the world", to(WORLD)),
            case(bed, "multicast", to([224, 0, 0, 251].into())),
        ]);
    });
}

#[test]
fn a_pod_cannot_speak_to_a_tunnel_port() {
    Bed::with(|bed| {
        let to = |dst| Ip::udp(POD, dst, PORT);
        let with_options = Ip { options: vec![1, 1, 1, 1, 1, 1, 1, 0], ..to(PEER) };
        let fragment = Ip { fragment: (0, true), dont_fragment: false, ..to(PEER) };
        bed.check(vec![
            dropped(bed, "of a remote node", from_pod(&to(PEER)), Reason::PodTunnelPort),
            dropped(bed, "of the own node", from_pod(&to(VTEP)), Reason::PodTunnelPort),
            dropped(bed, "of the gateway", from_pod(&to(GATEWAY)), Reason::PodTunnelPort),
            dropped(
                bed,
                "of an address that may be a node's too",
                from_pod(&to(STRANGER)),
                Reason::PodTunnelPort,
            ),
            dropped(bed, "behind IP options", from_pod(&with_options), Reason::PodTunnelPort),
            dropped(bed, "in a first fragment", from_pod(&fragment), Reason::PodTunnelPort),
            case(
                bed,
                "TCP on that port is something else",
                from_pod(&Ip { protocol: etherparse::IpNumber::TCP, ..to(VTEP) }),
            ),
            dropped(
                bed,
                "a UDP header that is cut off",
                from_pod(&to(VTEP))[..36].to_vec(),
                Reason::Truncated,
            ),
        ]);
    });
}

#[test]
fn one_flow_keeps_its_source_port_and_flows_spread() {
    Bed::with(|bed| {
        let port = |src_port: u16| {
            let mut ip = Ip::udp(POD, REMOTE_POD, 53);
            ip.payload[..2].copy_from_slice(&src_port.to_be_bytes());
            let (_, out) = bed.run(Hook::FromPod, &from_pod(&ip), bed.devices.pod);
            u16::from_be_bytes([out[34], out[35]])
        };
        assert_eq!(port(1000), port(1000));
        let ports: std::collections::HashSet<u16> = (1000..1200).map(port).collect();
        assert!(ports.len() > 150, "200 flows share {} source ports", ports.len());
    });
}
