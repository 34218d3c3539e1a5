//! From pods and nodes to ClusterIPs. A pod's address is never translated on the way to a backend.

use anyhow::Result;

use super::Scenario;
use super::call::{Seen, call_cluster_ip};
use crate::bed::{Bed, NODES};

pub(super) const ALL: &[Scenario] = &[
    Scenario::new("pod to ClusterIP, backend on the same node", pod_same_node),
    Scenario::new("pod to ClusterIP, backend on another node", pod_other_node),
    Scenario::new("pod to its own ClusterIP", pod_itself),
    Scenario::new("node to ClusterIP, backend on the node", node_here),
    Scenario::new("node to ClusterIP, backend on another node", node_elsewhere),
    Scenario::new("pod to ClusterIP of its own node's address", pod_own_node_address),
    Scenario::new("pod to ClusterIP of another node's address", pod_other_node_address),
    Scenario::new("node to ClusterIP of another node's address", node_other_node_address),
];

fn pod_same_node(bed: &mut Bed) -> Result<()> {
    for node in NODES {
        call_cluster_ip(bed, bed.pod(node, "a"), node, Seen::Client)?;
    }
    Ok(())
}

fn pod_other_node(bed: &mut Bed) -> Result<()> {
    for (from, to) in pairs() {
        call_cluster_ip(bed, bed.pod(from, "a"), to, Seen::Client)?;
    }
    Ok(())
}

fn pod_itself(bed: &mut Bed) -> Result<()> {
    // It would take an answer from its own address for a stray packet: the node stands in as the client.
    for node in NODES {
        call_cluster_ip(bed, bed.pod(node, "b"), node, Seen::Node(node))?;
    }
    Ok(())
}

fn node_here(bed: &mut Bed) -> Result<()> {
    for node in NODES {
        call_cluster_ip(bed, bed.node(node), node, Seen::ClientNode)?;
    }
    Ok(())
}

fn node_elsewhere(bed: &mut Bed) -> Result<()> {
    for (from, to) in pairs() {
        call_cluster_ip(bed, bed.node(from), to, Seen::ClientNode)?;
    }
    Ok(())
}

fn pod_own_node_address(bed: &mut Bed) -> Result<()> {
    for node in NODES {
        call_cluster_ip(bed, bed.pod(node, "a"), &format!("host-{node}"), Seen::Client)?;
    }
    Ok(())
}

fn pod_other_node_address(bed: &mut Bed) -> Result<()> {
    for (from, to) in pairs() {
        // Flannel gives a pod its node's address for this.
        let seen = if bed.overlay_nodes().is_empty() { Seen::Node(from) } else { Seen::Client };
        call_cluster_ip(bed, bed.pod(from, "a"), &format!("host-{to}"), seen)?;
    }
    Ok(())
}

fn node_other_node_address(bed: &mut Bed) -> Result<()> {
    for (from, to) in pairs() {
        call_cluster_ip(bed, bed.node(from), &format!("host-{to}"), Seen::ClientNode)?;
    }
    Ok(())
}

/// Every two different nodes.
pub(super) fn pairs() -> impl Iterator<Item = (&'static str, &'static str)> {
    let all = NODES.into_iter().flat_map(|from| NODES.map(|to| (from, to)));
    all.filter(|(from, to)| from != to)
}
