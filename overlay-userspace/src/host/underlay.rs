//! The underlay: which interface carries the tunnel, and the MTU that it leaves to pods.
//!
//! Called by the agent at start and whenever links or addresses change.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::netlink::{Address, Link, Netlink, NetlinkError};

/// Bytes that the tunnel adds below the pod's IP header: inner Ethernet 14, VXLAN 8, UDP 8, outer IPv4 20.
pub const OVERHEAD_IPV4: u32 = 50;
/// The same with an outer IPv6 header of 40 bytes.
pub const OVERHEAD_IPV6: u32 = 70;

/// What every IPv4 host must be able to receive (RFC 791); below it much software breaks.
pub const MIN_POD_MTU: u32 = 576;

/// The interface that carries the tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underlay {
    /// The link; it may be down (`!link.up`), which heals without a new choice.
    pub link: Link,
    /// The node's own address, VTEP of its pods.
    pub address: IpAddr,
}

/// Why there is no underlay, or no MTU for pods.
#[derive(Debug, thiserror::Error)]
pub enum UnderlayError {
    /// The configured interface does not exist.
    #[error(
        "no interface {name}; correct network.interface, or leave it out to use the one that holds {address}"
    )]
    NoInterface {
        /// The configured name.
        name: String,
        /// The node's address.
        address: IpAddr,
    },
    /// No interface holds the node's address.
    #[error(
        "no interface holds the node's address {address} (there are: {present}); correct the node's address, or set network.interface"
    )]
    NoAddress {
        /// The node's address.
        address: IpAddr,
        /// What there is instead, for people.
        present: String,
    },
    /// Only the loopback interface holds it.
    #[error(
        "the node's address {address} is on the loopback interface; set network.interface to the one that carries the tunnel"
    )]
    Loopback {
        /// The node's address.
        address: IpAddr,
    },
    /// Another host on the link has the node's IPv6 address.
    #[error(
        "another host on the link of {interface} has the node's address {address}: duplicate address detection has failed; give one of the two another address"
    )]
    Duplicate {
        /// The node's address.
        address: IpAddr,
        /// The interface that holds it.
        interface: String,
    },
    /// The node's IPv6 address does not last.
    #[error(
        "the node's address {address} on {interface} is a temporary one, which the kernel replaces by another; give the lasting one of that interface"
    )]
    Temporary {
        /// The node's address.
        address: IpAddr,
        /// The interface that holds it.
        interface: String,
    },
    /// The configured MTU does not fit.
    #[error(
        "mtu {configured} for pods is too large: {interface} carries {underlay} bytes, the tunnel takes {overhead}; set network.mtu to {largest} or less, or leave it out"
    )]
    MtuTooLarge {
        /// As configured, in bytes.
        configured: u32,
        /// Name of the underlay interface.
        interface: String,
        /// Its MTU in bytes.
        underlay: u32,
        /// Bytes added by the tunnel.
        overhead: u32,
        /// What fits, in bytes.
        largest: u32,
    },
    /// The MTU is too small to be of use.
    #[error(
        "mtu {mtu} for pods is below the minimum of {MIN_POD_MTU}; raise network.mtu, or the mtu of {interface} (now {underlay})"
    )]
    MtuTooSmall {
        /// As configured, or as what is left by the underlay, in bytes.
        mtu: u32,
        /// Name of the underlay interface.
        interface: String,
        /// Its MTU in bytes.
        underlay: u32,
    },
    /// The kernel would not say.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

