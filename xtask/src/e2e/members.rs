//! A node comes: how long until its pods and the old ones reach each other. It goes: nothing of it stays anywhere.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

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
            let map = NodeMap::read(suite, agent)?;
            if map.hosts.contains(&address) || map.subnets.iter().any(|(known, _)| *known == subnet) {
                return Ok(Some(format!("{of} still has it")));
            }
        }
        Ok(None)
    })?;
    eprintln!(
        "{new}: in nobody's map {:.1} s after its Node object was gone",
        time.max(object.elapsed()).as_secs_f64()
    );
    // Kubernetes keeps its pods for a while; cases after this one would ask them.
    let of_node = format!("spec.nodeName={new}");
    wait("no pod of the removed node", Duration::from_mins(3), || {
        let left =
            suite.cluster.kubectl(&["get", "pods", "-A", "-o", "name", "--field-selector", &of_node])?;
        Ok((!left.trim().is_empty()).then_some(left))
    })?;
    Ok(())
}

/// What a node's map says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NodeMap {
    /// Subnets and the nodes that they are at.
    pub(super) subnets: BTreeSet<(String, String)>,
    /// Addresses of nodes.
    pub(super) hosts: BTreeSet<String>,
}

impl NodeMap {
    /// That of the node of an agent.
    pub(super) fn read(suite: &Suite<'_>, agent: &Value) -> Result<Self> {
        Self::parse(&overlay(suite, agent, "nodes")?)
    }

    fn parse(entries: &Value) -> Result<Self> {
        let mut map = Self { subnets: BTreeSet::new(), hosts: BTreeSet::new() };
        for entry in entries.as_array().context("overlay nodes prints no list")? {
            let text = |key: &str| {
                entry[key].as_str().map(str::to_owned).with_context(|| format!("no {key} in {entry}"))
            };
            if entry["host"] == true {
                map.hosts.insert(text("address")?);
            } else {
                map.subnets.insert((format!("{}/{}", text("address")?, entry["prefix_len"]), text("vtep")?));
            }
        }
        Ok(map)
    }
}

/// Subnet and address of a node.
pub(super) fn identity(node: &Value) -> Result<(String, String)> {
    let subnet = node["spec"]["podCIDR"].as_str().context("the node has no podCIDR")?;
    let addresses = node["status"]["addresses"].as_array();
    let internal = addresses.and_then(|all| all.iter().find(|address| address["type"] == "InternalIP"));
    let address = internal.and_then(|one| one["address"].as_str()).context("the node has no InternalIP")?;
    Ok((subnet.to_owned(), address.to_owned()))
}

/// Who does not have the node in its map.
fn missing(suite: &Suite<'_>, node: &Value) -> Result<Option<String>> {
    let wanted = identity(node)?;
    for (of, agent) in agents(suite)?.iter().filter(|(of, _)| of != name(node)) {
        if !NodeMap::read(suite, agent)?.subnets.contains(&wanted) {
            return Ok(Some(format!("{of} lacks {wanted:?}")));
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn subnets_and_nodes_are_told_apart_in_a_map() {
        let entries = json!([
            { "address": "10.244.1.0", "prefix_len": 24, "vtep": "192.0.2.1", "host": false },
            { "address": "192.0.2.1", "prefix_len": 32, "vtep": "192.0.2.1", "host": true },
        ]);
        let map = NodeMap::parse(&entries).unwrap();
        let node = json!({
            "spec": { "podCIDR": "10.244.1.0/24" },
            "status": { "addresses": [
                { "type": "Hostname", "address": "n1" }, { "type": "InternalIP", "address": "192.0.2.1" },
            ] },
        });
        assert_eq!(map.subnets, BTreeSet::from([identity(&node).unwrap()]));
        assert_eq!(map.hosts, BTreeSet::from(["192.0.2.1".to_owned()]));
        assert!(NodeMap::parse(&json!([{ "address": "10.244.1.0" }])).is_err());
    }
}
