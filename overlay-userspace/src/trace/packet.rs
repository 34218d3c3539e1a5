//! Packets: crafted for the first half, taken apart for both. Either family, inside and outside.

use std::net::IpAddr;

use etherparse::{
    IpFragOffset, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6FlowLabel, Ipv6Header,
    LaxNetSlice, LaxSlicedPacket, PacketBuilder, TransportSlice,
};
use overlay_common::{
    maps::{FlowKey, FlowKind},
    wire::{ETH_LEN, PROTO_ICMP, PROTO_TCP, PROTO_UDP},
};

use super::{Asked, Protocol, TraceError};
use crate::family::{Family, OfFamily as _};

/// The longest packet that a test run takes on kernels with 4 KiB pages is a little shorter; the kernel decides.
const LONGEST: u16 = 9000;

/// `IPPROTO_ICMPV6`.
const PROTO_ICMPV6: u8 = 58;
/// UDP and VXLAN headers, between the outer IP header and the inner Ethernet header.
const UDP_LEN: usize = 8;
const VXLAN_LEN: usize = 8;
/// The one flag of a plain VXLAN header: it has a VNI (RFC 7348, 5).
const HAS_VNI: u8 = 0x08;

/// Bytes of an IP header without options.
pub(super) const fn header_len(family: Family) -> usize {
    match family {
        Family::Ipv4 => 20,
        Family::Ipv6 => 40,
    }
}

/// Bytes that a tunnel over this family adds to a packet.
pub(super) const fn overhead(outer: Family) -> u16 {
    (header_len(outer) + UDP_LEN + VXLAN_LEN + ETH_LEN) as u16
}

/// The IP headers of a packet.
fn headers(src: IpAddr, dst: IpAddr, ttl: u8, traffic_class: u8) -> Result<IpHeaders, TraceError> {
    let failed = |e: String| TraceError::Packet(e);
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut ip = Ipv4Header::new(0, ttl, IpNumber::TCP, src.octets(), dst.octets())
                .map_err(|e| failed(e.to_string()))?;
            // As Linux sends TCP, and UDP that looks for its path MTU.
            ip.dont_fragment = true;
            ip.fragment_offset = IpFragOffset::ZERO;
            Ok(IpHeaders::Ipv4(ip, Ipv4Extensions::default()))
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let ip = Ipv6Header {
                traffic_class,
                flow_label: Ipv6FlowLabel::ZERO,
                payload_length: 0,
                next_header: IpNumber::TCP,
                hop_limit: ttl,
                source: src.octets(),
                destination: dst.octets(),
            };
            Ok(IpHeaders::Ipv6(ip, Ipv6Extensions::default()))
        }
        _ => Err(failed(format!("{src} and {dst} are not of one family: a packet has one"))),
    }
}

/// The packet that a pod would send.
pub(super) fn craft(asked: &Asked, macs: ([u8; 6], [u8; 6]), src: IpAddr) -> Result<Vec<u8>, TraceError> {
    let Asked { destination, protocol, port, source_port, size, ttl, .. } = *asked;
    let family = destination.family();
    let transport: u16 = match protocol {
        Protocol::Tcp => 20,
        Protocol::Udp | Protocol::Icmp => 8,
    };
    let shortest = header_len(family) as u16 + transport;
    let name = protocol.name();
    let payload = size.checked_sub(shortest).filter(|_| size <= LONGEST).ok_or_else(|| {
        TraceError::Packet(format!(
            "--size {size}: a packet of {name} has from {shortest} to {LONGEST} bytes"
        ))
    })?;
    let payload = vec![0; usize::from(payload)];
    let builder = PacketBuilder::ethernet2(macs.0, macs.1).ip(headers(src, destination, ttl, 0)?);
    let mut packet = Vec::new();
    match (protocol, family) {
        (Protocol::Tcp, _) => builder.tcp(source_port, port, 1, 64240).syn().write(&mut packet, &payload),
        (Protocol::Udp, _) => builder.udp(source_port, port).write(&mut packet, &payload),
        (Protocol::Icmp, Family::Ipv4) => {
            builder.icmpv4_echo_request(source_port, 1).write(&mut packet, &payload)
        }
        (Protocol::Icmp, Family::Ipv6) => {
            builder.icmpv6_echo_request(source_port, 1).write(&mut packet, &payload)
        }
    }
    .map_err(|e| TraceError::Packet(e.to_string()))?;
    Ok(packet)
}

