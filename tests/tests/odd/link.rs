//! ARP and neighbour discovery of a pod on its link: its gateway answers, nobody else is there.

use std::net::{IpAddr, Ipv6Addr};

use etherparse::{Icmpv6Header, Icmpv6Type};
use overlay_tests::traffic::capture::Capture;
use overlay_tests::traffic::packet::{ICMPV6, Packet};
use overlay_tests::traffic::{any_port, udp};
use overlay_userspace::family::Family;

use crate::bed::Bed;

/// Messages of neighbour and listener discovery (RFC 4861, RFC 3810).
const ROUTER_SOLICITATION: u8 = 133;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const LISTENER_REPORT: u8 = 143;

/// Addressed to `to`, with a right checksum and the hop limit that neighbour discovery demands.
fn message(
    macs: ([u8; 6], [u8; 6]),
    source: Ipv6Addr,
    to: Ipv6Addr,
    kind: u8,
    body: [u8; 4],
    rest: &[u8],
) -> Vec<u8> {
    let header = Icmpv6Type::Unknown { type_u8: kind, code_u8: 0, bytes5to8: body };
    let header = Icmpv6Header::with_checksum(header, source.octets(), to.octets(), rest).unwrap();
    let payload = [&header.to_bytes()[..], rest].concat();
    Packet { hops: 255, ..Packet::new(macs, source.into(), to.into(), ICMPV6, payload) }.frame()
}

fn v6(address: IpAddr) -> Ipv6Addr {
    let IpAddr::V6(address) = address else { panic!("{address} is not IPv6") };
    address
}

/// The group that everybody with this address is in (RFC 4291, 2.7.1), and its MAC.
fn solicited(target: Ipv6Addr) -> (Ipv6Addr, [u8; 6]) {
    let [.., a, b, c] = target.octets();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
    (group, [0x33, 0x33, 0xff, a, b, c])
}

#[test]
fn a_pod_that_has_forgotten_its_gateway_finds_it_again() {
    let bed = Bed::new();
    let pod = bed.pod.namespace();
    for family in Family::ALL {
        let gateway = bed.cp().gateway_of(family);
        let (_, mac) = bed.macs();
        pod.ip(&format!("neigh del {gateway} dev eth0"));
        udp::exchange(pod, bed.peer.namespace(), any_port(bed.peer.addr_of(family)))
            .unwrap_or_else(|error| panic!("{family}: {error:#}"));
        let neighbours = pod.ip_json(&format!("neigh show to {gateway} dev eth0"));
        let text: Vec<_> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(neighbours[0]["lladdr"], text.join(":"), "{family}");
    }
}

/// Who asks for another pod, by its own address or to see whether its address is taken, hears nothing: there is no such neighbour.
#[test]
fn a_pod_is_answered_for_its_gateway_alone() {
    let bed = Bed::new();
    let (mac, _) = bed.macs();
    let own = v6(bed.pod.addr_of(Family::Ipv6));
    let asked = |target: Ipv6Addr, source: Ipv6Addr| {
        let (group, group_mac) = solicited(target);
        let option: Vec<u8> = if source.is_unspecified() { vec![] } else { [&[1, 1][..], &mac].concat() };
        let rest = [&target.octets()[..], &option].concat();
        message((mac, group_mac), source, group, SOLICITATION, [0; 4], &rest)
    };
    let drops = bed.drops();
    for (target, source, answers) in [
        (v6(bed.cp().gateway_of(Family::Ipv6)), own, 1),
        (v6(bed.near.addr_of(Family::Ipv6)), own, 0),
        (v6(bed.peer.addr_of(Family::Ipv6)), own, 0),
        (v6(bed.cp().address_of(Family::Ipv6)), own, 0),
        (own, Ipv6Addr::UNSPECIFIED, 0),
        (v6(bed.near.addr_of(Family::Ipv6)), Ipv6Addr::UNSPECIFIED, 0),
    ] {
        let capture = Capture::start(bed.pod.namespace(), "eth0");
        bed.send(&[asked(target, source)]);
        udp::exchange(bed.pod.namespace(), bed.cp().namespace(), any_port(bed.cp().address_of(Family::Ipv6)))
            .unwrap();
        let heard = capture.stop().into_iter().filter(|frame| {
            !frame.outgoing
                && frame.bytes.get(54) == Some(&ADVERTISEMENT)
                && frame.bytes.get(62..78) == Some(&target.octets()[..])
        });
        assert_eq!(heard.count(), answers, "{target}, asked from {source}");
    }
    bed.expect_no_drops(&drops, "solicitations");
}

/// What a pod says about its link changes nothing on the node.
#[test]
fn what_a_pod_advertises_misleads_nobody() {
    let bed = Bed::new();
    let (mac, gateway_mac) = bed.macs();
    let (own, node) = (v6(bed.pod.addr_of(Family::Ipv6)), bed.cp().namespace());
    let neighbours = || {
        let all = node.ip("-6 neigh show nud permanent");
        let mut lines: Vec<_> = all.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let before = neighbours();
    let drops = bed.drops();
    let all_nodes: Ipv6Addr = "ff02::1".parse().unwrap();
    for target in [
        v6(bed.cp().gateway_of(Family::Ipv6)),
        v6(bed.near.addr_of(Family::Ipv6)),
        v6(bed.peer.addr_of(Family::Ipv6)),
        v6(bed.cp().address_of(Family::Ipv6)),
        own,
    ] {
        // Target link-layer address; override.
        let rest = [&target.octets()[..], &[2, 1], &mac].concat();
        for (to, to_mac) in
            [(all_nodes, [0x33, 0x33, 0, 0, 0, 1]), (v6(bed.cp().gateway_of(Family::Ipv6)), gateway_mac)]
        {
            bed.send(&[message((mac, to_mac), own, to, ADVERTISEMENT, [0x20, 0, 0, 0], &rest)]);
        }
    }
    let routers: Ipv6Addr = "ff02::2".parse().unwrap();
    let reports: Ipv6Addr = "ff02::16".parse().unwrap();
    let capture = Capture::start(bed.pod.namespace(), "eth0");
    bed.send(&[
        message((mac, [0x33, 0x33, 0, 0, 0, 2]), own, routers, ROUTER_SOLICITATION, [0; 4], &[]),
        message((mac, [0x33, 0x33, 0, 0, 0, 0x16]), own, reports, LISTENER_REPORT, [0; 4], &[]),
    ]);
    for family in Family::ALL {
        for to in [&bed.near, &bed.peer] {
            udp::exchange(bed.pod.namespace(), to.namespace(), any_port(to.addr_of(family))).unwrap();
        }
        udp::exchange(node, bed.near.namespace(), any_port(bed.near.addr_of(family))).unwrap();
    }
    assert_eq!(neighbours(), before);
    // No router advertisement has come: nobody configures pods but their runtime.
    let heard =
        capture.stop().into_iter().filter(|frame| !frame.outgoing && frame.bytes.get(54) == Some(&134));
    assert_eq!(heard.count(), 0);
    bed.expect_no_drops(&drops, "advertisements");
}
