//! Policy rules by source address, and the tables that they lead to (ip-rule(8)), IPv4.
//!
//! Called by the CNI plugin for a pod that is on this network more than once: what it sends from each address has to leave
//! by the device of that address.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAttribute, RouteHeader},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use nix::errno::Errno;

use super::{
    Netlink, NetlinkError,
    route::{ROUTE_PROTOCOL, Route, message},
};

/// Before the main table (32766), and after what people write by hand without a priority of their own below it.
const PRIORITY: u32 = 7900;

fn rule(from: Ipv4Addr, table: u32) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = AddressFamily::Inet;
    rule.header.src_len = 32;
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::Source(from.into()),
        RuleAttribute::Priority(PRIORITY),
        RuleAttribute::Table(table),
        RuleAttribute::Protocol(ROUTE_PROTOCOL.into()),
    ];
    rule
}

impl Netlink {
    /// Makes what is sent from `from` look into `table` before the main one. One that exists is fine.
    pub fn add_source_rule(&mut self, from: Ipv4Addr, table: u32) -> Result<(), NetlinkError> {
        match self.execute(RouteNetlinkMessage::NewRule(rule(from, table)), NLM_F_CREATE | NLM_F_EXCL) {
            Err(failure) if !failure.is(Errno::EEXIST) => {
                Err(failure.during(format!("write the rule from {from} to table {table}")))
            }
            _ => Ok(()),
        }
    }

    /// The tables that rules of ours lead to for this source.
    pub fn source_rules(&mut self, from: Ipv4Addr) -> Result<Vec<u32>, NetlinkError> {
        let mut request = RuleMessage::default();
        request.header.family = AddressFamily::Inet;
        let replies = self
            .dump(&RouteNetlinkMessage::GetRule(request))
            .map_err(|failure| failure.during("list rules".into()))?;
        let table = |reply| {
            let RouteNetlinkMessage::NewRule(rule) = reply else { return None };
            let source = RuleAttribute::Source(IpAddr::from(from));
            let ours = RuleAttribute::Protocol(ROUTE_PROTOCOL.into());
            if rule.header.src_len != 32
                || !rule.attributes.contains(&source)
                || !rule.attributes.contains(&ours)
            {
                return None;
            }
            rule.attributes.iter().find_map(|attribute| match attribute {
                RuleAttribute::Table(table) => Some(*table),
                _ => None,
            })
        };
        Ok(replies.into_iter().filter_map(table).collect())
    }

    /// Deletes the rules of ours for this source; a table goes with the devices that its routes use.
    pub fn delete_source_rules(&mut self, from: Ipv4Addr) -> Result<(), NetlinkError> {
        for table in self.source_rules(from)? {
            match self.execute(RouteNetlinkMessage::DelRule(rule(from, table)), 0) {
                Err(failure) if !failure.is(Errno::ENOENT) => {
                    return Err(failure.during(format!("delete the rule from {from} to table {table}")));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// As [`Netlink::replace_route`], in another table than the main one.
    pub fn replace_route_in(&mut self, table: u32, route: &Route) -> Result<(), NetlinkError> {
        let mut message = message(route);
        // The attribute alone: the header has room for 255 tables.
        message.header.table = RouteHeader::RT_TABLE_UNSPEC;
        message.attributes.push(RouteAttribute::Table(table));
        self.execute(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
            .map_err(|failure| failure.during(format!("write route {route} in table {table}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netns::testing::{in_fresh_netns, ip, run};

    #[test]
    fn a_source_finds_its_own_table_until_the_rule_is_deleted() {
        in_fresh_netns(|| {
            ip("link add d0 type veth peer name d0p");
            ip("link set d0 up");
            ip("link set d0p up");
            ip("address add 10.0.0.1/32 dev d0");
            let from = Ipv4Addr::new(10, 0, 0, 1);
            let mut netlink = Netlink::open().unwrap();
            let index = netlink.link("d0").unwrap().unwrap().index;
            let default = "0.0.0.0/0".parse().unwrap();
            netlink.replace_route_in(7903, &Route::unicast(default, index)).unwrap();
            netlink.add_source_rule(from, 7903).unwrap();
            netlink.add_source_rule(from, 7903).unwrap();
            assert_eq!(netlink.source_rules(from).unwrap(), [7903]);
            assert_eq!(netlink.source_rules(Ipv4Addr::new(10, 0, 0, 2)).unwrap(), [0_u32; 0]);
            assert!(run("ip route get 192.0.2.1 from 10.0.0.1").contains("dev d0 table 7903"));
            assert_eq!(run("ip -4 route show"), "", "the main table is left alone");
            netlink.delete_source_rules(from).unwrap();
            assert_eq!(netlink.source_rules(from).unwrap(), [0_u32; 0]);
            netlink.delete_source_rules(from).unwrap();
        });
    }
}
