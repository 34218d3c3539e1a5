//! What pods send to nodes by way of a Service leaves through the tunnel, with the pod's address.
//!
//! A pod's own packet to a node is encapsulated by `from_pod`. One to a Service with a node behind it (the API server is
//! the best known) is the stack's, and after its translation the main table would send it out by the underlay, where a
//! pod's address means nothing. So for sources of the own subnet a table of ours has a route to each peer's address by
//! the anchor device. The families have tables of their own, under one number. Called by the reconciler.

use ipnet::IpNet;
use log::info;

use crate::{
    cluster::Snapshot,
    family::{Family, OfFamily as _},
    host::netlink::{Netlink, NetlinkError, ROUTE_PROTOCOL, Route},
};

/// The number of the table, and what marks our routes and rules besides.
pub(super) const TABLE: u8 = ROUTE_PROTOCOL;

/// What is to be changed.
pub(super) struct Difference {
    /// Missing or wrong.
    pub(super) add: Vec<Route>,
    /// Nobody wants them.
    pub(super) remove: Vec<Route>,
    /// The source that is not led to the table yet.
    pub(super) lead: Option<IpNet>,
    /// Sources that should not be.
    pub(super) release: Vec<IpNet>,
}

/// Compares table and rule of a family with what they should be: routes by `anchor`, or nothing at all without it, or
/// where this node's pods have no addresses of the family.
pub(super) fn difference(
    netlink: &mut Netlink,
    nodes: &Snapshot,
    family: Family,
    anchor: Option<u32>,
) -> Result<Difference, NetlinkError> {
    let led_by = anchor.zip(nodes.own().subnets.get(family).copied());
    let wanted: Vec<Route> = led_by
        .into_iter()
        .flat_map(|(anchor, _)| nodes.peers().map(move |peer| (anchor, peer)))
        .filter_map(|(anchor, peer)| Some(Route::unicast((*peer.addresses.get(family)?).into(), anchor)))
        .collect();
    let present = netlink.routes_in(family, TABLE, Some(ROUTE_PROTOCOL))?;
    let subnet = led_by.map(|(_, subnet)| subnet);
    let led: Vec<_> = netlink
        .source_rules()?
        .into_iter()
        .filter_map(|(source, table)| {
            (table == u32::from(TABLE) && source.family() == family).then_some(source)
        })
        .collect();
    let replaced = |route: &Route| wanted.iter().any(|wanted| wanted.dst == route.dst);
    Ok(Difference {
        add: wanted.iter().filter(|route| !present.contains(route)).cloned().collect(),
        remove: present.iter().filter(|route| !replaced(route)).cloned().collect(),
        lead: subnet.filter(|subnet| !led.contains(subnet)),
        release: led.into_iter().filter(|source| Some(*source) != subnet).collect(),
    })
}

