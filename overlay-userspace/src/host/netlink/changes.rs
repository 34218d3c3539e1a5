//! Several changes by one system call.
//!
//! The kernel makes them one after the other, each with an answer of its own, and goes on after one that it refuses: for
//! changes that do not harm each other, or are all undone when one fails. Called by the CNI plugin, where two families
//! would otherwise be twice the exchanges.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLMSG_ERROR};
use netlink_packet_route::RouteNetlinkMessage;

use super::{
    Failure, MacAddress, Netlink, NetlinkError, Route, address, check, link, messages, neighbour, route,
};

struct Change {
    message: RouteNetlinkMessage,
    flags: u16,
    /// For an error, up to the name of the link.
    what: String,
    index: u32,
}

/// Changes in the order in which they are to be made.
#[derive(Default)]
pub struct Changes(Vec<Change>);

impl Changes {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn add(&mut self, index: u32, what: String, flags: u16, message: RouteNetlinkMessage) {
        self.0.push(Change { message, flags, what, index });
    }

    /// As [`Netlink::set_up`].
    pub fn set_up(&mut self, index: u32) {
        self.add(index, "bring up link".to_owned(), 0, RouteNetlinkMessage::SetLink(link::up(index)));
    }

    /// As [`Netlink::replace_address`].
    pub fn address(&mut self, index: u32, net: IpNet) {
        let message = RouteNetlinkMessage::NewAddress(address::message(index, net));
        self.add(index, format!("add address {net} to link"), NLM_F_CREATE | NLM_F_REPLACE, message);
    }

    /// As [`Netlink::replace_neighbour`].
    pub fn neighbour(&mut self, index: u32, address: IpAddr, mac: MacAddress) {
        let message = RouteNetlinkMessage::NewNeighbour(neighbour::permanent(index, address, mac));
        self.add(index, format!("write neighbour {address} on link"), NLM_F_CREATE | NLM_F_REPLACE, message);
    }

    /// Has the kernel answer on this link for an address that another one of its links holds (IPv6; for IPv4 it does so
    /// anyway). Needs `proxy_ndp` of the link.
    pub fn proxy(&mut self, index: u32, address: IpAddr) {
        let message = RouteNetlinkMessage::NewNeighbour(neighbour::proxy(index, address));
        self.add(index, format!("answer for {address} on link"), NLM_F_CREATE | NLM_F_REPLACE, message);
    }

    /// As [`Netlink::replace_route`], for a route through a link.
    pub fn route(&mut self, index: u32, route: &Route) {
        let message =
            RouteNetlinkMessage::NewRoute(route::message(&Route { oif: Some(index), ..route.clone() }));
        self.add(index, format!("write route {route} dev"), NLM_F_CREATE | NLM_F_REPLACE, message);
    }
}

impl Netlink {
    /// Makes the changes.
    ///
    /// # Errors
    ///
    /// The first that was refused; those after it may have been made.
    pub fn apply(&mut self, changes: Changes) -> Result<(), NetlinkError> {
        let (mut bytes, mut subjects) = (Vec::new(), Vec::new());
        let first = self.sequence.wrapping_add(1);
        for Change { message, flags, what, index } in changes.0 {
            bytes.extend(self.encode(message, NLM_F_ACK | flags));
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            subjects.push((what, index));
        }
        if subjects.is_empty() {
            return Ok(());
        }
        let mut failed: Option<(usize, Failure)> = None;
        let outcome = self.exchange_all(&bytes, first, subjects.len(), |number, failure| {
            if failed.as_ref().is_none_or(|(before, _)| number < *before) {
                failed = Some((number, failure));
            }
        });
        let (number, failure) = match (outcome, failed) {
            (_, Some(failed)) => failed,
            (Err(failure), None) => (0, failure),
            (Ok(()), None) => return Ok(()),
        };
        let (what, index) = subjects.swap_remove(number);
        let device = self.device(index);
        Err(failure.during(format!("{what} {device}")))
    }

