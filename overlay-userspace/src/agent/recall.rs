//! The list of nodes as an earlier agent has pinned it: what a restarted agent goes by while the API server is away.
//!
//! `NODES` and `LOCAL` hold all of it but the names, so that a peer is called by its address until the API says better.

use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;
use overlay_common::maps::{Addr, FAMILY_V4, Local, NODE_HOST, NODE_SELF, Node};

use super::local;
use crate::{
    cluster::{NodeSpec, Snapshot, vtep_mac},
    datapath::{pins::Pins, schema, tables::Nodes},
};

/// This node as its pods know it; `None` when there has been no agent of this node.
pub(crate) fn own(pins: &Pins, name: &str) -> Option<NodeSpec> {
    own_of(&local::published(pins)?, name)
}

/// All nodes that are pinned; `None` when they are none, or not of this network any more.
pub(crate) fn nodes(pins: &Pins, name: &str, cidr: IpNet) -> Option<Snapshot> {
    let own = own(pins, name)?;
    let entries = Nodes::open(&schema::readable(pins).ok()?).ok()?.entries().ok()?;
    let mut nodes = peers_of(&entries);
    nodes.push(own);
    Snapshot::new(nodes, name, cidr).ok()
}

fn own_of(local: &Local, name: &str) -> Option<NodeSpec> {
    let bytes = name.as_bytes();
    let written = &bytes[..bytes.len().min(local.node_name.len())];
    let same = local.node_name.starts_with(written)
        && local.node_name.get(written.len()).is_none_or(|next| *next == 0);
    let subnet = &local.subnet[FAMILY_V4];
    let net = IpNet::new(subnet.addr.to_ip(), u8::try_from(subnet.prefix_len).ok()?).ok()?;
    same.then(|| spec(name, local.vtep.to_ip(), net, local.gateway_mac))
}

/// The peers, each named by its address.
fn peers_of(entries: &[(Addr, Node)]) -> Vec<NodeSpec> {
    let mut peers: HashMap<IpAddr, NodeSpec> = HashMap::new();
    for (key, node) in entries.iter().filter(|(_, node)| node.flags & (NODE_HOST | NODE_SELF) == 0) {
        let address = node.vtep.to_ip();
        // One entry for each unit of the subnet: all lead to the same.
        if let Ok(net) = IpNet::new(key.to_ip(), node.prefix_len) {
            let peer = spec(&address.to_string(), address, net.trunc(), node.vtep_mac);
            peers.entry(address).or_insert(peer);
        }
    }
    peers.into_values().collect()
}

fn spec(name: &str, address: IpAddr, subnet: IpNet, mac: [u8; 6]) -> NodeSpec {
    let given = (mac != vtep_mac(address)).then_some(mac);
    NodeSpec { name: name.to_owned(), address, subnet, vtep_mac: given }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use overlay_common::maps::AttachMode;

    use super::*;
    use crate::{agent::nodes::desired, config::Config};

    const FILE: &str = r#"
        node = "a"
        [network]
        cidr = "10.244.0.0/16"
        [[nodes]]
        name = "a"
        address = "192.0.2.1"
        subnet = "10.244.1.0/24"
        [[nodes]]
        name = "b"
        address = "192.0.2.2"
        subnet = "10.244.16.0/22"
        [[nodes]]
        name = "c"
        address = "192.0.2.3"
        subnet = "10.244.3.0/24"
        vtep_mac = "02:00:00:00:00:03"
    "#;

    #[test]
    fn what_is_pinned_says_all_but_the_names() {
        let config = Config::parse(FILE, Path::new("x"), None).unwrap();
        let entries: Vec<_> = desired(&config.nodes).into_iter().collect();
        let own = own_of(&local::desired(&config, 7, 1450, AttachMode::Tcx), "a").unwrap();
        let mut nodes = peers_of(&entries);
        nodes.push(own);
        let mut recalled = Snapshot::new(nodes, "a", config.network.cidr).unwrap();
        assert_eq!(desired(&recalled), desired(&config.nodes));
        assert!(recalled.nodes().iter().any(|node| node.name == "192.0.2.3"));
        recalled.name_after(&config.nodes);
        assert_eq!(recalled.nodes(), config.nodes.nodes());
    }

    #[test]
    fn the_pins_of_another_node_are_not_this_ones() {
        let config = Config::parse(FILE, Path::new("x"), None).unwrap();
        let local = local::desired(&config, 7, 1450, AttachMode::Tcx);
        assert_eq!(own_of(&local, "a").as_ref(), Some(config.nodes.own()));
        assert_eq!(own_of(&local, "ab"), None);
        assert_eq!(own_of(&local, "b"), None);
        let long = "n".repeat(100);
        let named = Local { node_name: [b'n'; 61], ..local };
        assert!(own_of(&named, &long).is_some());
        assert_eq!(own_of(&named, "n"), None);
    }
}
