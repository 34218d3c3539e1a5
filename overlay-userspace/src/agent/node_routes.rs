//! What pods send to nodes by way of a Service leaves through the tunnel, with the pod's address.
//!
//! A pod's own packet to a node is encapsulated by `from_pod`. One to a Service with a node behind it (the API server is
//! the best known) is the stack's, and after its translation the main table would send it out by the underlay, where a
//! pod's address means nothing. So for sources of the own subnet a table of ours has a route to each peer's address by
//! the anchor device. Called by the reconciler.

use ipnet::{IpNet, Ipv4Net};
use log::info;

use crate::{
    cluster::Snapshot,
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
    pub(super) lead: Option<Ipv4Net>,
    /// Sources that should not be.
    pub(super) release: Vec<Ipv4Net>,
}

/// Compares table and rule with what they should be: routes by `anchor`, or nothing at all without it.
pub(super) fn difference(
    netlink: &mut Netlink,
    nodes: &Snapshot,
    anchor: Option<u32>,
) -> Result<Difference, NetlinkError> {
    let wanted: Vec<Route> = anchor
        .into_iter()
        .flat_map(|anchor| nodes.peers().map(move |peer| (anchor, peer)))
        .filter_map(|(anchor, peer)| Some(Route::unicast(peer.addresses.v4?.into(), anchor)))
        .collect();
    let present = netlink.routes_of_table(TABLE, Some(ROUTE_PROTOCOL))?;
    let subnet = match nodes.own().subnets.v4 {
        Some(IpNet::V4(subnet)) if anchor.is_some() => Some(subnet),
        _ => None,
    };
    let led: Vec<_> = netlink
        .source_rules()?
        .into_iter()
        .filter_map(|(source, table)| (table == u32::from(TABLE)).then_some(source))
        .collect();
    let replaced = |route: &Route| wanted.iter().any(|wanted| wanted.dst == route.dst);
    Ok(Difference {
        add: wanted.iter().filter(|route| !present.contains(route)).cloned().collect(),
        remove: present.iter().filter(|route| !replaced(route)).cloned().collect(),
        lead: subnet.filter(|subnet| !led.contains(subnet)),
        release: led.into_iter().filter(|source| Some(*source) != subnet).collect(),
    })
}

/// Makes table and rule what they should be: routes by `anchor`, or nothing at all without it.
pub(super) fn reconcile(
    netlink: &mut Netlink,
    nodes: &Snapshot,
    anchor: Option<u32>,
) -> Result<(), NetlinkError> {
    let Difference { add, remove, lead, release } = difference(netlink, nodes, anchor)?;
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
        cluster::NodeSpec,
        host::netns::testing::{in_fresh_netns, ip, run},
    };

    fn nodes(own: &str, peers: &[&str]) -> Snapshot {
        let node = |name: &str, address: &str, subnet: &str| NodeSpec::of(name, &[address], &[subnet]);
        let mut all = vec![node("own", "192.0.2.1", own)];
        all.extend(
            peers
                .iter()
                .enumerate()
                .map(|(i, peer)| node(&format!("peer{i}"), peer, &format!("10.244.{}.0/24", 100 + i))),
        );
        Snapshot::new(all, "own", &"10.244.0.0/16".parse::<IpNet>().unwrap().into()).unwrap()
    }

    fn table() -> Vec<String> {
        let mut lines: Vec<_> = run("ip route show table 79").lines().map(|l| l.trim().to_owned()).collect();
        lines.sort();
        lines
    }

    fn rules() -> String {
        run("ip rule show").lines().filter(|line| line.contains("79")).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn routes_and_rule_follow_the_nodes_and_the_own_subnet() {
        in_fresh_netns(|| {
            ip("link add anchor up type veth peer name anchorp");
            ip("link set anchorp up");
            let mut netlink = Netlink::open().unwrap();
            let anchor = netlink.link("anchor").unwrap().unwrap().index;
            for _ in 0..2 {
                reconcile(&mut netlink, &nodes("10.244.1.0/24", &["192.0.2.2", "192.0.2.3"]), Some(anchor))
                    .unwrap();
                assert_eq!(
                    table(),
                    ["192.0.2.2 dev anchor proto 79 scope link", "192.0.2.3 dev anchor proto 79 scope link"]
                );
                assert_eq!(rules().lines().count(), 1, "{}", rules());
                assert!(rules().contains("from 10.244.1.0/24 lookup 79"), "{}", rules());
            }
            reconcile(&mut netlink, &nodes("10.244.2.0/24", &["192.0.2.3", "192.0.2.4"]), Some(anchor))
                .unwrap();
            assert_eq!(table().len(), 2);
            assert!(table()[1].starts_with("192.0.2.4 "));
            assert!(rules().contains("from 10.244.2.0/24") && rules().lines().count() == 1, "{}", rules());
            reconcile(&mut netlink, &nodes("10.244.2.0/24", &["192.0.2.3"]), None).unwrap();
            assert_eq!((table(), rules()), (vec![], String::new()));
        });
    }

    #[test]
    fn a_route_that_leads_elsewhere_is_replaced() {
        in_fresh_netns(|| {
            ip("link add anchor up type veth peer name anchorp");
            ip("link set anchorp up");
            ip("link add other up type veth peer name otherp");
            ip("route add 192.0.2.2 dev other table 79 proto 79");
            let mut netlink = Netlink::open().unwrap();
            let anchor = netlink.link("anchor").unwrap().unwrap().index;
            reconcile(&mut netlink, &nodes("10.244.1.0/24", &["192.0.2.2"]), Some(anchor)).unwrap();
            assert_eq!(table(), ["192.0.2.2 dev anchor proto 79 scope link"]);
        });
    }
}
