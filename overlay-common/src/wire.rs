//! Headers on the wire and the arithmetic on them: VXLAN over UDP over IPv4 or IPv6 (RFC 7348), which carries both.
//!
//! Plain functions over header structs that lie in packet memory. They assume nothing about the packet but its
//! length: every field may hold any value. Callers: the programs of overlay-ebpf; tests run them on the host.

use network_types::eth::EthHdr;

pub mod checksum;
pub mod ecn;
pub mod guard;
pub mod ip;
pub mod ipv4;
pub mod ipv6;
pub mod too_big;
pub mod vxlan;

/// `EtherType` of IPv4, host order.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// `EtherType` of ARP, host order.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// `EtherType` of IPv6, host order.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// `EtherType` of an 802.1Q tag, host order.
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// Bytes of an Ethernet header without tags.
pub const ETH_LEN: usize = 14;
/// IP protocol number of ICMP.
pub const PROTO_ICMP: u8 = 1;
/// IP protocol number of TCP.
pub const PROTO_TCP: u8 = 6;
/// IP protocol number of UDP.
pub const PROTO_UDP: u8 = 17;
/// IP protocol number of `ICMPv6`.
pub const PROTO_ICMPV6: u8 = 58;
/// IP protocol number of SCTP.
pub const PROTO_SCTP: u8 = 132;
/// IP protocol number of UDP-Lite.
pub const PROTO_UDPLITE: u8 = 136;

/// A MAC address as the low 48 bits of a word, its first byte lowest.
#[inline(always)]
pub const fn mac_word(mac: [u8; 6]) -> u64 {
    u32::from_le_bytes([mac[0], mac[1], mac[2], mac[3]]) as u64
        | (u16::from_le_bytes([mac[4], mac[5]]) as u64) << 32
}

/// Fills an Ethernet header with three stores; copying arrays of six bytes takes six and as many loads.
///
/// MAC addresses as of [`mac_word`], the type in host order.
#[inline(always)]
pub const fn write_eth(header: &mut EthHdr, dst: u64, src: u64, ether_type: u16) {
    let at = core::ptr::from_mut(header).cast::<u8>();
    // SAFETY: twelve of the header's fourteen bytes, which are bytes and a number.
    unsafe {
        at.cast::<u64>().write_unaligned((dst | src << 48).to_le());
        at.add(8).cast::<u32>().write_unaligned(((src >> 16) as u32).to_le());
    }
    header.ether_type = ether_type.to_be();
}

/// The outer UDP source port of a flow: in the dynamic range 49152–65535 that RFC 7348, 5 recommends, so that
/// ECMP, bonding and RSS on the underlay spread flows.
///
/// Mixes the hash as the kernel's `udp_flow_src_port()` does, because only the upper bits select the port.
#[inline(always)]
pub const fn source_port(flow_hash: u32) -> u16 {
    let hash = flow_hash ^ (flow_hash << 16);
    0xc000 | (hash >> 18) as u16
}

#[cfg(test)]
mod tests {
    use super::source_port;

    #[test]
    fn source_ports_are_dynamic_and_spread() {
        let mut seen = std::collections::HashSet::new();
        for flow in 0..10_000_u32 {
            let port = source_port(flow.wrapping_mul(0x9e37_79b9));
            assert!(port >= 49152);
            seen.insert(port);
        }
        // 10 000 balls into 16 384 bins hit about 7 500 of them.
        assert!(seen.len() > 6_500, "only {} ports for 10 000 flows", seen.len());
    }

    #[test]
    fn low_hash_bits_select_the_port_too() {
        assert_ne!(source_port(1 << 2), source_port(0));
    }
}
