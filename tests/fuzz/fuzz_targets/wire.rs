//! What the programs ask of headers off the wire, against readings of the same bytes that share no code with them.
//!
//! An input is the own VTEP (address 4, port 2, VNI 3 bytes), the length of the packet (4), and the first bytes of the
//! packet, zeros where the input ends early. Over IPv6 the VTEP's address has twelve zeros behind. Every packet is read in
//! all four ways: over either family, with either inside.

#![no_main]

use std::ops::Range;

use libfuzzer_sys::fuzz_target;
use overlay_common::{
    flow,
    maps::Addr,
    wire::{
        checksum, ecn,
        ip::{Address as _, IpHeader},
        ipv4, ipv6,
        vxlan::{Encap, Outer, Tunnel, Vtep},
    },
};

/// Bytes of an input before the packet.
const PREFIX: usize = 13;
/// Bytes of the packet: the longest headers, and a few extension headers.
const PACKET: usize = 188;

/// The families as the readings here have them: where in a header what is.
#[derive(Clone, Copy)]
struct Layout {
    ether_type: u16,
    len: usize,
    protocol: usize,
    dst: Range4,
}

/// A range of bytes that can be copied.
type Range4 = (usize, usize);

const V4: Layout = Layout { ether_type: 0x0800, len: 20, protocol: 9, dst: (16, 20) };
const V6: Layout = Layout { ether_type: 0x86dd, len: 40, protocol: 6, dst: (24, 40) };

impl Layout {
    fn range(&self) -> Range<usize> {
        self.dst.0..self.dst.1
    }

    /// Without options, and of IPv6 without extension headers but a fragment's.
    fn plain(&self, header: &[u8]) -> bool {
        if self.len == 20 {
            header[0] == 0x45
        } else {
            header[0] >> 4 == 6 && ![0, 43, 51, 60, 135, 139, 140].contains(&header[6])
        }
    }

    fn whole(&self, header: &[u8]) -> bool {
        if self.len == 20 { word(header, 6).trailing_zeros() >= 14 } else { header[6] != 44 }
    }

    /// Bytes of the packet, as it claims.
    fn total(&self, header: &[u8]) -> u64 {
        if self.len == 20 { word(header, 2).into() } else { u64::from(word(header, 4)) + 40 }
    }
}

/// The plain numbers of an own VTEP.
struct Own {
    addr: [u8; 16],
    port: u16,
    vni: u32,
}

fuzz_target!(|input: &[u8]| {
    let mut bytes = [0; PREFIX + PACKET];
    let given = input.len().min(bytes.len());
    bytes[..given].copy_from_slice(&input[..given]);
    let [a, b, c, d, port, port_low, v0, v1, v2, l0, l1, l2, l3, packet @ ..] = &bytes;
    let mut addr = [0; 16];
    addr[..4].copy_from_slice(&[*a, *b, *c, *d]);
    let own = Own {
        addr,
        port: u16::from_be_bytes([*port, *port_low]),
        vni: u32::from_be_bytes([0, *v0, *v1, *v2]),
    };
    let len = u32::from_be_bytes([*l0, *l1, *l2, *l3]);

    let over4 = Vtep { addr: [*a, *b, *c, *d], port: own.port, vni: own.vni };
    let over6 = Vtep { addr: own.addr, port: own.port, vni: own.vni };
    tunnel::<Ipv4, Ipv4>(packet, len, &own, &over4, (V4, V4));
    tunnel::<Ipv4, Ipv6>(packet, len, &own, &over4, (V4, V6));
    tunnel::<Ipv6, Ipv4>(packet, len, &own, &over6, (V6, V4));
    tunnel::<Ipv6, Ipv6>(packet, len, &own, &over6, (V6, V6));

    congestion(packet[15], packet[65]);
    ipv4_changes(packet, packet[0]);
    ipv6_changes(packet, packet[0]);
    flows(packet);
    chain(packet[20], &packet[54..]);
});