/// What matters of an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Inner {
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    /// IP protocol number.
    pub(super) protocol: u8,
    /// Host order; the identifier of an echo in both; 0 without either.
    pub(super) ports: (u16, u16),
    /// Or hop limit.
    pub(super) ttl: u8,
    /// Or traffic class.
    pub(super) tos: u8,
    /// From the IP header on.
    pub(super) len: u16,
    /// Options, or extension headers other than that of a fragment.
    pub(super) options: bool,
    /// A part of a datagram, the first one included.
    pub(super) fragment: bool,
}

impl Inner {
    /// Of a packet that begins with an IP header.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let sliced = LaxSlicedPacket::from_ip(bytes).ok()?;
        let ports = match &sliced.transport {
            Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
            Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
            Some(TransportSlice::Icmpv4(icmp)) => identifier(icmp.bytes5to8()),
            Some(TransportSlice::Icmpv6(icmp)) => identifier(icmp.bytes5to8()),
            _ => (0, 0),
        };
        match sliced.net? {
            LaxNetSlice::Ipv4(ip) => {
                let header = ip.header();
                Some(Self {
                    src: header.source_addr().into(),
                    dst: header.destination_addr().into(),
                    protocol: header.protocol().0,
                    ports,
                    ttl: header.ttl(),
                    tos: header.dcp().value() << 2 | header.ecn().value(),
                    len: header.total_len(),
                    options: header.ihl() != 5,
                    fragment: header.is_fragmenting_payload(),
                })
            }
            LaxNetSlice::Ipv6(ip) => {
                let header = ip.header();
                let protocol = ip.payload().ip_number.0;
                Some(Self {
                    src: header.source_addr().into(),
                    dst: header.destination_addr().into(),
                    protocol,
                    ports,
                    ttl: header.hop_limit(),
                    tos: header.traffic_class(),
                    len: header.payload_length().saturating_add(header_len(Family::Ipv6) as u16),
                    options: header.next_header().0 != protocol
                        && header.next_header() != IpNumber::IPV6_FRAGMENTATION_HEADER,
                    fragment: ip.is_payload_fragmented(),
                })
            }
            LaxNetSlice::Arp(_) => None,
        }
    }

    /// Behind an Ethernet header.
    pub(super) fn framed(frame: &[u8]) -> Option<Self> {
        Self::parse(frame.get(ETH_LEN..)?)
    }

    /// The keys of recorded flows that this packet may match.
    pub(super) fn keys(&self) -> [FlowKey; 2] {
        let Self { src, dst, protocol, ports: (src_port, dst_port), .. } = *self;
        let flow = FlowKey {
            src: src.into(),
            dst: dst.into(),
            src_port,
            dst_port,
            protocol,
            kind: FlowKind::Flow as u8,
            reserved: [0; 2],
        };
        [flow, FlowKey { src_port: 0, dst_port: 0, protocol: 0, kind: FlowKind::Pair as u8, ..flow }]
    }

    /// Its destination port, where it has one.
    pub(super) fn port(&self) -> Option<(&'static str, u16)> {
        match self.protocol {
            PROTO_TCP => Some(("tcp", self.ports.1)),
            PROTO_UDP => Some(("udp", self.ports.1)),
            _ => None,
        }
    }

    /// For people: `tcp 10.244.1.2:40000 -> 10.244.2.2:80, 60 bytes, TTL 64`.
    pub(super) fn text(&self) -> String {
        let Self { src, dst, ports: (from, to), ttl, len, .. } = self;
        let (from_end, to_end) = (at(*src, *from), at(*dst, *to));
        let (name, ends) = match self.protocol {
            PROTO_TCP => ("tcp".to_owned(), format!("{from_end} -> {to_end}")),
            PROTO_UDP => ("udp".to_owned(), format!("{from_end} -> {to_end}")),
            PROTO_ICMP => ("icmp".to_owned(), format!("{src} -> {dst} identifier {from}")),
            PROTO_ICMPV6 => ("icmpv6".to_owned(), format!("{src} -> {dst} identifier {from}")),
            number => (format!("IP protocol {number}"), format!("{src} -> {dst}")),
        };
        let hops = if src.is_ipv4() { "TTL" } else { "hop limit" };
        format!("{name} {ends}, {len} bytes, {hops} {ttl}")
    }
}

/// The identifier of an echo, at both ends.
fn identifier([i0, i1, ..]: [u8; 4]) -> (u16, u16) {
    (u16::from_be_bytes([i0, i1]), u16::from_be_bytes([i0, i1]))
}

/// Address and port as people write them.
pub(super) fn at(addr: IpAddr, port: u16) -> std::net::SocketAddr {
    (addr, port).into()
}

