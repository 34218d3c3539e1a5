//! Routes of the main table.
//!
//! Called by the agent (cluster CIDR to the anchor, unreachable own subnet) and by the CNI plugin (a pod's
//! default route). The agent touches only routes that carry [`ROUTE_PROTOCOL`].

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteScope, RouteType},
};
use nix::errno::Errno;

use super::{Netlink, NetlinkError};
use crate::family::{Family, OfFamily as _};

/// The protocol id that marks routes as ours: `ip route show proto 79`.
///
/// Free in `/etc/iproute2/rt_protos` and in linux/rtnetlink.h; ids up to 4 mean kernel, boot and operator.
pub const ROUTE_PROTOCOL: u8 = 79;

/// What the kernel gives an IPv6 route without a metric (`IP6_RT_PRIO_USER`, net/ipv6/route.c).
const IPV6_DEFAULT_METRIC: u32 = 1024;

/// What a route does with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteKind {
    /// Sends it on.
    Unicast,
    /// Refuses it with "host unreachable".
    Unreachable,
    /// Drops it silently.
    Blackhole,
    /// Refuses it with "administratively prohibited".
    Prohibit,
    /// Any other, as its `RTN_*` number.
    Other(u8),
}

/// A route of the main table, in a form that is equal when written and read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Destination, without host bits.
    pub dst: IpNet,
    /// What it does.
    pub kind: RouteKind,
    /// Index of the outgoing link; none for a route that refuses, and for one with several next hops.
    pub oif: Option<u32>,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// The next hop is reachable on the link although no address says so.
    pub onlink: bool,
    /// Source address for packets from this host.
    pub prefsrc: Option<IpAddr>,
    /// Who made it.
    pub protocol: u8,
    /// Priority, lower wins.
    pub metric: u32,
}

impl Route {
    /// A route of ours through a link.
    pub fn unicast(dst: IpNet, oif: u32) -> Self {
        Self { oif: Some(oif), kind: RouteKind::Unicast, ..Self::unreachable(dst) }
    }

    /// A route of ours that refuses what no better route takes.
    pub fn unreachable(dst: IpNet) -> Self {
        Self {
            dst: dst.trunc(),
            kind: RouteKind::Unreachable,
            oif: None,
            gateway: None,
            onlink: false,
            prefsrc: None,
            protocol: ROUTE_PROTOCOL,
            metric: match dst {
                IpNet::V4(_) => 0,
                IpNet::V6(_) => IPV6_DEFAULT_METRIC,
            },
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            RouteKind::Unicast => write!(f, "{}", self.dst)?,
            kind => write!(f, "{} {}", format!("{kind:?}").to_lowercase(), self.dst)?,
        }
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if self.metric != 0 {
            write!(f, " metric {}", self.metric)?;
        }
        Ok(())
    }
}

impl Netlink {
    /// Routes of one family in the main table that are ours.
    pub fn own_routes(&mut self, family: Family) -> Result<Vec<Route>, NetlinkError> {
        self.routes_in(family, RouteHeader::RT_TABLE_MAIN, Some(ROUTE_PROTOCOL))
    }

    /// Routes of the main table, IPv4 first; only those of one protocol id if that is given.
    pub fn routes(&mut self, protocol: Option<u8>) -> Result<Vec<Route>, NetlinkError> {
        self.routes_of_table(RouteHeader::RT_TABLE_MAIN, protocol)
    }

    /// As [`Netlink::routes`], of another table.
    pub fn routes_of_table(&mut self, table: u8, protocol: Option<u8>) -> Result<Vec<Route>, NetlinkError> {
        let mut routes = Vec::new();
        for family in Family::ALL {
            routes.extend(self.routes_in(family, table, protocol)?);
        }
        Ok(routes)
    }

