//! Keys of [`STACK_FLOWS`](crate::maps) out of packet headers.
//!
//! A flow that left through the node's stack, where a Service may have translated it, must come back through the same
//! conntrack. The programs record what the *answers* to such a packet look like, and look up what they would redirect.
//! Plain functions on header bytes, total: every field may hold any value. Callers: the programs of overlay-ebpf; tests and
//! fuzzers run them on the host.

use crate::{
    maps::{Addr, FlowKey, FlowKind},
    wire::{
        PROTO_ICMP, PROTO_ICMPV6, PROTO_SCTP, PROTO_TCP, PROTO_UDP, PROTO_UDPLITE,
        ip::{Address as _, IpHeader},
    },
};

/// The bytes of a transport header that tell flows apart: ports, or the identifier of an ICMP echo.
pub type Transport = [u8; 8];

/// What an ICMP message says about flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Icmp {
    /// A message of its own: an echo, or anything that belongs to no flow of another protocol.
    Own,
    /// An error about the packet that follows its eight bytes (RFC 792; RFC 1122, 3.2.2; RFC 4443, 2.1).
    Error,
}

/// By the type, the first byte of the message, of ICMP or of `ICMPv6`.
#[inline(always)]
pub const fn icmp(protocol: u8, message_type: u8) -> Icmp {
    match (protocol, message_type) {
        // Unreachable, source quench, redirect, time exceeded, parameter problem.
        (PROTO_ICMP, 3 | 4 | 5 | 11 | 12) | (PROTO_ICMPV6, 0..=127) => Icmp::Error,
        _ => Icmp::Own,
    }
}

/// The key of a packet that begins its transport header with these bytes, as it is, where that header follows the plain IP
/// header.
#[inline(always)]
pub fn of_packet<H: IpHeader>(ip: &H, transport: Transport) -> FlowKey {
    of_transport(ip, ip.protocol(), transport)
}

/// As [`of_packet`], where options or extension headers come before the transport header.
#[inline(always)]
pub fn of_transport<H: IpHeader>(ip: &H, protocol: u8, transport: Transport) -> FlowKey {
    let [s0, s1, d0, d1, rest @ ..] = transport;
    let [i0, i1, ..] = rest;
    let (src_port, dst_port) = match protocol {
        PROTO_TCP | PROTO_UDP | PROTO_SCTP | PROTO_UDPLITE => {
            (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]))
        }
        // An echo and its reply have the same identifier; other messages have none there, which does not matter.
        icmp if icmp == H::ICMP => (u16::from_be_bytes([i0, i1]), u16::from_be_bytes([i0, i1])),
        _ => (0, 0),
    };
    FlowKey {
        src: ip.src().to_addr(),
        dst: ip.dst().to_addr(),
        src_port,
        dst_port,
        protocol,
        kind: FlowKind::Flow as u8,
        reserved: [0; 2],
    }
}

/// The key for fragments from `src` to `dst`, whatever flow they are of: those after the first have no ports.
#[inline(always)]
pub const fn of_fragment(src: Addr, dst: Addr) -> FlowKey {
    FlowKey { src, dst, src_port: 0, dst_port: 0, protocol: 0, kind: FlowKind::Pair as u8, reserved: [0; 2] }
}

/// The key of the packets that answer those of `key`; also of the flow that an ICMP error is about, from the key of the
/// packet that the error quotes.
#[inline(always)]
pub const fn reversed(key: FlowKey) -> FlowKey {
    FlowKey { src: key.dst, dst: key.src, src_port: key.dst_port, dst_port: key.src_port, ..key }
}

#[cfg(test)]
mod tests {
    use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
    use proptest::prelude::*;

    use super::*;

    fn header(proto: u8, src: [u8; 4], dst: [u8; 4]) -> Ipv4Hdr {
        Ipv4Hdr {
            vihl: 0x45,
            tos: 0,
            tot_len: [0; 2],
            id: [0; 2],
            frags: [0; 2],
            ttl: 64,
            proto,
            check: [0; 2],
            src_addr: src,
            dst_addr: dst,
        }
    }

    fn header6(next_hdr: u8, src: [u8; 16], dst: [u8; 16]) -> Ipv6Hdr {
        Ipv6Hdr {
            vcf: [0x60, 0, 0, 0],
            payload_len: [0; 2],
            next_hdr,
            hop_limit: 64,
            src_addr: src,
            dst_addr: dst,
        }
    }

