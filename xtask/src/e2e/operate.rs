//! What people look at a cluster with, through `kubectl overlay`: status and lists say what is, the doctor finds nothing,
//! monitor and capture show packets that are really sent, a packet is traced on both nodes, a dump holds no secret.

use std::{process::Command, thread, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{
    NAMESPACE, Suite,
    cluster::wait,
    desk::Desk,
    fresh::agents,
    pods::{self, PORT, Pod},
    rights,
};

/// For agents that have just started to have measured each other, and kube-proxy to have heard of a Service.
const LIMIT: Duration = Duration::from_mins(1);
/// How long something that watches packets waits for them.
const WATCH: &str = "60s";
/// Where the nodes have the binary.
const BINARY: &str = "/opt/cni/bin/overlay";

/// The case.
pub(super) fn run(suite: &Suite<'_>) -> Result<()> {
    let desk = Desk::new(suite)?;
    let nodes: Vec<String> = agents(suite)?.into_iter().map(|(node, _)| node).collect();
    let probes = pods::probes(suite)?;
    let in_network: Vec<&Pod> = probes.iter().filter(|pod| !pod.host).collect();
    let here = *in_network.first().context("find a pod")?;
    let there = *in_network.iter().find(|pod| pod.node != here.node).context("find a pod on another node")?;

    mesh(&desk, &nodes)?;
    lists(suite, &desk, &nodes, &in_network)?;
    flows(suite, &desk, here)?;
    doctor(&desk, &nodes)?;
    broken(suite, &desk, &here.node)?;
    dropped(suite, &desk, here)?;
    traced(suite, &desk, here, there)?;
    captured(suite, &desk, here, there)?;
    asked(&desk, here, there)?;
    dumped(suite, &desk, &nodes)
}

/// The pod as Kubernetes calls it.
fn full(pod: &Pod) -> String {
    format!("{NAMESPACE}/{}", pod.name)
}

/// Every agent has measured all others.
fn mesh(desk: &Desk, nodes: &[String]) -> Result<()> {
    for node in nodes {
        let mut worst = 0.0_f64;
        wait(&format!("{node} has measured its peers"), LIMIT, || {
            let status = desk.json(&["-N", node, "status", "-o", "json"])?;
            let mesh = &status["mesh"];
            let latencies = mesh["peers"].as_array().into_iter().flatten();
            worst = latencies.filter_map(|peer| peer["latency_seconds"].as_f64()).fold(0.0, f64::max);
            let up = mesh["up"].as_u64() == Some(nodes.len() as u64 - 1) && mesh["lost"] == 0;
            let ready = status["ready"] == true && status["problems"] == json!([]);
            Ok((!up || !ready).then(|| format!("ready {ready}, mesh {mesh}, {}", status["problems"])))
        })?;
        eprintln!("status of {node}: {} peers up, the slowest {:.2} ms", nodes.len() - 1, worst * 1e3);
    }
    Ok(())
}

/// Endpoints with the names of pods, programs on all their devices, the nodes.
fn lists(suite: &Suite<'_>, desk: &Desk, nodes: &[String], pods: &[&Pod]) -> Result<()> {
    for node in nodes {
        let endpoints = desk.list(node, "endpoints")?;
        for pod in pods.iter().filter(|pod| pod.node == *node) {
            let row = endpoints.iter().find(|row| row["address"] == pod.address.as_str());
            let row = row.with_context(|| format!("{node} does not list {}", pod.address))?;
            ensure!(row["namespace"] == NAMESPACE && row["pod"] == pod.name.as_str(), "{row}");
            ensure!(row["ready"] == true, "{row}");
        }
        let programs = desk.list(node, "programs")?;
        let on_devices = |name: &str| {
            let rows = programs.iter().filter(|row| row["program"] == name && !row["device"].is_null());
            rows.filter(|row| row["current"] == true).count()
        };
        for (program, wanted) in [
            ("from_wire", 1),
            ("from_host", 1),
            ("from_tunnel", 1),
            ("from_pod", endpoints.len()),
            ("to_pod", endpoints.len()),
        ] {
            let found = on_devices(program);
            ensure!(found == wanted, "{node}: {program} is attached to {found} devices instead of {wanted}");
        }
        let listed = desk.list(node, "nodes")?;
        let subnets = listed.iter().filter(|row| row["host"] == false).count();
        let objects = suite.cluster.list(&["nodes"])?.len();
        ensure!(subnets == objects, "{node} knows {subnets} subnets of {objects} Nodes");
        desk.list(node, "ports")?;
        eprintln!("{node}: {} endpoints, programs on all their devices, {subnets} nodes", endpoints.len());
    }
    Ok(())
}

/// What goes by way of a Service is recorded, and listed.
fn flows(suite: &Suite<'_>, desk: &Desk, here: &Pod) -> Result<()> {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "probe", "namespace": NAMESPACE },
        "spec": { "selector": { "app": "probe-b" }, "ports": [{ "port": 80, "targetPort": PORT }] },
    });
    suite.cluster.kubectl_with(&["apply", "-f", "-"], &service.to_string())?;
    let service = suite.cluster.get(&["service", "probe", "-n", NAMESPACE])?;
    let address = service["spec"]["clusterIP"].as_str().context("the Service has no address")?;
    let question = ["--within", "30", &format!("tcp:{address}:80")].map(str::to_owned);
    let answers = pods::ask(suite, &here.name, &question)?;
    let answer = answers.first().context("nobody answers for the Service")?;
    ensure!(answer["error"].is_null(), "{answer}");
    let own = |row: &Value| {
        [&row["source"], &row["destination"]].iter().any(|end| **end == here.address.as_str())
            && row["protocol"] == 6
    };
    let rows = desk.list(&here.node, "flows")?;
    ensure!(rows.iter().any(own), "no flow of {} among {} on {}", here.address, rows.len(), here.node);
    eprintln!("{}: {} recorded flows, the one to the Service {address} among them", here.node, rows.len());
    suite.cluster.kubectl(&["delete", "service", "probe", "-n", NAMESPACE]).map(drop)
}