/// A VXLAN packet, as it is on the wire.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tunnel<'a> {
    /// Destination and source of the outer Ethernet header.
    pub(super) macs: ([u8; 6], [u8; 6]),
    /// The outer IP and UDP headers.
    pub(super) outer: Inner,
    /// The UDP checksum is zero.
    pub(super) zero_checksum: bool,
    /// The VXLAN header says that there is a VNI, and nothing else.
    pub(super) plain: bool,
    /// VXLAN network identifier.
    pub(super) vni: u32,
    /// From the inner Ethernet header on.
    pub(super) inner: &'a [u8],
}

impl<'a> Tunnel<'a> {
    /// Of a packet that begins with an Ethernet header; `None` of one that is no UDP packet, or too short.
    pub(super) fn parse(frame: &'a [u8]) -> Option<Self> {
        let mac = |at: usize| frame.get(at..)?.first_chunk::<6>().copied();
        let outer = Inner::framed(frame)
            .filter(|outer| outer.protocol == PROTO_UDP && !outer.options && !outer.fragment)?;
        let udp = frame.get(ETH_LEN + header_len(outer.src.family())..)?;
        let vxlan = udp.get(UDP_LEN..)?.first_chunk::<VXLAN_LEN>()?;
        let [flags, r0, r1, r2, v0, v1, v2, r3] = *vxlan;
        Some(Self {
            macs: (mac(0)?, mac(6)?),
            outer,
            zero_checksum: udp.get(6..8)? == [0, 0],
            plain: [flags, r0, r1, r2, r3] == [HAS_VNI, 0, 0, 0, 0],
            vni: u32::from_be_bytes([0, v0, v1, v2]),
            inner: udp.get(UDP_LEN + VXLAN_LEN..)?,
        })
    }

    /// Source and destination of the inner Ethernet header.
    pub(super) fn inner_macs(&self) -> ([u8; 6], [u8; 6]) {
        let mac = |at: usize| self.inner.get(at..).and_then(|bytes| bytes.first_chunk()).copied();
        (mac(6).unwrap_or_default(), mac(0).unwrap_or_default())
    }
}

/// What the outer headers of a packet are made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outward {
    /// Source and destination of the outer Ethernet header.
    pub(super) macs: ([u8; 6], [u8; 6]),
    /// The same of the inner one.
    pub(super) inner_macs: ([u8; 6], [u8; 6]),
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    pub(super) ports: (u16, u16),
    pub(super) vni: u32,
    pub(super) ttl: u8,
    pub(super) tos: u8,
}

