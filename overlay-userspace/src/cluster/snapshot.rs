//! A consistent list of nodes. What is wrong with a list is found family by family.

use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;

use super::{Cidrs, NodeSpec};
use crate::family::{ByFamily, Family, OfFamily as _};

/// Why a list of nodes cannot be a cluster.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it; the fields are the objects they name")]
pub enum SnapshotError {
    #[error(
        "node {0} is not in the list of nodes: add it, or give this node's name with --node or `node = …`"
    )]
    OwnNodeAbsent(String),
    #[error("two nodes are named {0}: names must be unique")]
    DuplicateName(String),
    #[error("a node has an empty name")]
    EmptyName,
    #[error("node {0} has no tunnel address: give the one under which the other nodes reach it")]
    NoAddress(String),
    #[error("node {0} has no subnet for its pods: give one inside the pod network")]
    NoSubnet(String),
    #[error("nodes {0} and {1} have the same address {2}: each node needs its own tunnel address")]
    DuplicateAddress(String, String, IpAddr),
    #[error(
        "node {0}: {1} cannot be a tunnel address: give the unicast address under which the other nodes reach it"
    )]
    BadAddress(String, IpAddr),
    #[error("node {0}: address {1} lies inside the pod network {2}: node addresses must be outside of it")]
    AddressInPodNetwork(String, IpAddr, IpNet),
    #[error("node {name}: subnet {subnet} has host bits set: write {right}")]
    HostBits { name: String, subnet: IpNet, right: IpNet },
    #[error("node {0}: subnet {1} is not inside the pod network {2}: correct it, or network.cidr")]
    OutsideNetwork(String, IpNet, IpNet),
    #[error("node {0}: subnet {1} is {family}, the pod network is not: add a range to network.cidr", family = .1.family())]
    NoNetwork(String, IpNet),
    #[error(
        "node {0}: subnet {1} is too small: it must hold a gateway and a pod at least (prefix length {longest} or less)",
        longest = .1.max_prefix_len() - 2
    )]
    TooSmall(String, IpNet),
    #[error("subnets of nodes {0} ({1}) and {2} ({3}) overlap: each node needs one of its own")]
    Overlap(String, IpNet, String, IpNet),
    #[error(
        "{needed} table entries are needed where {max} fit: the prefix lengths of the node subnets differ too much (/{shortest} to /{longest})"
    )]
    TooManyEntries { needed: u64, max: usize, shortest: u8, longest: u8 },
}

/// A consistent list of nodes, this one among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    nodes: Vec<NodeSpec>,
    own: usize,
}

impl Snapshot {
    /// Validates a list.
    pub fn new(mut nodes: Vec<NodeSpec>, own: &str, cidrs: &Cidrs) -> Result<Self, SnapshotError> {
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let mut by_address: HashMap<IpAddr, &str> = HashMap::new();
        for node in &nodes {
            check(node, cidrs)?;
            for address in node.addresses.values() {
                if let Some(other) = by_address.insert(*address, &node.name) {
                    return Err(SnapshotError::DuplicateAddress(
                        other.to_owned(),
                        node.name.clone(),
                        *address,
                    ));
                }
            }
        }
        for pair in nodes.windows(2) {
            if let [a, b] = pair
                && a.name == b.name
            {
                return Err(SnapshotError::DuplicateName(a.name.clone()));
            }
        }
        for family in Family::ALL {
            check_overlap(&nodes, family)?;
        }
        let own = nodes
            .iter()
            .position(|node| node.name == own)
            .ok_or_else(|| SnapshotError::OwnNodeAbsent(own.to_owned()))?;
        let snapshot = Self { nodes, own };
        snapshot.check_size()?;
        Ok(snapshot)
    }

    /// Subnets are kept in units of the longest prefix (see `agent::nodes`); that must stay bounded.
    fn check_size(&self) -> Result<(), SnapshotError> {
        let max = overlay_common::maps::NODES_MAX;
        let mut needed = 0_u64;
        for (family, longest) in self.node_prefixes().iter() {
            let prefixes =
                || self.nodes.iter().filter_map(|node| Some(node.subnets.get(family)?.prefix_len()));
            for prefix in prefixes() {
                let units = 1_u64.checked_shl(u32::from(longest - prefix)).unwrap_or(u64::MAX);
                needed = needed.saturating_add(units);
            }
            // And the nodes' own addresses.
            needed += self.nodes.iter().filter(|node| node.addresses.get(family).is_some()).count() as u64;
            if needed > max as u64 {
                let shortest = prefixes().min().unwrap_or(*longest);
                return Err(SnapshotError::TooManyEntries { needed, max, shortest, longest: *longest });
            }
        }
        Ok(())
    }

