//! The Internet checksum (RFC 1071) of an IPv4 header, whole and incremental (RFC 1624), and what a change does to a sum
//! over a whole packet.
//!
//! One's complement sums do not depend on the byte order, so that words are read in the machine's own order.

use network_types::ip::Ipv4Hdr;

/// Folds a sum of 16-bit words into 16 bits, complemented: a checksum in the byte order of the words.
#[inline(always)]
pub const fn fold(sum: u32) -> [u8; 2] {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    (!(sum as u16)).to_ne_bytes()
}

#[inline(always)]
const fn word(bytes: [u8; 2]) -> u32 {
    u16::from_ne_bytes(bytes) as u32
}

/// The checksum of a header without options; the `check` field itself counts as zero.
#[inline(always)]
pub const fn ipv4_header(h: &Ipv4Hdr) -> [u8; 2] {
    let sum = word([h.vihl, h.tos])
        + word(h.tot_len)
        + word(h.id)
        + word(h.frags)
        + word([h.ttl, h.proto])
        + word([h.src_addr[0], h.src_addr[1]])
        + word([h.src_addr[2], h.src_addr[3]])
        + word([h.dst_addr[0], h.dst_addr[1]])
        + word([h.dst_addr[2], h.dst_addr[3]]);
    fold(sum)
}

/// The checksum after a 16-bit word of the covered data went from `old` to `new` (RFC 1624, equation 3).
#[inline(always)]
pub const fn update(check: [u8; 2], old: [u8; 2], new: [u8; 2]) -> [u8; 2] {
    fold((word(check) ^ 0xffff) + difference(old, new))
}

/// What a sum over data grows by when one of its 16-bit words, at an even offset, goes from `old` to `new`. Not folded.
#[inline(always)]
pub const fn difference(old: [u8; 2], new: [u8; 2]) -> u32 {
    (word(old) ^ 0xffff) + word(new)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(bytes: [u8; 20]) -> Ipv4Hdr {
        // SAFETY: Ipv4Hdr is repr(C), 20 bytes of u8 fields.
        unsafe { core::mem::transmute(bytes) }
    }

    /// RFC 1071 by the letter: the sum over the whole header, checksum included, is all ones.
    fn is_valid(h: &Ipv4Hdr) -> bool {
        // SAFETY: as above.
        let bytes: [u8; 20] = unsafe { core::mem::transmute(*h) };
        let mut sum: u32 = bytes.chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], c[1]]))).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum == 0xffff
    }

    proptest! {
        #[test]
        fn whole_header_checksum_validates(bytes: [u8; 20]) {
            let mut h = header(bytes);
            h.check = ipv4_header(&h);
            prop_assert!(is_valid(&h));
        }

        #[test]
        fn whole_header_checksum_is_that_of_etherparse(src: [u8; 4], dst: [u8; 4], ttl: u8, len in 0_u16..65_000, tos in 0_u8..64) {
            let mut e = etherparse::Ipv4Header::new(len, ttl, etherparse::IpNumber::UDP, src, dst).unwrap();
            e.dscp = etherparse::IpDscp::try_new(tos).unwrap();
            e.header_checksum = e.calc_header_checksum();
            let h = header(e.to_bytes()[..].try_into().unwrap());
            prop_assert_eq!(ipv4_header(&h), h.check);
        }

        #[test]
        fn incremental_update_keeps_a_header_valid(bytes: [u8; 20], id: [u8; 2]) {
            let mut h = header(bytes);
            h.check = ipv4_header(&h);
            h.check = update(h.check, h.id, id);
            h.id = id;
            prop_assert!(is_valid(&h));
        }
    }
}
