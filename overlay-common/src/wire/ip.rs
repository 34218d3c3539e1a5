//! What the two IP headers have in common, so that the programs are written once for both families.
//!
//! Everything is read off headers in packet memory, whose fields may hold any value. What belongs to one family alone is in
//! [`super::ipv4`] and [`super::ipv6`].

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, checksum, ipv4, ipv6,
};
use crate::maps::Addr;

/// An address as it lies in a packet, read as one number in the machine's own order: compared and masked without a swap.
pub trait Address: Copy + Eq {
    /// As the maps have it.
    fn to_addr(self) -> Addr;
}

impl Address for u32 {
    #[inline(always)]
    fn to_addr(self) -> Addr {
        Addr::v4(self.to_ne_bytes())
    }
}

impl Address for u128 {
    #[inline(always)]
    fn to_addr(self) -> Addr {
        Addr { bytes: self.to_ne_bytes() }
    }
}

/// What [`IpHeader::outer`] is made of.
#[derive(Clone, Copy, Debug)]
pub struct Outward<B> {
    /// Source, network order.
    pub src: B,
    /// Destination, network order.
    pub dst: B,
    /// Bytes of the UDP datagram behind the header.
    pub udp_len: u16,
    /// TOS byte or traffic class.
    pub traffic_class: u8,
    /// What tells flows apart: the UDP source port, host order.
    pub flow: u16,
}

/// An IP header of either family: an inner one, or that of the tunnel.
pub trait IpHeader: Copy + 'static {
    /// The bytes of an address, network order.
    type Bytes: Copy;
    /// The same as one number.
    type Address: Address;

    /// `EtherType`, host order.
    const ETHERTYPE: u16;
    /// Bytes of the header without options and extension headers.
    const LEN: usize;
    /// Number of its control protocol.
    const ICMP: u8;
    /// All zero: no version has such a header.
    const EMPTY: Self;

    /// Source.
    fn src(&self) -> Self::Address;
    /// Destination.
    fn dst(&self) -> Self::Address;
    /// These bytes as a number.
    fn address(bytes: Self::Bytes) -> Self::Address;
    /// Nothing between this header and its payload that a router might have to look at: no options, no extension header but
    /// that of a fragment. Only such packets are the fast path's; others take the kernel's own.
    fn is_plain(&self) -> bool;
    /// What follows the header; of an IPv6 fragment the fragment header.
    fn protocol(&self) -> u8;
    /// Any fragment, the first included. Only of a plain header.
    fn is_fragment(&self) -> bool;
    /// How many routers it may still pass.
    fn hops(&self) -> u8;
    /// One routing hop. The caller has seen to it that there are at least 2; packets that expire here are the stack's, which
    /// answers them. What that adds to a checksum over the whole packet; 0 where the header has a checksum of its own that
    /// makes up for it.
    fn take_hop(&mut self) -> u32;
    /// TOS byte or traffic class: DSCP and ECN.
    fn traffic_class(&self) -> u8;
    /// Replaces that. What it adds to a checksum over the whole packet, as [`Self::take_hop`].
    fn set_traffic_class(&mut self, value: u8) -> u32;
    /// Bytes of header and payload, as the packet claims.
    fn total_len(&self) -> u32;
    /// The header of a tunnel packet. Over IPv4 with Don't Fragment (RFC 7348, 4.3: a VTEP must not fragment), which over IPv6
    /// is always so.
    fn outer(to: &Outward<Self::Bytes>) -> Self;

    /// Plain, whole, and UDP follows.
    #[inline(always)]
    fn carries_udp(&self) -> bool {
        self.is_plain() && self.protocol() == PROTO_UDP && !self.is_fragment()
    }

    /// Length on the wire, in bytes from the IP header on, of each full segment of a plain GSO packet.
    ///
    /// `tcp_data_offset` is byte 12 of the TCP header; `None` for a protocol that is neither TCP nor UDP.
    #[inline(always)]
    fn segment_len(protocol: u8, tcp_data_offset: u8, gso_size: u32) -> Option<u32> {
        let transport = match protocol {
            PROTO_TCP => u32::from(tcp_data_offset >> 4) << 2,
            PROTO_UDP => 8,
            _ => return None,
        };
        Some(Self::LEN as u32 + transport + gso_size)
    }
}

impl IpHeader for Ipv4Hdr {
    type Bytes = [u8; 4];
    type Address = u32;

    const ETHERTYPE: u16 = ETHERTYPE_IPV4;
    const LEN: usize = 20;
    const ICMP: u8 = PROTO_ICMP;
    const EMPTY: Self = Self {
        vihl: 0,
        tos: 0,
        tot_len: [0; 2],
        id: [0; 2],
        frags: [0; 2],
        ttl: 0,
        proto: 0,
        check: [0; 2],
        src_addr: [0; 4],
        dst_addr: [0; 4],
    };

    #[inline(always)]
    fn src(&self) -> u32 {
        u32::from_ne_bytes(self.src_addr)
    }

    #[inline(always)]
    fn dst(&self) -> u32 {
        u32::from_ne_bytes(self.dst_addr)
    }