/// Nothing is wrong here.
fn doctor(desk: &Desk, nodes: &[String]) -> Result<()> {
    for node in nodes {
        let findings = desk.list(node, "doctor")?;
        let of = |severity: &str| findings.iter().filter(|one| one["severity"] == severity).count();
        for finding in findings.iter().filter(|one| one["severity"] == "warning") {
            eprintln!("{node}: {finding}");
        }
        if let Some(error) = findings.iter().find(|one| one["severity"] == "error") {
            bail!("{node}: {error}");
        }
        ensure!(of("ok") > 10, "{node}: {findings:?}");
        eprintln!(
            "doctor on {node}: {} checks ok, {} skipped, {} warnings",
            of("ok"),
            of("skipped"),
            of("warning")
        );
    }
    Ok(())
}

/// What is broken is found: an agent that is stopped, and what it would put right.
fn broken(suite: &Suite<'_>, desk: &Desk, node: &str) -> Result<()> {
    if suite.options.access.node_exec.is_none() {
        return Ok(());
    }
    let signal = |signal: &str| suite.cluster.on_node(node, &["pkill", signal, "-f", "^/overlay agent"]);
    signal("-STOP")?;
    let found = || -> Result<()> {
        suite.cluster.on_node(node, &["nft", "delete", "table", "ip", "overlay"])?;
        let ask = ["-N", node, "doctor", "--only", "agent,drift", "-o", "json"];
        let (code, printed) = desk.plugin(&ask)?;
        let findings: Vec<Value> =
            serde_json::from_str(&printed).with_context(|| format!("read {printed}"))?;
        let is_found = |check: &str, object: &str| {
            let mut errors = findings.iter().filter(|one| one["severity"] == "error");
            errors.any(|one| one["check"] == check && one["object"] == object)
        };
        ensure!(
            code == Some(3) && is_found("agent", "agent") && is_found("drift", "nft table ip overlay"),
            "{findings:?}"
        );
        Ok(())
    };
    let result = found();
    signal("-CONT")?;
    result?;
    let time = wait("the agent has put it right", LIMIT, || {
        let (code, printed) = desk.plugin(&["-N", node, "doctor"])?;
        Ok((code != Some(0)).then_some(printed))
    })?;
    eprintln!(
        "doctor on {node} finds a stopped agent and a table that is gone; all ok {:.1} s after the agent goes on",
        time.as_secs_f64()
    );
    Ok(())
}

/// Something that watches packets until it has seen enough, and gives what it has printed.
type Watcher<'a> = Box<dyn FnOnce() -> Result<String> + Send + 'a>;

