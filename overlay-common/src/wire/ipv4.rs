//! What the programs ask of an IPv4 header, and the few fields they change.

use network_types::ip::Ipv4Hdr;

use super::checksum;

/// Bits of the flags and fragment offset: Don't Fragment.
pub const DONT_FRAGMENT: [u8; 2] = [0x40, 0];

/// The header at the front of these bytes, options left out; `None` where they are too few.
#[inline(always)]
pub fn from_bytes(bytes: &[u8]) -> Option<Ipv4Hdr> {
    let bytes = bytes.get(..Ipv4Hdr::LEN)?;
    // SAFETY: as many bytes as the header has, and any are valid for it; it is made of bytes, so needs no alignment.
    Some(unsafe { bytes.as_ptr().cast::<Ipv4Hdr>().read_unaligned() })
}

/// Version 4 without options: the only headers the fast path handles; others take the kernel's own path.
#[inline(always)]
pub const fn is_plain(h: &Ipv4Hdr) -> bool {
    h.vihl == 0x45
}

/// Any fragment, the first included.
#[inline(always)]
pub const fn is_fragment(h: &Ipv4Hdr) -> bool {
    u16::from_be_bytes(h.frags) & 0x3fff != 0
}

/// A fragment that does not begin with the transport header.
#[inline(always)]
pub const fn is_later_fragment(h: &Ipv4Hdr) -> bool {
    u16::from_be_bytes(h.frags) & 0x1fff != 0
}

/// Bytes of the header with its options, 0–60, as the packet claims.
#[inline(always)]
pub const fn header_len(h: &Ipv4Hdr) -> usize {
    ((h.vihl & 0xf) as usize) << 2
}

/// 224.0.0.0/4 or the limited broadcast address.
#[inline(always)]
pub const fn is_multicast_or_broadcast(addr: [u8; 4]) -> bool {
    addr[0] & 0xf0 == 0xe0 || u32::from_ne_bytes(addr) == u32::MAX
}

/// One routing hop: TTL − 1, checksum updated (RFC 1812, 5.2.7.3; RFC 1624). The caller has seen to it that the
/// TTL is at least 2; packets that expire here are the stack's, which answers them.
#[inline(always)]
pub const fn decrement_ttl(h: &mut Ipv4Hdr) {
    let old = [h.ttl, h.proto];
    h.ttl = h.ttl.wrapping_sub(1);
    h.check = checksum::update(h.check, old, [h.ttl, h.proto]);
}

/// Replaces the TOS byte, checksum updated.
#[inline(always)]
pub const fn set_tos(h: &mut Ipv4Hdr, tos: u8) {
    let old = [h.vihl, h.tos];
    h.tos = tos;
    h.check = checksum::update(h.check, old, [h.vihl, tos]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(bytes: [u8; 20]) -> Ipv4Hdr {
        // SAFETY: Ipv4Hdr is repr(C), 20 bytes of u8 fields.
        let mut h: Ipv4Hdr = unsafe { core::mem::transmute(bytes) };
        h.check = checksum::ipv4_header(&h);
        h
    }

    /// 0x0000 and 0xffff are the same number in one's complement; both make a header valid.
    fn same_checksum(a: [u8; 2], b: [u8; 2]) -> bool {
        a == b || (matches!(u16::from_ne_bytes(a), 0 | 0xffff) && matches!(u16::from_ne_bytes(b), 0 | 0xffff))
    }

    proptest! {
        #[test]
        fn a_hop_takes_one_off_the_ttl_and_keeps_the_checksum(bytes: [u8; 20]) {
            let mut h = header(bytes);
            prop_assume!(h.ttl > 1);
            let before = h.ttl;
            decrement_ttl(&mut h);
            prop_assert_eq!(h.ttl, before - 1);
            prop_assert!(same_checksum(h.check, checksum::ipv4_header(&h)));
        }

        #[test]
        fn setting_tos_keeps_the_checksum(bytes: [u8; 20], tos: u8) {
            let mut h = header(bytes);
            set_tos(&mut h, tos);
            prop_assert_eq!(h.tos, tos);
            prop_assert!(same_checksum(h.check, checksum::ipv4_header(&h)));
        }

        #[test]
        fn predicates_agree_with_etherparse(bytes: [u8; 20]) {
            let h = header(bytes);
            prop_assert_eq!(is_later_fragment(&h), h.frag_offset() != 0);
            prop_assert_eq!(is_fragment(&h), h.frag_offset() != 0 || h.frag_flags() & 1 != 0);
            prop_assert_eq!(is_plain(&h), h.version() == 4 && h.ihl() == 20);
            prop_assert_eq!(header_len(&h), usize::from(h.ihl()));
            let dst = core::net::Ipv4Addr::from(h.dst_addr);
            prop_assert_eq!(is_multicast_or_broadcast(h.dst_addr), dst.is_multicast() || dst.is_broadcast());
        }
    }
}
