//! A path to a peer that is narrower than the pods' devices: what its sender is told, and what is left to the anchor device.

use etherparse::{Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpNumber, icmpv4};
use overlay_common::{
    counter::Path,
    reason::{Hook, Reason},
};
use overlay_userspace::datapath::run::Verdict;

use super::bed::{
    CHECKING_POD6, CHECKING6, FAR_POD, FAR_POD6, GATEWAY6, Inner, Ip6, PEER6, POD6, REMOTE_POD6, Tunnel, with,
};
use crate::bed::{ANCHOR_MAC, Bed, Case, Counted, GATEWAY, Ip, Out, PEER, POD, POD_MAC, REMOTE_POD, ip};

/// What the path to each of the peers carries, in bytes.
const PATH: u16 = 1400;

/// The path to the peer carries `mtu` bytes.
fn narrow(peer: &str, mtu: u16) {
    ip(&format!("route replace {peer} dev wire mtu lock {mtu}"));
}

fn case(bed: &Bed, name: &'static str, inner: &impl Inner) -> Case {
    Case {
        name,
        hook: Hook::FromPod,
        device: bed.devices.pod,
        packet: inner.of_pod(),
        gso: None,
        verdict: Verdict::Redirect,
        out: Out::Packet(inner.hop().of_pod()),
        counted: Counted::Nowhere,
    }
}

fn fits(bed: &Bed, name: &'static str, peer: std::net::IpAddr, inner: &impl Inner) -> Case {
    Case {
        out: Out::Tunnel(Tunnel::leaving(peer, &inner.hop()).bytes()),
        counted: Counted::As(Path::EncapNative),
        ..case(bed, name, inner)
    }
}

/// The pod gets this back.
fn told(bed: &Bed, name: &'static str, inner: &impl Inner, answer: &impl Inner) -> Case {
    Case {
        out: Out::Packet(answer.framed(POD_MAC, ANCHOR_MAC)),
        counted: Counted::Dropped(Reason::PathMtu),
        ..case(bed, name, inner)
    }
}

/// The stack gets this back, by the anchor device.
fn stack_told(bed: &Bed, name: &'static str, inner: &impl Inner, answer: &impl Inner) -> Case {
    Case {
        out: Out::Packet(answer.framed(ANCHOR_MAC, ANCHOR_MAC)),
        counted: Counted::Dropped(Reason::PathMtu),
        ..of_host(bed, name, inner)
    }
}

fn of_host(bed: &Bed, name: &'static str, inner: &impl Inner) -> Case {
    let packet = inner.framed(ANCHOR_MAC, ANCHOR_MAC);
    Case { hook: Hook::FromHost, device: bed.devices.anchor, packet, ..case(bed, name, inner) }
}

/// "Fragmentation needed" (RFC 792), with 480 bytes of the packet.
fn needed_from(from: std::net::Ipv4Addr, ip: &Ip, mtu: u16) -> Ip {
    let kind = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu };
    let quote = &ip.bytes()[..480];
    let header = Icmpv4Header::with_checksum(Icmpv4Type::DestinationUnreachable(kind), quote);
    let payload = [&header.to_bytes()[..], quote].concat();
    Ip { tos: 0xc0, protocol: IpNumber::ICMP, payload, ..Ip::udp(from, ip.src, 0) }
}

/// What the gateway says to a pod.
fn needed(ip: &Ip, mtu: u16) -> Ip {
    needed_from(GATEWAY, &ip.hop(), mtu)
}

/// "Packet too big" (RFC 4443): as much as IPv6's minimum MTU has room for.
fn too_big_from(from: std::net::Ipv6Addr, ip: &Ip6, mtu: u32) -> Ip6 {
    let quote = &ip.bytes()[..1280 - 48];
    let kind = Icmpv6Type::PacketTooBig { mtu };
    let header = Icmpv6Header::with_checksum(kind, from.octets(), ip.src.octets(), quote).unwrap();
    let payload = [&header.to_bytes()[..], quote].concat();
    let answer = Ip6::new(from, ip.src, IpNumber::IPV6_ICMP, payload);
    Ip6 { traffic_class: 0xc0, flow_label: 0, ..answer }
}

/// What the gateway says to a pod.
fn too_big(ip: &Ip6, mtu: u32) -> Ip6 {
    too_big_from(GATEWAY6, &ip.hop(), mtu)
}

