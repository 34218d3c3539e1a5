//! A node as its source describes it, and how the others reach it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::family::{ByFamily, Family};

/// A node as its source describes it. Of each family it has what there is; a subnet of one may be reached by a tunnel of
/// the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// Its name, unique in the cluster.
    pub name: String,
    /// Its tunnel addresses (VTEPs), one at least.
    pub addresses: ByFamily<IpAddr>,
    /// Its pods' subnets, one at least.
    pub subnets: ByFamily<IpNet>,
    /// Of a peer that is not overlay: the MACs of its tunnel devices, by the family of their addresses. Empty for a node
    /// that runs overlay, whose MAC follows from its addresses.
    pub vtep_macs: ByFamily<[u8; 6]>,
}

/// Where a packet for a node is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// The destination of the outer header.
    pub vtep: IpAddr,
    /// The destination of the inner Ethernet header.
    pub mac: [u8; 6],
}

impl NodeSpec {
    /// The MAC of the node's tunnel device; of the one with an IPv4 address where there are two.
    pub fn mac(&self) -> [u8; 6] {
        let given = self.vtep_macs.values().next().copied();
        given.or_else(|| self.addresses.values().next().map(|address| vtep_mac(*address))).unwrap_or_default()
    }

    /// Whether the node runs overlay, rather than a plain vxlan device of the kernel.
    pub const fn is_overlay(&self) -> bool {
        self.vtep_macs.is_empty()
    }

    /// Its tunnel address of this family, or else of the other.
    pub fn address(&self, preferred: Family) -> Option<IpAddr> {
        self.addresses.get(preferred).or_else(|| self.addresses.get(preferred.other())).copied()
    }

    /// The gateway addresses of its subnets.
    pub fn gateways(&self) -> ByFamily<IpAddr> {
        self.subnets.map(|_, subnet| gateway(*subnet))
    }

    /// How `own` reaches this node with packets of the family `inner`; `None` where the two have no family in common.
    ///
    /// Both nodes come to the same result: each accepts from the other only what comes from the address that it would
    /// send to. Between nodes that run overlay it is one way for all packets, of the family `preferred` where both have
    /// both. A plain vxlan device has one address: Flannel makes one device for each family, and packets go by the one of
    /// their own.
    pub fn tunnel(&self, inner: Family, own: &Self, preferred: Family) -> Option<Tunnel> {
        let first = if self.is_overlay() && own.is_overlay() { preferred } else { inner };
        let family = [first, first.other()]
            .into_iter()
            .find(|family| self.addresses.get(*family).is_some() && own.addresses.get(*family).is_some())?;
        let mac = self.vtep_macs.get(family).copied().unwrap_or_else(|| self.mac());
        Some(Tunnel { vtep: *self.addresses.get(family)?, mac })
    }
}

/// The MAC of the anchor device of the node with this tunnel address (the IPv4 one where it has two), so that nothing but
/// the address has to be known of a peer: locally administered, unicast.
pub fn vtep_mac(address: IpAddr) -> [u8; 6] {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            [0x0a, 0x6f, a, b, c, d]
        }
        IpAddr::V6(v6) => {
            // FNV-1a: stable across builds, and a collision is harmless (the receiver goes by addresses).
            let hash = v6.octets().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            });
            let [a, b, c, d, ..] = hash.to_be_bytes();
            [0x0a, 0x76, a, b, c, d]
        }
    }
}

/// The address of the gateway of a pod subnet: its first host address.
pub fn gateway(subnet: IpNet) -> IpAddr {
    match subnet {
        IpNet::V4(net) => Ipv4Addr::from_bits(net.network().to_bits() | 1).into(),
        IpNet::V6(net) => Ipv6Addr::from_bits(net.network().to_bits() | 1).into(),
    }
}

