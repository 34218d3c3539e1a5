//! Where the list of nodes comes from. A source hands out whole, validated [`Snapshot`]s; what to do about the
//! difference to the one before is the agent's business.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;

pub mod file;
pub mod kubernetes;

/// A node as its source describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// Its name, unique in the cluster.
    pub name: String,
    /// Its tunnel address (VTEP).
    pub address: IpAddr,
    /// Its pods' subnet.
    pub subnet: IpNet,
    /// The MAC of its tunnel device where that is not derived from the address: a peer that is not overlay.
    pub vtep_mac: Option<[u8; 6]>,
}

impl NodeSpec {
    /// The MAC of the node's tunnel device.
    pub fn mac(&self) -> [u8; 6] {
        self.vtep_mac.unwrap_or_else(|| vtep_mac(self.address))
    }
}

/// The MAC of a node's anchor device, derived from its tunnel address so that nothing but the address has to be known of
/// a peer: locally administered, unicast.
pub fn vtep_mac(address: IpAddr) -> [u8; 6] {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            [0x0a, 0x6f, a, b, c, d]
        }
        IpAddr::V6(v6) => {
            // FNV-1a: stable across builds, and a collision is harmless (the receiver goes by addresses).
            let hash = v6.octets().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            });
            let [a, b, c, d, ..] = hash.to_be_bytes();
            [0x0a, 0x76, a, b, c, d]
        }
    }
}

