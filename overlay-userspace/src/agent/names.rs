//! `NODE_NAMES`: what the nodes of the snapshot are called, by their tunnel addresses. For people; nothing depends on it.

use std::collections::{HashMap, HashSet};

use overlay_common::maps::{Addr, NodeName};

use crate::{
    cluster::{NodeSpec, Snapshot},
    datapath::{DatapathError, pins::Pins, tables::NodeNames},
};

/// The names that are known. A node that is recalled from the pins is called by its address, which is no name.
fn known(nodes: &Snapshot) -> HashMap<Addr, NodeName> {
    let addressed = nodes.nodes().iter().flat_map(|node| node.addresses.values().map(move |ip| (*ip, node)));
    let nameless = |node: &NodeSpec| node.addresses.values().any(|address| node.name == address.to_string());
    addressed
        .filter(|(_, node)| !nameless(node))
        .map(|(address, node)| (address.into(), NodeName::new(&node.name)))
        .collect()
}

/// Names that a line of the log has room for.
const LISTED: usize = 5;

/// What these nodes are called, in one line; `None` where there are none.
pub(super) fn list<'a>(nodes: impl Iterator<Item = &'a NodeSpec>) -> Option<String> {
    let names: Vec<&str> = nodes.map(|node| node.name.as_str()).collect();
    let more = names.len().saturating_sub(LISTED);
    let listed = names.get(..LISTED.min(names.len()))?.join(", ");
    match (names.is_empty(), more) {
        (true, _) => None,
        (false, 0) => Some(listed),
        (false, more) => Some(format!("{listed} and {more} more")),
    }
}

/// Writes what is missing or wrong.
pub(super) fn fill(pins: &Pins, nodes: &Snapshot) -> Result<(), DatapathError> {
    let mut map = NodeNames::open(pins)?;
    let present: HashMap<Addr, NodeName> = NodeNames::all(pins)?.into_iter().collect();
    for (vtep, name) in known(nodes) {
        if present.get(&vtep) != Some(&name) {
            map.set(vtep, name)?;
        }
    }
    Ok(())
}

/// Removes the names of what is no node any more.
pub(super) fn remove_stale(pins: &Pins, nodes: &Snapshot) -> Result<(), DatapathError> {
    let mut map = NodeNames::open(pins)?;
    let nodes: HashSet<Addr> = nodes
        .nodes()
        .iter()
        .flat_map(|node| node.addresses.values())
        .map(|address| (*address).into())
        .collect();
    for (vtep, _) in NodeNames::all(pins)? {
        if !nodes.contains(&vtep) {
            map.remove(vtep)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_in_a_line() {
        let nodes: Vec<_> = (1..=7).map(|i| NodeSpec::of(&format!("n{i}"), &["192.0.2.1"], &[])).collect();
        assert_eq!(list(nodes[..0].iter()), None);
        assert_eq!(list(nodes[..2].iter()).as_deref(), Some("n1, n2"));
        assert_eq!(list(nodes.iter()).as_deref(), Some("n1, n2, n3, n4, n5 and 2 more"));
    }

    #[test]
    fn a_node_is_called_the_same_by_both_of_its_addresses() {
        let nodes = vec![
            NodeSpec::of("a", &["192.0.2.1", "2001:db8::1"], &["10.244.1.0/24"]),
            NodeSpec::of("2001:db8::2", &["192.0.2.2", "2001:db8::2"], &["10.244.2.0/24"]),
        ];
        let cidr: ipnet::IpNet = "10.244.0.0/16".parse().unwrap();
        let known = known(&Snapshot::new(nodes, "a", &cidr.into()).unwrap());
        let mut named: Vec<_> =
            known.iter().map(|(addr, name)| format!("{} {}", addr.to_ip(), name.as_str())).collect();
        named.sort();
        assert_eq!(named, ["192.0.2.1 a", "2001:db8::1 a"]);
    }
}
