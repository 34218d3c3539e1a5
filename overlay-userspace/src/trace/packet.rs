//! Packets: crafted for the first half, taken apart for both.

use std::net::Ipv4Addr;

use etherparse::{IpFragOffset, IpNumber, Ipv4Header, PacketBuilder, TransportSlice};
use overlay_common::{
    flow,
    maps::{Addr, FlowKey},
    wire::{ETH_LEN, PROTO_ICMP, PROTO_TCP, PROTO_UDP},
};

use super::{Asked, Protocol, TraceError};

/// The longest packet that a test run takes on kernels with 4 KiB pages is a little shorter; the kernel decides.
const LONGEST: u16 = 9000;

/// The packet that a pod would send.
pub(super) fn craft(asked: &Asked, macs: ([u8; 6], [u8; 6]), src: Ipv4Addr) -> Result<Vec<u8>, TraceError> {
    let Asked { destination, protocol, port, source_port, size, ttl, .. } = *asked;
    let headers: u16 = match protocol {
        Protocol::Tcp => 40,
        Protocol::Udp | Protocol::Icmp => 28,
    };
    let name = protocol.name();
    let payload = size.checked_sub(headers).filter(|_| size <= LONGEST).ok_or_else(|| {
        TraceError::Packet(format!("--size {size}: a packet of {name} has from {headers} to {LONGEST} bytes"))
    })?;
    let payload = vec![0; usize::from(payload)];
    let mut ip = Ipv4Header::new(0, ttl, IpNumber::TCP, src.octets(), destination.octets())
        .map_err(|e| TraceError::Packet(e.to_string()))?;
    // As Linux sends TCP, and UDP that looks for its path MTU.
    ip.dont_fragment = true;
    ip.fragment_offset = IpFragOffset::ZERO;
    let builder = PacketBuilder::ethernet2(macs.0, macs.1)
        .ip(etherparse::IpHeaders::Ipv4(ip, etherparse::Ipv4Extensions::default()));
    let mut packet = Vec::new();
    match protocol {
        Protocol::Tcp => builder.tcp(source_port, port, 1, 64240).syn().write(&mut packet, &payload),
        Protocol::Udp => builder.udp(source_port, port).write(&mut packet, &payload),
        Protocol::Icmp => builder.icmpv4_echo_request(source_port, 1).write(&mut packet, &payload),
    }
    .map_err(|e| TraceError::Packet(e.to_string()))?;
    Ok(packet)
}

/// What matters of an IPv4 packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Inner {
    pub(super) src: Ipv4Addr,
    pub(super) dst: Ipv4Addr,
    /// IP protocol number.
    pub(super) protocol: u8,
    /// Host order; the identifier of an echo in both; 0 without either.
    pub(super) ports: (u16, u16),
    pub(super) ttl: u8,
    pub(super) tos: u8,
    /// From the IP header on.
    pub(super) len: u16,
    pub(super) options: bool,
    key: FlowKey,
    pair: FlowKey,
}

impl Inner {
    /// Of a packet that begins with an IPv4 header.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let sliced = etherparse::LaxSlicedPacket::from_ip(bytes).ok()?;
        let Some(etherparse::LaxNetSlice::Ipv4(ip)) = sliced.net else { return None };
        let header = ip.header();
        let ports = match sliced.transport {
            Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
            Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
            Some(TransportSlice::Icmpv4(icmp)) => {
                let [i0, i1, ..] = icmp.bytes5to8();
                (u16::from_be_bytes([i0, i1]), u16::from_be_bytes([i0, i1]))
            }
            _ => (0, 0),
        };
        let transport = bytes.get(header.slice().len()..).and_then(|t| t.first_chunk::<8>()).copied();
        let raw = overlay_common::wire::ipv4::from_bytes(bytes)?;
        Some(Self {
            src: header.source_addr(),
            dst: header.destination_addr(),
            protocol: header.protocol().0,
            ports,
            ttl: header.ttl(),
            tos: header.dcp().value() << 2 | header.ecn().value(),
            len: header.total_len(),
            options: header.ihl() != 5,
            key: flow::of_packet(&raw, transport.unwrap_or_default()),
            pair: flow::of_fragment(Addr::v4(raw.src_addr), Addr::v4(raw.dst_addr)),
        })
    }

    /// Behind an Ethernet header.
    pub(super) fn framed(frame: &[u8]) -> Option<Self> {
        Self::parse(frame.get(ETH_LEN..)?)
    }

    /// The keys of recorded flows that this packet may match.
    pub(super) fn keys(&self) -> [FlowKey; 2] {
        [self.key, self.pair]
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
        let (name, ends) = match self.protocol {
            PROTO_TCP => ("tcp".to_owned(), format!("{src}:{from} -> {dst}:{to}")),
            PROTO_UDP => ("udp".to_owned(), format!("{src}:{from} -> {dst}:{to}")),
            PROTO_ICMP => ("icmp".to_owned(), format!("{src} -> {dst} identifier {from}")),
            number => (format!("IP protocol {number}"), format!("{src} -> {dst}")),
        };
        format!("{name} {ends}, {len} bytes, TTL {ttl}")
    }
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

    fn asked(protocol: Protocol, size: u16) -> Asked {
        Asked {
            pod: String::new(),
            destination: Ipv4Addr::new(10, 244, 2, 2),
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
        for (protocol, number, ports) in [
            (Protocol::Tcp, PROTO_TCP, (40000, 80)),
            (Protocol::Udp, PROTO_UDP, (40000, 80)),
            (Protocol::Icmp, PROTO_ICMP, (40000, 40000)),
        ] {
            let src = Ipv4Addr::new(10, 244, 1, 2);
            let frame = craft(&asked(protocol, 100), ([2; 6], [4; 6]), src).unwrap();
            assert_eq!((frame.len(), &frame[..6], &frame[6..12]), (114, &[4; 6][..], &[2; 6][..]));
            let inner = Inner::framed(&frame).unwrap();
            assert_eq!((inner.src, inner.dst), (src, Ipv4Addr::new(10, 244, 2, 2)));
            assert_eq!((inner.protocol, inner.ports, inner.ttl, inner.len), (number, ports, 9, 100));
            let header = etherparse::Ipv4HeaderSlice::from_slice(&frame[14..]).unwrap().to_header();
            assert!(header.dont_fragment);
            assert_eq!(header.calc_header_checksum(), header.header_checksum);
            let [key, _] = inner.keys();
            assert_eq!((key.src_port, key.dst_port, key.protocol), (ports.0, ports.1, number));
        }
    }

    #[test]
    fn sizes_that_hold_no_headers_are_refused() {
        for (protocol, size) in
            [(Protocol::Tcp, 39), (Protocol::Udp, 27), (Protocol::Icmp, 0), (Protocol::Tcp, 9001)]
        {
            let error = craft(&asked(protocol, size), ([2; 6], [4; 6]), Ipv4Addr::LOCALHOST).unwrap_err();
            assert!(error.to_string().contains("--size"), "{error}");
        }
    }
}