/// The address of the gateway of a pod subnet: its first host address.
pub fn gateway(subnet: IpNet) -> IpAddr {
    match subnet {
        IpNet::V4(net) => Ipv4Addr::from_bits(net.network().to_bits() | 1).into(),
        IpNet::V6(net) => std::net::Ipv6Addr::from_bits(net.network().to_bits() | 1).into(),
    }
}

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
    #[error(
        "node {0}: subnet {1} is too small: it must hold a gateway and a pod at least (prefix length 30 or less)"
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
    pub fn new(mut nodes: Vec<NodeSpec>, own: &str, cidr: IpNet) -> Result<Self, SnapshotError> {
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let mut by_address: HashMap<IpAddr, &str> = HashMap::new();
        for node in &nodes {
            check(node, cidr)?;
            if let Some(other) = by_address.insert(node.address, &node.name) {
                return Err(SnapshotError::DuplicateAddress(
                    other.to_owned(),
                    node.name.clone(),
                    node.address,
                ));
            }
        }
        for pair in nodes.windows(2) {
            if let [a, b] = pair
                && a.name == b.name
            {
                return Err(SnapshotError::DuplicateName(a.name.clone()));
            }
        }
        // Sorted by address, an overlap is always between neighbours, or a neighbour's neighbour inside the same subnet.
        let mut by_subnet: Vec<&NodeSpec> = nodes.iter().collect();
        by_subnet.sort_by_key(|node| (node.subnet.network(), node.subnet.prefix_len()));
        for pair in by_subnet.windows(2) {
            if let [a, b] = pair
                && a.subnet.contains(&b.subnet)
            {
                return Err(SnapshotError::Overlap(a.name.clone(), a.subnet, b.name.clone(), b.subnet));
            }
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
        let longest = self.node_prefix();
        let units = |node: &NodeSpec| {
            1_u64.checked_shl(u32::from(longest - node.subnet.prefix_len())).unwrap_or(u64::MAX)
        };
        // One more for each node: its own address.
        let needed =
            self.nodes.iter().fold(0_u64, |sum, node| sum.saturating_add(units(node)).saturating_add(1));
        if needed <= max as u64 {
            return Ok(());
        }
        let shortest = self.nodes.iter().map(|node| node.subnet.prefix_len()).min().unwrap_or(longest);
        Err(SnapshotError::TooManyEntries { needed, max, shortest, longest })
    }

    /// Gives the nodes of this list the names that `other` has for their addresses.
    pub(crate) fn name_after(&mut self, other: &Self) {
        let names: HashMap<IpAddr, &str> =
            other.nodes.iter().map(|node| (node.address, node.name.as_str())).collect();
        for node in &mut self.nodes {
            if let Some(name) = names.get(&node.address) {
                (*name).clone_into(&mut node.name);
            }
        }
        let own = self.own().address;
        self.nodes.sort_by(|a, b| a.name.cmp(&b.name));
        self.own = self.nodes.iter().position(|node| node.address == own).unwrap_or(self.own);
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

    /// The longest prefix of any node's subnet.
    pub fn node_prefix(&self) -> u8 {
        self.nodes.iter().map(|node| node.subnet.prefix_len()).max().unwrap_or(0)
    }
}

/// What can be wrong with a node by itself.
pub(crate) fn check(node: &NodeSpec, cidr: IpNet) -> Result<(), SnapshotError> {
    let NodeSpec { name, address, subnet, .. } = node;
    if name.is_empty() {
        return Err(SnapshotError::EmptyName);
    }
    let unusable = match address {
        IpAddr::V4(v4) => v4.is_broadcast() || v4.is_link_local(),
        // The programs of this version build IPv4 outer headers.
        IpAddr::V6(_) => true,
    };
    if unusable || address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return Err(SnapshotError::BadAddress(name.clone(), *address));
    }
    if cidr.contains(address) {
        return Err(SnapshotError::AddressInPodNetwork(name.clone(), *address, cidr));
    }
    if subnet.addr() != subnet.network() {
        return Err(SnapshotError::HostBits { name: name.clone(), subnet: *subnet, right: subnet.trunc() });
    }
    if !cidr.contains(subnet) {
        return Err(SnapshotError::OutsideNetwork(name.clone(), *subnet, cidr));
    }
    if subnet.max_prefix_len() - subnet.prefix_len() < 2 {
        return Err(SnapshotError::TooSmall(name.clone(), *subnet));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, address: &str, subnet: &str) -> NodeSpec {
        NodeSpec {
            name: name.into(),
            address: address.parse().unwrap(),
            subnet: subnet.parse().unwrap(),
            vtep_mac: None,
        }
    }

    fn snapshot(nodes: Vec<NodeSpec>) -> Result<Snapshot, SnapshotError> {
        Snapshot::new(nodes, "a", "10.244.0.0/16".parse().unwrap())
    }

    fn two(address: &str, subnet: &str) -> Result<Snapshot, SnapshotError> {
        snapshot(vec![node("a", "192.0.2.1", "10.244.1.0/24"), node("b", address, subnet)])
    }

    #[test]
    fn a_good_list_knows_its_own_node_and_its_peers() {
        let s = two("192.0.2.2", "10.244.2.0/24").unwrap();
        assert_eq!(s.own().name, "a");
        assert_eq!(s.peers().map(|n| n.name.as_str()).collect::<Vec<_>>(), ["b"]);
        assert_eq!(s.node_prefix(), 24);
    }

    #[test]
    fn inconsistent_lists_are_refused_by_name() {
        use SnapshotError as E;
        let is = |result: Result<Snapshot, E>, wanted: fn(&E) -> bool| {
            let error = result.unwrap_err();
            assert!(wanted(&error), "{error}");
        };
        is(
            snapshot(vec![node("b", "192.0.2.1", "10.244.1.0/24")]),
            |e| matches!(e, E::OwnNodeAbsent(n) if n == "a"),
        );
        is(two("192.0.2.1", "10.244.2.0/24"), |e| matches!(e, E::DuplicateAddress(..)));
        is(two("192.0.2.2", "10.244.1.0/24"), |e| matches!(e, E::Overlap(..)));
        is(two("192.0.2.2", "10.244.1.128/25"), |e| matches!(e, E::Overlap(..)));
        is(two("192.0.2.2", "10.244.0.0/22"), |e| matches!(e, E::Overlap(..)));
        is(two("192.0.2.2", "10.245.1.0/24"), |e| matches!(e, E::OutsideNetwork(..)));
        is(two("192.0.2.2", "10.0.0.0/8"), |e| matches!(e, E::OutsideNetwork(..)));
        is(two("192.0.2.2", "10.244.2.1/24"), |e| matches!(e, E::HostBits { .. }));
        is(two("192.0.2.2", "10.244.2.0/31"), |e| matches!(e, E::TooSmall(..)));
        is(two("10.244.9.1", "10.244.2.0/24"), |e| matches!(e, E::AddressInPodNetwork(..)));
        for bad in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "169.254.0.1", "fd00::1"] {
            is(two(bad, "10.244.2.0/24"), |e| matches!(e, E::BadAddress(..)));
        }
        is(
            snapshot(vec![node("a", "192.0.2.1", "10.244.1.0/24"), node("a", "192.0.2.2", "10.244.2.0/24")]),
            |e| matches!(e, E::DuplicateName(..)),
        );
        is(
            snapshot(vec![
                node("a", "192.0.2.1", "10.244.0.0/17"),
                node("b", "192.0.2.2", "10.244.128.0/30"),
                node("c", "192.0.2.3", "10.244.192.0/18"),
            ])
            .and_then(|_| {
                Snapshot::new(
                    vec![node("a", "192.0.2.1", "10.0.0.0/9"), node("b", "192.0.2.2", "10.128.0.0/30")],
                    "a",
                    "10.0.0.0/8".parse().unwrap(),
                )
            }),
            |e| matches!(e, E::TooManyEntries { .. }),
        );
    }

    #[test]
    fn gateways_are_the_first_host_and_macs_are_stable_unicast() {
        assert_eq!(gateway("10.244.3.0/24".parse().unwrap()).to_string(), "10.244.3.1");
        let mac = vtep_mac("192.0.2.1".parse().unwrap());
        assert_eq!(mac, [0x0a, 0x6f, 192, 0, 2, 1]);
        assert_eq!(mac[0] & 3, 2);
        assert_ne!(vtep_mac("fd00::1".parse().unwrap()), vtep_mac("fd00::2".parse().unwrap()));
    }
}