    #[inline(always)]
    fn address(bytes: [u8; 4]) -> u32 {
        u32::from_ne_bytes(bytes)
    }

    #[inline(always)]
    fn is_plain(&self) -> bool {
        ipv4::is_plain(self)
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.proto
    }

    #[inline(always)]
    fn is_fragment(&self) -> bool {
        ipv4::is_fragment(self)
    }

    #[inline(always)]
    fn hops(&self) -> u8 {
        self.ttl
    }

    #[inline(always)]
    fn take_hop(&mut self) -> u32 {
        ipv4::decrement_ttl(self);
        0
    }

    #[inline(always)]
    fn traffic_class(&self) -> u8 {
        self.tos
    }

    #[inline(always)]
    fn set_traffic_class(&mut self, value: u8) -> u32 {
        ipv4::set_tos(self, value);
        0
    }

    #[inline(always)]
    fn total_len(&self) -> u32 {
        u16::from_be_bytes(self.tot_len).into()
    }

    #[inline(always)]
    fn outer(to: &Outward<[u8; 4]>) -> Self {
        let mut ip = Self {
            vihl: 0x45,
            tos: to.traffic_class,
            tot_len: to.udp_len.wrapping_add(Self::LEN as u16).to_be_bytes(),
            // With Don't Fragment set the identification has no meaning (RFC 6864, 4.1).
            id: [0; 2],
            frags: ipv4::DONT_FRAGMENT,
            ttl: super::vxlan::OUTER_TTL,
            proto: PROTO_UDP,
            check: [0; 2],
            src_addr: to.src,
            dst_addr: to.dst,
        };
        ip.check = checksum::ipv4_header(&ip);
        ip
    }
}

impl IpHeader for Ipv6Hdr {
    type Bytes = [u8; 16];
    type Address = u128;

    const ETHERTYPE: u16 = ETHERTYPE_IPV6;
    const LEN: usize = 40;
    const ICMP: u8 = PROTO_ICMPV6;
    const EMPTY: Self = Self {
        vcf: [0; 4],
        payload_len: [0; 2],
        next_hdr: 0,
        hop_limit: 0,
        src_addr: [0; 16],
        dst_addr: [0; 16],
    };

    #[inline(always)]
    fn src(&self) -> u128 {
        u128::from_ne_bytes(self.src_addr)
    }

    #[inline(always)]
    fn dst(&self) -> u128 {
        u128::from_ne_bytes(self.dst_addr)
    }

    #[inline(always)]
    fn address(bytes: [u8; 16]) -> u128 {
        u128::from_ne_bytes(bytes)
    }

    #[inline(always)]
    fn is_plain(&self) -> bool {
        ipv6::is_plain(self)
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.next_hdr
    }

    #[inline(always)]
    fn is_fragment(&self) -> bool {
        self.next_hdr == ipv6::FRAGMENT
    }

    #[inline(always)]
    fn hops(&self) -> u8 {
        self.hop_limit
    }

    #[inline(always)]
    fn take_hop(&mut self) -> u32 {
        ipv6::decrement_hop_limit(self)
    }

    #[inline(always)]
    fn traffic_class(&self) -> u8 {
        ipv6::traffic_class(self)
    }

    #[inline(always)]
    fn set_traffic_class(&mut self, value: u8) -> u32 {
        ipv6::set_traffic_class(self, value)
    }

    #[inline(always)]
    fn total_len(&self) -> u32 {
        u32::from(u16::from_be_bytes(self.payload_len)) + Self::LEN as u32
    }

    #[inline(always)]
    fn outer(to: &Outward<[u8; 16]>) -> Self {
        Self {
            vcf: ipv6::first_word(to.traffic_class, to.flow),
            payload_len: to.udp_len.to_be_bytes(),
            next_hdr: PROTO_UDP,
            hop_limit: super::vxlan::OUTER_TTL,
            src_addr: to.src,
            dst_addr: to.dst,
        }
    }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;

    #[test]
    fn addresses_are_those_of_the_maps() {
        let addr = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(Ipv4Hdr::address([10, 244, 1, 5]).to_addr(), addr("10.244.1.5"));
        let v6 = Ipv6Hdr::address([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 244, 1, 5]);
        assert_eq!(v6.to_addr(), addr("fd00::af4:105"));
    }

    #[test]
    fn segments_of_tcp_and_udp_are_measured() {
        assert_eq!(Ipv4Hdr::segment_len(PROTO_TCP, 0x80, 1398), Some(1450));
        assert_eq!(Ipv4Hdr::segment_len(PROTO_UDP, 0, 1422), Some(1450));
        assert_eq!(Ipv6Hdr::segment_len(PROTO_TCP, 0x80, 1378), Some(1450));
        assert_eq!(Ipv6Hdr::segment_len(PROTO_UDP, 0, 1402), Some(1450));
        assert_eq!(Ipv4Hdr::segment_len(132, 0, 1400), None);
        assert_eq!(Ipv6Hdr::segment_len(ipv6::FRAGMENT, 0, 1400), None);
    }
}