    /// Sends `count` requests, the first of this sequence number, and reads as many answers; hands on those that refuse.
    fn exchange_all(
        &mut self,
        bytes: &[u8],
        first: u32,
        count: usize,
        mut refused: impl FnMut(usize, Failure),
    ) -> Result<(), Failure> {
        self.socket.send(bytes, 0)?;
        let mut unanswered = count;
        while unanswered > 0 {
            self.receive()?;
            for message in messages(&self.buffer) {
                let message = message?;
                let number = message.header.sequence_number.wrapping_sub(first) as usize;
                // Left over from a request that failed half-way.
                if number >= count || message.header.message_type != NLMSG_ERROR {
                    continue;
                }
                unanswered = unanswered.saturating_sub(1);
                // The request's header (16 bytes, NETLINK_CAP_ACK) stands between code and attributes.
                if let Err(failure) = check(&message, 20) {
                    refused(number, failure);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;
    use crate::host::netns::testing::{in_fresh_netns, ip, ip_json, run};

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn changes_of_all_kinds_are_made_in_their_order() {
        in_fresh_netns(|| {
            ip("link add d0 type veth peer name d0p");
            ip("link set d0p up");
            let mut netlink = Netlink::open().unwrap();
            let index = netlink.link("d0").unwrap().unwrap().index;
            let mut changes = Changes::new();
            for net in ["10.244.1.2/32", "fd00::2/128"] {
                changes.address(index, self::net(net));
            }
            changes.set_up(index);
            for (gateway, all) in [("10.244.1.1", "0.0.0.0/0"), ("fd00::1", "::/0")] {
                let gateway: IpAddr = gateway.parse().unwrap();
                changes.neighbour(index, gateway, [2, 0, 0, 0, 0, 1]);
                changes.route(index, &Route::unicast(IpNet::from(gateway), index));
                changes.route(index, &Route { gateway: Some(gateway), ..Route::unicast(net(all), index) });
            }
            changes.proxy(index, "fd00::9".parse().unwrap());
            netlink.apply(changes).unwrap();
            netlink.apply(Changes::new()).unwrap();
            assert!(netlink.link("d0").unwrap().unwrap().up, "the connection goes on");
            for (family, gateway) in [("-4", "10.244.1.1"), ("-6", "fd00::1")] {
                let route = &ip_json(&format!("{family} route show default"))[0];
                assert_eq!((&route["gateway"], &route["dev"]), (&gateway.into(), &"d0".into()));
                let neighbour = &ip_json(&format!("{family} neighbour show {gateway}"))[0];
                assert_eq!(neighbour["lladdr"], "02:00:00:00:00:01");
            }
            assert!(run("ip -6 neighbour show proxy").contains("fd00::9 dev d0 proxy"));
        });
    }

    #[test]
    fn the_first_that_is_refused_is_told_and_the_connection_goes_on() {
        in_fresh_netns(|| {
            ip("link add d0 up type veth peer name d0p");
            let mut netlink = Netlink::open().unwrap();
            let index = netlink.link("d0").unwrap().unwrap().index;
            let unreachable =
                Route { gateway: Some([192, 0, 2, 1].into()), ..Route::unicast(net("10.0.0.0/8"), index) };
            let mut changes = Changes::new();
            changes.set_up(index);
            changes.route(index, &unreachable);
            changes.set_up(9999);
            let error = netlink.apply(changes).unwrap_err();
            assert_eq!(error.errno(), Errno::ENETUNREACH);
            assert!(
                error.to_string().starts_with("write route 10.0.0.0/8 via 192.0.2.1 dev d0: "),
                "{error}"
            );
            assert!(netlink.link("d0").unwrap().unwrap().up);
            let mut changes = Changes::new();
            changes.set_up(9999);
            assert!(netlink.apply(changes).unwrap_err().to_string().starts_with("bring up link #9999: "));
        });
    }
}
