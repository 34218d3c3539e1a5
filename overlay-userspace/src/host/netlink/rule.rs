//! Policy rules by source address, and the tables that they lead to (ip-rule(8)), IPv4.
//!
//! Called by the CNI plugin for a pod that is on this network more than once: what it sends from each address has to leave
//! by the device of that address; and by the agent, for what leaves the node from a pod's address.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
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

fn rule(from: Ipv4Net, table: u32) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = AddressFamily::Inet;
    rule.header.src_len = from.prefix_len();
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::Source(from.network().into()),
        RuleAttribute::Priority(PRIORITY),
        RuleAttribute::Table(table),
        RuleAttribute::Protocol(ROUTE_PROTOCOL.into()),
    ];
    rule
}

/// Priority and table of the rules that a namespace begins with: local, main, default (`fib_default_rules_init`,
/// net/ipv4/fib_rules.c).
const DEFAULT_RULES: [(u32, u32); 3] = [(0, 255), (32_766, 254), (32_767, 253)];

/// Priority and table of a rule that leads every packet to a table, `None` for one that asks anything.
fn default_rule(rule: &RuleMessage) -> Option<(u32, u32)> {
    let mut found = (0, u32::from(rule.header.table));
    if (rule.header.src_len, rule.header.dst_len, rule.header.tos) != (0, 0, 0)
        || rule.header.action != RuleAction::ToTable
    {
        return None;
    }
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => found.0 = *priority,
            RuleAttribute::Table(table) => found.1 = *table,
            // Who made it, and that nothing is suppressed.
            RuleAttribute::Protocol(_)
            | RuleAttribute::SuppressPrefixLen(u32::MAX)
            | RuleAttribute::SuppressIfGroup(u32::MAX) => {}
            _ => return None,
        }
    }
    Some(found)
}

impl Netlink {
    /// Makes what is sent from `from` look into `table` before the main one. One that exists is fine.
    pub fn add_source_rule(
        &mut self,
        from: impl Into<Ipv4Net>,
        table: impl Into<u32>,
    ) -> Result<(), NetlinkError> {
        let (from, table) = (from.into(), table.into());
        match self.execute(RouteNetlinkMessage::NewRule(rule(from, table)), NLM_F_CREATE | NLM_F_EXCL) {
            Err(failure) if !failure.is(Errno::EEXIST) => {
                Err(failure.during(format!("write the rule from {from} to table {table}")))
            }
            _ => Ok(()),
        }
    }

    /// All rules of IPv4, whoever made them.
    fn rules(&mut self) -> Result<Vec<RuleMessage>, NetlinkError> {
        let mut request = RuleMessage::default();
        request.header.family = AddressFamily::Inet;
        let replies = self
            .dump(&RouteNetlinkMessage::GetRule(request))
            .map_err(|failure| failure.during("list rules".into()))?;
        let rule = |reply| match reply {
            RouteNetlinkMessage::NewRule(rule) => Some(rule),
            _ => None,
        };
        Ok(replies.into_iter().filter_map(rule).collect())
    }

    /// All rules of ours: source and table.
    pub fn source_rules(&mut self) -> Result<Vec<(Ipv4Net, u32)>, NetlinkError> {
        let ours = RuleAttribute::Protocol(ROUTE_PROTOCOL.into());
        let read = |rule: RuleMessage| {
            if !rule.attributes.contains(&ours) {
                return None;
            }
            let mut source = None;
            let mut table = None;
            for attribute in &rule.attributes {
                match attribute {
                    RuleAttribute::Source(IpAddr::V4(address)) => {
                        source = Ipv4Net::new(*address, rule.header.src_len).ok();
                    }
                    RuleAttribute::Table(number) => table = Some(*number),
                    _ => {}
                }
            }
            source.zip(table)
        };
        Ok(self.rules()?.into_iter().filter_map(read).collect())
    }

