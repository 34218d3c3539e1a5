//! What the programs ask of an IPv6 header, the few fields they change, and the walk through extension headers.

use network_types::ip::Ipv6Hdr;

use super::{PROTO_ICMPV6, checksum};

mod chain;

pub use chain::{Chain, Fragment, MAX_HEADERS, NotFound, walk};

/// Next header: hop-by-hop options (RFC 8200, 4.3).
pub const HOP_BY_HOP: u8 = 0;
/// Next header: routing (RFC 8200, 4.4).
pub const ROUTING: u8 = 43;
/// Next header: fragment (RFC 8200, 4.5).
pub const FRAGMENT: u8 = 44;
/// Next header: authentication (RFC 4302).
pub const AUTHENTICATION: u8 = 51;
/// Next header: destination options (RFC 8200, 4.6).
pub const DESTINATION: u8 = 60;
/// Next header: mobility (RFC 6275, 6.1).
pub const MOBILITY: u8 = 135;
/// Next header: Host Identity Protocol (RFC 7401, 5.1).
pub const HIP: u8 = 139;
/// Next header: Shim6 (RFC 5533, 5.3).
pub const SHIM6: u8 = 140;

/// `ICMPv6` type: router advertisement (RFC 4861, 4.2).
pub const ROUTER_ADVERTISEMENT: u8 = 134;
/// `ICMPv6` type: redirect (RFC 4861, 4.5).
pub const REDIRECT: u8 = 137;

/// The header at the front of these bytes; `None` where they are too few.
#[inline(always)]
pub fn from_bytes(bytes: &[u8]) -> Option<Ipv6Hdr> {
    let bytes = bytes.get(..Ipv6Hdr::LEN)?;
    // SAFETY: as many bytes as the header has, and any are valid for it; it is made of bytes, so needs no alignment.
    Some(unsafe { bytes.as_ptr().cast::<Ipv6Hdr>().read_unaligned() })
}

/// Does another header follow one of this number, before the payload (RFC 7045, 4)? Encrypted ones hide what follows, and
/// count as payload.
#[inline(always)]
pub const fn is_extension(next_header: u8) -> bool {
    matches!(
        next_header,
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION | MOBILITY | HIP | SHIM6
    )
}

/// Version 6, and no extension header but that of a fragment, which no router looks at.
#[inline(always)]
pub const fn is_plain(h: &Ipv6Hdr) -> bool {
    h.vcf[0] & 0xf0 == 0x60 && (h.next_hdr == FRAGMENT || !is_extension(h.next_hdr))
}

/// One routing hop: hop limit − 1. What that adds to a checksum over the whole packet: this header has none that would make
/// up for it.
#[inline(always)]
pub const fn decrement_hop_limit(h: &mut Ipv6Hdr) -> u32 {
    let old = [h.next_hdr, h.hop_limit];
    h.hop_limit = h.hop_limit.wrapping_sub(1);
    checksum::difference(old, [h.next_hdr, h.hop_limit])
}

/// DSCP and ECN.
#[inline(always)]
pub const fn traffic_class(h: &Ipv6Hdr) -> u8 {
    h.vcf[0] << 4 | h.vcf[1] >> 4
}

/// Replaces DSCP and ECN. What that adds to a checksum over the whole packet.
#[inline(always)]
pub const fn set_traffic_class(h: &mut Ipv6Hdr, value: u8) -> u32 {
    let old = [h.vcf[0], h.vcf[1]];
    h.vcf[0] = h.vcf[0] & 0xf0 | value >> 4;
    h.vcf[1] = value << 4 | h.vcf[1] & 0x0f;
    checksum::difference(old, [h.vcf[0], h.vcf[1]])
}

/// Version, traffic class and flow label of a tunnel packet: the label tells inner flows apart, for routers that look no
/// further (RFC 6438, 3). Like the source port that it is made of it is never zero.
#[inline(always)]
pub const fn first_word(traffic_class: u8, flow: u16) -> [u8; 4] {
    (0x6000_0000 | (traffic_class as u32) << 20 | flow as u32).to_be_bytes()
}

/// ff00::/8.
#[inline(always)]
pub const fn is_multicast(addr: [u8; 16]) -> bool {
    addr[0] == 0xff
}

/// fe80::/10.
#[inline(always)]
pub const fn is_link_local(addr: [u8; 16]) -> bool {
    addr[0] == 0xfe && addr[1] & 0xc0 == 0x80
}

/// An address that only the link knows, as a source: link-local, or none yet (`::`). Such a packet is never routed.
#[inline(always)]
pub const fn is_of_link(addr: [u8; 16]) -> bool {
    is_link_local(addr) || u128::from_ne_bytes(addr) == 0
}

/// May this destination be addressed from such a source?
#[inline(always)]
pub const fn is_on_link(addr: [u8; 16]) -> bool {
    is_link_local(addr) || is_multicast(addr)
}

