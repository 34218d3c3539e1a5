//! The outer headers against etherparse, an implementation that is not ours.

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::*;
use crate::wire::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};

const VTEP: Vtep = Vtep { addr: [192, 0, 2, 2], port: 8472, vni: 1 };

fn encap() -> impl Strategy<Value = Encap> {
    (
        any::<[u8; 4]>(),
        any::<[u8; 4]>(),
        any::<u16>(),
        any::<u16>(),
        0_u32..1 << 24,
        0..=MAX_INNER_LEN as u16,
        any::<u8>(),
        any::<[u8; 6]>(),
        any::<[u8; 6]>(),
    )
        .prop_map(|(src, dst, src_port, port, vni, inner_len, tos, inner_src, inner_dst)| Encap {
            src,
            dst,
            src_port,
            port,
            vni,
            inner_len,
            tos,
            inner_type: ETHERTYPE_IPV4,
            inner_src,
            inner_dst,
        })
}

fn bytes<T: Copy>(value: &T) -> &[u8] {
    // SAFETY: the structs of this module have no padding; every byte is initialised.
    unsafe { core::slice::from_raw_parts(core::ptr::from_ref(value).cast(), size_of::<T>()) }
}

fn zeroed() -> Tunnel {
    // SAFETY: integers and arrays of integers only.
    unsafe { core::mem::zeroed() }
}

/// A whole frame with an inner IPv4 packet of 20 + `payload` bytes, addressed to [`VTEP`].
fn tunnel(payload: u16) -> Tunnel {
    let mut t = zeroed();
    t.eth.ether_type = ETHERTYPE_IPV4.to_be();
    t.inner.vihl = 0x45;
    t.inner.tot_len = (20 + payload).to_be_bytes();
    Encap {
        src: [192, 0, 2, 1],
        dst: VTEP.addr,
        src_port: 50_000,
        port: VTEP.port,
        vni: VTEP.vni,
        inner_len: 20 + payload,
        tos: 0,
        inner_type: ETHERTYPE_IPV4,
        inner_src: [2; 6],
        inner_dst: [4; 6],
    }
    .write(&mut t.outer);
    t
}

proptest! {
    #[test]
    fn written_headers_parse_back(e in encap()) {
        let mut t = zeroed();
        t.eth.ether_type = ETHERTYPE_IPV4.to_be();
        e.write(&mut t.outer);
        let mut frame = bytes(&t)[..64].to_vec();
        frame.resize(64 + usize::from(e.inner_len), 0);
        let parsed = SlicedPacket::from_ethernet(&frame).unwrap();
        let ip = parsed.net.as_ref().unwrap().ipv4_ref().unwrap().header().to_header();
        prop_assert_eq!(ip.source, e.src);
        prop_assert_eq!(ip.destination, e.dst);
        prop_assert_eq!(ip.dscp.value() << 2 | ip.ecn.value(), e.tos);
        prop_assert!(ip.dont_fragment && !ip.more_fragments);
        prop_assert_eq!(ip.time_to_live, 64);
        prop_assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        prop_assert_eq!(usize::from(ip.total_len), frame.len() - 14);
        let Some(TransportSlice::Udp(udp)) = parsed.transport else { panic!("no UDP") };
        prop_assert_eq!((udp.source_port(), udp.destination_port(), udp.checksum()), (e.src_port, e.port, 0));
        prop_assert_eq!(usize::from(udp.length()), frame.len() - 34);
        let vxlan = &udp.payload()[..8];
        prop_assert_eq!(vxlan[0], 0x08);
        prop_assert_eq!(u32::from_be_bytes(vxlan[4..8].try_into().unwrap()), e.vni << 8);
        let eth = &udp.payload()[8..22];
        prop_assert_eq!(&eth[..6], &e.inner_dst[..]);
        prop_assert_eq!(&eth[6..12], &e.inner_src[..]);
        prop_assert_eq!(&eth[12..], &[8, 0][..]);
    }

    #[test]
    fn any_bytes_are_judged_without_panic(raw in proptest::collection::vec(any::<u8>(), TUNNEL_LEN), len: u32) {
        // SAFETY: integers and arrays of integers only, and exactly as many bytes.
        let t: Tunnel = unsafe { core::ptr::read_unaligned(raw.as_ptr().cast()) };
        prop_assert!(!t.is_plain(&VTEP) || t.outer.ip.dst_addr == VTEP.addr);
        let _ = t.lengths_agree(len);
    }

    #[test]
    fn a_plain_packet_stops_being_plain_when_any_deciding_field_changes(index in 0_usize..18, bit in 0_u8..8) {
        // Offsets of the bytes that decide: types, version and header length, protocol, destination, port, flags, VNI.
        const DECIDING: [usize; 18] = [12, 13, 14, 23, 30, 31, 32, 33, 36, 37, 42, 46, 47, 48, 62, 63, 64, 21];
        let mut raw = bytes(&tunnel(100)).to_vec();
        raw[DECIDING[index]] ^= 1 << bit;
        // SAFETY: as above.
        let t: Tunnel = unsafe { core::ptr::read_unaligned(raw.as_ptr().cast()) };
        prop_assert!(!t.is_plain(&VTEP));
    }
}

