//! Node ports, from everywhere, and what is no part of the cluster.

use anyhow::{Context as _, Result};
use overlay_tests::traffic::{any_port, ping, tcp, udp};

use super::Scenario;
use super::call::{Seen, call_cluster_ip, call_node_port, expect_silence};
use super::inside::pairs;
use crate::bed::{Bed, NODES, Place};

pub(super) const ALL: &[Scenario] = &[
    Scenario::new("world to NodePort, backend on the node", world_here),
    Scenario::new("world to NodePort, backend on another node", world_elsewhere),
    Scenario::new("world to NodePort Local, backend on the node", world_local_here),
    Scenario::new("world to NodePort Local, no backend on the node", world_local_elsewhere),
    Scenario::new("pod to NodePort of its node", pod_own),
    Scenario::new("pod to NodePort of another node, backend there", pod_other_there),
    Scenario::new("pod to NodePort of another node, backend on its own", pod_other_back),
    Scenario::new("pod to NodePort of another node, backend on a third", pod_other_third),
    Scenario::new("pod to NodePort Local of its node", pod_own_local),
    Scenario::new("pod to NodePort Local of another node, backend there", pod_other_local_there),
    Scenario::new("pod to NodePort Local of another node, backend on its own", pod_other_local_back),
    Scenario::new("pod to NodePort Local of another node, backend on a third", pod_other_local_third),
    Scenario::new("backend to itself by NodePort", backend_itself),
    Scenario::new("node to its own NodePort", node_own),
    Scenario::new("node to NodePort of another node", node_other),
    Scenario::new("node to NodePort Local of another node", node_other_local),
    Scenario::new("pods to pods, nodes and the world, directly", direct),
];

pub(super) const CONTAINER: &[Scenario] = &[
    Scenario::new("container of Docker's to the world", container_world),
    Scenario::new("container of Docker's to ClusterIP", container_cluster_ip),
    Scenario::new("container of Docker's to NodePort", container_node_port),
];

/// The node that is neither of both.
fn third(one: &str, other: &str) -> &'static str {
    NODES.into_iter().find(|node| *node != one && *node != other).expect("three nodes")
}

fn local(node: &str) -> String {
    format!("local-{node}")
}

fn world_here(bed: &mut Bed) -> Result<()> {
    for node in NODES {
        call_node_port(bed, &bed.world, (node, node), Seen::Node(node))?;
    }
    Ok(())
}

fn world_elsewhere(bed: &mut Bed) -> Result<()> {
    for (node, backend) in pairs() {
        call_node_port(bed, &bed.world, (backend, node), Seen::Node(node))?;
    }
    Ok(())
}

fn world_local_here(bed: &mut Bed) -> Result<()> {
    for node in NODES {
        call_node_port(bed, &bed.world, (&local(node), node), Seen::Client)?;
    }
    Ok(())
}

fn world_local_elsewhere(bed: &mut Bed) -> Result<()> {
    for (node, backend) in pairs().take(2) {
        expect_silence(bed, &bed.world, (&local(backend), node))?;
    }
    Ok(())
}

fn pod_own(bed: &mut Bed) -> Result<()> {
    for node in NODES {
        for backend in NODES {
            call_node_port(bed, bed.pod(node, "a"), (backend, node), Seen::Node(node))?;
        }
    }
    Ok(())
}

fn pod_other_there(bed: &mut Bed) -> Result<()> {
    for (from, node) in pairs() {
        call_node_port(bed, bed.pod(from, "a"), (node, node), Seen::Node(node))?;
    }
    Ok(())
}

fn pod_other_back(bed: &mut Bed) -> Result<()> {
    for (from, node) in pairs() {
        call_node_port(bed, bed.pod(from, "a"), (from, node), Seen::Node(node))?;
    }
    Ok(())
}

fn pod_other_third(bed: &mut Bed) -> Result<()> {
    for (from, node) in pairs() {
        call_node_port(bed, bed.pod(from, "a"), (third(from, node), node), Seen::Node(node))?;
    }
    Ok(())
}

