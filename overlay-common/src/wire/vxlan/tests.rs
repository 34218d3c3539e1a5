//! The outer headers against etherparse, an implementation that is not ours.

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::*;

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