    /// Routes of one family and table; only those of one protocol id if that is given.
    pub fn routes_in(
        &mut self,
        family: Family,
        table: u8,
        protocol: Option<u8>,
    ) -> Result<Vec<Route>, NetlinkError> {
        let family = kernel_family(family);
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        message.header.table = table;
        message.header.protocol = protocol.unwrap_or(0).into();
        let replies = match self.dump(&RouteNetlinkMessage::GetRoute(message)) {
            Ok(replies) => replies,
            // A table is made with its first route; EOPNOTSUPP is a kernel without the family.
            Err(failure) if failure.is(Errno::ENOENT) || failure.is(Errno::EOPNOTSUPP) => Vec::new(),
            Err(failure) => return Err(failure.during("list routes".into())),
        };
        Ok(replies
            .into_iter()
            .filter_map(|reply| into_route(reply, family, Some(table)))
            .filter(|route| protocol.is_none_or(|protocol| route.protocol == protocol))
            .collect())
    }

    /// Routes of a family through a link, of all tables but the local one, which follows the addresses.
    pub fn routes_of_link(&mut self, family: Family, index: u32) -> Result<Vec<Route>, NetlinkError> {
        let family = kernel_family(family);
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        message.attributes.push(RouteAttribute::Oif(index));
        let replies = match self.dump(&RouteNetlinkMessage::GetRoute(message)) {
            Ok(replies) => replies,
            Err(failure)
                if failure.is(Errno::ENOENT)
                    || failure.is(Errno::ENODEV)
                    || failure.is(Errno::EOPNOTSUPP) =>
            {
                Vec::new()
            }
            Err(failure) => return Err(failure.during("list routes".into())),
        };
        let routes = replies.into_iter().filter_map(|reply| into_route(reply, family, None));
        Ok(routes.filter(|route| route.oif == Some(index)).collect())
    }

    /// Writes a route in place of the one with the same destination and metric, whoever made that.
    pub fn replace_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        let message = message(route);
        self.execute(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
            .map_err(|failure| failure.during(format!("write route {}", self.describe(route))))
    }

    /// Deletes a route; false when there was none like it, of the same protocol id.
    pub fn delete_route(&mut self, route: &Route) -> Result<bool, NetlinkError> {
        match self.execute(RouteNetlinkMessage::DelRoute(message(route)), 0) {
            Ok(()) => Ok(true),
            // ENODEV: its link is gone, and took it along.
            Err(failure) if failure.is(Errno::ESRCH) || failure.is(Errno::ENODEV) => Ok(false),
            Err(failure) => Err(failure.during(format!("delete route {}", self.describe(route)))),
        }
    }

    fn describe(&mut self, route: &Route) -> String {
        match route.oif {
            Some(index) => format!("{route} dev {}", self.device(index)),
            None => route.to_string(),
        }
    }
}

pub(super) fn message(route: &Route) -> RouteMessage {
    let dst = route.dst.trunc();
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = kernel_family(dst.family());
    header.destination_prefix_length = dst.prefix_len();
    header.table = RouteHeader::RT_TABLE_MAIN;
    header.protocol = route.protocol.into();
    header.kind = match route.kind {
        RouteKind::Unicast => RouteType::Unicast,
        RouteKind::Unreachable => RouteType::Unreachable,
        RouteKind::Blackhole => RouteType::BlackHole,
        RouteKind::Prohibit => RouteType::Prohibit,
        RouteKind::Other(number) => number.into(),
    };
    // IPv4 takes a destination without next hop as directly attached only when the scope says so.
    header.scope = match (dst, route.kind, route.gateway) {
        (IpNet::V4(_), RouteKind::Unicast, None) => RouteScope::Link,
        _ => RouteScope::Universe,
    };
    if route.onlink {
        header.flags = RouteFlags::Onlink;
    }
    message.attributes.push(RouteAttribute::Destination(dst.addr().into()));
    message.attributes.extend(route.oif.map(RouteAttribute::Oif));
    message.attributes.extend(route.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
    message.attributes.extend(route.prefsrc.map(|source| RouteAttribute::PrefSource(source.into())));
    if route.metric != 0 {
        message.attributes.push(RouteAttribute::Priority(route.metric));
    }
    message
}

/// The kernel's number of a family.
pub(super) const fn kernel_family(family: Family) -> AddressFamily {
    match family {
        Family::Ipv4 => AddressFamily::Inet,
        Family::Ipv6 => AddressFamily::Inet6,
    }
}

/// A route of one table, or of any but the local one.
fn into_route(reply: RouteNetlinkMessage, family: AddressFamily, table: Option<u8>) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(message) = reply else { return None };
    let header = &message.header;
    // Without IPv6 all families come; a kernel without strict checking sends all tables and its cache.
    if header.address_family != family
        || table.is_some_and(|table| header.table != table)
        || table.is_none() && header.table == libc::RT_TABLE_LOCAL
        || header.flags.contains(RouteFlags::Cloned)
    {
        return None;
    }
    let any: IpAddr = match family {
        AddressFamily::Inet => [0; 4].into(),
        _ => [0; 16].into(),
    };
    let mut route = Route {
        // A default route carries no destination.
        dst: IpNet::new(any, header.destination_prefix_length).ok()?,
        kind: match header.kind {
            RouteType::Unicast => RouteKind::Unicast,
            RouteType::Unreachable => RouteKind::Unreachable,
            RouteType::BlackHole => RouteKind::Blackhole,
            RouteType::Prohibit => RouteKind::Prohibit,
            other => RouteKind::Other(other.into()),
        },
        oif: None,
        gateway: None,
        onlink: header.flags.contains(RouteFlags::Onlink),
        prefsrc: None,
        protocol: header.protocol.into(),
        metric: 0,
    };
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                route.dst = IpNet::new(into_ip(&address)?, header.destination_prefix_length).ok()?;
            }
            RouteAttribute::Oif(index) => route.oif = Some(index),
            RouteAttribute::Gateway(address) => route.gateway = into_ip(&address),
            RouteAttribute::PrefSource(address) => route.prefsrc = into_ip(&address),
            RouteAttribute::Priority(metric) => route.metric = metric,
            _ => {}
        }
    }
    // IPv6 routes that refuse are listed as if through the loopback link.
    if matches!(route.kind, RouteKind::Unreachable | RouteKind::Blackhole | RouteKind::Prohibit) {
        route.oif = None;
    }
    Some(route)
}

