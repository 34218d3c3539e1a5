//! Installation and removal, and what a network has to do first of all: everybody reaches everybody, untranslated.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{
    NAMESPACE, SYSTEM, Suite,
    cluster::wait,
    crowd,
    pods::{self, Pod, untranslated},
};

/// For a rollout on a slow machine.
pub(super) const LIMIT: Duration = Duration::from_mins(5);

/// The nodes that machines stand behind.
pub(super) fn nodes(suite: &Suite<'_>) -> Result<Vec<Value>> {
    suite.cluster.list(&["nodes", "-l", &format!("!{}", crowd::LABEL)])
}

pub(super) fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

fn is_ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}

/// Loads the images, applies the manifest and waits until all nodes and agents are ready.
pub(super) fn install(suite: &Suite<'_>) -> Result<()> {
    for archive in [&suite.images.overlay, &suite.images.probe] {
        suite.cluster.load(archive).with_context(|| format!("load {}", archive.display()))?;
    }
    let before = nodes(suite)?;
    ensure!(!before.is_empty(), "the cluster has no nodes");
    let unready = before.iter().filter(|node| !is_ready(node)).count();
    let start = Instant::now();
    suite.cluster.kubectl_with(&["apply", "-f", "-"], &suite.manifest)?;
    wait("all nodes ready", LIMIT, || {
        let unready: Vec<_> =
            nodes(suite)?.iter().filter(|node| !is_ready(node)).map(name).map(str::to_owned).collect();
        Ok((!unready.is_empty()).then(|| unready.join(", ")))
    })?;
    let ready = start.elapsed();
    agents_ready(suite)?;
    eprintln!(
        "{} nodes, {unready} of them not ready before: all ready {:.1} s after kubectl apply, all agents {:.1} s",
        before.len(),
        ready.as_secs_f64(),
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Waits until the DaemonSet is what it should be, everywhere.
pub(super) fn agents_ready(suite: &Suite<'_>) -> Result<Duration> {
    wait("all agents ready", LIMIT, || {
        let set = suite.cluster.get(&["daemonset", "overlay", "-n", SYSTEM])?;
        let status = |key: &str| set["status"][key].as_u64().unwrap_or(0);
        let wanted = status("desiredNumberScheduled");
        let done = set["metadata"]["generation"] == set["status"]["observedGeneration"]
            && wanted > 0
            && status("numberReady") == wanted
            && status("updatedNumberScheduled") == wanted;
        Ok((!done).then(|| set["status"].to_string()))
    })
}

/// Waits until no agent has anything left that it could not do, and every node is as it should be.
pub(super) fn settled(suite: &Suite<'_>) -> Result<()> {
    wait("the doctor finds nothing on any node", LIMIT, || {
        for (node, agent) in agents(suite)? {
            let doctor = ["/overlay", "doctor", "--only", "agent,drift"];
            let exec = ["exec", "-n", SYSTEM, name(&agent), "-c", "agent", "--"];
            let (fine, said) = suite.cluster.attempt(&[&exec[..], &doctor].concat())?;
            if !fine {
                return Ok(Some(format!("{node}: {said}")));
            }
        }
        Ok(None)
    })
    .map(drop)
}

/// The pods of the agents, by node. That of a node that has gone stays for a while.
pub(super) fn agents(suite: &Suite<'_>) -> Result<Vec<(String, Value)>> {
    let nodes: Vec<String> = nodes(suite)?.iter().map(|node| name(node).to_owned()).collect();
    let pods = suite.cluster.list(&["pods", "-n", SYSTEM, "-l", "app.kubernetes.io/name=overlay"])?;
    let live = pods.into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    let by_node = live.map(|pod| (pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned(), pod));
    Ok(by_node.filter(|(node, _)| nodes.contains(node)).collect())
}

/// What `overlay COMMAND -o json` prints in an agent's pod.
pub(super) fn overlay(suite: &Suite<'_>, agent: &Value, command: &str) -> Result<Value> {
    let arguments =
        ["exec", "-n", SYSTEM, name(agent), "-c", "agent", "--", "/overlay", command, "-o", "json"];
    let text = suite.cluster.kubectl(&arguments)?;
    serde_json::from_str(&text).with_context(|| format!("read what overlay {command} prints"))
}

/// The case.
pub(super) fn run(suite: &Suite<'_>) -> Result<()> {
    let probes = pods::probes(suite)?;
    let (mut ways, mut failures) = (0, Vec::new());
    for source in &probes {
        let others = probes.iter().filter(|target| target.name != source.name && is_meant(source, target));
        let questions: Vec<String> = others.flat_map(questions).collect();
        ways += questions.len();
        let answers = pods::ask(suite, &source.name, &questions)?;
        ensure!(answers.len() == questions.len(), "{}: {} answers", source.name, answers.len());
        for answer in &answers {
            // Also: pods send from their own address, whatever they reach.
            let own = source.host
                || answer["seen"]
                    .as_str()
                    .is_none_or(|seen| seen.starts_with(&format!("{}:", source.address)));
            if let Err(error) = untranslated(answer) {
                failures.push(format!("{} on {}: {error}", source.name, source.node));
            } else if !own {
                failures.push(format!("{} on {}: seen as {}", source.name, source.node, answer["seen"]));
            }
        }
    }
    let hosts = probes.iter().filter(|pod| pod.host).count();
    eprintln!(
        "{} pods in the pod network and {hosts} in the nodes' own: {ways} questions by TCP, UDP and ping, {} failed",
        probes.len() - hosts,
        failures.len()
    );
    if failures.is_empty() { Ok(()) } else { bail!("{}", failures.join("; ")) }
}

/// What nodes say to nodes is not ours.
fn is_meant(source: &Pod, target: &Pod) -> bool {
    !(source.host && target.host)
}

fn questions(target: &Pod) -> [String; 3] {
    let Pod { address, .. } = target;
    let port = target.port();
    [format!("tcp:{address}:{port}"), format!("udp:{address}:{port}"), format!("ping:{address}")]
}

/// Takes everything away again.
pub(super) fn remove(suite: &Suite<'_>, keep: bool) -> Result<()> {
    suite.cluster.kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=300s"])?;
    if keep {
        return Ok(());
    }
    suite
        .cluster
        .kubectl_with(&["delete", "--ignore-not-found", "--timeout=300s", "-f", "-"], &suite.manifest)?;
    if suite.options.access.node_exec.is_none() {
        return Ok(());
    }
    for node in nodes(suite)? {
        let node = name(&node);
        // A terminated container may hold its locks a moment longer than its pod exists.
        thread::sleep(Duration::from_secs(1));
        leave(suite, node)?;
        let left = suite.cluster.on_node(node, &["sh", "-c", LEFT])?;
        ensure!(left.trim().is_empty(), "{node}: cleanup has left {}", left.trim());
    }
    Ok(())
}

/// `overlay cleanup` on a node: removes what a dry run has listed, and then there is nothing to list.
fn leave(suite: &Suite<'_>, node: &str) -> Result<()> {
    // It removes the installed binary as well, so that a copy has to do it.
    let copy = format!("/tmp/overlay-e2e-{node}");
    suite.cluster.on_node(node, &["cp", "/opt/cni/bin/overlay", &copy])?;
    let cleanup = |arguments: &[&str]| {
        suite.cluster.on_node(node, &[&[copy.as_str(), "cleanup", "--pods"], arguments].concat())
    };
    let things = |said: &str, begin: &str| -> Vec<String> {
        said.lines().filter_map(|line| line.strip_prefix(begin)).map(str::to_owned).collect()
    };
    let left = || -> Result<()> {
        let listed = things(&cleanup(&["--dry-run"])?, "would remove ");
        let removed = things(&cleanup(&[])?, "removed ");
        ensure!(!listed.is_empty() && listed == removed, "{node}: listed {listed:?}, removed {removed:?}");
        let again = cleanup(&["--dry-run"])?;
        ensure!(again.trim().is_empty(), "{node}: after cleanup it lists {}", again.trim());
        eprintln!("{node}: cleanup has listed and removed {} things; nothing is left to list", removed.len());
        Ok(())
    };
    let result = left();
    suite.cluster.on_node(node, &["rm", &copy])?;
    result
}

/// Prints what there should not be any more.
const LEFT: &str = "ls -d /sys/fs/bpf/overlay /opt/cni/bin/overlay /etc/cni/net.d/*overlay* 2>/dev/null; \
                    ip -br link | grep -E '^(overlay|ov[0-9a-f]{11})'; nft list tables | grep overlay; \
                    ip rule | grep 'lookup 79'; ip route show table all proto 79; true";
