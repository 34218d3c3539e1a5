//! Addresses of links.
//!
//! Called by the agent (gateway address, underlay) and by the CNI plugin inside of a pod's namespace.

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage},
};
use nix::errno::Errno;

use super::{Netlink, NetlinkError};

/// An address that a link holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// Index of the link.
    pub index: u32,
    /// The address with its prefix length, host bits kept.
    pub net: IpNet,
    /// IPv6: usable at once, without duplicate address detection. IPv4 has none; always false there.
    pub nodad: bool,
    /// IPv6: duplicate address detection has found another host that has it; it cannot be used.
    pub duplicate: bool,
    /// IPv6: made at random for a while (RFC 8981); another takes its place.
    pub temporary: bool,
}

impl Netlink {
    /// Addresses of one link, or of all, IPv4 first.
    pub fn addresses(&mut self, index: Option<u32>) -> Result<Vec<Address>, NetlinkError> {
        let mut addresses = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = AddressMessage::default();
            message.header.family = family;
            message.header.index = index.unwrap_or(0);
            let replies = match self.dump(&RouteNetlinkMessage::GetAddress(message)) {
                Ok(replies) => replies,
                // The link is gone: so are its addresses.
                Err(failure) if failure.is(Errno::ENODEV) => Vec::new(),
                Err(failure) => return Err(failure.during("list addresses".into())),
            };
            addresses.extend(
                replies
                    .into_iter()
                    .filter_map(|reply| into_address(reply, family))
                    .filter(|address| index.is_none_or(|index| address.index == index)),
            );
        }
        Ok(addresses)
    }

    /// Gives a link an address; no error when it has it already, with the same prefix length.
    ///
    /// An IPv6 address is usable at once (`nodad`).
    pub fn replace_address(&mut self, index: u32, net: IpNet) -> Result<(), NetlinkError> {
        self.execute(RouteNetlinkMessage::NewAddress(message(index, net)), NLM_F_CREATE | NLM_F_REPLACE)
            .map_err(|failure| {
                let device = self.device(index);
                failure.during(format!("add address {net} to link {device}"))
            })
    }

    /// Takes an address from a link; false when it did not hold it.
    pub fn delete_address(&mut self, index: u32, net: IpNet) -> Result<bool, NetlinkError> {
        match self.execute(RouteNetlinkMessage::DelAddress(message(index, net)), 0) {
            Ok(()) => Ok(true),
            Err(failure) if failure.is(Errno::EADDRNOTAVAIL) || failure.is(Errno::ENODEV) => Ok(false),
            Err(failure) => {
                let device = self.device(index);
                Err(failure.during(format!("delete address {net} of link {device}")))
            }
        }
    }
}

pub(super) fn message(index: u32, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = net.prefix_len();
    message.header.family = match net {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => {
            message.header.flags = AddressHeaderFlags::Nodad;
            AddressFamily::Inet6
        }
    };
    message.attributes = vec![AddressAttribute::Local(net.addr()), AddressAttribute::Address(net.addr())];
    message
}

fn into_address(reply: RouteNetlinkMessage, family: AddressFamily) -> Option<Address> {
    let RouteNetlinkMessage::NewAddress(message) = reply else { return None };
    // A kernel without IPv6 answers an IPv6 dump with all families.
    if message.header.family != family {
        return None;
    }
    let (mut local, mut address) = (None, None);
    // The attribute has all of them, the header those of the first eight bits.
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    for attribute in message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(ip),
            AddressAttribute::Address(ip) => address = Some(ip),
            AddressAttribute::Flags(all) => flags = all,
            _ => {}
        }
    }
    // On a point-to-point link IFA_ADDRESS is the other end; IPv6 sends IFA_LOCAL only there.
    let net = IpNet::new(local.or(address)?, message.header.prefix_len).ok()?;
    Some(Address {
        index: message.header.index,
        net,
        nodad: flags.contains(AddressFlags::Nodad),
        duplicate: flags.contains(AddressFlags::Dadfailed),
        // The bit means something else in IPv4: a further address of the same network.
        temporary: net.addr().is_ipv6() && flags.contains(AddressFlags::Secondary),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netns::testing::{in_fresh_netns, ip, ip_json};

    fn nets(addresses: &[Address]) -> Vec<String> {
        addresses.iter().map(|address| address.net.to_string()).collect()
    }

    #[test]
    fn addresses_are_added_once_listed_per_link_and_deleted() {
        in_fresh_netns(|| {
            ip("link add d0 type veth peer name d0p");
            ip("link add d1 type veth peer name d1p");
            ip("link set d0 addrgenmode none up");
            ip("address add 192.0.2.9/24 dev d1");
            let mut netlink = Netlink::open().unwrap();
            let index = netlink.link("d0").unwrap().unwrap().index;
            for net in ["10.244.1.1/32", "fd00::1/128"] {
                let net = net.parse().unwrap();
                netlink.replace_address(index, net).unwrap();
                netlink.replace_address(index, net).unwrap();
            }
            assert_eq!(nets(&netlink.addresses(Some(index)).unwrap()), ["10.244.1.1/32", "fd00::1/128"]);
            assert!(nets(&netlink.addresses(None).unwrap()).contains(&"192.0.2.9/24".to_owned()));

            let seen = ip_json("address show dev d0");
            let infos = seen[0]["addr_info"].as_array().unwrap();
            assert_eq!(infos.len(), 2);
            assert_eq!(infos[0]["local"], "10.244.1.1");
            assert_eq!(infos[0]["prefixlen"], 32);
            assert_eq!(infos[1]["local"], "fd00::1");
            assert_eq!(infos[1]["nodad"], true);
            assert!(infos[1].get("tentative").is_none());

            for net in ["10.244.1.1/32", "fd00::1/128"] {
                let net = net.parse().unwrap();
                assert!(netlink.delete_address(index, net).unwrap());
                assert!(!netlink.delete_address(index, net).unwrap());
            }
            assert!(netlink.addresses(Some(index)).unwrap().is_empty());
        });
    }

    #[test]
    fn own_end_of_a_point_to_point_address_is_listed() {
        in_fresh_netns(|| {
            ip("link add d0 type veth peer name d0p");
            ip("address add 192.0.2.1 peer 192.0.2.2/32 dev d0");
            let addresses = Netlink::open().unwrap().addresses(None).unwrap();
            assert_eq!(nets(&addresses), ["192.0.2.1/32"]);
        });
    }

    #[test]
    fn addresses_of_a_missing_link_are_none_and_adding_one_names_it() {
        in_fresh_netns(|| {
            let mut netlink = Netlink::open().unwrap();
            assert!(netlink.addresses(Some(99)).unwrap().is_empty());
            let error = netlink.replace_address(99, "192.0.2.1/32".parse().unwrap()).unwrap_err();
            assert_eq!(error.errno(), Errno::ENODEV);
            assert!(error.to_string().starts_with("add address 192.0.2.1/32 to link #99: No such device"));
        });
    }
}
