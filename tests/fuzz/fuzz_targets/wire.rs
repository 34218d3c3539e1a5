//! What the programs ask of headers off the wire, against readings of the same bytes that share no code with them.
//!
//! An input is the own VTEP (address 4, port 2, VNI 3 bytes), the length of the packet (4), and the first bytes of the
//! packet, zeros where the input ends early.

#![no_main]

use libfuzzer_sys::fuzz_target;
use overlay_common::{
    flow,
    wire::{
        checksum, ecn, ipv4,
        vxlan::{Encap, MAX_INNER_LEN, TUNNEL_LEN, Tunnel, Vtep},
    },
};

/// Bytes of an input before the packet.
const PREFIX: usize = 13;

/// Offset of the inner IPv4 header in the packet.
const INNER: usize = 64;

fuzz_target!(|input: &[u8]| {
    let mut bytes = [0; PREFIX + TUNNEL_LEN];
    let given = input.len().min(bytes.len());
    bytes[..given].copy_from_slice(&input[..given]);
    let [a, b, c, d, port, port_low, v0, v1, v2, l0, l1, l2, l3, packet @ ..] = &bytes;
    let vtep = Vtep {
        addr: [*a, *b, *c, *d],
        port: u16::from_be_bytes([*port, *port_low]),
        vni: u32::from_be_bytes([0, *v0, *v1, *v2]),
    };
    let len = u32::from_be_bytes([*l0, *l1, *l2, *l3]);

    recognition(packet, &vtep);
    lengths(packet, len);
    encapsulation(packet, &vtep);
    congestion(packet[15], packet[INNER + 1]);
    header_changes(packet, packet[0]);
    flows(packet);
});

fn tunnel(packet: &[u8; TUNNEL_LEN]) -> Tunnel {
    // SAFETY: integers and arrays of integers only, without padding, from exactly as many bytes.
    unsafe { core::ptr::read_unaligned(packet.as_ptr().cast()) }
}

fn word(packet: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([packet[at], packet[at + 1]])
}

/// Plain is what RFC 791, 768 and 7348 make of these offsets, nothing more and nothing less.
fn recognition(packet: &[u8; TUNNEL_LEN], vtep: &Vtep) {
    let (more_fragments, offset) = (word(packet, 20) & 0x2000, word(packet, 20) & 0x1fff);
    let whole = (more_fragments, offset) == (0, 0);
    let vni = u32::from_be_bytes([0, packet[46], packet[47], packet[48]]);
    let plain = word(packet, 12) == 0x0800
        && packet[14] == 0x45
        && packet[23] == 17
        && whole
        && packet[30..34] == vtep.addr
        && word(packet, 36) == vtep.port
        && packet[42] == 0x08
        && vni == vtep.vni
        && word(packet, 62) == 0x0800
        && packet[INNER] == 0x45;
    assert_eq!(tunnel(packet).is_plain(vtep), plain);
}

/// Lengths that agree leave nothing to be read beyond the packet's end.
fn lengths(packet: &[u8; TUNNEL_LEN], len: u32) {
    let [ip, udp, inner] = [16, 38, INNER + 2].map(|at| u64::from(word(packet, at)));
    let agree = ip == udp + 20 && inner >= 20 && inner + 50 <= ip && ip + 14 <= u64::from(len);
    assert_eq!(tunnel(packet).lengths_agree(len), agree);
    if agree {
        assert!(len as usize >= TUNNEL_LEN, "the headers themselves fit");
    }
}

/// What one node writes, the other takes.
fn encapsulation(packet: &[u8; TUNNEL_LEN], vtep: &Vtep) {
    let inner_len = word(packet, INNER + 2);
    if inner_len < 20 || u32::from(inner_len) > MAX_INNER_LEN {
        return;
    }
    let mut written = tunnel(packet);
    written.eth.ether_type = 0x0800_u16.to_be();
    written.inner.vihl = 0x45;
    let [src @ .., _, _] = written.eth.src_addr;
    Encap {
        src,
        dst: vtep.addr,
        src_port: word(packet, 34),
        port: vtep.port,
        vni: vtep.vni,
        inner_len,
        tos: ecn::outer_tos(packet[INNER + 1]),
        inner_src: written.eth.src_addr,
        inner_dst: written.eth.dst_addr,
    }
    .write(&mut written.outer);
    let len = u32::from(inner_len) + 50 + 14;
    assert!(written.is_plain(vtep) && written.lengths_agree(len) && !written.lengths_agree(len - 1));
    assert!(is_valid(&bytes_of(&written)[14..34]), "outer header checksum");
}

