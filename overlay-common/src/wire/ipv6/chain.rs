//! The walk through IPv6 extension headers (RFC 8200, 4).
//!
//! Bounded: a packet with more than [`MAX_HEADERS`] is not understood. Total: any bytes may be there. Bytes come from a
//! function, so that the same walk reads packet memory in a program and slices on the host.

use super::{AUTHENTICATION, FRAGMENT, is_extension};

/// Extension headers that are walked through. RFC 8200, 4.1 has at most seven in a packet.
pub const MAX_HEADERS: usize = 8;

/// Whether a packet is a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// It is whole.
    No,
    /// It begins with what the datagram begins with.
    First,
    /// It does not: its transport header is elsewhere.
    Later,
}

/// Where a chain of headers ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The number of the header that is no extension header; of a later fragment what its first part will go on with.
    pub protocol: u8,
    /// Where that begins, in bytes, counted as the walk's beginning was.
    pub offset: usize,
    /// Of a packet in several fragment headers the last one counts, but a later fragment is one whatever is in it.
    pub fragment: Fragment,
}

/// Why a walk has not come to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotFound {
    /// The packet ends before.
    Truncated,
    /// More than [`MAX_HEADERS`].
    TooLong,
}

/// Walks from the header of this number at `offset` to the first that is no extension header. `read` gives the first four
/// bytes of what is at an offset, `None` beyond the end.
///
/// # Errors
///
/// The chain has no end here.
#[inline(always)]
pub fn walk(
    mut protocol: u8,
    mut offset: usize,
    mut read: impl FnMut(usize) -> Option<[u8; 4]>,
) -> Result<Chain, NotFound> {
    let mut fragment = Fragment::No;
    for _ in 0..MAX_HEADERS {
        if !is_extension(protocol) {
            return Ok(Chain { protocol, offset, fragment });
        }
        let Some([next, len, high, low]) = read(offset) else { return Err(NotFound::Truncated) };
        let bytes = match protocol {
            FRAGMENT => {
                // Thirteen bits of offset, two that are reserved, and whether more fragments follow.
                fragment = match u16::from_be_bytes([high, low]) {
                    word if word & 0xfff8 != 0 => Fragment::Later,
                    word if word & 1 != 0 => Fragment::First,
                    // An atomic fragment is the whole datagram (RFC 6946).
                    _ => fragment,
                };
                8
            }
            // In units of four bytes, less two of them (RFC 4302, 2.2).
            AUTHENTICATION => (len as usize + 2) << 2,
            _ => (len as usize + 1) << 3,
        };
        protocol = next;
        offset += bytes;
        if matches!(fragment, Fragment::Later) {
            return Ok(Chain { protocol, offset, fragment });
        }
    }
    if is_extension(protocol) {
        return Err(NotFound::TooLong);
    }
    Ok(Chain { protocol, offset, fragment })
}

#[cfg(test)]
mod tests {
    use etherparse::{IpNumber, Ipv6ExtensionsSlice};
    use proptest::prelude::*;

    use super::*;

    fn walk_bytes(first: u8, bytes: &[u8]) -> Result<Chain, NotFound> {
        walk(first, 0, |at| bytes.get(at..at + 4).map(|found| found.try_into().unwrap()))
    }

    /// A header that says how long it is in units of eight bytes.
    fn options(next: u8, units: u8) -> Vec<u8> {
        let mut header = vec![0; (usize::from(units) + 1) * 8];
        (header[0], header[1]) = (next, units);
        header
    }

    fn fragment(next: u8, offset: u16, more: bool) -> Vec<u8> {
        let word = (offset << 3 | u16::from(more)).to_be_bytes();
        vec![next, 0, word[0], word[1], 0, 0, 0, 1]
    }

    const fn found(protocol: u8, offset: usize, fragment: Fragment) -> Chain {
        Chain { protocol, offset, fragment }
    }

    #[test]
    fn without_extension_headers_the_payload_is_where_the_walk_begins() {
        for protocol in [6, 17, 50, 58, 59, 132] {
            assert_eq!(walk_bytes(protocol, &[]), Ok(found(protocol, 0, Fragment::No)));
        }
    }