#[cfg(test)]
impl NodeSpec {
    /// A node for tests, of what the texts name: addresses and subnets of any family.
    pub(crate) fn of(name: &str, addresses: &[&str], subnets: &[&str]) -> Self {
        Self {
            name: name.into(),
            addresses: ByFamily::from_values(addresses.iter().map(|text| text.parse().unwrap())).unwrap(),
            subnets: ByFamily::from_values(subnets.iter().map(|text| text.parse().unwrap())).unwrap(),
            vtep_macs: ByFamily::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Family::{Ipv4, Ipv6};

    const V4: [&str; 2] = ["192.0.2.1", "192.0.2.2"];
    const V6: [&str; 2] = ["2001:db8::1", "2001:db8::2"];

    fn node(number: usize, families: &[Family]) -> NodeSpec {
        let address = |family: &Family| match family {
            Ipv4 => V4[number],
            Ipv6 => V6[number],
        };
        let addresses: Vec<_> = families.iter().map(address).collect();
        NodeSpec::of(&format!("n{number}"), &addresses, &["10.244.1.0/24", "fd00::/64"])
    }

    #[test]
    fn gateways_are_the_first_host_and_macs_are_stable_unicast() {
        assert_eq!(gateway("10.244.3.0/24".parse().unwrap()).to_string(), "10.244.3.1");
        assert_eq!(gateway("fd00:10:244:3::/64".parse().unwrap()).to_string(), "fd00:10:244:3::1");
        let mac = vtep_mac("192.0.2.1".parse().unwrap());
        assert_eq!(mac, [0x0a, 0x6f, 192, 0, 2, 1]);
        assert_eq!(mac[0] & 3, 2);
        let v6 = vtep_mac("fd00::1".parse().unwrap());
        assert_ne!(v6, vtep_mac("fd00::2".parse().unwrap()));
        assert_eq!((v6[0] & 3, v6[0], v6[1]), (2, 0x0a, 0x76));
        // By IPv4 where there is a choice, whatever tunnels go by.
        assert_eq!(node(0, &[Ipv4, Ipv6]).mac(), mac);
        assert_eq!(node(0, &[Ipv6]).mac(), vtep_mac(V6[0].parse().unwrap()));
    }

    #[test]
    fn two_nodes_choose_the_same_family_or_none() {
        let sets: [&[Family]; 3] = [&[Ipv4], &[Ipv6], &[Ipv4, Ipv6]];
        for preferred in Family::ALL {
            for (a, b) in sets.iter().flat_map(|a| sets.iter().map(move |b| (*a, *b))) {
                let (one, two) = (node(0, a), node(1, b));
                let common: Vec<_> = a.iter().filter(|family| b.contains(family)).copied().collect();
                for inner in Family::ALL {
                    let (there, back) =
                        (two.tunnel(inner, &one, preferred), one.tunnel(inner, &two, preferred));
                    let expected =
                        if common.contains(&preferred) { Some(&preferred) } else { common.first() };
                    let family = |tunnel: Option<Tunnel>| tunnel.map(|tunnel| tunnel.vtep.is_ipv4());
                    assert_eq!(
                        family(there),
                        expected.map(|family| *family == Ipv4),
                        "{a:?} {b:?} {preferred}"
                    );
                    assert_eq!(family(there), family(back));
                    assert!(there.is_none_or(|tunnel| tunnel.mac == two.mac()));
                }
            }
        }
    }

    #[test]
    fn a_plain_peer_is_reached_by_the_device_of_the_packets_family() {
        let mut plain = node(1, &[Ipv4, Ipv6]);
        plain.vtep_macs = ByFamily { v4: Some([2, 0, 0, 0, 0, 4]), v6: Some([2, 0, 0, 0, 0, 6]) };
        let own = node(0, &[Ipv4, Ipv6]);
        for preferred in Family::ALL {
            let tunnel = |inner, own: &NodeSpec| {
                plain.tunnel(inner, own, preferred).map(|found| (found.vtep.to_string(), found.mac[5]))
            };
            assert_eq!(tunnel(Ipv4, &own), Some((V4[1].to_owned(), 4)));
            assert_eq!(tunnel(Ipv6, &own), Some((V6[1].to_owned(), 6)));
            // A device of the one family carries the other as well, where nothing else is left.
            assert_eq!(tunnel(Ipv6, &node(0, &[Ipv4])), Some((V4[1].to_owned(), 4)));
            // And so does the other way: what it sends comes from the device that it is sent to.
            assert_eq!(own.tunnel(Ipv6, &plain, preferred).unwrap().vtep.to_string(), V6[0]);
        }
    }
}
