//! The list of nodes as an earlier agent has pinned it: what a restarted agent goes by while the API server is away.
//!
//! `NODES` and `LOCAL` hold all of it but the names, so that a peer is called by its address until the API says better.

use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;
use overlay_common::maps::{Addr, Local, NODE_HOST, NODE_SELF, Node, Subnet};

use super::local;
use crate::{
    cluster::{NodeSpec, Snapshot},
    config::Network,
    datapath::{DatapathError, pins::Pins, schema, tables::Nodes},
    family::{ByFamily, Family, OfFamily as _},
};

/// This node as its pods know it; `None` when there has been no agent of this node.
pub(crate) fn own(pins: &Pins, name: &str) -> Option<NodeSpec> {
    own_of(&local::published(pins)?, &entries(pins).unwrap_or_default(), name)
}

/// All nodes that are pinned; `None` when they are none, or not of this network any more.
pub(crate) fn nodes(pins: &Pins, name: &str, network: &Network) -> Option<Snapshot> {
    let entries = entries(pins).ok()?;
    let own = own_of(&local::published(pins)?, &entries, name)?;
    let mut nodes = peers_of(&entries);
    nodes.push(own);
    Snapshot::new(nodes, name, &network.cidrs).ok()
}

fn entries(pins: &Pins) -> Result<Vec<(Addr, Node)>, DatapathError> {
    Nodes::open(&schema::readable(pins)?)?.entries()
}

fn own_of(local: &Local, entries: &[(Addr, Node)], name: &str) -> Option<NodeSpec> {
    let bytes = name.as_bytes();
    let written = &bytes[..bytes.len().min(local.node_name.len())];
    let same = local.node_name.starts_with(written)
        && local.node_name.get(written.len()).is_none_or(|next| *next == 0);
    if !same {
        return None;
    }
    let mut known = Known::new(local.gateway_mac);
    known.address(local.vtep.to_ip());
    let of_own = entries.iter().filter(|(_, node)| node.flags & NODE_SELF != 0);
    for (key, _) in of_own.filter(|(_, node)| node.flags & NODE_HOST != 0) {
        known.address(key.to_ip());
    }
    for family in Family::ALL {
        let Subnet { addr, prefix_len } = local.subnet[family.index()];
        if prefix_len != 0 {
            known.subnets.set(family, IpNet::new(addr.to_ip(), u8::try_from(prefix_len).ok()?).ok()?);
        }
    }
    known.into_spec(name)
}

/// The peers, each named by an address. One that is reached by two ways, as Flannel's are, is two here: each with what is
/// behind one of them.
fn peers_of(entries: &[(Addr, Node)]) -> Vec<NodeSpec> {
    let mut peers: HashMap<IpAddr, Known> = HashMap::new();
    for (key, node) in entries.iter().filter(|(_, node)| node.flags & NODE_SELF == 0) {
        let vtep = node.vtep.to_ip();
        let peer = peers.entry(vtep).or_insert_with(|| Known::new(node.vtep_mac));
        peer.address(vtep);
        if node.flags & NODE_HOST != 0 {
            peer.address(key.to_ip());
        } else if let Ok(net) = IpNet::new(key.to_ip(), node.prefix_len) {
            // One entry for each unit of the subnet: all lead to the same.
            peer.subnets.set(net.family(), net.trunc());
        }
    }
    peers.into_iter().filter_map(|(vtep, peer)| peer.into_spec(&vtep.to_string())).collect()
}

/// What the maps say of a node.
struct Known {
    addresses: ByFamily<IpAddr>,
    subnets: ByFamily<IpNet>,
    mac: [u8; 6],
}

impl Known {
    fn new(mac: [u8; 6]) -> Self {
        Self { addresses: ByFamily::default(), subnets: ByFamily::default(), mac }
    }

    fn address(&mut self, address: IpAddr) {
        self.addresses.set(address.family(), address);
    }

