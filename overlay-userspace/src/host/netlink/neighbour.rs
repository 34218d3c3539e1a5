//! Neighbour entries: which Ethernet address an IP address has on a link.
//!
//! Called by the CNI plugin (a pod's permanent entry of its gateway) and by the agent.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
};
use nix::errno::Errno;

use super::{MacAddress, Netlink, NetlinkError};

/// An entry of the neighbour table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// Index of the link.
    pub index: u32,
    /// The neighbour.
    pub address: IpAddr,
    /// Its Ethernet address, if known.
    pub mac: Option<MacAddress>,
    /// Written by hand: never resolved, never aged.
    pub permanent: bool,
}

impl Netlink {
    /// Neighbours on one link, or on all.
    pub fn neighbours(&mut self, index: Option<u32>) -> Result<Vec<Neighbour>, NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.attributes.extend(index.map(NeighbourAttribute::IfIndex));
        let replies = match self.dump(&RouteNetlinkMessage::GetNeighbour(message)) {
            Ok(replies) => replies,
            Err(failure) if failure.is(Errno::ENODEV) => Vec::new(),
            Err(failure) => return Err(failure.during("list neighbours".into())),
        };
        Ok(replies
            .into_iter()
            .filter_map(into_neighbour)
            .filter(|neighbour| index.is_none_or(|index| neighbour.index == index))
            .collect())
    }

    /// Writes a permanent entry.
    pub fn replace_neighbour(
        &mut self,
        index: u32,
        address: IpAddr,
        mac: MacAddress,
    ) -> Result<(), NetlinkError> {
        let message = RouteNetlinkMessage::NewNeighbour(permanent(index, address, mac));
        self.execute(message, NLM_F_CREATE | NLM_F_REPLACE).map_err(|failure| {
            let device = self.device(index);
            failure.during(format!("write neighbour {address} on link {device}"))
        })
    }

    /// Deletes an entry; false when there was none.
    pub fn delete_neighbour(&mut self, index: u32, address: IpAddr) -> Result<bool, NetlinkError> {
        match self.execute(RouteNetlinkMessage::DelNeighbour(message(index, address)), 0) {
            Ok(()) => Ok(true),
            Err(failure) if failure.is(Errno::ENOENT) || failure.is(Errno::ENODEV) => Ok(false),
            Err(failure) => {
                let device = self.device(index);
                Err(failure.during(format!("delete neighbour {address} on link {device}")))
            }
        }
    }
}

fn message(index: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = index;
    let (family, destination) = match address {
        IpAddr::V4(address) => (AddressFamily::Inet, NeighbourAddress::Inet(address)),
        IpAddr::V6(address) => (AddressFamily::Inet6, NeighbourAddress::Inet6(address)),
    };
    message.header.family = family;
    message.attributes.push(NeighbourAttribute::Destination(destination));
    message
}

/// A permanent entry.
pub(super) fn permanent(index: u32, address: IpAddr, mac: MacAddress) -> NeighbourMessage {
    let mut message = message(index, address);
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
    message
}

/// An address that is answered for.
pub(super) fn proxy(index: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = message(index, address);
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Proxy;
    message
}

fn into_neighbour(reply: RouteNetlinkMessage) -> Option<Neighbour> {
    let RouteNetlinkMessage::NewNeighbour(message) = reply else { return None };
    let (mut address, mut mac) = (None, None);
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some(ip.into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => address = Some(ip.into()),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.try_into().ok(),
            _ => {}
        }
    }
    Some(Neighbour {
        index: message.header.ifindex,
        address: address?,
        mac,
        permanent: message.header.state == NeighbourState::Permanent,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netns::testing::{in_fresh_netns, ip, ip_json};

    #[test]
    fn permanent_entries_are_written_replaced_listed_and_deleted() {
        in_fresh_netns(|| {
            ip("link add d0 up type veth peer name d0p");
            ip("link set d0 arp on");
            ip("link add d1 up type veth peer name d1p");
            ip("neighbour add 192.0.2.7 lladdr 02:00:00:00:00:07 dev d1 nud reachable");
            let mut netlink = Netlink::open().unwrap();
            let index = netlink.link("d0").unwrap().unwrap().index;
            let mac = [2, 0, 0, 0, 0, 2];
            for address in ["169.254.1.1".parse().unwrap(), "fe80::1".parse().unwrap()] {
                netlink.replace_neighbour(index, address, [2, 0, 0, 0, 0, 1]).unwrap();
                netlink.replace_neighbour(index, address, mac).unwrap();
                let entry = Neighbour { index, address, mac: Some(mac), permanent: true };
                let listed = netlink.neighbours(Some(index)).unwrap();
                assert!(listed.contains(&entry), "{listed:?}");
                let seen = ip_json(&format!("neighbour show {address} dev d0"));
                assert_eq!(seen[0]["lladdr"], "02:00:00:00:00:02");
                assert_eq!(seen[0]["state"][0], "PERMANENT");
                assert!(netlink.delete_neighbour(index, address).unwrap());
                assert!(!netlink.delete_neighbour(index, address).unwrap());
            }
            let all = netlink.neighbours(None).unwrap();
            assert!(all.iter().any(|entry| entry.address.to_string() == "192.0.2.7" && !entry.permanent));
            let own = netlink.neighbours(Some(index)).unwrap();
            assert!(own.iter().all(|entry| entry.index == index), "{own:?}");
        });
    }

    #[test]
    fn writing_to_a_missing_link_names_it() {
        in_fresh_netns(|| {
            let error =
                Netlink::open().unwrap().replace_neighbour(99, [192, 0, 2, 1].into(), [2; 6]).unwrap_err();
            assert_eq!(error.errno(), Errno::ENODEV);
            assert!(error.to_string().starts_with("write neighbour 192.0.2.1 on link #99: "));
        });
    }
}
