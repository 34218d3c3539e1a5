//! Hundreds of pods, made and deleted by a Deployment: each gets an address of its own, none is left behind.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{
    NAMESPACE, Suite,
    cluster::wait,
    fresh::{agents, overlay},
    pods::{namespace, template},
};

/// A second for each pod, and something to begin with: machines may be small.
fn limit(pods: usize) -> Duration {
    Duration::from_secs(120 + 3 * pods as u64)
}

/// The case.
pub(super) fn run(suite: &Suite<'_>) -> Result<()> {
    namespace(suite)?;
    let before = endpoints(suite)?;
    let labels = json!({ "app": "crowd" });
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "crowd", "namespace": NAMESPACE },
        "spec": { "replicas": 0, "selector": { "matchLabels": labels }, "template": template("crowd", &["serve"]) },
    });
    suite.cluster.kubectl_with(&["apply", "-f", "-"], &deployment.to_string())?;
    let most = suite.options.pods;
    for replicas in [most, most / 10, most, 0] {
        let count = replicas.to_string();
        suite.cluster.kubectl(&["scale", "-n", NAMESPACE, "deployment/crowd", "--replicas", &count])?;
        let mut seen = Vec::new();
        let time = wait(&format!("{replicas} pods"), limit(most), || {
            seen = suite.cluster.list(&["pods", "-n", NAMESPACE, "-l", "app=crowd"])?;
            let ready = seen.iter().filter(|pod| is_ready(pod)).count();
            let done = ready == replicas && seen.len() == replicas;
            Ok((!done).then(|| format!("{ready} of {} pods are ready", seen.len())))
        })?;
        let addresses: BTreeSet<_> = seen.iter().filter_map(|pod| pod["status"]["podIP"].as_str()).collect();
        ensure!(addresses.len() == replicas, "{} different addresses of {replicas} pods", addresses.len());
        balanced(suite, &before, &seen)?;
        eprintln!(
            "{replicas} pods: after {:.1} s, {replicas} addresses, as many endpoints",
            time.as_secs_f64()
        );
    }
    suite.cluster.kubectl(&["delete", "-n", NAMESPACE, "deployment/crowd"]).map(drop)
}

/// Each node has the endpoints of its pods, beyond those that it had.
fn balanced(suite: &Suite<'_>, before: &BTreeMap<String, usize>, pods: &[Value]) -> Result<()> {
    // A runtime may delete a sandbox after its pod.
    wait("endpoints of exactly the pods", Duration::from_mins(1), || {
        for (node, found) in endpoints(suite)? {
            let own = pods.iter().filter(|pod| pod["spec"]["nodeName"] == *node).count();
            let wanted = before.get(&node).copied().unwrap_or(0) + own;
            if found != wanted {
                return Ok(Some(format!("{node} has {found} endpoints instead of {wanted}")));
            }
        }
        Ok(None)
    })
    .map(drop)
}

/// How many endpoints each node has.
fn endpoints(suite: &Suite<'_>) -> Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    for (node, agent) in agents(suite)? {
        let list = overlay(suite, &agent, "endpoints")?;
        let count = list.as_array().map(Vec::len);
        counts.insert(node, count.ok_or_else(|| anyhow::anyhow!("overlay endpoints prints no list"))?);
    }
    Ok(counts)
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    pod["metadata"]["deletionTimestamp"].is_null()
        && conditions
            .is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}