    /// Are there other rules than those that every namespace begins with, and ours? Then the main table alone does not say
    /// where a packet goes.
    pub fn has_foreign_rules(&mut self) -> Result<bool, NetlinkError> {
        let ours = RuleAttribute::Protocol(ROUTE_PROTOCOL.into());
        let mut defaults = Vec::new();
        for rule in self.rules()? {
            if rule.attributes.contains(&ours) {
                continue;
            }
            let Some(default) = default_rule(&rule) else { return Ok(true) };
            defaults.push(default);
        }
        // One that is missing changes the way of a packet, too.
        Ok(defaults != DEFAULT_RULES)
    }

    /// Deletes a rule of ours; missing is fine.
    pub fn delete_source_rule(
        &mut self,
        from: impl Into<Ipv4Net>,
        table: impl Into<u32>,
    ) -> Result<(), NetlinkError> {
        let (from, table) = (from.into(), table.into());
        match self.execute(RouteNetlinkMessage::DelRule(rule(from, table)), 0) {
            Err(failure) if !failure.is(Errno::ENOENT) => {
                Err(failure.during(format!("delete the rule from {from} to table {table}")))
            }
            _ => Ok(()),
        }
    }

    /// Deletes the rules of ours for this source; a table goes with the devices that its routes use.
    pub fn delete_source_rules(&mut self, from: Ipv4Addr) -> Result<(), NetlinkError> {
        let from = Ipv4Net::from(from);
        for (_, table) in self.source_rules()?.into_iter().filter(|(source, _)| *source == from) {
            self.delete_source_rule(from, table)?;
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

    /// As [`Netlink::delete_route`], in another table than the main one.
    pub fn delete_route_in(&mut self, table: u32, route: &Route) -> Result<(), NetlinkError> {
        let mut message = message(route);
        message.header.table = RouteHeader::RT_TABLE_UNSPEC;
        message.attributes.push(RouteAttribute::Table(table));
        match self.execute(RouteNetlinkMessage::DelRoute(message), 0) {
            Err(failure) if !failure.is(Errno::ESRCH) && !failure.is(Errno::ENODEV) => {
                Err(failure.during(format!("delete route {route} in table {table}")))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netns::testing::{in_fresh_netns, ip, run};

    #[test]
    fn only_rules_of_others_are_foreign() {
        in_fresh_netns(|| {
            let mut netlink = Netlink::open().unwrap();
            assert!(!netlink.has_foreign_rules().unwrap());
            netlink.add_source_rule("10.9.0.0/16".parse::<Ipv4Net>().unwrap(), 79_u32).unwrap();
            assert!(!netlink.has_foreign_rules().unwrap());
            for rule in [
                "from 192.0.2.1 table 100",
                "fwmark 5 table 100",
                "to 192.0.2.1 prohibit",
                "iif lo table 100",
            ] {
                ip(&format!("rule add {rule}"));
                assert!(netlink.has_foreign_rules().unwrap(), "{rule}");
                ip(&format!("rule del {rule}"));
                assert!(!netlink.has_foreign_rules().unwrap(), "{rule}");
            }
            ip("rule del from all table default");
            assert!(netlink.has_foreign_rules().unwrap());
        });
    }

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
            netlink.add_source_rule(from, 7903_u32).unwrap();
            netlink.add_source_rule(from, 7903_u32).unwrap();
            netlink.add_source_rule("10.9.0.0/16".parse::<Ipv4Net>().unwrap(), 79_u32).unwrap();
            let mut rules = netlink.source_rules().unwrap();
            rules.sort();
            assert_eq!(rules, [(from.into(), 7903), ("10.9.0.0/16".parse().unwrap(), 79)]);
            netlink.delete_source_rules(Ipv4Addr::new(10, 9, 0, 0)).unwrap();
            netlink.delete_source_rule("10.9.0.0/16".parse::<Ipv4Net>().unwrap(), 79_u32).unwrap();
            assert!(run("ip route get 192.0.2.1 from 10.0.0.1").contains("dev d0 table 7903"));
            assert_eq!(run("ip -4 route show"), "", "the main table is left alone");
            netlink.delete_source_rules(from).unwrap();
            assert_eq!(netlink.source_rules().unwrap(), []);
            netlink.delete_source_rules(from).unwrap();
        });
    }
}
