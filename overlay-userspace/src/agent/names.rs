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