    #[test]
    fn ports_are_those_of_the_header_in_host_order() {
        let ip = header(PROTO_UDP, [10, 244, 1, 2], [10, 244, 2, 3]);
        let key = of_packet(&ip, [0x30, 0x39, 0x00, 0x35, 0, 8, 0, 0]);
        assert_eq!((key.src_port, key.dst_port, key.protocol), (12345, 53, 17));
        assert_eq!(key.src.to_ip().to_string(), "10.244.1.2");
        assert_eq!(key.dst.to_ip().to_string(), "10.244.2.3");
        assert_eq!(key.kind, FlowKind::Flow as u8);
    }

    #[test]
    fn an_echo_and_its_reply_are_one_flow() {
        let (a, b) = ([10, 244, 1, 2], [10, 244, 2, 3]);
        let request = of_packet(&header(PROTO_ICMP, a, b), [8, 0, 1, 2, 0xab, 0xcd, 0, 1]);
        let reply = of_packet(&header(PROTO_ICMP, b, a), [0, 0, 3, 4, 0xab, 0xcd, 0, 1]);
        assert_eq!(reversed(request), reply);
        assert_eq!(request.src_port, 0xabcd);
    }

    #[test]
    fn an_echo_of_icmpv6_and_its_reply_are_one_flow() {
        let (a, b) = ([0xfd; 16], [0xfc; 16]);
        let request = of_packet(&header6(PROTO_ICMPV6, a, b), [128, 0, 1, 2, 0xab, 0xcd, 0, 1]);
        let reply = of_packet(&header6(PROTO_ICMPV6, b, a), [129, 0, 3, 4, 0xab, 0xcd, 0, 1]);
        assert_eq!(reversed(request), reply);
        assert_eq!((request.src_port, request.protocol), (0xabcd, 58));
        assert_eq!(request.src.bytes, a);
    }

    #[test]
    fn the_flow_of_a_packet_with_extension_headers_is_that_of_one_without() {
        let (a, b) = ([0xfd; 16], [0xfc; 16]);
        let ports = [0x30, 0x39, 0x00, 0x35, 0, 8, 0, 0];
        assert_eq!(
            of_transport(&header6(60, a, b), PROTO_UDP, ports),
            of_packet(&header6(PROTO_UDP, a, b), ports)
        );
    }

    #[test]
    fn errors_are_told_from_other_messages() {
        for message_type in 0..=255 {
            let error = [3, 4, 5, 11, 12].contains(&message_type);
            assert_eq!(icmp(PROTO_ICMP, message_type) == Icmp::Error, error, "{message_type}");
            // RFC 4443, 2.1: the high bit is that of messages that are no errors.
            assert_eq!(icmp(PROTO_ICMPV6, message_type) == Icmp::Error, message_type < 128, "{message_type}");
        }
    }

    #[test]
    fn a_pair_is_no_flow_of_protocol_0() {
        let (a, b) = ([10, 244, 1, 2], [10, 244, 2, 3]);
        assert_ne!(of_fragment(Addr::v4(a), Addr::v4(b)), of_packet(&header(0, a, b), [0; 8]));
    }

    proptest! {
        #[test]
        fn the_answer_to_an_answer_is_the_packet(proto: u8, src: [u8; 4], dst: [u8; 4], transport: Transport) {
            let ip = header(proto, src, dst);
            let key = of_packet(&ip, transport);
            prop_assert_eq!(reversed(reversed(key)), key);
            let [s0, s1, d0, d1, rest @ ..] = transport;
            let back = header(proto, dst, src);
            let answer = if proto == PROTO_ICMP {
                transport
            } else {
                let [r0, r1, r2, r3] = rest;
                [d0, d1, s0, s1, r0, r1, r2, r3]
            };
            prop_assert_eq!(of_packet(&back, answer), reversed(key));
        }

        #[test]
        fn pairs_have_two_directions(src: [u8; 16], dst: [u8; 16]) {
            let (src, dst) = (Addr { bytes: src }, Addr { bytes: dst });
            prop_assert_eq!(reversed(of_fragment(src, dst)), of_fragment(dst, src));
        }
    }
}