type Ipv4 = network_types::ip::Ipv4Hdr;
type Ipv6 = network_types::ip::Ipv6Hdr;

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// A packet as a tunnel packet over `O` that carries an `I`.
fn tunnel<O: IpHeader, I: IpHeader>(
    packet: &[u8],
    len: u32,
    own: &Own,
    vtep: &Vtep<O::Bytes>,
    (outer, inner): (Layout, Layout),
) {
    let read = Tunnel::<O, I>::from_bytes(packet).expect("the packet is long enough");
    // Where the outer UDP, the VXLAN and the inner Ethernet and IP headers begin.
    let udp = 14 + outer.len;
    let (vxlan, eth, ip) = (udp + 8, udp + 16, udp + 30);

    // Plain is what RFC 791, 8200, 768 and 7348 make of these offsets, nothing more and nothing less.
    let header = &packet[14..udp];
    let addr = &own.addr[..outer.range().len()];
    let ours = word(packet, 12) == outer.ether_type
        && outer.plain(header)
        && outer.whole(header)
        && header[outer.protocol] == 17
        && header[outer.range()] == *addr
        && word(packet, udp + 2) == own.port
        && packet[vxlan] == 0x08;
    assert_eq!(read.is_for(vtep), ours);
    let vni = u32::from_be_bytes([0, packet[vxlan + 4], packet[vxlan + 5], packet[vxlan + 6]]);
    let plain =
        ours && vni == own.vni && word(packet, eth + 12) == inner.ether_type && inner.plain(&packet[ip..]);
    assert_eq!(read.is_plain(vtep), plain);

    // Lengths that agree leave nothing to be read beyond the packet's end.
    let (outer_len, udp_len) = (outer.total(header), u64::from(word(packet, udp + 4)));
    let inner_len = inner.total(&packet[ip..]);
    let agree = outer_len == udp_len + outer.len as u64
        && inner_len >= inner.len as u64
        && inner_len + (outer.len + 30) as u64 <= outer_len
        && outer_len + 14 <= u64::from(len);
    assert_eq!(read.lengths_agree(len), agree);
    if agree {
        assert!(len as usize >= ip + inner.len, "the headers themselves fit");
    }

    // What one node writes, the other takes.
    let Ok(inner_len) = u16::try_from(inner_len) else { return };
    if u32::from(inner_len) > Outer::<O>::MAX_INNER_LEN || usize::from(inner_len) < inner.len {
        return;
    }
    let mut written = read;
    written.eth.ether_type = outer.ether_type.to_be();
    Encap {
        src: vtep.addr,
        dst: vtep.addr,
        src_port: word(packet, 34),
        port: vtep.port,
        vni: vtep.vni,
        inner_len,
        tos: ecn::outer_tos(packet[65]),
        inner_type: inner.ether_type,
        inner_src: written.eth.src_addr,
        inner_dst: written.eth.dst_addr,
    }
    .write(&mut written.outer);
    let len = u32::from(inner_len) + Outer::<O>::LEN_I32.unsigned_abs() + 14;
    assert_eq!(written.is_plain(vtep), inner.plain(&packet[ip..]));
    assert!(written.lengths_agree(len) && !written.lengths_agree(len - 1));
    assert_eq!(written.outer.ip.traffic_class(), packet[65]);
    if outer.len == 20 {
        assert!(is_valid(&bytes_of(&written)[14..34]), "outer header checksum");
    }
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
fn ipv4_changes(packet: &[u8], tos: u8) {
    let mut valid = ipv4::from_bytes(&packet[64..]).expect("the packet is long enough");
    // The only headers that are changed. (One of zeros alone has no valid checksum that an update could keep.)
    valid.vihl = 0x45;
    valid.check = checksum::ipv4_header(&valid);
    let before = bytes_of(&valid);
    assert!(is_valid(&before));
    let changed = |change: &dyn Fn(&mut Ipv4) -> u32, at: usize, value: u8| {
        let mut header = valid;
        assert_eq!(change(&mut header), 0, "the checksum makes up for it");
        let after = bytes_of(&header);
        assert!(is_valid(&after));
        let mut expected = before.clone();
        expected[at] = value;
        expected[10..12].copy_from_slice(&after[10..12]);
        assert_eq!(after, expected);
    };
    changed(&|header| header.set_traffic_class(tos), 1, tos);
    let ttl = before[8];
    if ttl > 1 {
        changed(&|header| header.take_hop(), 8, ttl - 1);
    }
}

/// A sum over the packet stays right with what a change says that it adds, and nothing else of the header changes.
fn ipv6_changes(packet: &[u8], class: u8) {
    let header = ipv6::from_bytes(&packet[64..]).expect("the packet is long enough");
    let before = bytes_of(&header);
    let changed = |change: &dyn Fn(&mut Ipv6) -> u32, expected: &[u8]| {
        let mut header = header;
        let added = change(&mut header);
        assert_eq!(bytes_of(&header), expected);
        assert_eq!(folded(sum(&before) + u64::from(added)), folded(sum(expected)));
    };
    let mut expected = before.clone();
    (expected[0], expected[1]) = (before[0] & 0xf0 | class >> 4, class << 4 | before[1] & 0xf);
    changed(&|header| header.set_traffic_class(class), &expected);
    if before[7] > 1 {
        let mut expected = before.clone();
        expected[7] -= 1;
        changed(&|header| header.take_hop(), &expected);
    }
}

fn bytes_of<T: Copy>(value: &T) -> Vec<u8> {
    // SAFETY: headers are integers and arrays of integers without padding, hence every byte is initialised.
    unsafe { core::slice::from_raw_parts(core::ptr::from_ref(value).cast(), size_of::<T>()) }.to_vec()
}

/// RFC 1071 by the letter: the sum over the whole header, checksum included, is all ones.
fn is_valid(header: &[u8]) -> bool {
    let mut sum: u32 = header[..20].chunks(2).map(|pair| u32::from(word(pair, 0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum == 0xffff
}

/// The one's complement sum of all words in the machine's order, as the kernel keeps it beside a packet.
fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|pair| u64::from(u16::from_ne_bytes([pair[0], pair[1]]))).sum()
}

/// 0 and 0xffff are the same number.
fn folded(mut sum: u64) -> u64 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum % 0xffff
}

/// The inner packet's flow, with what follows the outer UDP header in the place of its transport header: ports where the
/// protocol has them, the identifier of an echo, and the way back to the same flow.
fn flows(packet: &[u8]) {
    let v4 = ipv4::from_bytes(&packet[64..]).expect("the packet is long enough");
    flow_of(&v4, packet[73], 1, (Addr::v4(v4.src_addr), Addr::v4(v4.dst_addr)), packet);
    let v6 = ipv6::from_bytes(&packet[64..]).expect("the packet is long enough");
    flow_of(&v6, packet[70], 58, (Addr { bytes: v6.src_addr }, Addr { bytes: v6.dst_addr }), packet);
}

fn flow_of<H: IpHeader>(ip: &H, protocol: u8, icmp: u8, (src, dst): (Addr, Addr), packet: &[u8]) {
    let transport: [u8; 8] = packet[42..50].try_into().expect("eight bytes");
    let key = flow::of_packet(ip, transport);
    let (first, second, third) = (word(packet, 42), word(packet, 44), word(packet, 46));
    let ports = match protocol {
        6 | 17 | 132 | 136 => (first, second),
        protocol if protocol == icmp => (third, third),
        _ => (0, 0),
    };
    assert_eq!((key.src_port, key.dst_port, key.protocol), (ports.0, ports.1, protocol));
    assert_eq!((key.src, key.dst), (src, dst));
    assert_eq!((ip.src().to_addr(), ip.dst().to_addr()), (src, dst));
    let back = flow::reversed(key);
    assert_eq!(
        (back.src, back.dst, back.src_port, back.dst_port),
        (key.dst, key.src, key.dst_port, key.src_port)
    );
    assert_eq!(flow::reversed(back), key);
    // A pair of addresses is never taken for a flow of them.
    let pair = flow::of_fragment(src, dst);
    assert_ne!(pair, key);
    assert_eq!((pair.src, pair.dst), (key.src, key.dst));
}

/// The walk through extension headers, against one that consumes what it has read.
fn chain(first: u8, bytes: &[u8]) {
    let found = ipv6::walk(first, 0, |at| bytes.get(at..at + 4).and_then(|four| four.try_into().ok()));
    let (mut next, mut rest, mut fragment) = (first, bytes, ipv6::Fragment::No);
    let mut walked = 0;
    let expected = loop {
        let units: usize = match next {
            0 | 43 | 60 | 135 | 139 | 140 => 8,
            44 | 51 => 4,
            _ => break Ok((next, bytes.len() - rest.len())),
        };
        if walked == 8 {
            break Err(ipv6::NotFound::TooLong);
        }
        let [following, len, high, low, ..] = *rest else { break Err(ipv6::NotFound::Truncated) };
        let size = match next {
            44 => 8,
            51 => units * (usize::from(len) + 2),
            _ => units * (usize::from(len) + 1),
        };
        walked += 1;
        if next == 44 {
            let offset = u16::from_be_bytes([high, low]) / 8;
            if offset > 0 {
                assert_eq!(found.map(|chain| chain.fragment), Ok(ipv6::Fragment::Later));
                return;
            }
            if low % 2 == 1 {
                fragment = ipv6::Fragment::First;
            }
        }
        next = following;
        match rest.get(size..) {
            Some(behind) => rest = behind,
            // It ends beyond the end, which is as far as one can say.
            None if walked == 8 || ![0, 43, 44, 51, 60, 135, 139, 140].contains(&next) => return,
            None => break Err(ipv6::NotFound::Truncated),
        }
    };
    assert_eq!(found.map(|chain| (chain.protocol, chain.offset)), expected);
    if let Ok(chain) = found {
        assert_eq!(chain.fragment, fragment);
    }
}