#[test]
fn a_pod_is_told_what_fits_the_path_over_either_family() {
    with(|bed| {
        narrow(&PEER.to_string(), PATH);
        narrow(&PEER6.to_string(), PATH);
        for (peer, dst, dst6, overhead) in
            [(PEER.into(), REMOTE_POD, REMOTE_POD6, 50), (PEER6.into(), FAR_POD, FAR_POD6, 70)]
        {
            let mtu = PATH - overhead;
            let (tcp, tcp6) = (usize::from(mtu) - 40, usize::from(mtu) - 60);
            let large = Ip::tcp(POD, dst, tcp + 1);
            let large6 = Ip6::tcp(POD6, dst6, tcp6 + 1);
            bed.check(vec![
                fits(bed, "fits", peer, &Ip::tcp(POD, dst, tcp)),
                told(bed, "one byte more", &large, &needed(&large, mtu)),
                fits(bed, "IPv6 fits", peer, &Ip6::tcp(POD6, dst6, tcp6)),
                told(bed, "IPv6, one byte more", &large6, &too_big(&large6, mtu.into())),
            ]);
            // Each segment counts, not their sum. A run can have no GSO that can be encapsulated at once.
            let (large, large6) = (Ip::tcp(POD, dst, 3000), Ip6::tcp(POD6, dst6, 3000));
            for (gso, wide) in [(tcp as u32 + 1, false), (tcp as u32, true)] {
                let row = |case: Case| Case { gso: Some((gso, 3)), ..case };
                bed.check(vec![if wide {
                    row(case(bed, "segments that fit", &large))
                } else {
                    row(told(bed, "segments that do not", &large, &needed(&large, mtu)))
                }]);
            }
            let gso = Some((tcp6 as u32 + 1, 3));
            let row = told(bed, "IPv6 segments that do not", &large6, &too_big(&large6, mtu.into()));
            bed.check(vec![Case { gso, ..row }]);
        }
    });
}

#[test]
fn the_stack_is_told_by_the_destination() {
    with(|bed| {
        narrow(&PEER.to_string(), PATH);
        narrow(&PEER6.to_string(), PATH);
        for (dst, dst6, overhead) in [(REMOTE_POD, REMOTE_POD6, 50), (FAR_POD, FAR_POD6, 70)] {
            let mtu = PATH - overhead;
            let large = Ip::tcp(GATEWAY, dst, usize::from(mtu) - 40 + 1);
            let large6 = Ip6::tcp(GATEWAY6, dst6, usize::from(mtu) - 60 + 1);
            bed.check(vec![
                stack_told(bed, "one byte more", &large, &needed_from(dst, &large, mtu)),
                stack_told(bed, "IPv6, one byte more", &large6, &too_big_from(dst6, &large6, mtu.into())),
            ]);
        }
    });
}

/// The anchor device sends to such a peer, and would tell nobody.
#[test]
fn a_pod_is_told_of_the_path_to_a_node_that_wants_checksums() {
    with(|bed| {
        narrow(&CHECKING6.to_string(), PATH);
        let [fits, large] = [1270, 1271].map(|len| Ip6::tcp(POD6, CHECKING_POD6, len));
        bed.check(vec![
            case(bed, "fits", &fits),
            told(bed, "one byte more", &large, &too_big(&large, (PATH - 70).into())),
        ]);
    });
}

#[test]
fn what_may_be_fragmented_is_left_to_the_anchor_device() {
    with(|bed| {
        narrow(&PEER.to_string(), PATH);
        let ip = Ip { dont_fragment: false, ..Ip::tcp(POD, REMOTE_POD, 1400) };
        bed.check(vec![case(bed, "without Don't Fragment", &ip)]);
    });
}

/// The kernel does not fragment its packets.
#[test]
fn nothing_is_fragmented_over_ipv6() {
    with(|bed| {
        narrow(&PEER6.to_string(), PATH);
        let ip = Ip { dont_fragment: false, ..Ip::tcp(POD, FAR_POD, 1400) };
        bed.check(vec![told(bed, "IPv4 without Don't Fragment", &ip, &needed(&ip, PATH - 70))]);
        narrow(&PEER6.to_string(), 1300);
        // 1230 bytes, which no sender of IPv6 believes in: less than a path has to carry.
        let ip6 = Ip6::tcp(POD6, FAR_POD6, 1250);
        let dropped = Case {
            verdict: Verdict::Drop,
            out: Out::Unchanged,
            counted: Counted::Dropped(Reason::PathMtu),
            ..of_host(bed, "the stack's", &Ip6::tcp(GATEWAY6, FAR_POD6, 1250))
        };
        bed.check(vec![case(bed, "less than IPv6 has, by the anchor device", &ip6), dropped]);
    });
}