    fn into_spec(self, name: &str) -> Option<NodeSpec> {
        let Self { addresses, subnets, mac } = self;
        let vtep_macs = ByFamily::default();
        let mut spec = NodeSpec { name: name.to_owned(), addresses, subnets, vtep_macs };
        if spec.mac() != mac {
            spec.vtep_macs = addresses.map(|_, _| mac);
        }
        (!subnets.is_empty()).then_some(spec)
    }
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
        let entries: Vec<_> = desired(&config).into_iter().collect();
        let own = own_of(&local::desired(&config, 7, 1450, AttachMode::Tcx), &entries, "a").unwrap();
        let mut nodes = peers_of(&entries);
        nodes.push(own);
        let mut recalled = Snapshot::new(nodes, "a", &config.network.cidrs).unwrap();
        assert_eq!(desired(&Config { nodes: recalled.clone(), ..config.clone() }), desired(&config));
        assert!(recalled.nodes().iter().any(|node| node.name == "192.0.2.3"));
        recalled.name_after(&config.nodes);
        assert_eq!(recalled.nodes(), config.nodes.nodes());
    }

    const DUAL: &str = r#"
        node = "a"
        [network]
        cidr = ["10.244.0.0/16", "fd00:10:244::/48"]
        UNDERLAY
        [[nodes]]
        name = "a"
        address = ["192.0.2.1", "2001:db8::1"]
        subnet = ["10.244.1.0/24", "fd00:10:244:1::/64"]
        [[nodes]]
        name = "b"
        address = ["192.0.2.2", "2001:db8::2"]
        subnet = ["10.244.16.0/22", "fd00:10:244:10::/62"]
        [[nodes]]
        name = "c"
        address = ["192.0.2.3", "2001:db8::3"]
        subnet = ["10.244.3.0/24", "fd00:10:244:300::/64"]
        vtep_mac = ["02:00:00:00:00:04", "02:00:00:00:00:06"]
        [[nodes]]
        name = "d"
        address = "2001:db8::4"
        subnet = "10.244.4.0/24"
        [[nodes]]
        name = "e"
        address = "192.0.2.5"
        subnet = "fd00:10:244:500::/64"
        vtep_mac = "02:00:00:00:00:05"
    "#;

    #[test]
    fn what_is_pinned_of_both_families_is_recalled() {
        for underlay in ["", "underlay = \"ipv6\""] {
            let config = Config::parse(&DUAL.replace("UNDERLAY", underlay), Path::new("x"), None).unwrap();
            let entries: Vec<_> = desired(&config).into_iter().collect();
            let own = own_of(&local::desired(&config, 7, 1450, AttachMode::Tcx), &entries, "a").unwrap();
            assert_eq!(&own, config.nodes.own());
            let mut nodes = peers_of(&entries);
            nodes.push(own);
            let mut recalled = Snapshot::new(nodes, "a", &config.network.cidrs).unwrap();
            assert_eq!(desired(&Config { nodes: recalled.clone(), ..config.clone() }), desired(&config));
            recalled.name_after(&config.nodes);
            // Flannel's was one for each of its devices.
            assert_eq!(recalled.nodes(), config.nodes.nodes());
        }
    }

    #[test]
    fn the_pins_of_another_node_are_not_this_ones() {
        let config = Config::parse(FILE, Path::new("x"), None).unwrap();
        let local = local::desired(&config, 7, 1450, AttachMode::Tcx);
        assert_eq!(own_of(&local, &[], "a").as_ref(), Some(config.nodes.own()));
        assert_eq!(own_of(&local, &[], "ab"), None);
        assert_eq!(own_of(&local, &[], "b"), None);
        let long = "n".repeat(100);
        let named = Local { node_name: [b'n'; 61], ..local };
        assert!(own_of(&named, &[], &long).is_some());
        assert_eq!(own_of(&named, &[], "n"), None);
    }
}