    /// Gives the nodes of this list the names that `other` has for their addresses.
    pub(crate) fn name_after(&mut self, other: &Self) {
        let names: HashMap<IpAddr, &str> = other
            .nodes
            .iter()
            .flat_map(|node| node.addresses.values().map(|address| (*address, node.name.as_str())))
            .collect();
        let own = self.own().addresses;
        for node in &mut self.nodes {
            if let Some(name) = node.addresses.values().find_map(|address| names.get(address)) {
                (*name).clone_into(&mut node.name);
            }
        }
        self.nodes.sort_by(|a, b| a.name.cmp(&b.name));
        // What was two for want of a name.
        self.nodes.dedup_by(|next, node| {
            let same = next.name == node.name;
            if same {
                node.addresses.fill(next.addresses);
                node.subnets.fill(next.subnets);
                node.vtep_macs.fill(next.vtep_macs);
            }
            same
        });
        self.own = self.nodes.iter().position(|node| node.addresses == own).unwrap_or(self.own);
    }

    /// This node.
    pub fn own(&self) -> &NodeSpec {
        &self.nodes[self.own]
    }

    /// All nodes, sorted by name as their source has it.
    pub fn nodes(&self) -> &[NodeSpec] {
        &self.nodes
    }

    /// All nodes but this one.
    pub fn peers(&self) -> impl Iterator<Item = &NodeSpec> {
        self.nodes.iter().enumerate().filter(|(index, _)| *index != self.own).map(|(_, node)| node)
    }

    /// The peers with which this node has no family of tunnel addresses in common.
    pub fn unreachable(&self) -> impl Iterator<Item = &NodeSpec> {
        let own = self.own();
        self.peers().filter(|peer| peer.tunnel(Family::Ipv4, own, Family::Ipv4).is_none())
    }

    /// The longest prefix of any node's subnet, of each family in which there is a subnet.
    pub fn node_prefixes(&self) -> ByFamily<u8> {
        let mut longest = ByFamily::default();
        for (family, net) in self.nodes.iter().flat_map(|node| node.subnets.iter()) {
            let prefix = longest.get(family).copied().unwrap_or(0).max(net.prefix_len());
            longest.set(family, prefix);
        }
        longest
    }
}

fn check_overlap(nodes: &[NodeSpec], family: Family) -> Result<(), SnapshotError> {
    // Sorted by address, an overlap is always between neighbours, or a neighbour's neighbour inside the same subnet.
    let mut by_subnet: Vec<_> =
        nodes.iter().filter_map(|node| Some((*node.subnets.get(family)?, &node.name))).collect();
    by_subnet.sort_by_key(|(net, _)| (net.network(), net.prefix_len()));
    for pair in by_subnet.windows(2) {
        if let [(a, whose), (b, other)] = pair
            && a.contains(b)
        {
            return Err(SnapshotError::Overlap((*whose).clone(), *a, (*other).clone(), *b));
        }
    }
    Ok(())
}

/// What can be wrong with a node by itself.
fn check(node: &NodeSpec, cidrs: &Cidrs) -> Result<(), SnapshotError> {
    let name = &node.name;
    if name.is_empty() {
        return Err(SnapshotError::EmptyName);
    }
    if node.addresses.is_empty() {
        return Err(SnapshotError::NoAddress(name.clone()));
    }
    if node.subnets.is_empty() {
        return Err(SnapshotError::NoSubnet(name.clone()));
    }
    node.addresses.values().try_for_each(|address| check_address(name, *address, cidrs))?;
    node.subnets.values().try_for_each(|subnet| check_subnet(name, *subnet, cidrs))
}

/// What can be wrong with a tunnel address.
pub(crate) fn check_address(name: &str, address: IpAddr, cidrs: &Cidrs) -> Result<(), SnapshotError> {
    let unusable = match address {
        IpAddr::V4(v4) => v4.is_broadcast() || v4.is_link_local(),
        // A link-local one means another link on each node; one that stands for IPv4 is not on any wire.
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    if unusable || address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return Err(SnapshotError::BadAddress(name.to_owned(), address));
    }
    match cidrs.holder(address) {
        Some(range) => Err(SnapshotError::AddressInPodNetwork(name.to_owned(), address, range)),
        None => Ok(()),
    }
}

/// What can be wrong with a subnet.
pub(crate) fn check_subnet(name: &str, subnet: IpNet, cidrs: &Cidrs) -> Result<(), SnapshotError> {
    let name = || name.to_owned();
    if subnet.addr() != subnet.network() {
        return Err(SnapshotError::HostBits { name: name(), subnet, right: subnet.trunc() });
    }
    match cidrs.get(subnet.family()) {
        None => return Err(SnapshotError::NoNetwork(name(), subnet)),
        Some(range) if !range.contains(&subnet) => {
            return Err(SnapshotError::OutsideNetwork(name(), subnet, range));
        }
        Some(_) => {}
    }
    if subnet.max_prefix_len() - subnet.prefix_len() < 2 {
        return Err(SnapshotError::TooSmall(name(), subnet));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
