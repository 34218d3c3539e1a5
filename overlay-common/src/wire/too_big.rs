//! "Fragmentation needed" (RFC 792, RFC 1191) and "packet too big" (RFC 4443, 3.2): what a pod is told whose packet does not
//! fit the path to the node that it is for.
//!
//! The answer quotes the packet, so it is built in front of what is left of it: [`QUOTE4`] or [`QUOTE6`] bytes from its IP
//! header on. The sum over those comes from the caller, which has a helper for that in the kernel.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::{PROTO_ICMP, PROTO_ICMPV6, checksum};

/// Bytes of an IPv4 packet that are quoted: nearly as many as RFC 1812, 4.3.2.3 allows (576 in all), and fewer than any
/// packet has that the kernel finds too long for a path (`net.ipv4.route.min_pmtu` is 552, less the tunnel's headers).
pub const QUOTE4: usize = 480;

/// Bytes of an IPv6 packet that are quoted: as many as fit into the minimum MTU (RFC 4443, 2.4, c).
pub const QUOTE6: usize = MIN_MTU6 as usize - size_of::<Answer6>();

/// The smallest MTU that a path for IPv6 may have (RFC 8200, 5). A sender does not believe in a smaller one.
pub const MIN_MTU6: u32 = 1280;

/// Hop limit of the answer. The pod is the next hop.
const TTL: u8 = 64;

/// An ICMP or ICMPv6 header of the two kinds that are made here.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Icmp {
    kind: u8,
    code: u8,
    check: [u8; 2],
    /// Four bytes of MTU in ICMPv6; two that are unused, two of MTU in ICMP.
    mtu: [u8; 4],
}

/// The headers in front of a quoted IPv4 packet.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Answer4 {
    ip: Ipv4Hdr,
    icmp: Icmp,
}

/// The headers in front of a quoted IPv6 packet.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Answer6 {
    ip: Ipv6Hdr,
    icmp: Icmp,
}

const _: () = assert!(size_of::<Answer4>() == 28 && size_of::<Answer6>() == 48);

#[inline(always)]
const fn word(a: u8, b: u8) -> u32 {
    u16::from_ne_bytes([a, b]) as u32
}

#[inline(always)]
const fn words4(bytes: [u8; 4]) -> u32 {
    word(bytes[0], bytes[1]) + word(bytes[2], bytes[3])
}

/// A sum of 32 bits brought to less than 17, so that more can be added.
#[inline(always)]
const fn half_folded(sum: u32) -> u32 {
    (sum & 0xffff) + (sum >> 16)
}

/// Writes the answer: from `gateway` to `pod`, which is to send at most `mtu` bytes.
///
/// `quoted` is the one's complement sum of the [`QUOTE4`] bytes that follow.
#[inline(always)]
pub const fn answer4(answer: &mut Answer4, gateway: [u8; 4], pod: [u8; 4], mtu: u16, quoted: u32) {
    let [m0, m1] = mtu.to_be_bytes();
    let mut icmp = Icmp { kind: 3, code: 4, check: [0; 2], mtu: [0, 0, m0, m1] };
    icmp.check = checksum::fold(half_folded(quoted) + word(icmp.kind, icmp.code) + words4(icmp.mtu));
    let mut ip = Ipv4Hdr {
        vihl: 0x45,
        // Internetwork control (RFC 1812, 4.3.2.5).
        tos: 0xc0,
        tot_len: ((size_of::<Answer4>() + QUOTE4) as u16).to_be_bytes(),
        id: [0; 2],
        // Don't Fragment, so that the identification has no meaning (RFC 6864, 4.1).
        frags: [0x40, 0],
        ttl: TTL,
        proto: PROTO_ICMP,
        check: [0; 2],
        src_addr: gateway,
        dst_addr: pod,
    };
    ip.check = checksum::ipv4_header(&ip);
    *answer = Answer4 { ip, icmp };
}

/// As [`answer4`], of IPv6; `quoted` is about [`QUOTE6`] bytes, `mtu` at least [`MIN_MTU6`].
#[inline(always)]
pub const fn answer6(answer: &mut Answer6, gateway: [u8; 16], pod: [u8; 16], mtu: u32, quoted: u32) {
    let len = (size_of::<Icmp>() + QUOTE6) as u16;
    let mut icmp = Icmp { kind: 2, code: 0, check: [0; 2], mtu: mtu.to_be_bytes() };
    let [l0, l1] = len.to_be_bytes();
    // The pseudo-header (RFC 8200, 8.1).
    let addresses = sum16(gateway) + sum16(pod);
    let pseudo = half_folded(addresses) + word(l0, l1) + word(0, PROTO_ICMPV6);
    icmp.check = checksum::fold(
        half_folded(quoted) + half_folded(pseudo) + word(icmp.kind, icmp.code) + words4(icmp.mtu),
    );
    let ip = Ipv6Hdr {
        // Version 6, traffic class 0xc0 as above.
        vcf: [0x6c, 0, 0, 0],
        payload_len: [l0, l1],
        next_hdr: PROTO_ICMPV6,
        hop_limit: TTL,
        src_addr: gateway,
        dst_addr: pod,
    };
    *answer = Answer6 { ip, icmp };
}