/// The packet as the vxlan device sends it; `inner` begins with its IP header.
pub(super) fn encapsulate(to: &Outward, inner: &[u8]) -> Result<Vec<u8>, TraceError> {
    let [_, v0, v1, v2] = to.vni.to_be_bytes();
    let ether_type =
        if Inner::parse(inner).is_some_and(|inner| inner.src.is_ipv6()) { 0x86dd } else { 0x0800_u16 };
    let mut payload = vec![HAS_VNI, 0, 0, 0, v0, v1, v2, 0];
    payload.extend(to.inner_macs.1);
    payload.extend(to.inner_macs.0);
    payload.extend(ether_type.to_be_bytes());
    payload.extend(inner);
    let mut ip = headers(to.src, to.dst, to.ttl, to.tos)?;
    if let IpHeaders::Ipv4(ip, _) = &mut ip {
        // DSCP and ECN are parts of one byte; both fit.
        ip.dscp = (to.tos >> 2).try_into().unwrap_or_default();
        ip.ecn = (to.tos & 3).try_into().unwrap_or_default();
    }
    let builder = PacketBuilder::ethernet2(to.macs.0, to.macs.1).ip(ip).udp(to.ports.0, to.ports.1);
    let mut packet = Vec::new();
    builder.write(&mut packet, &payload).map_err(|e| TraceError::Packet(e.to_string()))?;
    let checksum = ETH_LEN + header_len(to.dst.family()) + 6;
    if let Some(checksum) = packet.get_mut(checksum..checksum + 2) {
        checksum.fill(0);
    }
    Ok(packet)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAIRS: [[&str; 2]; 2] = [["10.244.1.2", "10.244.2.2"], ["fd00:244:0:1::2", "fd00:244:0:2::2"]];

    fn asked(destination: &str, protocol: Protocol, size: u16) -> Asked {
        Asked {
            pod: String::new(),
            destination: destination.parse().unwrap(),
            protocol,
            port: 80,
            source_port: 40000,
            size,
            ttl: 9,
            from_address: None,
        }
    }

    #[test]
    fn crafted_packets_are_what_was_asked_for_and_valid() {
        for ([src, dst], icmp) in PAIRS.into_iter().zip([PROTO_ICMP, PROTO_ICMPV6]) {
            let src: IpAddr = src.parse().unwrap();
            for (protocol, number, ports) in [
                (Protocol::Tcp, PROTO_TCP, (40000, 80)),
                (Protocol::Udp, PROTO_UDP, (40000, 80)),
                (Protocol::Icmp, icmp, (40000, 40000)),
            ] {
                let frame = craft(&asked(dst, protocol, 100), ([2; 6], [4; 6]), src).unwrap();
                assert_eq!((frame.len(), &frame[..6], &frame[6..12]), (114, &[4; 6][..], &[2; 6][..]));
                let inner = Inner::framed(&frame).unwrap();
                assert_eq!((inner.src, inner.dst.to_string().as_str()), (src, dst));
                assert_eq!((inner.protocol, inner.ports, inner.ttl, inner.len), (number, ports, 9, 100));
                assert!(!inner.options && !inner.fragment);
                if src.is_ipv4() {
                    let header = etherparse::Ipv4HeaderSlice::from_slice(&frame[14..]).unwrap().to_header();
                    assert!(header.dont_fragment);
                    assert_eq!(header.calc_header_checksum(), header.header_checksum);
                }
                let [key, pair] = inner.keys();
                assert_eq!((key.src_port, key.dst_port, key.protocol), (ports.0, ports.1, number));
                assert_eq!((pair.src, pair.dst, pair.protocol), (src.into(), inner.dst.into(), 0));
            }
        }
    }

    #[test]
    fn sizes_that_hold_no_headers_and_families_that_do_not_match_are_refused() {
        for (dst, protocol, size) in [
            (PAIRS[0][1], Protocol::Tcp, 39),
            (PAIRS[0][1], Protocol::Udp, 27),
            (PAIRS[0][1], Protocol::Icmp, 0),
            (PAIRS[0][1], Protocol::Tcp, 9001),
            (PAIRS[1][1], Protocol::Tcp, 59),
            (PAIRS[1][1], Protocol::Icmp, 47),
        ] {
            let src = if dst.contains(':') { PAIRS[1][0] } else { PAIRS[0][0] };
            let asked = asked(dst, protocol, size);
            let error = craft(&asked, ([2; 6], [4; 6]), src.parse().unwrap()).unwrap_err();
            assert!(error.to_string().contains("--size"), "{error}");
        }
        let asked = asked(PAIRS[1][1], Protocol::Tcp, 100);
        let error = craft(&asked, ([2; 6], [4; 6]), PAIRS[0][0].parse().unwrap()).unwrap_err();
        assert!(error.to_string().contains("one family"), "{error}");
    }

    #[test]
    fn a_tunnel_packet_is_taken_apart_as_it_was_put_together() {
        for [outer_src, outer_dst] in [["192.0.2.1", "192.0.2.2"], ["2001:db8::1", "2001:db8::2"]] {
            for [src, dst] in PAIRS {
                let frame = craft(&asked(dst, Protocol::Udp, 100), ([2; 6], [4; 6]), src.parse().unwrap());
                let frame = frame.unwrap();
                let to = Outward {
                    macs: ([6; 6], [8; 6]),
                    inner_macs: ([10; 6], [12; 6]),
                    src: outer_src.parse().unwrap(),
                    dst: outer_dst.parse().unwrap(),
                    ports: (49152, 8472),
                    vni: 0x1_0203,
                    ttl: 64,
                    tos: 0xba,
                };
                let packet = encapsulate(&to, &frame[ETH_LEN..]).unwrap();
                let tunnel = Tunnel::parse(&packet).unwrap();
                assert_eq!((tunnel.outer.src, tunnel.outer.dst), (to.src, to.dst));
                assert_eq!((tunnel.outer.ports, tunnel.outer.ttl, tunnel.outer.tos), (to.ports, 64, 0xba));
                assert!(tunnel.plain && tunnel.zero_checksum && tunnel.vni == to.vni);
                assert_eq!(tunnel.macs, ([8; 6], [6; 6]));
                assert_eq!(tunnel.inner_macs(), to.inner_macs);
                assert_eq!(tunnel.outer.len, 100 + overhead(to.dst.family()));
                assert_eq!(Inner::framed(tunnel.inner), Inner::framed(&frame));
            }
        }
    }
}