impl Underlay {
    /// Finds the interface called `interface`, or else the one that holds `address`.
    ///
    /// Where several hold it, one that is up is taken before one that is down. An IPv6 address that is still being checked
    /// for duplicates is as good as any: by the time that peers know of it, that is over.
    pub fn find(
        netlink: &mut Netlink,
        address: IpAddr,
        interface: Option<&str>,
    ) -> Result<Self, UnderlayError> {
        if let Some(name) = interface {
            let link = netlink.link(name)?;
            return link
                .map(|link| Self { link, address })
                .ok_or_else(|| UnderlayError::NoInterface { name: name.to_owned(), address });
        }
        let addresses = netlink.addresses(None)?;
        let unusable = |link: &Link| {
            let held =
                addresses.iter().find(|held| held.index == link.index && held.net.addr() == address)?;
            let interface = link.name.clone();
            if held.duplicate {
                return Some(UnderlayError::Duplicate { address, interface });
            }
            held.temporary.then_some(UnderlayError::Temporary { address, interface })
        };
        let links = netlink.links()?;
        let holders: Vec<_> = links
            .iter()
            .filter(|link| {
                addresses.iter().any(|held| held.index == link.index && held.net.addr() == address)
            })
            .collect();
        let best = holders.iter().filter(|link| !link.loopback).max_by_key(|link| link.up);
        match best {
            Some(&link) => match unusable(link) {
                None => Ok(Self { link: link.clone(), address }),
                Some(error) => Err(error),
            },
            None if holders.is_empty() => {
                Err(UnderlayError::NoAddress { address, present: describe(&addresses, &links) })
            }
            None => Err(UnderlayError::Loopback { address }),
        }
    }

    /// Bytes that the tunnel adds to a pod's IP packet.
    pub fn overhead(&self) -> u32 {
        match self.address {
            IpAddr::V4(_) => OVERHEAD_IPV4,
            IpAddr::V6(_) => OVERHEAD_IPV6,
        }
    }

    /// The pods' MTU in bytes: the configured one if it fits, else the largest that does.
    pub fn pod_mtu(&self, configured: Option<u32>) -> Result<u32, UnderlayError> {
        let underlay = self.link.mtu;
        let largest = underlay.saturating_sub(self.overhead());
        let mtu = configured.unwrap_or(largest);
        if mtu < MIN_POD_MTU || largest < MIN_POD_MTU {
            let mtu = mtu.min(largest);
            return Err(UnderlayError::MtuTooSmall { mtu, interface: self.link.name.clone(), underlay });
        }
        if mtu > largest {
            return Err(UnderlayError::MtuTooLarge {
                configured: mtu,
                interface: self.link.name.clone(),
                underlay,
                overhead: self.overhead(),
                largest,
            });
        }
        Ok(mtu)
    }
}