#[test]
fn a_frame_built_by_etherparse_is_plain() {
    let inner = {
        let mut inner = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 244, 1, 2], [10, 244, 2, 2], 64)
            .udp(1, 2)
            .write(&mut inner, b"payload")
            .unwrap();
        inner
    };
    let mut payload = vec![8, 0, 0, 0, 0, 0, 1, 0];
    payload.extend(inner);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([6; 6], [8; 6])
        .ipv4([192, 0, 2, 1], VTEP.addr, 64)
        .udp(50_000, 8472)
        .write(&mut frame, &payload)
        .unwrap();
    // SAFETY: integers and arrays of integers only; the frame is longer.
    let t: Tunnel = unsafe { core::ptr::read_unaligned(frame.as_ptr().cast()) };
    assert!(t.is_plain(&VTEP));
    assert!(t.lengths_agree(frame.len() as u32));
    assert!(!t.lengths_agree(frame.len() as u32 - 1));
}

#[test]
fn lengths_that_lie_are_noticed() {
    let whole = 14 + 50 + 20 + 100;
    assert!(tunnel(100).lengths_agree(whole));
    let mut t = tunnel(100);
    t.inner.tot_len = 121_u16.to_be_bytes();
    assert!(!t.lengths_agree(whole), "inner longer than outer");
    let mut t = tunnel(100);
    t.inner.tot_len = 19_u16.to_be_bytes();
    assert!(!t.lengths_agree(whole), "inner shorter than its header");
    let mut t = tunnel(100);
    t.outer.udp.len = 149_u16.to_be_bytes();
    assert!(!t.lengths_agree(whole), "UDP and IP disagree");
}

const VTEP6: Vtep<[u8; 16]> = Vtep { addr: [0x20; 16], port: 8472, vni: 1 };

/// A whole frame over IPv6 with an inner `I`, which is zero, of `len` bytes.
fn over_ipv6<I: IpHeader>(len: u16, tos: u8, src_port: u16) -> Tunnel<Ipv6Hdr, I> {
    // SAFETY: integers and arrays of integers only.
    let mut t: Tunnel<Ipv6Hdr, I> = unsafe { core::mem::zeroed() };
    t.eth.ether_type = ETHERTYPE_IPV6.to_be();
    Encap {
        src: [0x10; 16],
        dst: VTEP6.addr,
        src_port,
        port: VTEP6.port,
        vni: VTEP6.vni,
        inner_len: len,
        tos,
        inner_type: I::ETHERTYPE,
        inner_src: [2; 6],
        inner_dst: [4; 6],
    }
    .write(&mut t.outer);
    t
}

fn inner_ipv6(payload: u16) -> Ipv6Hdr {
    Ipv6Hdr { vcf: [0x60, 0, 0, 0], payload_len: payload.to_be_bytes(), next_hdr: 6, ..Ipv6Hdr::EMPTY }
}