/// RFC 6040, 4.2: only the ECN field changes, and a mark is dropped only with a packet that cannot carry it.
fn congestion(outer: u8, inner: u8) {
    let (outer_ecn, inner_ecn) = (outer % 4, inner % 4);
    match ecn::decap(outer, inner) {
        ecn::Decap::Drop => assert_eq!((outer_ecn, inner_ecn), (3, 0)),
        ecn::Decap::Keep => assert!(outer_ecn != 3 || inner_ecn == 3),
        ecn::Decap::Set(tos) => assert!(tos >> 2 == inner >> 2 && tos % 4 != 0 && inner_ecn != 0),
    }
}

/// A valid header stays valid when the programs change it, and nothing else of it changes.
fn header_changes(packet: &[u8; TUNNEL_LEN], tos: u8) {
    let mut with_valid = tunnel(packet);
    // The only headers that are changed. (One of zeros alone has no valid checksum that an update could keep.)
    with_valid.inner.vihl = 0x45;
    with_valid.inner.check = checksum::ipv4_header(&with_valid.inner);
    let before = bytes_of(&with_valid);
    assert!(is_valid(&before[INNER..]));
    let changed = |change: &dyn Fn(&mut Tunnel), at: usize, value: u8| {
        let mut tunnel = with_valid;
        change(&mut tunnel);
        let after = bytes_of(&tunnel);
        assert!(is_valid(&after[INNER..]));
        let mut expected = before;
        expected[INNER + at] = value;
        expected[INNER + 10..INNER + 12].copy_from_slice(&after[INNER + 10..INNER + 12]);
        assert_eq!(after, expected);
    };
    changed(&|tunnel| ipv4::set_tos(&mut tunnel.inner, tos), 1, tos);
    let ttl = before[INNER + 8];
    if ttl > 1 {
        changed(&|tunnel| ipv4::decrement_ttl(&mut tunnel.inner), 8, ttl - 1);
    }
}

fn bytes_of(tunnel: &Tunnel) -> [u8; TUNNEL_LEN] {
    // SAFETY: as in `tunnel`, the other way round: no padding, hence every byte is initialised.
    unsafe { core::ptr::read_unaligned(core::ptr::from_ref(tunnel).cast()) }
}

/// RFC 1071 by the letter: the sum over the whole header, checksum included, is all ones.
fn is_valid(header: &[u8]) -> bool {
    let mut sum: u32 = header[..20].chunks(2).map(|pair| u32::from(word(pair, 0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum == 0xffff
}

/// The inner packet's flow, with what follows the outer UDP header in the place of its transport header: ports where the
/// protocol has them, the identifier of an echo, and the way back to the same flow.
fn flows(packet: &[u8; TUNNEL_LEN]) {
    let ip = tunnel(packet).inner;
    let transport: [u8; 8] = packet[42..50].try_into().unwrap();
    let key = flow::of_packet(&ip, transport);
    let (first, second, third) = (word(packet, 42), word(packet, 44), word(packet, 46));
    let ports = match packet[INNER + 9] {
        6 | 17 | 132 | 136 => (first, second),
        1 => (third, third),
        _ => (0, 0),
    };
    assert_eq!((key.src_port, key.dst_port, key.protocol), (ports.0, ports.1, packet[INNER + 9]));
    assert_eq!(key.src.v4_bytes(), packet[INNER + 12..INNER + 16]);
    assert_eq!(key.dst.v4_bytes(), packet[INNER + 16..INNER + 20]);
    let back = flow::reversed(key);
    assert_eq!(
        (back.src, back.dst, back.src_port, back.dst_port),
        (key.dst, key.src, key.dst_port, key.src_port)
    );
    assert_eq!(flow::reversed(back), key);
    // A pair of addresses is never taken for a flow of them.
    let pair = flow::of_fragment(ip.src_addr, ip.dst_addr);
    assert_ne!(pair, key);
    assert_eq!((pair.src, pair.dst), (key.src, key.dst));
}
