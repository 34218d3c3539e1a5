//! Options, extension headers, headers that are cut off or make no sense.

use std::net::SocketAddr;

use overlay_tests::traffic::capture::Capture;
use overlay_tests::traffic::counters::Counters;
use overlay_tests::traffic::packet::Packet;
use overlay_tests::traffic::{any_port, udp};
use overlay_userspace::family::Family;

use crate::bed::{Bed, End, eventually};

/// IPv4 options (RFC 791, 3.1; RFC 2113; RFC 6814).
const OPTIONS: [(&str, &[u8]); 5] = [
    ("no operation", &[1, 1, 1, 0]),
    ("router alert", &[148, 4, 0, 0]),
    ("record route", &[7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ("time stamp", &[68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ("as many as there can be", &[1; 40]),
];

/// Of eight bytes: padding (RFC 8200, 4.2).
fn padding(number: u8) -> (u8, Vec<u8>) {
    (number, vec![0, 1, 4, 0, 0, 0, 0])
}

/// Extension headers (RFC 8200, 4; RFC 2711).
fn extensions() -> [(&'static str, Vec<(u8, Vec<u8>)>); 6] {
    [
        ("hop-by-hop options", vec![padding(0)]),
        ("router alert", vec![(0, vec![0, 5, 2, 0, 0, 1, 0])]),
        ("destination options", vec![padding(60)]),
        // Of a type for experiments (RFC 4727), with nothing left to visit.
        ("a routing header", vec![(43, vec![0, 253, 0, 0, 0, 0, 0])]),
        ("several", vec![padding(0), padding(60), (43, vec![0, 253, 0, 0, 0, 0, 0]), padding(60)]),
        ("as many as are looked through", vec![padding(60); 8]),
    ]
}

/// The ways of what the pod sends.
fn ends(bed: &Bed) -> [(&'static str, End<'_>); 5] {
    [
        ("same node", End::Pod(&bed.near)),
        ("other node", End::Pod(&bed.peer)),
        ("behind a router", End::Pod(&bed.far)),
        ("its node", End::Node(bed.cp())),
        ("another node", End::Node(bed.cluster.node("w1"))),
    ]
}

#[test]
fn packets_with_options_or_extension_headers_arrive() {
    let bed = Bed::new();
    let before = bed.drops();
    for (place, end) in ends(&bed) {
        for family in Family::ALL {
            let socket = udp::bind(end.namespace(), any_port(end.address(family))).unwrap();
            let at: SocketAddr = socket.local_addr().unwrap();
            let with = |name: &str| bed.datagram(at, format!("{name} to {place}").as_bytes());
            let packets: Vec<(&str, Packet)> = match family {
                Family::Ipv4 => OPTIONS
                    .iter()
                    .map(|(name, options)| (*name, Packet { options: options.to_vec(), ..with(name) }))
                    .collect(),
                Family::Ipv6 => extensions()
                    .into_iter()
                    .map(|(name, extensions)| (name, Packet { extensions, ..with(name) }))
                    .collect(),
            };
            for (name, packet) in packets {
                bed.send(&[packet.frame()]);
                let mut got = [0; 200];
                let received = socket.recv_from(&mut got);
                let (len, from) =
                    received.unwrap_or_else(|error| panic!("{family}, {name} to {place}: {error}"));
                assert_eq!(got[..len], *format!("{name} to {place}").as_bytes());
                assert_eq!(from.ip(), bed.pod.addr_of(family), "{family}, {name} to {place}");
            }
        }
    }
    bed.expect_no_drops(&before, "options");
}

#[test]
fn more_extension_headers_than_anybody_looks_through_are_dropped() {
    const COUNT: usize = 3;
    let bed = Bed::new();
    for (place, end) in ends(&bed) {
        let packet = bed.datagram(any_port(end.address(Family::Ipv6)), b"hidden");
        let frame = Packet { extensions: vec![padding(60); 9], ..packet }.frame();
        bed.dropped(place, "pod_extensions", COUNT, || bed.send(&vec![frame; COUNT]));
    }
}

#[test]
fn headers_that_are_cut_off_are_dropped_under_their_reason() {
    let bed = Bed::new();
    for (place, end) in ends(&bed) {
        for family in Family::ALL {
            let whole = bed.datagram(any_port(end.address(family)), b"cut off").frame();
            let header = if family == Family::Ipv4 { 20 } else { 40 };
            let cuts: Vec<_> = (14..14 + header).map(|len| whole[..len].to_vec()).collect();
            bed.dropped(&format!("{family} to {place}"), "truncated", header, || bed.send(&cuts));
        }
    }
}

/// A field of an IP header, as its offset in the frame, set to something else; the checksum of an IPv4 header made right again.
fn broken(packet: &Packet, at: usize, value: &[u8]) -> Vec<u8> {
    let mut frame = packet.frame();
    frame[at..at + value.len()].copy_from_slice(value);
    if packet.source.is_ipv4() {
        frame[24..26].fill(0);
        let words = frame[14..34].as_chunks().0.iter().map(|word| u32::from(u16::from_be_bytes(*word)));
        let sum: u32 = words.sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        let check = !((sum & 0xffff) + (sum >> 16)) as u16;
        frame[24..26].copy_from_slice(&check.to_be_bytes());
    }
    frame
}

/// Headers that make no sense are nobody's loss but their sender's: what the programs do not carry the stack of the node refuses
/// and counts, what they carry the receiving pod's does.
#[test]
fn headers_that_make_no_sense_are_counted_by_whoever_reads_them() {
    const COUNT: usize = 4;
    const LEN: usize = 14 + 2;
    let bed = Bed::new();
    let drops = bed.drops();
    let (pod, node) = (bed.peer.namespace(), bed.cp().namespace());
    let v4 = bed.datagram(any_port(bed.peer.addr_of(Family::Ipv4)), b"no sense");
    let v6 = bed.datagram(any_port(bed.peer.addr_of(Family::Ipv6)), b"no sense");
    let rows = [
        ("IPv4, header of 16 bytes", broken(&v4, 14, &[0x44]), node, "Ip.InHdrErrors"),
        ("IPv4, header longer than the packet", broken(&v4, 14, &[0x4f]), node, "Ip.InHdrErrors"),
        ("IPv4, version 6", broken(&v4, 14, &[0x65]), node, "Ip.InHdrErrors"),
        ("IPv4, no length", broken(&v4, LEN, &[0, 0]), pod, "Ip.InHdrErrors"),
        ("IPv4, shorter than its header", broken(&v4, LEN, &[0, 19]), pod, "Ip.InHdrErrors"),
        ("IPv4, longer than it is", broken(&v4, LEN, &[0x10, 0]), pod, "IpExt.InTruncatedPkts"),
        ("IPv6, longer than it is", broken(&v6, 18, &[0x10, 0]), pod, "Ip6InTruncatedPkts"),
        // Source port, destination port, length, checksum.
        ("a UDP datagram of no length", broken(&v4, 14 + 20 + 4, &[0, 0]), pod, "Udp.InErrors"),
        ("a UDP datagram longer than it is", broken(&v4, 14 + 20 + 4, &[9, 9]), pod, "Udp.InErrors"),
    ];
    for (name, frame, place, counter) in rows {
        let before = Counters::read(place).get(counter);
        bed.send(&vec![frame; COUNT]);
        let counted =
            eventually(|| Counters::read(place).get(counter) - before, |count| *count >= COUNT as i64);
        assert_eq!(counted, COUNT as i64, "{name}: {counter} of {}", place.name());
    }
    bed.expect_no_drops(&drops, "headers without sense");
}

#[test]
fn a_packet_without_payload_arrives() {
    let bed = Bed::new();
    for (place, to) in [("same node", &bed.near), ("other node", &bed.peer)] {
        for family in Family::ALL {
            let capture = Capture::start(to.namespace(), "eth0");
            // Nothing behind the IP header: of a protocol for experiments.
            let mut packet = bed.datagram(any_port(to.addr_of(family)), b"");
            (packet.protocol, packet.payload) = (253, vec![]);
            let frame = packet.frame();
            bed.send(&[frame.clone()]);
            // A datagram without data: the last, so that both have come.
            let socket = udp::bind(to.namespace(), any_port(to.addr_of(family))).unwrap();
            bed.send(&[bed.datagram(socket.local_addr().unwrap(), b"").frame()]);
            let len = socket.recv(&mut [0; 8]).unwrap_or_else(|error| panic!("{family}, {place}: {error}"));
            assert_eq!(len, 0);
            let kind = if family == Family::Ipv4 { frame[23] } else { frame[20] };
            let seen = capture.stop().into_iter().filter(|seen| {
                let at = if family == Family::Ipv4 { 23 } else { 20 };
                !seen.outgoing && seen.bytes.len() == frame.len() && seen.bytes[at] == kind
            });
            assert_eq!(seen.count(), 1, "{family}, {place}");
        }
    }
}