proptest! {
    #[test]
    fn headers_over_ipv6_parse_back(len in 0..=Outer::<Ipv6Hdr>::MAX_INNER_LEN as u16, tos: u8, src_port: u16) {
        let t = over_ipv6::<Ipv6Hdr>(len, tos, src_port);
        let mut frame = bytes(&t)[..84].to_vec();
        frame.resize(84 + usize::from(len), 0);
        let parsed = SlicedPacket::from_ethernet(&frame).unwrap();
        let ip = parsed.net.as_ref().unwrap().ipv6_ref().unwrap().header().to_header();
        prop_assert_eq!((ip.source, ip.destination), ([0x10; 16], VTEP6.addr));
        prop_assert_eq!((ip.traffic_class, ip.flow_label.value()), (tos, u32::from(src_port)));
        prop_assert_eq!(ip.hop_limit, 64);
        prop_assert_eq!(usize::from(ip.payload_length), frame.len() - 54);
        let Some(TransportSlice::Udp(udp)) = parsed.transport else { panic!("no UDP") };
        prop_assert_eq!((udp.source_port(), udp.destination_port(), udp.checksum()), (src_port, 8472, 0));
        prop_assert_eq!(usize::from(udp.length()), frame.len() - 54);
        prop_assert_eq!(&udp.payload()[..8], &[8, 0, 0, 0, 0, 0, 1, 0][..]);
        prop_assert_eq!(&udp.payload()[20..22], &[0x86, 0xdd][..]);
        let mut read = <Tunnel<Ipv6Hdr, ()>>::from_bytes(&frame).unwrap();
        prop_assert!(read.is_for(&VTEP6));
        read.outer.ip.next_hdr = 6;
        prop_assert!(!read.is_for(&VTEP6));
    }

    #[test]
    fn over_ipv6_a_plain_packet_stops_being_plain_when_any_deciding_field_changes(index in 0_usize..31, bit in 0_u8..8) {
        // Offsets of the bytes that decide: type, next header, destination, port, flags, VNI, inner type and next header.
        // Of the two version bytes any bit of the version alone decides.
        let mut deciding: Vec<usize> = vec![12, 13];
        deciding.extend(38..54);
        deciding.extend([56, 57, 62, 66, 67, 68, 82, 83]);
        let mut t = over_ipv6::<Ipv6Hdr>(140, 0, 50_000);
        t.inner = inner_ipv6(100);
        prop_assert!(t.is_plain(&VTEP6));
        let mut raw = bytes(&t).to_vec();
        match deciding.get(index) {
            Some(at) => raw[*at] ^= 1 << bit,
            // The version of the outer and of the inner header.
            None if bit >= 4 => raw[if index % 2 == 0 { 14 } else { 84 }] ^= 1 << bit,
            // A header that follows the outer one; an option that follows the inner one.
            None if index % 2 == 0 => raw[20] = [0, 43, 44, 60][usize::from(bit)],
            None => raw[90] = [0, 43, 51, 60][usize::from(bit)],
        }
        let changed = <Tunnel<Ipv6Hdr, Ipv6Hdr>>::from_bytes(&raw).unwrap();
        prop_assert!(!changed.is_plain(&VTEP6));
    }
}

#[test]
fn lengths_over_ipv6_are_those_of_payloads() {
    let mut t = over_ipv6::<Ipv6Hdr>(140, 0, 50_000);
    t.inner = inner_ipv6(100);
    let whole = 14 + 70 + 40 + 100;
    assert!(t.lengths_agree(whole) && !t.lengths_agree(whole - 1));
    let longer = Tunnel { inner: inner_ipv6(101), ..t };
    assert!(!longer.lengths_agree(whole), "inner longer than outer");
    let empty = Tunnel { inner: inner_ipv6(0), ..t };
    assert!(empty.lengths_agree(whole), "no payload, and bytes behind it");
    t.outer.udp.len = 169_u16.to_be_bytes();
    assert!(!t.lengths_agree(whole), "UDP and IP disagree");
}

#[test]
fn the_inner_family_is_told_by_the_type() {
    let mut t = over_ipv6::<Ipv4Hdr>(120, 0, 50_000);
    (t.inner.vihl, t.inner.tot_len) = (0x45, 120_u16.to_be_bytes());
    assert!(t.is_plain(&VTEP6) && t.lengths_agree(14 + 70 + 120));
    t.outer.eth.ether_type = ETHERTYPE_IPV6.to_be();
    assert!(!t.is_plain(&VTEP6));
}

#[test]
fn bytes_are_those_that_are_written() {
    let encap = Encap {
        src: [0x10; 16],
        dst: [0x20; 16],
        src_port: 50_000,
        port: 8472,
        vni: 1,
        inner_len: 100,
        tos: 0,
        inner_type: ETHERTYPE_IPV6,
        inner_src: [2; 6],
        inner_dst: [4; 6],
    };
    assert_eq!(encap.to_bytes()[..], bytes(&over_ipv6::<Ipv6Hdr>(100, 0, 50_000))[14..84]);
}
