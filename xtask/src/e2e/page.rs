//! The page and the metrics of every agent, as the chart's `overlay.metrics.enabled` has them: a real Prometheus in a pod
//! scrapes all nodes, evaluates the alert rules of deploy/prometheus and finds nothing wrong.
//!
//! Prometheus is the one that is installed on this machine, in an image made of it.

use std::{fmt::Write as _, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{
    NAMESPACE, SYSTEM, Suite,
    cluster::wait,
    fresh::{agents, agents_ready, name, nodes},
    members::identity,
};
use crate::{image, toolchain::find_program};

/// The image, and what is in it: the server, and a program to ask it with.
pub(super) const REFERENCE: &str = concat!("localhost/overlay-prometheus:", env!("CARGO_PKG_VERSION"));
pub(super) const PROGRAMS: [&str; 2] = ["prometheus", "busybox"];
const PORT: u16 = 9879;
const LIMIT: Duration = Duration::from_mins(2);
/// The alert rules, as they are delivered.
const RULES: &str = include_str!("../../../deploy/prometheus/alerts.yaml");

/// The case.
pub(super) fn run(suite: &Suite<'_>) -> Result<()> {
    let prometheus = suite.images.prometheus.as_ref().context("there is no image of Prometheus")?;
    suite.cluster.load(prometheus)?;
    // As the chart does it: the nodes' own addresses, and probes there.
    let probe = json!({ "httpGet": { "host": null } });
    let agent = json!({
        "name": "agent",
        "env": [
            { "name": "HOST_IP", "valueFrom": { "fieldRef": { "fieldPath": "status.hostIP" } } },
            { "name": "OVERLAY_HEALTH", "value": format!("$(HOST_IP):{PORT}") },
        ],
        "startupProbe": probe, "livenessProbe": probe, "readinessProbe": probe,
    });
    let patch = json!({ "spec": { "template": { "spec": { "containers": [agent] } } } });
    let daemonset = ["-n", SYSTEM, "daemonset/overlay"];
    let patched = suite.cluster.kubectl(&[&["patch"][..], &daemonset, &["-p", &patch.to_string()]].concat());
    let seen = patched.and_then(|_| {
        agents_ready(suite)?;
        look(suite)
    });
    suite.cluster.kubectl(&[
        "delete",
        "pod,configmap",
        "prometheus",
        "-n",
        NAMESPACE,
        "--ignore-not-found",
    ])?;
    suite.cluster.kubectl(&[&["rollout", "undo"][..], &daemonset].concat())?;
    agents_ready(suite)?;
    seen
}

/// With agents that answer on their nodes' addresses.
fn look(suite: &Suite<'_>) -> Result<()> {
    let mut targets = Vec::new();
    for node in nodes(suite)? {
        targets.push((name(&node).to_owned(), format!("{}:{PORT}", identity(&node)?.1)));
    }
    start(suite, &targets)?;
    for (node, address) in &targets {
        let page = get(suite, &format!("http://{address}/"))?;
        ensure!(page.starts_with("<!doctype html>"), "the page of {node} is {page}");
        let said: Value = serde_json::from_str(&get(suite, &format!("http://{address}/api/status"))?)
            .with_context(|| format!("read /api/status of {node}"))?;
        ensure!(said["node"] == node.as_str() && said["ready"] == true, "{said}");
        eprintln!("page of {node}: {} bytes, and what it shows: {}", page.len(), said["mesh"]["states"]);
    }
    let count = targets.len();
    for (expression, wanted) in [
        ("count(up{job=\"overlay\"} == 1)".to_owned(), count),
        ("sum(overlay_ready)".to_owned(), count),
        ("sum(overlay_mesh_peers{state=\"up\"})".to_owned(), count * (count - 1)),
        // Two scrapes of each, and with them a rate.
        ("count(rate(overlay_forwarded_packets_total{path=\"encap_native\"}[1m]))".to_owned(), count),
        ("sum(overlay_endpoints)".to_owned(), endpoints(suite)?),
    ] {
        wait(&format!("{expression} is {wanted}"), LIMIT, || {
            let found = value(suite, &expression)?;
            Ok((found != wanted.to_string()).then(|| format!("it is {found}")))
        })?;
        eprintln!("Prometheus: {expression} is {wanted}");
    }
    let mut states = Vec::new();
    wait("all alert rules are evaluated", LIMIT, || {
        let answer: Value =
            serde_json::from_str(&get(suite, &own("/api/v1/rules"))?).context("read the rules")?;
        let rules = answer["data"]["groups"][0]["rules"].as_array().cloned().unwrap_or_default();
        states = rules.iter().map(|rule| (rule["name"].clone(), rule["state"].clone())).collect();
        let healthy = !rules.is_empty() && rules.iter().all(|rule| rule["health"] == "ok");
        Ok((!healthy).then(|| answer.to_string()))
    })?;
    if let Some((rule, _)) = states.iter().find(|(_, state)| state == "firing") {
        bail!("the alert {rule} fires");
    }
    eprintln!("Prometheus: {} alert rules evaluated, none fires", states.len());
    Ok(())
}

/// A pod with Prometheus, which reaches the nodes as every pod does.
fn start(suite: &Suite<'_>, targets: &[(String, String)]) -> Result<()> {
    let addresses: Vec<&str> = targets.iter().map(|(_, address)| address.as_str()).collect();
    // JSON is YAML.
    let config = json!({
        "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
        "rule_files": ["/etc/prometheus/alerts.yaml"],
        "scrape_configs": [{ "job_name": "overlay", "static_configs": [{ "targets": addresses }] }],
    });
    let files = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "prometheus", "namespace": NAMESPACE },
        "data": { "prometheus.yml": config.to_string(), "alerts.yaml": RULES },
    });
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "prometheus", "namespace": NAMESPACE },
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false,
            "tolerations": [{ "operator": "Exists" }],
            "containers": [{
                "name": "prometheus", "image": REFERENCE, "imagePullPolicy": "IfNotPresent",
                "args": ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/data"],
                "volumeMounts": [
                    { "name": "config", "mountPath": "/etc/prometheus" }, { "name": "data", "mountPath": "/data" },
                ],
            }],
            "volumes": [
                { "name": "config", "configMap": { "name": "prometheus" } }, { "name": "data", "emptyDir": {} },
            ],
        },
    });
    super::pods::namespace(suite)?;
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": [files, pod] });
    suite.cluster.kubectl_with(&["apply", "-f", "-"], &list.to_string())?;
    wait("Prometheus is ready", LIMIT, || get(suite, &own("/-/ready")).map(|_| None)).map(drop)
}