/// Runs watchers, each on a thread, while `cause` is done again and again; what they print, in their order.
fn while_done(watchers: Vec<Watcher<'_>>, mut cause: impl FnMut() -> Result<()>) -> Result<Vec<String>> {
    thread::scope(|scope| {
        let watchers: Vec<_> = watchers.into_iter().map(|watcher| scope.spawn(watcher)).collect();
        while watchers.iter().any(|watcher| !watcher.is_finished()) {
            cause()?;
        }
        let ended = watchers.into_iter().map(|watcher| match watcher.join() {
            Ok(printed) => printed,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        ended.collect()
    })
}

/// The objects that a watcher has printed, one in a line.
fn records(printed: &str) -> Result<Vec<Value>> {
    printed.lines().map(|line| serde_json::from_str(line).with_context(|| format!("read {line}"))).collect()
}

/// A packet to an address of no node is shown with its reason and its pod.
fn dropped(suite: &Suite<'_>, desk: &Desk, here: &Pod) -> Result<()> {
    let nowhere = last_address(&suite.options.pod_cidr)?;
    let name = full(here);
    let monitor = || {
        let filters = ["monitor", "--pod", &name, "--reason", "no_node", "-n", "1"];
        let form = ["--timeout", WATCH, "-o", "json"];
        Ok(desk.plugin(&[&["-N", &here.node][..], &filters, &form].concat())?.1)
    };
    let question = [format!("udp:{nowhere}:9")];
    let printed = while_done(vec![Box::new(monitor)], || {
        let answers = pods::ask(suite, &here.name, &question)?;
        ensure!(answers.iter().all(|answer| answer["error"].is_string()), "{nowhere} answers");
        Ok(())
    })?;
    let records = records(&printed[0])?;
    let record = records.iter().find(|one| one["type"] == "drop").context("monitor shows no drop")?;
    ensure!(
        record["source_pod"] == name.as_str()
            && record["destination"] == nowhere.as_str()
            && record["reason"] == "no_node"
            && record["node"] == here.node.as_str(),
        "{record}"
    );
    eprintln!("monitor on {}: {name} -> {nowhere} dropped for no_node", here.node);
    Ok(())
}

/// The last but some of a range: no node's, as long as the controller manager has not given all of it away.
fn last_address(range: &str) -> Result<String> {
    let parsed = range.split_once('/').and_then(|(address, prefix)| {
        let (address, prefix): (std::net::Ipv4Addr, u32) = (address.parse().ok()?, prefix.parse().ok()?);
        let hosts = u32::MAX.checked_shr(prefix).unwrap_or(0);
        Some(std::net::Ipv4Addr::from((u32::from(address) | hosts) & !7))
    });
    Ok(parsed.with_context(|| format!("read --pod-cidr {range}"))?.to_string())
}

/// What goes on is shown on both nodes: encapsulated on the one, decapsulated on the other.
fn traced(suite: &Suite<'_>, desk: &Desk, here: &Pod, there: &Pod) -> Result<()> {
    let port = PORT.to_string();
    let monitor = |node: &str| {
        let (node, port) = (node.to_owned(), port.clone());
        move || {
            let filters = ["monitor", "-t", "trace", "--from", &here.address, "--to", &there.address];
            let form = ["--port", &port, "-n", "2", "--timeout", WATCH, "-o", "json"];
            Ok(desk.plugin(&[&["-N", &node][..], &filters, &form].concat())?.1)
        }
    };
    let watchers: Vec<Watcher<'_>> = vec![Box::new(monitor(&here.node)), Box::new(monitor(&there.node))];
    let printed = while_done(watchers, || talk(suite, here, there))?;
    for ((pod, printed), wanted) in [here, there].into_iter().zip(&printed).zip(["encap", "decap"]) {
        let paths: Vec<String> = records(printed)?
            .iter()
            .filter(|record| record["type"] == "trace")
            .filter_map(|record| record["path"].as_str().map(str::to_owned))
            .collect();
        ensure!(
            paths.len() == 2 && paths.iter().all(|path| path.starts_with(wanted)),
            "monitor -t trace on {} shows {paths:?}",
            pod.node
        );
        eprintln!("monitor -t trace on {}: {}", pod.node, paths.join(", "));
    }
    Ok(())
}

/// One question that is answered.
fn talk(suite: &Suite<'_>, here: &Pod, there: &Pod) -> Result<()> {
    let answers = pods::ask(suite, &here.name, &[format!("tcp:{}:{PORT}", there.address)])?;
    answers.iter().try_for_each(pods::untranslated)
}

/// What a pod sends and gets, seen from the agent's pod, and by the binary on its node.
fn captured(suite: &Suite<'_>, desk: &Desk, here: &Pod, there: &Pod) -> Result<()> {
    let (name, port) = (full(here), PORT.to_string());
    let arguments = ["capture", &name, "--to", &there.address, "--port", &port, "--timeout", WATCH];
    let in_pod =
        || Ok(desk.plugin(&[&["-N", &here.node][..], &arguments, &["-n", "2", "-o", "json"]].concat())?.1);
    let mut watchers: Vec<Watcher<'_>> = vec![Box::new(in_pod)];
    if suite.options.access.node_exec.is_some() {
        // The magic of a pcapng file is that of its first block, in whatever byte order.
        let script = format!("{BINARY} {} -n 2 -o pcap | od -An -tx1 -N4", arguments.join(" "));
        let node = &here.node;
        watchers.push(Box::new(move || suite.cluster.on_node(node, &["sh", "-c", &script])));
    }
    let printed = while_done(watchers, || talk(suite, here, there))?;
    let packets = records(&printed[0])?;
    ensure!(packets.len() == 2, "capture shows {} packets", packets.len());
    for packet in &packets {
        ensure!(
            packet["source"] == here.address.as_str()
                && packet["destination"] == there.address.as_str()
                && packet["direction"] == "sent",
            "{packet}"
        );
    }
    if let Some(magic) = printed.get(1) {
        ensure!(magic.trim() == "0a 0d 0d 0a", "capture on the node gives no pcapng file: {magic}");
    }
    eprintln!("capture {name}: from the agent's pod as JSON, from the node as pcapng ({})", printed.len());
    Ok(())
}

/// A packet is followed from pod to pod: on its node, and with what that prints on the other.
fn asked(desk: &Desk, here: &Pod, there: &Pod) -> Result<()> {
    let port = PORT.to_string();
    let question = ["trace", &full(here), &full(there), "--port", &port, "-o", "json"].map(str::to_owned);
    let question: Vec<&str> = question.iter().map(String::as_str).collect();
    let (code, printed) = desk.plugin(&question)?;
    let report: Value = serde_json::from_str(&printed).with_context(|| format!("read {printed}"))?;
    ensure!(code == Some(0) && report["verdict"]["outcome"] == "sent", "{report}");
    ensure!(report["node"] == here.node.as_str(), "{report}");
    let (code, other) =
        desk.plugin_with(&["-N", &there.node, "trace", "--received", "-", "-o", "json"], &printed)?;
    let other: Value = serde_json::from_str(&other).with_context(|| format!("read {other}"))?;
    ensure!(
        code == Some(0)
            && other["verdict"]["outcome"] == "delivered"
            && other["verdict"]["endpoint"] == there.address.as_str(),
        "{other}"
    );
    for report in [&report, &other] {
        let steps = report["steps"].as_array().map_or(0, Vec::len);
        let (node, text) = (&report["node"], &report["verdict"]["text"]);
        eprintln!(
            "trace on {}: {steps} steps => {}",
            node.as_str().unwrap_or_default(),
            text.as_str().unwrap_or_default()
        );
    }
    Ok(())
}

/// The dump of the cluster holds what every node says, and not the token of any agent.
fn dumped(suite: &Suite<'_>, desk: &Desk, nodes: &[String]) -> Result<()> {
    let archive = desk.path("sysdump.tar.gz");
    desk.plugin(&["sysdump", "-f", &archive.display().to_string()])?;
    let output = Command::new("tar").arg("-xzOf").arg(&archive).output().context("unpack the dump")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let content = String::from_utf8_lossy(&output.stdout);
    if suite.options.access.node_exec.is_some() {
        for (node, agent) in agents(suite)? {
            let token = rights::token(suite, &node, &agent)?;
            ensure!(!content.contains(token.trim()), "the dump holds the token of the agent of {node}");
        }
    }
    eprintln!("sysdump of {} nodes: {} KiB of text, no token in it", nodes.len(), content.len() >> 10);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_no_nodes_is_the_last_of_the_range() {
        assert_eq!(last_address("10.244.0.0/16").unwrap(), "10.244.255.248");
        assert_eq!(last_address("100.64.0.0/10").unwrap(), "100.127.255.248");
        assert!(last_address("fd00::/48").is_err());
    }

    #[test]
    fn watchers_end_the_repetition_of_their_cause_and_keep_their_order() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let waits = move || {
            receiver.recv().context("hear of the cause")?;
            Ok("second".to_owned())
        };
        let first = || Ok("first".to_owned());
        let printed = while_done(vec![Box::new(first), Box::new(waits)], || {
            // Nobody listens any more once it has been heard.
            let _ = sender.send(());
            Ok(())
        });
        assert_eq!(printed.unwrap(), ["first", "second"]);
    }
}