/// `eth0 192.0.2.1, eth1 (down) 198.51.100.1`; without what no node can be reached at.
fn describe(addresses: &[Address], links: &[Link]) -> String {
    let mut text = String::new();
    for address in addresses {
        let Some(link) = links.iter().find(|link| link.index == address.index && !link.loopback) else {
            continue;
        };
        let ip = address.net.addr();
        if is_link_local(ip) {
            continue;
        }
        let separator = if text.is_empty() { "" } else { ", " };
        let state = if link.up { "" } else { " (down)" };
        let _ = write!(text, "{separator}{}{state} {ip}", link.name);
    }
    if text.is_empty() { "none".into() } else { text }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => Ipv4Addr::is_link_local(&address),
        IpAddr::V6(address) => Ipv6Addr::is_unicast_link_local(&address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netns::testing::{in_fresh_netns, ip};

    fn find(address: &str, interface: Option<&str>) -> Result<Underlay, UnderlayError> {
        Underlay::find(&mut Netlink::open().unwrap(), address.parse().unwrap(), interface)
    }

    #[test]
    fn the_holder_of_the_address_is_found_in_both_families() {
        in_fresh_netns(|| {
            ip("link add eth0 mtu 1500 up type veth peer name eth0p");
            ip("link add eth1 mtu 9000 up type veth peer name eth1p");
            ip("address add 192.168.50.1/24 dev eth0");
            ip("address add 192.168.60.1/24 dev eth1");
            ip("address add fd00:50::1/64 dev eth1 nodad");
            let underlay = find("192.168.50.1", None).unwrap();
            assert_eq!((underlay.link.name.as_str(), underlay.pod_mtu(None).unwrap()), ("eth0", 1450));
            let underlay = find("fd00:50::1", None).unwrap();
            assert_eq!((underlay.link.name.as_str(), underlay.pod_mtu(None).unwrap()), ("eth1", 8930));
        });
    }

    #[test]
    fn an_ipv6_address_has_to_last() {
        in_fresh_netns(|| {
            ip("link add eth0 mtu 1500 up type veth peer name eth0p");
            ip("link set eth0p up");
            // Not over for a second or two, which nobody has to wait for.
            ip("address add 2001:db8::1/64 dev eth0");
            let underlay = find("2001:db8::1", None).unwrap();
            assert_eq!(underlay.pod_mtu(None).unwrap(), 1430);
            // As the kernel does with the prefix of a router advertisement.
            std::fs::write("/proc/sys/net/ipv6/conf/eth0/use_tempaddr", "2").unwrap();
            ip("address add 2001:db8:2::7/64 dev eth0 nodad mngtmpaddr valid_lft 3600 preferred_lft 1800");
            let addresses = Netlink::open().unwrap().addresses(None).unwrap();
            let made = addresses.iter().find(|address| address.temporary).expect("a temporary address");
            let error = find(&made.net.addr().to_string(), None).unwrap_err();
            assert!(matches!(error, UnderlayError::Temporary { .. }), "{error}");
            assert!(find("2001:db8:2::7", None).is_ok());
        });
    }

    #[test]
    fn a_configured_interface_needs_not_hold_the_address() {
        in_fresh_netns(|| {
            ip("link add eth0 up type veth peer name eth0p");
            assert_eq!(find("192.0.2.1", Some("eth0")).unwrap().link.name, "eth0");
            let error = find("192.0.2.1", Some("eth7")).unwrap_err().to_string();
            assert!(error.starts_with("no interface eth7; "), "{error}");
        });
    }

    #[test]
    fn an_interface_that_is_up_wins_and_one_that_is_down_is_still_found() {
        in_fresh_netns(|| {
            ip("link add eth0 type veth peer name eth0p");
            ip("link add eth1 up type veth peer name eth1p");
            ip("address add 192.0.2.1/24 dev eth0");
            assert!(!find("192.0.2.1", None).unwrap().link.up);
            ip("address add 192.0.2.1/25 dev eth1");
            assert_eq!(find("192.0.2.1", None).unwrap().link.name, "eth1");
        });
    }

    #[test]
    fn an_unknown_address_is_an_error_that_lists_what_there_is() {
        in_fresh_netns(|| {
            ip("link set lo up");
            let error = find("192.0.2.1", None).unwrap_err().to_string();
            assert!(error.contains("holds the node's address 192.0.2.1 (there are: none)"), "{error}");
            ip("link add eth0 up type veth peer name eth0p");
            ip("link add eth1 type veth peer name eth1p");
            ip("address add 192.168.50.1/24 dev eth0");
            ip("address add 192.168.60.1/24 dev eth1");
            let error = find("192.0.2.1", None).unwrap_err().to_string();
            assert!(error.contains("(there are: eth0 192.168.50.1, eth1 (down) 192.168.60.1)"), "{error}");
        });
    }

    #[test]
    fn an_address_on_loopback_needs_an_interface() {
        in_fresh_netns(|| {
            ip("address add 192.0.2.1/32 dev lo");
            assert!(matches!(find("192.0.2.1", None), Err(UnderlayError::Loopback { .. })));
        });
    }

    #[test]
    fn mtu_limits_are_exact_and_name_the_numbers() {
        in_fresh_netns(|| {
            ip("link add eth0 mtu 1500 up type veth peer name eth0p");
            let underlay = find("192.0.2.1", Some("eth0")).unwrap();
            assert_eq!(underlay.pod_mtu(Some(1450)).unwrap(), 1450);
            assert_eq!(underlay.pod_mtu(Some(576)).unwrap(), 576);
            let error = underlay.pod_mtu(Some(1451)).unwrap_err().to_string();
            assert_eq!(
                error,
                "mtu 1451 for pods is too large: eth0 carries 1500 bytes, the tunnel takes 50; \
                 set network.mtu to 1450 or less, or leave it out"
            );
            let error = underlay.pod_mtu(Some(575)).unwrap_err().to_string();
            assert!(error.starts_with("mtu 575 for pods is below the minimum of 576; "), "{error}");
            ip("link set eth0 mtu 600");
            let underlay = find("192.0.2.1", Some("eth0")).unwrap();
            assert!(matches!(underlay.pod_mtu(None), Err(UnderlayError::MtuTooSmall { mtu: 550, .. })));
            assert!(matches!(underlay.pod_mtu(Some(1450)), Err(UnderlayError::MtuTooSmall { mtu: 550, .. })));
        });
    }
}
