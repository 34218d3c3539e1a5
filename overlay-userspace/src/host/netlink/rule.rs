//! Policy rules by source address, and the tables that they lead to (ip-rule(8)), in both families.
//!
//! Called by the CNI plugin for a pod that is on this network more than once: what it sends from each address has to leave
//! by the device of that address; and by the agent, for what leaves the node from a pod's address.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteAttribute, RouteHeader},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use nix::errno::Errno;

use super::{
    Netlink, NetlinkError,
    route::{ROUTE_PROTOCOL, Route, kernel_family, message},
};
use crate::family::{Family, OfFamily as _};

/// Before the main table (32766), and after what people write by hand without a priority of their own below it.
const PRIORITY: u32 = 7900;

fn rule(from: IpNet, table: u32) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = kernel_family(from.family());
    rule.header.src_len = from.prefix_len();
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::Source(from.network()),
        RuleAttribute::Priority(PRIORITY),
        RuleAttribute::Table(table),
        RuleAttribute::Protocol(ROUTE_PROTOCOL.into()),
    ];
    rule
}

/// Priority and table of the rules that a namespace begins with: local, main, and for IPv4 default
/// (`fib_default_rules_init`, net/ipv4/fib_rules.c; `fib6_rules_net_init_work`, net/ipv6/fib6_rules.c).
const fn default_rules(family: Family) -> &'static [(u32, u32)] {
    match family {
        Family::Ipv4 => &[(0, 255), (32_766, 254), (32_767, 253)],
        Family::Ipv6 => &[(0, 255), (32_766, 254)],
    }
}

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
        from: impl Into<IpNet>,
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

    /// All rules of a family, whoever made them; none in a kernel that has no policy rules for it.
    fn rules(&mut self, family: Family) -> Result<Vec<RuleMessage>, NetlinkError> {
        let mut request = RuleMessage::default();
        request.header.family = kernel_family(family);
        let replies = match self.dump(&RouteNetlinkMessage::GetRule(request)) {
            Ok(replies) => replies,
            Err(failure) if failure.is(Errno::EAFNOSUPPORT) || failure.is(Errno::EOPNOTSUPP) => Vec::new(),
            Err(failure) => return Err(failure.during(format!("list rules of {family}"))),
        };
        let rule = |reply| match reply {
            RouteNetlinkMessage::NewRule(rule) if rule.header.family == kernel_family(family) => Some(rule),
            _ => None,
        };
        Ok(replies.into_iter().filter_map(rule).collect())
    }

    /// All rules of ours, IPv4 first: source and table.
    pub fn source_rules(&mut self) -> Result<Vec<(IpNet, u32)>, NetlinkError> {
        let ours = RuleAttribute::Protocol(ROUTE_PROTOCOL.into());
        let read = |rule: RuleMessage| {
            if !rule.attributes.contains(&ours) {
                return None;
            }
            let mut source = None;
            let mut table = None;
            for attribute in &rule.attributes {
                match attribute {
                    RuleAttribute::Source(address) => {
                        source = IpNet::new(*address, rule.header.src_len).ok();
                    }
                    RuleAttribute::Table(number) => table = Some(*number),
                    _ => {}
                }
            }
            source.zip(table)
        };
        let mut rules = Vec::new();
        for family in Family::ALL {
            rules.extend(self.rules(family)?.into_iter().filter_map(read));
        }
        Ok(rules)
    }

    /// Are there other rules of this family than those that every namespace begins with, and ours? Then the main table
    /// alone does not say where a packet goes.
    pub fn has_foreign_rules(&mut self, family: Family) -> Result<bool, NetlinkError> {
        let ours = RuleAttribute::Protocol(ROUTE_PROTOCOL.into());
        let rules = self.rules(family)?;
        // A kernel without policy rules has the main table alone.
        if rules.is_empty() && family == Family::Ipv6 {
            return Ok(false);
        }
        let mut defaults = Vec::new();
        for rule in rules {
            if rule.attributes.contains(&ours) {
                continue;
            }
            let Some(default) = default_rule(&rule) else { return Ok(true) };
            defaults.push(default);
        }
        // One that is missing changes the way of a packet, too.
        Ok(defaults != default_rules(family))
    }

    /// Deletes a rule of ours; missing is fine.
    pub fn delete_source_rule(
        &mut self,
        from: impl Into<IpNet>,
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
    pub fn delete_source_rules(&mut self, from: IpAddr) -> Result<(), NetlinkError> {
        let from = IpNet::from(from);
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
    fn only_rules_of_others_are_foreign_in_each_family() {
        const CASES: [(Family, &str, &str, &str); 2] = [
            (Family::Ipv4, "-4", "10.9.0.0/16", "192.0.2.1"),
            (Family::Ipv6, "-6", "fd00:9::/48", "2001:db8::1"),
        ];
        in_fresh_netns(|| {
            let mut netlink = Netlink::open().unwrap();
            for (family, flag, own, address) in CASES {
                assert!(!netlink.has_foreign_rules(family).unwrap());
                netlink.add_source_rule(own.parse::<IpNet>().unwrap(), 79_u32).unwrap();
                assert!(!netlink.has_foreign_rules(family).unwrap());
                for rule in [
                    format!("from {address} table 100"),
                    "fwmark 5 table 100".to_owned(),
                    format!("to {address} prohibit"),
                    "iif lo table 100".to_owned(),
                ] {
                    ip(&format!("{flag} rule add {rule}"));
                    assert!(netlink.has_foreign_rules(family).unwrap(), "{family}: {rule}");
                    assert!(!netlink.has_foreign_rules(family.other()).unwrap(), "{family}: {rule}");
                    ip(&format!("{flag} rule del {rule}"));
                    assert!(!netlink.has_foreign_rules(family).unwrap(), "{family}: {rule}");
                }
            }
            for (family, flag, table) in [(Family::Ipv4, "-4", "default"), (Family::Ipv6, "-6", "main")] {
                ip(&format!("{flag} rule del from all table {table}"));
                assert!(netlink.has_foreign_rules(family).unwrap());
            }
        });
    }

    #[test]
    fn a_source_finds_its_own_table_until_the_rule_is_deleted() {
        in_fresh_netns(|| {
            ip("link add d0 type veth peer name d0p");
            ip("link set d0 addrgenmode none up");
            ip("link set d0p up");
            ip("address add 10.0.0.1/32 dev d0");
            ip("address add fd00::1/128 dev d0 nodad");
            let mut netlink = Netlink::open().unwrap();
            let index = netlink.link("d0").unwrap().unwrap().index;
            for (from, default, other, far) in [
                ("10.0.0.1", "0.0.0.0/0", "10.9.0.0/16", "192.0.2.1"),
                ("fd00::1", "::/0", "fd00:9::/48", "2001:db8::1"),
            ] {
                let from: IpAddr = from.parse().unwrap();
                let other: IpNet = other.parse().unwrap();
                netlink.replace_route_in(7903, &Route::unicast(default.parse().unwrap(), index)).unwrap();
                netlink.add_source_rule(from, 7903_u32).unwrap();
                netlink.add_source_rule(from, 7903_u32).unwrap();
                netlink.add_source_rule(other, 79_u32).unwrap();
                let mut rules = netlink.source_rules().unwrap();
                rules.sort();
                assert_eq!(rules, [(from.into(), 7903), (other, 79)]);
                netlink.delete_source_rules(other.network()).unwrap();
                netlink.delete_source_rule(other, 79_u32).unwrap();
                assert!(run(&format!("ip route get {far} from {from}")).contains("dev d0 table 7903"));
                let main = netlink.routes(None).unwrap();
                assert!(main.iter().all(|route| route.dst.prefix_len() != 0), "the main table is left alone");
                netlink.delete_source_rules(from).unwrap();
                assert_eq!(netlink.source_rules().unwrap(), []);
                netlink.delete_source_rules(from).unwrap();
            }
        });
    }
}