fn pod_own_local(bed: &mut Bed) -> Result<()> {
    // Pods of the cluster are not outside: they get any backend, under their own address.
    for node in NODES {
        for backend in NODES {
            call_node_port(bed, bed.pod(node, "a"), (&local(backend), node), Seen::Client)?;
        }
    }
    Ok(())
}

/// On Flannel a pod has its node's address for other nodes.
fn seen_of_pod<'a>(bed: &Bed, from: &'a str) -> Seen<'a> {
    if bed.overlay_nodes().is_empty() { Seen::Node(from) } else { Seen::Client }
}

fn pod_other_local_there(bed: &mut Bed) -> Result<()> {
    for (from, node) in pairs() {
        call_node_port(bed, bed.pod(from, "a"), (&local(node), node), seen_of_pod(bed, from))?;
    }
    Ok(())
}

fn pod_other_local_back(bed: &mut Bed) -> Result<()> {
    for (from, node) in pairs().filter(|_| !bed.overlay_nodes().is_empty()) {
        // A node relays for a pod of another node only under its own address: nobody would believe it the pod's.
        call_node_port(bed, bed.pod(from, "a"), (&local(from), node), Seen::Node(node))?;
    }
    Ok(())
}

fn pod_other_local_third(bed: &mut Bed) -> Result<()> {
    for (from, node) in pairs().filter(|_| !bed.overlay_nodes().is_empty()) {
        call_node_port(bed, bed.pod(from, "a"), (&local(third(from, node)), node), Seen::Node(node))?;
    }
    Ok(())
}

fn backend_itself(bed: &mut Bed) -> Result<()> {
    for node in NODES {
        for by in NODES {
            call_node_port(bed, bed.pod(node, "b"), (node, by), Seen::Node(by))?;
        }
    }
    Ok(())
}

fn node_own(bed: &mut Bed) -> Result<()> {
    for node in NODES {
        for backend in NODES {
            call_node_port(bed, bed.node(node), (backend, node), Seen::ClientNode)?;
            call_node_port(bed, bed.node(node), (&local(backend), node), Seen::ClientNode)?;
        }
    }
    Ok(())
}

fn node_other(bed: &mut Bed) -> Result<()> {
    for (from, node) in pairs() {
        for backend in NODES {
            call_node_port(bed, bed.node(from), (backend, node), Seen::Node(node))?;
        }
    }
    Ok(())
}

fn node_other_local(bed: &mut Bed) -> Result<()> {
    for (from, node) in pairs() {
        call_node_port(bed, bed.node(from), (&local(node), node), Seen::ClientNode)?;
    }
    Ok(())
}

/// TCP, UDP and ping without any Service.
fn exchange(client: &Place, server: &Place) -> Result<()> {
    let what = || format!("{} to {}", client.name, server.name);
    let at = any_port(server.addr);
    tcp::exchange(&client.namespace, &server.namespace, at).with_context(what)?;
    udp::exchange(&client.namespace, &server.namespace, at).with_context(what)?;
    ping::ping(&client.namespace, server.addr).with_context(what).map(drop)
}

fn direct(bed: &mut Bed) -> Result<()> {
    for (from, to) in pairs() {
        exchange(bed.pod(from, "a"), bed.pod(to, "b"))?;
        exchange(bed.pod(from, "a"), bed.node(to))?;
        exchange(bed.node(from), bed.pod(to, "b"))?;
    }
    for node in NODES {
        exchange(bed.pod(node, "a"), bed.pod(node, "b"))?;
        exchange(bed.pod(node, "a"), &bed.world)?;
    }
    Ok(())
}

fn container_world(bed: &mut Bed) -> Result<()> {
    bed.containers.iter().try_for_each(|container| exchange(container, &bed.world))
}

fn container_cluster_ip(bed: &mut Bed) -> Result<()> {
    for container in &bed.containers {
        for backend in NODES {
            call_cluster_ip(bed, container, backend, Seen::Node(&container.node))?;
        }
    }
    Ok(())
}

fn container_node_port(bed: &mut Bed) -> Result<()> {
    for container in &bed.containers {
        for node in NODES {
            call_node_port(bed, container, ("w1", node), Seen::Node(node))?;
        }
    }
    Ok(())
}
