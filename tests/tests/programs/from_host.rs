//! `from_host`: what leaves by the anchor device.

use etherparse::EtherType;
use overlay_common::{
    counter::Path,
    reason::{Hook, Reason},
};
use overlay_userspace::datapath::run::Verdict;

use crate::bed::{
    ANCHOR_MAC, Bed, Case, Counted, GATEWAY, Ip, OTHER_POD, Out, PEER_MAC, POD, REMOTE_POD, Tunnel, VTEP,
    WORLD, frame, ipv4_frame,
};

/// The stack's neighbour entry on a NOARP device: the device's own MAC.
fn from_host(ip: &Ip) -> Vec<u8> {
    ipv4_frame(ANCHOR_MAC, ANCHOR_MAC, ip)
}

fn case(bed: &Bed, name: &'static str, ip: &Ip) -> Case {
    Case {
        name,
        hook: Hook::FromHost,
        device: bed.devices.anchor,
        packet: from_host(ip),
        gso: None,
        verdict: Verdict::Redirect,
        // The stack has counted the hop already, or the packet begins here.
        out: Out::Tunnel(Tunnel::leaving(ip).bytes()),
        counted: Counted::As(Path::EncapNative),
    }
}

fn dropped(bed: &Bed, name: &'static str, ip: &Ip, reason: Reason) -> Case {
    Case {
        verdict: Verdict::Drop,
        out: Out::Unchanged,
        counted: Counted::Dropped(reason),
        ..case(bed, name, ip)
    }
}

/// Through the device itself: inner MACs written, tunnel key set.
fn anchored(bed: &Bed, name: &'static str, ip: &Ip) -> Case {
    Case {
        verdict: Verdict::Pass,
        out: Out::Packet(ipv4_frame(PEER_MAC, ANCHOR_MAC, ip)),
        counted: Counted::As(Path::EncapAnchor),
        ..case(bed, name, ip)
    }
}

#[test]
fn the_nodes_own_traffic_enters_the_tunnel() {
    Bed::with(|bed| {
        let udp = Ip::udp(GATEWAY, REMOTE_POD, 53);
        bed.check(vec![
            case(bed, "from the gateway address", &udp),
            case(bed, "from the node's address", &Ip { src: VTEP, ..udp.clone() }),
            Case {
                counted: Counted::Both(Path::EncapNative, Path::FlowRecorded),
                ..case(bed, "a pod's, after a Service", &Ip { src: POD, ttl: 63, ..udp.clone() })
            },
            case(bed, "TTL 1 goes one hop", &Ip { ttl: 1, ..udp.clone() }),
            case(bed, "TCP", &Ip::tcp(GATEWAY, REMOTE_POD, 1410)),
        ]);
    });
}

#[test]
fn what_has_no_way_is_dropped_under_its_reason() {
    Bed::with(|bed| {
        let to = |dst: [u8; 4]| Ip::udp(GATEWAY, dst.into(), 53);
        bed.check(vec![
            dropped(bed, "a subnet that no node has", &to([10, 244, 77, 1]), Reason::NoNode),
            dropped(bed, "the world, by a wrong route", &to(WORLD.octets()), Reason::NoNode),
            dropped(bed, "multicast", &to([224, 0, 0, 251]), Reason::Multicast),
            dropped(bed, "broadcast", &to([255; 4]), Reason::Multicast),
            dropped(bed, "the own subnet", &to(OTHER_POD.octets()), Reason::NoEndpoint),
            Case {
                packet: frame([0xff; 6], ANCHOR_MAC, EtherType::ARP, &[0; 28]),
                ..dropped(bed, "ARP", &to([0; 4]), Reason::HostProtocol)
            },
            Case {
                packet: frame([0xff; 6], ANCHOR_MAC, EtherType::IPV6, &[0x60; 40]),
                ..dropped(bed, "IPv6", &to([0; 4]), Reason::HostProtocol)
            },
        ]);
    });
}

#[test]
fn what_cannot_be_encapsulated_natively_is_left_to_the_device() {
    Bed::with(|bed| {
        let udp = Ip::udp(GATEWAY, REMOTE_POD, 53);
        let status = std::process::Command::new("ip")
            .args(["route", "replace", "192.0.2.2", "dev", "wire", "mtu", "lock", "1400"])
            .status()
            .unwrap();
        assert!(status.success());
        bed.check(vec![
            anchored(bed, "IP options", &Ip { options: vec![1, 1, 1, 0], ..udp.clone() }),
            anchored(
                bed,
                "a narrow path, of what may be fragmented",
                &Ip { dont_fragment: false, ..Ip::tcp(GATEWAY, REMOTE_POD, 1311) },
            ),
            case(bed, "what fits goes natively", &Ip::tcp(GATEWAY, REMOTE_POD, 1310)),
        ]);
        let status =
            std::process::Command::new("ip").args(["route", "flush", "table", "main"]).status().unwrap();
        assert!(status.success());
        bed.check(vec![anchored(bed, "no route", &udp)]);
    });
}