#[inline(always)]
const fn sum16(a: [u8; 16]) -> u32 {
    words4([a[0], a[1], a[2], a[3]])
        + words4([a[4], a[5], a[6], a[7]])
        + words4([a[8], a[9], a[10], a[11]])
        + words4([a[12], a[13], a[14], a[15]])
}

#[cfg(test)]
mod tests {
    use etherparse::{Icmpv4Type, Icmpv6Type, NetHeaders, PacketHeaders, TransportHeader, icmpv4, icmpv6};
    use proptest::prelude::*;

    use super::*;

    /// What the kernel's helper gives: words of 16 bits in memory order, not folded.
    fn sum(bytes: &[u8]) -> u32 {
        bytes.chunks(2).map(|pair| u32::from(u16::from_ne_bytes([pair[0], pair[1]]))).sum()
    }

    fn packet<T: Copy, const N: usize>(answer: &T, quote: &[u8]) -> Vec<u8> {
        assert_eq!(size_of::<T>(), N);
        // SAFETY: the answers are made of bytes.
        let head: &[u8; N] = unsafe { &*core::ptr::from_ref(answer).cast() };
        [head.as_slice(), quote].concat()
    }

    proptest! {
        #[test]
        fn ipv4_is_answered_as_etherparse_reads_it(
            gateway: [u8; 4], pod: [u8; 4], mtu: u16, quote in prop::collection::vec(any::<u8>(), QUOTE4)
        ) {
            // SAFETY: made of bytes.
            let mut answer: Answer4 = unsafe { core::mem::zeroed() };
            answer4(&mut answer, gateway, pod, mtu, sum(&quote));
            let bytes = packet::<_, 28>(&answer, &quote);
            let read = PacketHeaders::from_ip_slice(&bytes).unwrap();
            let Some(NetHeaders::Ipv4(ip, _)) = read.net else { panic!("{read:?}") };
            prop_assert_eq!((ip.source, ip.destination), (gateway, pod));
            prop_assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            let Some(TransportHeader::Icmpv4(icmp)) = read.transport else { panic!() };
            let wanted = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu };
            prop_assert_eq!(&icmp.icmp_type, &Icmpv4Type::DestinationUnreachable(wanted));
            prop_assert!(valid(sum(&bytes[20..])), "{:04x}", icmp.checksum);
            prop_assert_eq!(read.payload.slice(), &quote[..]);
        }

        #[test]
        fn ipv6_is_answered_as_etherparse_reads_it(
            gateway: [u8; 16], pod: [u8; 16], mtu in MIN_MTU6..=65_535,
            quote in prop::collection::vec(any::<u8>(), QUOTE6)
        ) {
            // SAFETY: made of bytes.
            let mut answer: Answer6 = unsafe { core::mem::zeroed() };
            answer6(&mut answer, gateway, pod, mtu, sum(&quote));
            let bytes = packet::<_, 48>(&answer, &quote);
            prop_assert_eq!(bytes.len(), 1280);
            let read = PacketHeaders::from_ip_slice(&bytes).unwrap();
            let Some(NetHeaders::Ipv6(ip, _)) = read.net else { panic!("{read:?}") };
            prop_assert_eq!((ip.source, ip.destination), (gateway, pod));
            let Some(TransportHeader::Icmpv6(icmp)) = read.transport else { panic!() };
            prop_assert_eq!(&icmp.icmp_type, &Icmpv6Type::PacketTooBig { mtu });
            let _ = icmpv6::TYPE_PACKET_TOO_BIG;
            let pseudo = sum(&gateway) + sum(&pod) + sum(&[bytes[4], bytes[5], 0, PROTO_ICMPV6]);
            prop_assert!(valid(pseudo + sum(&bytes[40..])), "{:04x}", icmp.checksum);
            prop_assert_eq!(read.payload.slice(), &quote[..]);
        }
    }

    /// RFC 1071: with its checksum the sum is all ones.
    fn valid(mut sum: u32) -> bool {
        while sum > 0xffff {
            sum = half_folded(sum);
        }
        sum == 0xffff
    }
}
