//! Keys of [`STACK_FLOWS`](crate::maps) out of packet headers.
//!
//! A flow that left through the node's stack, where a Service may have translated it, must come back through the same
//! conntrack. The programs record what the *answers* to such a packet look like, and look up what they would redirect.
//! Plain functions on header bytes, total: every field may hold any value. Callers: the programs of overlay-ebpf; tests and
//! fuzzers run them on the host.

use network_types::ip::Ipv4Hdr;

use crate::{
    maps::{Addr, FlowKey, FlowKind},
    wire::{PROTO_ICMP, PROTO_SCTP, PROTO_TCP, PROTO_UDP, PROTO_UDPLITE},
};

/// The bytes of a transport header that tell flows apart: ports, or the identifier of an ICMP echo.
pub type Transport = [u8; 8];

/// What an ICMP message says about flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Icmp {
    /// A message of its own: an echo, or anything that belongs to no flow of another protocol.
    Own,
    /// An error about the packet that follows its eight bytes (RFC 792; RFC 1122, 3.2.2).
    Error,
}

/// By the type, the first byte of the message.
#[inline(always)]
pub const fn icmp(message_type: u8) -> Icmp {
    match message_type {
        // Unreachable, source quench, redirect, time exceeded, parameter problem.
        3 | 4 | 5 | 11 | 12 => Icmp::Error,
        _ => Icmp::Own,
    }
}

/// The key of a packet that begins its transport header with these bytes, as it is.
#[inline(always)]
pub const fn of_packet(ip: &Ipv4Hdr, transport: Transport) -> FlowKey {
    let [s0, s1, d0, d1, rest @ ..] = transport;
    let [i0, i1, ..] = rest;
    let (src_port, dst_port) = match ip.proto {
        PROTO_TCP | PROTO_UDP | PROTO_SCTP | PROTO_UDPLITE => {
            (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]))
        }
        // An echo and its reply have the same identifier; other messages have none there, which does not matter.
        PROTO_ICMP => (u16::from_be_bytes([i0, i1]), u16::from_be_bytes([i0, i1])),
        _ => (0, 0),
    };
    FlowKey {
        src: Addr::v4(ip.src_addr),
        dst: Addr::v4(ip.dst_addr),
        src_port,
        dst_port,
        protocol: ip.proto,
        kind: FlowKind::Flow as u8,
        reserved: [0; 2],
    }
}

/// The key for fragments from `src` to `dst`, whatever flow they are of: those after the first have no ports.
#[inline(always)]
pub const fn of_fragment(src: [u8; 4], dst: [u8; 4]) -> FlowKey {
    FlowKey {
        src: Addr::v4(src),
        dst: Addr::v4(dst),
        src_port: 0,
        dst_port: 0,
        protocol: 0,
        kind: FlowKind::Pair as u8,
        reserved: [0; 2],
    }
}

/// The key of the packets that answer those of `key`; also of the flow that an ICMP error is about, from the key of the
/// packet that the error quotes.
#[inline(always)]
pub const fn reversed(key: FlowKey) -> FlowKey {
    FlowKey { src: key.dst, dst: key.src, src_port: key.dst_port, dst_port: key.src_port, ..key }
}

#[cfg(test)]
mod tests {
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
    fn errors_are_told_from_other_messages() {
        for error in [3, 4, 5, 11, 12] {
            assert_eq!(icmp(error), Icmp::Error, "{error}");
        }
        for own in [0, 8, 9, 10, 13, 14, 42, 255] {
            assert_eq!(icmp(own), Icmp::Own, "{own}");
        }
    }

    #[test]
    fn a_pair_is_no_flow_of_protocol_0() {
        let (a, b) = ([10, 244, 1, 2], [10, 244, 2, 3]);
        assert_ne!(of_fragment(a, b), of_packet(&header(0, a, b), [0; 8]));
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
        fn pairs_have_two_directions(src: [u8; 4], dst: [u8; 4]) {
            prop_assert_eq!(reversed(of_fragment(src, dst)), of_fragment(dst, src));
        }
    }
}
