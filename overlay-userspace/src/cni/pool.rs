//! The addresses of a node's subnet that pods can have, and the order in which they are proposed.
//!
//! Pure, and alike for both families but for what is left out. Called by `lease`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::local::Net;
use crate::family::{Family, OfFamily as _};

/// The addresses that pods can have, each once, beginning after `last` (at the first where `last` is not in the subnet)
/// and wrapping round.
///
/// Left out are the gateway, the network address (in IPv6 that of all its routers, RFC 4291, 2.6.1) and in IPv4 the
/// broadcast address; a subnet without others gives none.
pub(super) fn candidates(net: &Net, last: IpAddr) -> impl Iterator<Item = IpAddr> + use<> {
    let Net { subnet, gateway, .. } = *net;
    let family = subnet.family();
    let (network, largest) = (bits(subnet.network()), largest_offset(subnet));
    let start =
        if subnet.contains(&last) { bits(last).wrapping_sub(network).wrapping_add(1) & largest } else { 0 };
    (0..=largest)
        .map(move |step| start.wrapping_add(step) & largest)
        .filter(move |offset| *offset != 0 && (family == Family::Ipv6 || *offset != largest))
        .map(move |offset| address(family, network | offset))
        .filter(move |address| *address != gateway)
}

/// Whether pods can have an address.
pub(super) fn is_candidate(net: &Net, wanted: IpAddr) -> bool {
    // Proposed first where it can be had at all: its turn is after the one before it.
    let before = address(wanted.family(), bits(wanted).wrapping_sub(1));
    candidates(net, before).next() == Some(wanted)
}

/// How many addresses pods can have.
pub(super) fn size(net: &Net) -> u128 {
    let Net { subnet, gateway, .. } = *net;
    let largest = largest_offset(subnet);
    let mut taken = vec![0, bits(gateway) & largest];
    if subnet.family() == Family::Ipv4 {
        taken.push(largest);
    }
    taken.sort_unstable();
    taken.dedup();
    // Less than one fits, and is never missed, where the subnet is all of IPv6.
    largest.saturating_add(1).saturating_sub(taken.len() as u128)
}

/// The largest number that the host part can be.
fn largest_offset(subnet: IpNet) -> u128 {
    let free = subnet.max_prefix_len() - subnet.prefix_len();
    u128::MAX.checked_shr(128 - u32::from(free)).unwrap_or(0)
}

const fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits() as u128,
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The address of these bits; of IPv4 the lower 32.
fn address(family: Family, bits: u128) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::from_bits(bits as u32).into(),
        Family::Ipv6 => Ipv6Addr::from_bits(bits).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(subnet: &str, gateway: &str) -> Net {
        let subnet = subnet.parse().unwrap();
        Net { subnet, gateway: gateway.parse().unwrap(), cluster: subnet }
    }

    fn first(count: usize, subnet: &str, gateway: &str, last: &str) -> Vec<String> {
        let all = candidates(&net(subnet, gateway), last.parse().unwrap());
        all.take(count).map(|address| address.to_string()).collect()
    }

    fn all(subnet: &str, gateway: &str, last: &str) -> Vec<String> {
        let all = first(usize::MAX, subnet, gateway, last);
        assert_eq!(size(&net(subnet, gateway)), all.len() as u128);
        all
    }

    #[test]
    fn the_first_pod_gets_the_first_address_after_the_gateway() {
        let all = all("10.244.1.0/24", "10.244.1.1", "0.0.0.0");
        assert_eq!(all.len(), 253);
        assert_eq!((all[0].as_str(), all[252].as_str()), ("10.244.1.2", "10.244.1.254"));
        // An IPv6 subnet is too large to be gone through, and has no broadcast address.
        assert_eq!(first(3, "fd00:1::/64", "fd00:1::1", "::"), ["fd00:1::2", "fd00:1::3", "fd00:1::4"]);
        let all = self::all("fd00:1::/120", "fd00:1::1", "::");
        assert_eq!((all.len(), all[0].as_str(), all[253].as_str()), (254, "fd00:1::2", "fd00:1::ff"));
    }

    #[test]
    fn the_order_goes_on_after_the_last_address_and_wraps() {
        assert_eq!(
            all("10.244.1.0/29", "10.244.1.1", "10.244.1.4"),
            ["10.244.1.5", "10.244.1.6", "10.244.1.2", "10.244.1.3", "10.244.1.4"]
        );
        assert_eq!(all("10.244.1.0/29", "10.244.1.1", "10.244.1.6")[0], "10.244.1.2");
        assert_eq!(
            all("fd00:1::/125", "fd00:1::1", "fd00:1::5"),
            ["fd00:1::6", "fd00:1::7", "fd00:1::2", "fd00:1::3", "fd00:1::4", "fd00:1::5"]
        );
        assert_eq!(
            first(2, "fd00:1::/64", "fd00:1::1", "fd00:1::ffff:ffff:ffff:fffe"),
            ["fd00:1::ffff:ffff:ffff:ffff", "fd00:1::2"]
        );
    }

    #[test]
    fn a_cursor_of_another_subnet_or_family_is_no_cursor() {
        for last in ["10.244.9.4", "::", "::ffff:10.244.1.4"] {
            assert_eq!(all("10.244.1.0/29", "10.244.1.1", last)[0], "10.244.1.2");
        }
        for last in ["10.244.9.4", "::", "fd00:2::7"] {
            assert_eq!(first(1, "fd00:1::/64", "fd00:1::1", last), ["fd00:1::2"]);
        }
    }

    #[test]
    fn the_smallest_and_the_largest_subnets_do_not_overflow() {
        assert_eq!(all("10.244.1.0/30", "10.244.1.1", "0.0.0.0"), ["10.244.1.2"]);
        assert!(all("10.244.1.0/31", "10.244.1.1", "0.0.0.0").is_empty());
        assert!(all("10.244.1.1/32", "10.244.1.1", "10.244.1.1").is_empty());
        assert_eq!(all("fd00:1::/126", "fd00:1::1", "::"), ["fd00:1::2", "fd00:1::3"]);
        assert!(all("fd00:1::/127", "fd00:1::1", "::").is_empty());
        assert!(all("fd00:1::1/128", "fd00:1::1", "fd00:1::1").is_empty());
        assert_eq!(first(1, "0.0.0.0/0", "0.0.0.1", "255.255.255.255"), ["0.0.0.2"]);
        assert_eq!(first(1, "255.255.255.0/24", "0.0.0.1", "255.255.255.254"), ["255.255.255.1"]);
        let top = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        assert_eq!(first(1, "::/0", "::1", top), ["::2"]);
        assert_eq!(size(&net("0.0.0.0/0", "0.0.0.1")), (1 << 32) - 3);
        assert_eq!(size(&net("fd00:1::/64", "fd00:1::1")), (1 << 64) - 2);
        assert_eq!(size(&net("::/0", "::1")), u128::MAX - 2);
    }

    #[test]
    fn what_is_left_out_cannot_be_asked_for_either() {
        let can = |net: &Net, address: &str| is_candidate(net, address.parse().unwrap());
        let v4 = net("10.244.1.0/24", "10.244.1.1");
        for bad in ["10.244.1.0", "10.244.1.1", "10.244.1.255", "10.244.2.5", "0.0.0.0", "fd00:1::5"] {
            assert!(!can(&v4, bad), "{bad}");
        }
        let v6 = net("fd00:1::/64", "fd00:1::1");
        for bad in ["fd00:1::", "fd00:1::1", "fd00:1:0:1::5", "::", "10.244.1.5", "fe80::1"] {
            assert!(!can(&v6, bad), "{bad}");
        }
        assert!(can(&v4, "10.244.1.254") && can(&v6, "fd00:1::ffff") && can(&v6, "fd00:1::aaaa:0:0:0"));
    }
}
