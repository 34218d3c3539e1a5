//! IP packets of either family with every field as a test wants it, and sockets that take them whatever they carry.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use etherparse::{IpDscp, IpEcn, IpFragOffset, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, UdpHeader};

use super::STEP_LIMIT;
use crate::lab::Namespace;

/// Number of UDP (RFC 768).
pub const UDP: u8 = 17;
/// Number of ICMPv6 (RFC 4443).
pub const ICMPV6: u8 = 58;
/// Number of the IPv6 fragment header (RFC 8200, 4.5).
const FRAGMENT: u8 = 44;

/// An IP packet in an Ethernet frame. Lengths and the IPv4 header's checksum are right, unless the frame is changed
/// afterwards.
#[derive(Debug, Clone)]
pub struct Packet {
    /// Of the frame: source and destination.
    pub macs: ([u8; 6], [u8; 6]),
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub hops: u8,
    /// TOS byte or traffic class: DSCP and ECN.
    pub class: u8,
    /// Offset in units of eight bytes, and whether more follow.
    pub fragment: Option<(u16, bool)>,
    /// What fragments are put together by.
    pub identification: u16,
    /// IPv4 options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// IPv6 extension headers in order: their numbers, and all of them but the first byte, which is the next one's number.
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Transport header and data.
    pub payload: Vec<u8>,
}

impl Packet {
    /// Any payload.
    pub fn new(
        macs: ([u8; 6], [u8; 6]),
        source: IpAddr,
        destination: IpAddr,
        protocol: u8,
        payload: Vec<u8>,
    ) -> Self {
        Self {
            macs,
            source,
            destination,
            hops: 64,
            class: 0,
            fragment: None,
            identification: 0x4f56,
            options: vec![],
            extensions: vec![],
            protocol,
            payload,
        }
    }

    /// A UDP datagram with a right checksum.
    #[track_caller]
    pub fn udp(macs: ([u8; 6], [u8; 6]), from: SocketAddr, to: SocketAddr, data: &[u8]) -> Self {
        let mut packet = Self::new(macs, from.ip(), to.ip(), UDP, vec![]);
        let header = match (from.ip(), to.ip()) {
            (IpAddr::V4(_), IpAddr::V4(_)) => {
                UdpHeader::with_ipv4_checksum(from.port(), to.port(), &packet.v4(), data)
            }
            _ => UdpHeader::with_ipv6_checksum(from.port(), to.port(), &packet.v6(0, 0), data),
        };
        packet.payload = [&header.expect("a short datagram").to_bytes()[..], data].concat();
        packet
    }

    /// The first and the later fragments of this, the first with `first` bytes of payload, a multiple of eight.
    #[must_use]
    pub fn cut(&self, first: u16) -> [Self; 2] {
        let (head, tail) = self.payload.split_at(first.into());
        let part = |fragment, payload: &[u8]| Self {
            fragment: Some(fragment),
            payload: payload.to_vec(),
            ..self.clone()
        };
        [part((0, true), head), part((first / 8, false), tail)]
    }

    /// The frame.
    #[track_caller]
    pub fn frame(&self) -> Vec<u8> {
        let (source, destination) = self.macs;
        let ether_type: u16 = if self.source.is_ipv4() { 0x0800 } else { 0x86dd };
        let mut frame = [destination, source].concat();
        frame.extend(ether_type.to_be_bytes());
        if self.source.is_ipv4() {
            frame.extend(&self.v4().to_bytes()[..]);
        } else {
            let mut chain = self.extensions.clone();
            if let Some((offset, more)) = self.fragment {
                let word = (offset << 3 | u16::from(more)).to_be_bytes();
                let [high, low] = self.identification.to_be_bytes();
                chain.push((FRAGMENT, vec![0, word[0], word[1], 0, 0, high, low]));
            }
            let first = chain.first().map_or(self.protocol, |(number, _)| *number);
            let mut headers = Vec::new();
            for (index, (_, rest)) in chain.iter().enumerate() {
                headers.push(chain.get(index + 1).map_or(self.protocol, |(number, _)| *number));
                headers.extend(rest);
            }
            frame.extend(self.v6(first, headers.len()).to_bytes());
            frame.extend(headers);
        }
        frame.extend(&self.payload);
        frame
    }