/// Makes table and rule of a family what they should be, as [`difference`] says.
pub(super) fn reconcile(
    netlink: &mut Netlink,
    nodes: &Snapshot,
    family: Family,
    anchor: Option<u32>,
) -> Result<(), NetlinkError> {
    let Difference { add, remove, lead, release } = difference(netlink, nodes, family, anchor)?;
    for route in &add {
        netlink.replace_route_in(TABLE.into(), route)?;
    }
    // Before a source is led there the routes are complete, and it is led there no longer before they go.
    if let Some(subnet) = lead {
        info!("leading what is sent from {subnet} to nodes into the tunnel: table {TABLE}");
        netlink.add_source_rule(subnet, TABLE)?;
    }
    for source in release {
        netlink.delete_source_rule(source, TABLE)?;
    }
    for route in &remove {
        netlink.delete_route_in(TABLE.into(), route)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cluster::{Cidrs, NodeSpec},
        host::netns::testing::{in_fresh_netns, ip, run},
    };

    /// The cluster's range; this node's address and two subnets that it may have; the addresses of peers.
    struct Case {
        family: Family,
        cluster: &'static str,
        own: &'static str,
        subnets: [&'static str; 2],
        peers: [&'static str; 3],
    }

    const CASES: [Case; 2] = [
        Case {
            family: Family::Ipv4,
            cluster: "10.244.0.0/16",
            own: "192.0.2.1",
            subnets: ["10.244.1.0/24", "10.244.2.0/24"],
            peers: ["192.0.2.2", "192.0.2.3", "192.0.2.4"],
        },
        Case {
            family: Family::Ipv6,
            cluster: "fd00:244::/48",
            own: "2001:db8::1",
            subnets: ["fd00:244:0:1::/64", "fd00:244:0:2::/64"],
            peers: ["2001:db8::2", "2001:db8::3", "2001:db8::4"],
        },
    ];

    impl Case {
        fn nodes(&self, own: &str, peers: &[&str]) -> Snapshot {
            let mut all = vec![NodeSpec::of("own", &[self.own], &[own])];
            for (i, peer) in peers.iter().enumerate() {
                let subnet = match self.family {
                    Family::Ipv4 => format!("10.244.{}.0/24", 100 + i),
                    Family::Ipv6 => format!("fd00:244:0:{}::/64", 100 + i),
                };
                all.push(NodeSpec::of(&format!("peer{i}"), &[peer], &[&subnet]));
            }
            let cluster: IpNet = self.cluster.parse().unwrap();
            Snapshot::new(all, "own", &Cidrs::from(cluster)).unwrap()
        }

        fn flag(&self) -> &'static str {
            if self.family == Family::Ipv4 { "-4" } else { "-6" }
        }

        /// Destination and device of the routes of the table.
        fn table(&self) -> Vec<String> {
            let listed = run(&format!("ip {} route show table all proto 79", self.flag()));
            let route = |line: &str| line.split_whitespace().take(5).collect::<Vec<_>>().join(" ");
            let mut lines: Vec<_> = listed.lines().map(route).collect();
            lines.sort();
            lines
        }

        fn rules(&self) -> Vec<String> {
            let listed = run(&format!("ip {} rule show", self.flag()));
            listed.lines().filter(|line| line.contains("lookup 79")).map(str::to_owned).collect()
        }
    }

    fn anchor() -> (Netlink, u32) {
        ip("link add anchor up type veth peer name anchorp");
        ip("link set anchorp up");
        let mut netlink = Netlink::open().unwrap();
        let anchor = netlink.link("anchor").unwrap().unwrap().index;
        (netlink, anchor)
    }

    #[test]
    fn routes_and_rule_follow_the_nodes_and_the_own_subnet() {
        for case in &CASES {
            let [one, two] = case.subnets;
            let [a, b, c] = case.peers;
            let other = case.family.other();
            in_fresh_netns(|| {
                let (mut netlink, anchor) = anchor();
                let mut make = |family: Family, nodes: &Snapshot, anchor: Option<u32>| {
                    reconcile(&mut netlink, nodes, family, anchor).unwrap();
                };
                for _ in 0..2 {
                    make(case.family, &case.nodes(one, &[a, b]), Some(anchor));
                    assert_eq!(case.table(), [a, b].map(|peer| format!("{peer} dev anchor table 79")));
                    let rules = case.rules();
                    assert_eq!(rules.len(), 1, "{rules:?}");
                    assert!(rules[0].contains(&format!("from {one} lookup 79")), "{rules:?}");
                }
                // The other family, of which the node has nothing, changes nothing.
                make(other, &case.nodes(one, &[a, b]), Some(anchor));
                assert_eq!((case.table().len(), case.rules().len()), (2, 1));
                make(case.family, &case.nodes(two, &[b, c]), Some(anchor));
                assert_eq!(case.table().len(), 2);
                assert!(case.table()[1].starts_with(&format!("{c} ")));
                let rules = case.rules();
                assert!(rules[0].contains(&format!("from {two} ")) && rules.len() == 1, "{rules:?}");
                make(case.family, &case.nodes(two, &[b]), None);
                assert_eq!((case.table(), case.rules()), (vec![], vec![]));
            });
        }
    }

    #[test]
    fn a_route_that_leads_elsewhere_is_replaced() {
        for case in &CASES {
            in_fresh_netns(|| {
                let (mut netlink, anchor) = anchor();
                ip("link add other up type veth peer name otherp");
                ip(&format!("route add {} dev other table 79 proto 79", case.peers[0]));
                let nodes = case.nodes(case.subnets[0], &case.peers[..1]);
                reconcile(&mut netlink, &nodes, case.family, Some(anchor)).unwrap();
                assert_eq!(case.table(), [format!("{} dev anchor table 79", case.peers[0])]);
            });
        }
    }
}
