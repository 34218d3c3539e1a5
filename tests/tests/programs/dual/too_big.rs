//! A path to a peer that is narrower than the pods' devices: what its sender is told, and what is left to the anchor device.

use etherparse::{Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpNumber, icmpv4};
use overlay_common::{
    counter::Path,
    reason::{Hook, Reason},
};
use overlay_userspace::datapath::run::Verdict;

use super::bed::{FAR_POD, FAR_POD6, GATEWAY6, Inner, Ip6, PEER6, POD6, REMOTE_POD6, Tunnel, with};
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

/// "Fragmentation needed" (RFC 792): from the gateway, with 480 bytes of the packet.
fn needed(ip: &Ip, mtu: u16) -> Ip {
    let kind = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu };
    let quote = &ip.hop().bytes()[..480];
    let header = Icmpv4Header::with_checksum(Icmpv4Type::DestinationUnreachable(kind), quote);
    let payload = [&header.to_bytes()[..], quote].concat();
    Ip { tos: 0xc0, protocol: IpNumber::ICMP, payload, ..Ip::udp(GATEWAY, ip.src, 0) }
}

/// "Packet too big" (RFC 4443): as much as IPv6's minimum MTU has room for.
fn too_big(ip: &Ip6, mtu: u32) -> Ip6 {
    let quote = &ip.hop().bytes()[..1280 - 48];
    let kind = Icmpv6Type::PacketTooBig { mtu };
    let header = Icmpv6Header::with_checksum(kind, GATEWAY6.octets(), ip.src.octets(), quote).unwrap();
    let payload = [&header.to_bytes()[..], quote].concat();
    let answer = Ip6::new(GATEWAY6, ip.src, IpNumber::IPV6_ICMP, payload);
    Ip6 { traffic_class: 0xc0, flow_label: 0, ..answer }
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
fn what_may_be_fragmented_or_nobody_believes_is_left_to_the_anchor_device() {
    with(|bed| {
        narrow(&PEER.to_string(), PATH);
        narrow(&PEER6.to_string(), 1300);
        let ip = Ip::tcp(POD, REMOTE_POD, 1400);
        bed.check(vec![
            case(bed, "without Don't Fragment", &Ip { dont_fragment: false, ..ip }),
            // 1230 bytes: less than an IPv6 path has to carry, so that the outer packet is to be fragmented.
            case(bed, "less than IPv6 has", &Ip6::tcp(POD6, FAR_POD6, 1250)),
        ]);
    });
}