    #[track_caller]
    fn v4(&self) -> Ipv4Header {
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (self.source, self.destination) else {
            panic!("{} and {} are of two families", self.source, self.destination)
        };
        let len = u16::try_from(self.payload.len()).expect("a packet is short");
        let number = IpNumber(self.protocol);
        let header = Ipv4Header::new(len, self.hops, number, source.octets(), destination.octets());
        let mut header = header.expect("a packet is short");
        header.options = self.options.as_slice().try_into().expect("options are whole words");
        header.total_len = (header.header_len() + self.payload.len()) as u16;
        header.dscp = IpDscp::try_new(self.class >> 2).expect("six bits");
        header.ecn = IpEcn::try_new(self.class & 3).expect("two bits");
        header.identification = self.identification;
        let (offset, more) = self.fragment.unwrap_or_default();
        header.dont_fragment = self.fragment.is_none();
        header.more_fragments = more;
        header.fragment_offset = IpFragOffset::try_new(offset).expect("thirteen bits");
        header.header_checksum = header.calc_header_checksum();
        header
    }

    #[track_caller]
    fn v6(&self, next: u8, headers: usize) -> Ipv6Header {
        let (IpAddr::V6(source), IpAddr::V6(destination)) = (self.source, self.destination) else {
            panic!("{} and {} are of two families", self.source, self.destination)
        };
        Ipv6Header {
            traffic_class: self.class,
            flow_label: Ipv6FlowLabel::ZERO,
            payload_length: u16::try_from(headers + self.payload.len()).expect("a packet is short"),
            next_header: IpNumber(next),
            hop_limit: self.hops,
            source: source.octets(),
            destination: destination.octets(),
        }
    }
}

/// A raw socket of `namespace` for one protocol (raw(7)), of the family of `like`: what it sends gets an IP header from the kernel.
/// What it receives has one over IPv4, and none over IPv6.
///
/// Errors: the kernel refuses the socket.
pub fn raw(namespace: &Namespace, like: IpAddr, protocol: u8) -> Result<UdpSocket> {
    let family = if like.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let socket = namespace.run(|| {
        // SAFETY: a system call on numbers; the descriptor that it gives belongs to nobody else.
        let fd = unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol.into()) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: just made.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    });
    // What is asked of it below are plain socket calls, which are the same for both kinds.
    let socket =
        UdpSocket::from(socket.with_context(|| format!("open a raw socket in {}", namespace.name()))?);
    socket.set_read_timeout(Some(STEP_LIMIT))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    fn udp(from: &str, to: &str) -> Packet {
        Packet::udp(([2; 6], [4; 6]), from.parse().unwrap(), to.parse().unwrap(), b"some data")
    }

    #[test]
    fn frames_of_either_family_are_as_asked_for() {
        for packet in [udp("192.0.2.1:1", "192.0.2.2:2"), udp("[2001:db8::1]:1", "[2001:db8::2]:2")] {
            let packet = Packet { hops: 7, class: 0xb9, ..packet };
            let frame = packet.frame();
            let parsed = SlicedPacket::from_ethernet(&frame).unwrap();
            let Some(TransportSlice::Udp(udp)) = parsed.transport else { panic!("{parsed:?}") };
            assert_eq!((udp.source_port(), udp.destination_port(), udp.payload()), (1, 2, &b"some data"[..]));
            match parsed.net {
                Some(NetSlice::Ipv4(ip)) => {
                    let header = ip.header().to_header();
                    assert_eq!(header.calc_header_checksum(), header.header_checksum);
                    assert_eq!((header.time_to_live, header.dscp.value(), header.ecn.value()), (7, 0x2e, 1));
                }
                Some(NetSlice::Ipv6(ip)) => {
                    assert_eq!((ip.header().hop_limit(), ip.header().traffic_class()), (7, 0xb9));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn extension_headers_are_chained() {
        let plain = udp("[2001:db8::1]:1", "[2001:db8::2]:2");
        let options = |number| (number, vec![0, 1, 4, 0, 0, 0, 0]);
        let packet = Packet { extensions: vec![options(0), options(60)], ..plain };
        let frame = packet.cut(8)[1].frame();
        // Hop-by-hop, destination options, fragment, UDP.
        assert_eq!([frame[20], frame[54], frame[62], frame[70]], [0, 60, 44, 17]);
        assert_eq!(u16::from_be_bytes([frame[72], frame[73]]), 1 << 3, "the last, at eight bytes");
        assert_eq!(&frame[78..], b"some data");
    }
}