/// Is this `ICMPv6` message a router's alone: an advertisement or a redirect?
#[inline(always)]
pub const fn is_routers(protocol: u8, message_type: u8) -> bool {
    protocol == PROTO_ICMPV6 && matches!(message_type, ROUTER_ADVERTISEMENT | REDIRECT)
}

#[cfg(test)]
mod tests {
    use core::net::Ipv6Addr;

    use proptest::prelude::*;

    use super::*;

    fn header(bytes: [u8; 40]) -> Ipv6Hdr {
        from_bytes(&bytes).unwrap()
    }

    fn bytes(h: &Ipv6Hdr) -> [u8; 40] {
        // SAFETY: Ipv6Hdr is repr(C), 40 bytes of u8 fields.
        unsafe { core::mem::transmute(*h) }
    }

    /// The one's complement sum of all words, in the machine's order, as the kernel keeps it in `skb->csum`.
    fn sum(bytes: &[u8]) -> u64 {
        bytes.chunks(2).map(|pair| u64::from(u16::from_ne_bytes([pair[0], pair[1]]))).sum()
    }

    fn folded(mut sum: u64) -> u64 {
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        // 0 and 0xffff are the same number.
        if sum == 0xffff { 0 } else { sum }
    }

    proptest! {
        #[test]
        fn a_hop_takes_one_off_the_limit_and_says_what_that_does_to_the_sum(raw: [u8; 40]) {
            let mut h = header(raw);
            prop_assume!(h.hop_limit > 1);
            let added = decrement_hop_limit(&mut h);
            let mut wanted = raw;
            wanted[7] -= 1;
            prop_assert_eq!(bytes(&h), wanted);
            prop_assert_eq!(folded(sum(&raw) + u64::from(added)), folded(sum(&wanted)));
        }

        #[test]
        fn the_traffic_class_is_replaced_alone_and_the_sum_is_told(raw: [u8; 40], value: u8) {
            let mut h = header(raw);
            let added = set_traffic_class(&mut h, value);
            prop_assert_eq!(traffic_class(&h), value);
            let parsed = etherparse::Ipv6HeaderSlice::from_slice(&[&[raw[0] & 0xf | 0x60], &raw[1..]].concat())
                .map(|h| h.to_header()).unwrap();
            let after = bytes(&h);
            prop_assert_eq!(&after[2..], &raw[2..]);
            prop_assert_eq!(after[0] & 0xf0, raw[0] & 0xf0);
            prop_assert_eq!(u32::from(after[1] & 0xf) << 16, parsed.flow_label.value() & 0xf_0000);
            prop_assert_eq!(folded(sum(&raw) + u64::from(added)), folded(sum(&after)));
        }

        #[test]
        fn predicates_agree_with_the_standard_library(raw: [u8; 16], first in prop_oneof![Just(0xff_u8), Just(0xfe), any::<u8>()]) {
            let addr = [&[first], &raw[1..]].concat().try_into().unwrap();
            let std = Ipv6Addr::from(addr);
            prop_assert_eq!(is_multicast(addr), std.is_multicast());
            prop_assert_eq!(is_link_local(addr), std.is_unicast_link_local());
            prop_assert_eq!(is_of_link(addr), std.is_unicast_link_local() || std.is_unspecified());
            prop_assert_eq!(is_on_link(addr), std.is_unicast_link_local() || std.is_multicast());
        }

        #[test]
        fn the_first_word_is_read_back(class: u8, flow: u16) {
            let mut raw = [0; 40];
            raw[..4].copy_from_slice(&first_word(class, flow));
            let parsed = etherparse::Ipv6HeaderSlice::from_slice(&raw).unwrap().to_header();
            prop_assert_eq!((parsed.traffic_class, parsed.flow_label.value()), (class, u32::from(flow)));
            prop_assert_eq!(traffic_class(&header(raw)), class);
        }
    }

    #[test]
    fn the_unspecified_address_is_of_the_link_and_the_loopback_is_not() {
        assert!(is_of_link(Ipv6Addr::UNSPECIFIED.octets()));
        assert!(!is_of_link(Ipv6Addr::LOCALHOST.octets()));
    }

    #[test]
    fn only_headers_that_say_what_follows_are_extensions() {
        let extensions = [0, 43, 44, 51, 60, 135, 139, 140];
        for next_header in 0..=255 {
            assert_eq!(is_extension(next_header), extensions.contains(&next_header), "{next_header}");
            let mut raw = [0; 40];
            (raw[0], raw[6]) = (0x60, next_header);
            assert_eq!(
                is_plain(&header(raw)),
                next_header == 44 || !extensions.contains(&next_header),
                "{next_header}"
            );
            raw[0] = 0x40;
            assert!(!is_plain(&header(raw)), "another version, {next_header}");
        }
    }

    #[test]
    fn advertisements_and_redirects_are_routers_alone() {
        for message_type in 0..=255 {
            assert_eq!(is_routers(58, message_type), [134, 137].contains(&message_type), "{message_type}");
            assert!(!is_routers(17, message_type));
        }
    }
}