fn own(path: &str) -> String {
    format!("http://127.0.0.1:9090{path}")
}

/// What the pod is answered at a URL.
fn get(suite: &Suite<'_>, url: &str) -> Result<String> {
    let wget = ["exec", "-n", NAMESPACE, "prometheus", "--", "busybox", "wget", "-q", "-O", "-", url];
    suite.cluster.kubectl(&wget)
}

/// The only value of a query.
fn value(suite: &Suite<'_>, expression: &str) -> Result<String> {
    let mut path = "/api/v1/query?query=".to_owned();
    for byte in expression.bytes() {
        write!(path, "%{byte:02X}").context("write a query")?;
    }
    let answer: Value = serde_json::from_str(&get(suite, &own(&path))?).context("read the answer")?;
    let value = answer["data"]["result"][0]["value"][1].as_str();
    Ok(value.with_context(|| format!("no value: {answer}"))?.to_owned())
}

/// How many all nodes have.
fn endpoints(suite: &Suite<'_>) -> Result<usize> {
    let mut all = 0;
    for (_, agent) in agents(suite)? {
        all += super::fresh::overlay(suite, &agent, "endpoints")?.as_array().map_or(0, Vec::len);
    }
    Ok(all)
}

/// What the case is impossible without.
pub(super) fn lacks() -> Option<&'static str> {
    find_program("prometheus").is_none().then_some("needs prometheus (package prometheus)")
}

/// Makes the image.
pub(super) fn build(output: &std::path::Path) -> Result<()> {
    image::of_programs(&PROGRAMS, REFERENCE, output)
}