fn into_ip(address: &RouteAddress) -> Option<IpAddr> {
    match *address {
        RouteAddress::Inet(address) => Some(address.into()),
        RouteAddress::Inet6(address) => Some(address.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netns::testing::{in_fresh_netns, ip, ip_batch, ip_json};

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn written_routes_are_read_back_equal() {
        in_fresh_netns(|| {
            ip("link add d0 type veth peer name d0p");
            ip("address add 10.244.1.1/32 dev d0");
            ip("address add fd00::1/128 dev d0 nodad");
            ip("link set d0 up");
            let mut netlink = Netlink::open().unwrap();
            let index = netlink.link("d0").unwrap().unwrap().index;
            let routes = [
                Route {
                    prefsrc: Some([10, 244, 1, 1].into()),
                    ..Route::unicast(net("10.244.0.0/16"), index)
                },
                Route::unreachable(net("10.244.1.0/24")),
                Route {
                    gateway: Some([10, 244, 9, 9].into()),
                    onlink: true,
                    metric: 7,
                    ..Route::unicast(net("0.0.0.0/0"), index)
                },
                Route {
                    prefsrc: Some("fd00::1".parse().unwrap()),
                    ..Route::unicast(net("fd00:244::/56"), index)
                },
                Route::unreachable(net("fd00:244:0:1::/64")),
                Route {
                    gateway: Some("fd00:9::9".parse().unwrap()),
                    onlink: true,
                    ..Route::unicast(net("::/0"), index)
                },
            ];
            for route in &routes {
                netlink.replace_route(route).unwrap();
                netlink.replace_route(route).unwrap();
            }
            let read = netlink.routes(Some(ROUTE_PROTOCOL)).unwrap();
            assert_eq!(read.len(), routes.len(), "{read:#?}");
            for route in &routes {
                assert!(read.contains(route), "{route:?} not in {read:#?}");
            }
            assert_eq!(ip_json("route show proto 79").as_array().unwrap().len(), 3);
            let seen = ip_json("route show 10.244.0.0/16");
            assert_eq!(seen[0]["dev"], "d0");
            assert_eq!(seen[0]["prefsrc"], "10.244.1.1");
            assert_eq!(seen[0]["scope"], "link");
            for route in &routes {
                assert!(netlink.delete_route(route).unwrap(), "{route}");
                assert!(!netlink.delete_route(route).unwrap(), "{route}");
            }
            assert!(netlink.routes(Some(ROUTE_PROTOCOL)).unwrap().is_empty());
        });
    }

    #[test]
    fn routes_of_a_link_are_those_of_all_tables_and_of_no_other_link() {
        in_fresh_netns(|| {
            ip("link add d0 type veth peer name d0p");
            ip("link set d0p addrgenmode none up");
            ip("link set d0 addrgenmode none up");
            let mut netlink = Netlink::open().unwrap();
            let index = netlink.link("d0").unwrap().unwrap().index;
            for (family, [main, other, elsewhere]) in [
                (Family::Ipv4, ["192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"]),
                (Family::Ipv6, ["2001:db8:1::/48", "2001:db8:2::/48", "2001:db8:3::/48"]),
            ] {
                ip_batch(&format!(
                    "route add {main} dev d0\nroute add {other} dev d0 table 100\nroute add {elsewhere} dev d0p\n"
                ));
                let found = netlink.routes_of_link(family, index).unwrap();
                let mut routes: Vec<_> = found.into_iter().map(|route| route.dst).collect();
                // That of multicast is in the local table, which is left out.
                routes.sort();
                assert_eq!(routes, [net(main), net(other)]);
                assert!(netlink.routes_of_link(family, 99).unwrap().is_empty());
            }
        });
    }

    #[test]
    fn replacing_a_route_moves_it_to_another_link() {
        in_fresh_netns(|| {
            ip("link add d0 up type veth peer name d0p");
            ip("link add d1 up type veth peer name d1p");
            let mut netlink = Netlink::open().unwrap();
            for name in ["d0", "d1"] {
                let index = netlink.link(name).unwrap().unwrap().index;
                netlink.replace_route(&Route::unicast(net("10.244.0.0/16"), index)).unwrap();
            }
            let seen = ip_json("route show 10.244.0.0/16");
            assert_eq!(seen.as_array().unwrap().len(), 1);
            assert_eq!(seen[0]["dev"], "d1");
        });
    }

    #[test]
    fn a_foreign_route_is_neither_listed_as_ours_nor_deleted() {
        in_fresh_netns(|| {
            ip("link add d0 up type veth peer name d0p");
            ip("route add 10.244.0.0/16 dev d0 proto static");
            let mut netlink = Netlink::open().unwrap();
            let index = netlink.link("d0").unwrap().unwrap().index;
            assert!(netlink.routes(Some(ROUTE_PROTOCOL)).unwrap().is_empty());
            assert!(!netlink.delete_route(&Route::unicast(net("10.244.0.0/16"), index)).unwrap());
            let all = netlink.routes(None).unwrap();
            assert!(all.iter().any(|route| route.dst == net("10.244.0.0/16") && route.protocol == 4));
        });
    }

    #[test]
    fn an_empty_namespace_has_no_routes_of_ours() {
        in_fresh_netns(|| {
            assert_eq!(Netlink::open().unwrap().routes(Some(ROUTE_PROTOCOL)).unwrap(), []);
        });
    }

    #[test]
    fn a_dump_of_many_parts_is_complete() {
        in_fresh_netns(|| {
            ip("link add d0 up type veth peer name d0p");
            let lines = (0..5000u32).map(|i| format!("route add 10.{}.{}.0/24 dev d0\n", i / 250, i % 250));
            ip_batch(&lines.collect::<String>());
            let routes = Netlink::open().unwrap().routes(None).unwrap();
            assert_eq!(routes.iter().filter(|route| route.dst.prefix_len() == 24).count(), 5000);
        });
    }

    #[test]
    fn a_refused_route_names_itself_its_link_and_the_reason() {
        in_fresh_netns(|| {
            ip("link add d0 up type veth peer name d0p");
            let mut netlink = Netlink::open().unwrap();
            let index = netlink.link("d0").unwrap().unwrap().index;
            let route =
                Route { gateway: Some([192, 0, 2, 1].into()), ..Route::unicast(net("10.244.0.0/16"), index) };
            let error = netlink.replace_route(&route).unwrap_err();
            assert_eq!(error.errno(), Errno::ENETUNREACH);
            let text = error.to_string();
            assert!(text.starts_with("write route 10.244.0.0/16 via 192.0.2.1 dev d0: "), "{text}");
            assert!(text.contains("invalid gateway"), "{text}");
        });
    }
}
