//! A node comes: how long until its pods and the old ones reach each other. It goes: nothing of it stays anywhere.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{
    Suite,
    cluster::{Cluster, wait},
    fresh::{LIMIT, agents, agents_ready, name, nodes, overlay},
    pods::{self, Pod, untranslated},
};

/// The case.
pub(super) fn run(suite: &Suite<'_>) -> Result<()> {
    let options = suite.options;
    let (Some(add), Some(remove), Some(new)) = (&options.node_add, &options.node_remove, &options.new_node)
    else {
        bail!("needs --node-add, --node-remove and --new-node");
    };
    let before = pods::probes(suite)?;
    ensure!(!nodes(suite)?.iter().any(|node| name(node) == new), "{new} is a node of the cluster already");
    let come = || -> Result<Value> {
        Cluster::outside(add)?;
        let node = suite.cluster.get(&["node", new])?;
        let object = Instant::now();
        for archive in [&suite.images.overlay, &suite.images.probe] {
            suite.cluster.load(archive)?;
        }
        let loaded = object.elapsed();
        let entry = wait("the new node in the maps of all others", LIMIT, || missing(suite, &node))?;
        agents_ready(suite)?;
        let ready = object.elapsed();
        let probes = pods::probes(suite)?;
        let fresh =
            probes.iter().find(|pod| pod.node == *new && !pod.host).context("find a pod on the new node")?;
        let running = object.elapsed();
        reach(suite, fresh, &before)?;
        eprintln!(
            "{new}: images loaded {:.1} s after its Node object, in the maps of all nodes {:.1} s, agent ready {:.1} s, \
             pods ready {:.1} s, packets of theirs to and from {} old pods {:.1} s",
            loaded.as_secs_f64(),
            (loaded + entry).as_secs_f64(),
            ready.as_secs_f64(),
            running.as_secs_f64(),
            before.len(),
            object.elapsed().as_secs_f64()
        );
        first_packet(suite, &node, fresh)?;
        Ok(node)
    };
    let node = come();
    Cluster::outside(remove)?;
    let node = node?;
    let object = Instant::now();
    let time = wait("the removed node in nobody's map", Duration::from_mins(1), || {
        let (subnet, address) = identity(&node)?;
        for (of, agent) in agents(suite)?.iter().filter(|(of, _)| of != new) {
            let text = overlay(suite, agent, "nodes")?.to_string();
            if text.contains(&subnet) || text.contains(&format!("\"{address}")) {
                return Ok(Some(format!("{of} still has it")));
            }
        }
        Ok(None)
    })?;
    eprintln!(
        "{new}: in nobody's map {:.1} s after its Node object was gone",
        time.max(object.elapsed()).as_secs_f64()
    );
    Ok(())
}

/// Subnet and address of a node.
fn identity(node: &Value) -> Result<(String, String)> {
    let subnet = node["spec"]["podCIDR"].as_str().context("the node has no podCIDR")?;
    let addresses = node["status"]["addresses"].as_array();
    let internal = addresses.and_then(|all| all.iter().find(|address| address["type"] == "InternalIP"));
    let address = internal.and_then(|one| one["address"].as_str()).context("the node has no InternalIP")?;
    Ok((subnet.to_owned(), address.to_owned()))
}

/// Who does not have the node in its map.
fn missing(suite: &Suite<'_>, node: &Value) -> Result<Option<String>> {
    let (subnet, _) = identity(node)?;
    for (of, agent) in agents(suite)?.iter().filter(|(of, _)| of != name(node)) {
        if !overlay(suite, agent, "nodes")?.to_string().contains(&subnet) {
            return Ok(Some(format!("{of} lacks {subnet}")));
        }
    }
    Ok(None)
}

/// A new pod reaches all old ones, and they it.
fn reach(suite: &Suite<'_>, fresh: &Pod, old: &[Pod]) -> Result<()> {
    let question = |pod: &Pod| format!("tcp:{}:{}", pod.address, pod.port());
    for answer in pods::ask(suite, &fresh.name, &old.iter().map(question).collect::<Vec<_>>())? {
        untranslated(&answer)?;
    }
    for pod in old {
        for answer in pods::ask(suite, &pod.name, &[question(fresh)])? {
            untranslated(&answer)?;
        }
    }
    Ok(())
}

/// From the times that the API server has: the Node object, and the pod's being ready, which its node's kubelet has found by a
/// packet to it.
fn first_packet(suite: &Suite<'_>, node: &Value, pod: &Pod) -> Result<()> {
    let pod = suite.cluster.get(&["pod", "-n", super::NAMESPACE, &pod.name])?;
    let conditions = pod["status"]["conditions"].as_array();
    let ready = conditions.and_then(|all| all.iter().find(|one| one["type"] == "Ready"));
    let ready = ready.and_then(|one| one["lastTransitionTime"].as_str()).context("the pod is not ready")?;
    let created = node["metadata"]["creationTimestamp"].as_str().context("the node has no age")?;
    eprintln!("by the API server's clock: Node object {created}, its pod ready {ready}");
    Ok(())
}