    #[test]
    fn every_kind_is_walked_through_by_its_own_length() {
        let all = [options(60, 0), options(43, 2), options(44, 1), fragment(51, 0, true)].concat();
        // Six words and the two that do not count.
        let mut authentication = vec![0; 24];
        (authentication[0], authentication[1]) = (17, 4);
        let all = [all, authentication, vec![0; 8]].concat();
        assert_eq!(walk_bytes(0, &all), Ok(found(17, 8 + 24 + 16 + 8 + 24, Fragment::First)));
    }

    #[test]
    fn fragments_are_told_apart_and_an_atomic_one_is_none() {
        assert_eq!(walk_bytes(44, &fragment(17, 0, true)), Ok(found(17, 8, Fragment::First)));
        assert_eq!(walk_bytes(44, &fragment(17, 0, false)), Ok(found(17, 8, Fragment::No)));
        assert_eq!(walk_bytes(44, &fragment(17, 185, false)), Ok(found(17, 8, Fragment::Later)));
        assert_eq!(walk_bytes(44, &fragment(17, 185, true)), Ok(found(17, 8, Fragment::Later)));
        // What is in a later fragment is no header, whatever it looks like.
        let nested = [fragment(44, 185, true), fragment(17, 0, true)].concat();
        assert_eq!(walk_bytes(44, &nested), Ok(found(44, 8, Fragment::Later)));
        let atomic = [fragment(44, 0, true), fragment(17, 0, false)].concat();
        assert_eq!(walk_bytes(44, &atomic), Ok(found(17, 16, Fragment::First)));
    }

    #[test]
    fn a_chain_that_is_cut_off_or_too_long_has_no_end() {
        assert_eq!(walk_bytes(0, &[60, 0, 0]), Err(NotFound::Truncated));
        assert_eq!(walk_bytes(0, &options(60, 0)), Err(NotFound::Truncated));
        let mut headers = options(60, 0).repeat(MAX_HEADERS - 1);
        headers.extend(options(17, 0));
        assert_eq!(walk_bytes(60, &headers), Ok(found(17, MAX_HEADERS * 8, Fragment::No)));
        let one_more = [options(60, 0), headers].concat();
        assert_eq!(walk_bytes(60, &one_more), Err(NotFound::TooLong));
    }

    proptest! {
        #[test]
        fn any_bytes_are_walked_through_within_bounds(first: u8, bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut reads = 0;
            let end = walk(first, 0, |at| {
                reads += 1;
                bytes.get(at..at + 4).map(|found| found.try_into().unwrap())
            });
            prop_assert!(reads <= MAX_HEADERS);
            if let Ok(chain) = end {
                prop_assert!(chain.fragment == Fragment::Later || !is_extension(chain.protocol));
                prop_assert!(chain.offset <= MAX_HEADERS * 2048);
            }
        }

        /// Whole chains as another implementation reads them, where that goes as far.
        #[test]
        fn the_end_is_where_etherparse_finds_it(kinds in proptest::collection::vec((0_usize..4, 0_u8..3), 0..4)) {
            let mut numbers: Vec<u8> = kinds.iter().map(|(kind, _)| [60, 43, 44, 51][*kind]).collect();
            numbers.push(17);
            let mut bytes = Vec::new();
            for ((kind, units), next) in kinds.iter().zip(&numbers[1..]) {
                bytes.extend(match kind {
                    2 => fragment(*next, 0, true),
                    3 => {
                        let mut header = vec![0; (usize::from(*units) + 3) * 4];
                        (header[0], header[1]) = (*next, units + 1);
                        header
                    }
                    _ => options(*next, *units),
                });
            }
            bytes.extend([0; 8]);
            let (_, protocol, rest) = Ipv6ExtensionsSlice::from_slice(IpNumber(numbers[0]), &bytes).unwrap();
            let chain = walk_bytes(numbers[0], &bytes).unwrap();
            prop_assert_eq!((chain.protocol, chain.offset), (protocol.0, bytes.len() - rest.len()));
        }
    }
}
