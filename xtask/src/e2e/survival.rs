//! What happens to the agent must not happen to packets: traffic between pods while agents restart, change, are killed, and
//! while there is no API server.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{
    NAMESPACE, SYSTEM, Suite,
    cluster::{Cluster, wait},
    fresh::{LIMIT, agents, agents_ready, name, nodes, overlay, settled},
    pods::{self, PORT, Pod, template},
};
use crate::image;

/// The probe counts a packet as lost after five seconds.
const SETTLE: Duration = Duration::from_secs(7);
/// How long the API server stays away.
const OUTAGE: Duration = Duration::from_mins(1);
/// The agent in the process list of its node.
const AGENT: &str = "^/overlay agent";

pub(super) fn restart(suite: &Suite<'_>) -> Result<()> {
    under_traffic(suite, || {
        suite.cluster.kubectl(&["rollout", "restart", "-n", SYSTEM, "daemonset/overlay"])?;
        agents_ready(suite).map(drop)
    })
}

pub(super) fn upgrade(suite: &Suite<'_>) -> Result<()> {
    let (archive, reference) = &suite.images.upgrade;
    suite.cluster.load(archive)?;
    under_traffic(suite, || {
        let before = plugins(suite)?;
        set_image(suite, reference)?;
        let after = plugins(suite)?;
        ensure!(
            before.iter().zip(&after).all(|(before, after)| before != after),
            "the plugin of a node has not been replaced: {before:?}, {after:?}"
        );
        set_image(suite, image::REFERENCE)?;
        ensure!(plugins(suite)? == before, "the plugin of a node has not been put back");
        Ok(())
    })
}

/// To the rehearsal of the next schema and back.
pub(super) fn schema(suite: &Suite<'_>) -> Result<()> {
    let (archive, reference) = suite.images.next.as_ref().context("there is no image of the next schema")?;
    suite.cluster.load(archive)?;
    under_traffic(suite, || {
        let before = leases(suite)?;
        let own = schemas(suite)?;
        let next: Vec<u64> = own.iter().map(|schema| schema + 1).collect();
        for (reference, wanted) in [(reference.as_str(), &next), (image::REFERENCE, &own)] {
            let since = Instant::now();
            set_image_and_kill(suite, reference)?;
            let found = schemas(suite)?;
            ensure!(found == *wanted, "schemas {found:?} are in force instead of {wanted:?}");
            ensure!(leases(suite)? == before, "addresses of pods are not what they were");
            eprintln!(
                "schema {} in force on {} nodes after {:.0} s, with all of its {} leases",
                found.first().unwrap_or(&0),
                found.len(),
                since.elapsed().as_secs_f64(),
                before.iter().map(Vec::len).sum::<usize>()
            );
        }
        Ok(())
    })
}

/// On a node: kills the agent once, that long after it has begun to change the schema, and prints what is in force then.
const KILL_IN_CHANGE: &str = "for i in $(seq 9000); do \
    if [ -L /sys/fs/bpf/overlay/current ]; then \
        sleep \"$1\"; pkill -KILL -o -f '^/overlay agent' && readlink /sys/fs/bpf/overlay/current; exit 0; \
    fi; sleep 0.02; done; exit 1";

/// Another image for all agents, each of which is killed while it changes the schema, where nodes can be reached.
fn set_image_and_kill(suite: &Suite<'_>, reference: &str) -> Result<()> {
    if suite.options.access.node_exec.is_none() {
        return set_image(suite, reference);
    }
    let nodes = nodes(suite)?;
    thread::scope(|scope| {
        let kill = |(number, node): (usize, &Value)| {
            let (node, delay) = (name(node).to_owned(), format!("0.{number:02}"));
            scope.spawn(move || {
                let said = suite.cluster.on_node(&node, &["sh", "-c", KILL_IN_CHANGE, "sh", &delay]);
                said.map(|said| (node, said.trim().to_owned()))
            })
        };
        // Some hundredths of a second apart: at different steps.
        let killers: Vec<_> = nodes.iter().enumerate().map(|(at, node)| kill((7 * at, node))).collect();
        set_image(suite, reference)?;
        for killer in killers {
            let killed = killer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let (node, in_force) = killed.context("kill an agent that changes the schema")?;
            let what = if in_force.is_empty() { "after its change" } else { "in its change" };
            eprintln!("{node}: agent killed {what}, {in_force} in force");
        }
        agents_ready(suite).map(drop)
    })
}

/// The schema that is in force on each node: the last part of where its pins are.
fn schemas(suite: &Suite<'_>) -> Result<Vec<u64>> {
    let schema = |(node, agent): &(String, Value)| {
        let status = overlay(suite, agent, "status")?;
        let number = status["pins"].as_str().and_then(|path| path.rsplit_once("/v")?.1.parse().ok());
        number.with_context(|| format!("read the schema of {node} from {}", status["pins"]))
    };
    agents(suite)?.iter().map(schema).collect()
}

/// Address and container of every endpoint of each node, but for what comes and goes: nodes in the order of their names.
fn leases(suite: &Suite<'_>) -> Result<Vec<Vec<String>>> {
    let mut agents = agents(suite)?;
    agents.sort_by(|(one, _), (other, _)| one.cmp(other));
    let of = |(_, agent): &(String, Value)| {
        let list = overlay(suite, agent, "endpoints")?;
        let rows = list.as_array().context("overlay endpoints prints no list")?;
        let mut rows: Vec<_> =
            rows.iter().map(|row| format!("{} {}", row["address"], row["container"])).collect();
        rows.sort();
        Ok(rows)
    };
    agents.iter().map(of).collect()
}

fn set_image(suite: &Suite<'_>, reference: &str) -> Result<()> {
    suite.cluster.kubectl(&["set", "image", "-n", SYSTEM, "daemonset/overlay", &format!("*={reference}")])?;
    agents_ready(suite).map(drop)
}

/// The digest of each node's plugin, where nodes can be looked at.
fn plugins(suite: &Suite<'_>) -> Result<Vec<String>> {
    if suite.options.access.node_exec.is_none() {
        return Ok(Vec::new());
    }
    let digest = |node: &Value| suite.cluster.on_node(name(node), &["sha256sum", "/opt/cni/bin/overlay"]);
    nodes(suite)?.iter().map(digest).collect()
}

pub(super) fn kill(suite: &Suite<'_>) -> Result<()> {
    under_traffic(suite, || {
        let before = restarts(suite)?;
        for (node, _) in agents(suite)? {
            suite.cluster.on_node(&node, &["pkill", "-KILL", "-f", AGENT])?;
        }
        wait("all agents started again", LIMIT, || {
            let after = restarts(suite)?;
            let all = before.iter().zip(&after).all(|(before, after)| after > before);
            Ok((!all).then(|| format!("restarts were {before:?}, are {after:?}")))
        })?;
        agents_ready(suite).map(drop)
    })
}

/// How often each agent has been started again.
fn restarts(suite: &Suite<'_>) -> Result<Vec<u64>> {
    let count = |(_, pod): &(String, Value)| {
        let statuses = pod["status"]["containerStatuses"].as_array();
        statuses.and_then(|all| all.first()?["restartCount"].as_u64()).unwrap_or(0)
    };
    Ok(agents(suite)?.iter().map(count).collect())
}

pub(super) fn api(suite: &Suite<'_>) -> Result<()> {
    let (Some(stop), Some(start)) = (&suite.options.api_stop, &suite.options.api_start) else {
        bail!("needs --api-stop and --api-start");
    };
    under_traffic(suite, || {
        let agents = agents(suite)?;
        Cluster::outside(stop)?;
        let since = Instant::now();
        let alone = || -> Result<()> {
            ensure!(
                !suite.cluster.attempt(&["get", "nodes", "--request-timeout=2s"])?.0,
                "the API server answers"
            );
            thread::sleep(OUTAGE / 3);
            // One has to start without it.
            if let (Some(_), Some((node, _))) = (&suite.options.access.node_exec, agents.first()) {
                suite.cluster.on_node(node, &["pkill", "-KILL", "-f", AGENT])?;
                eprintln!("agent of {node} killed while there is no API server");
            }
            thread::sleep(OUTAGE.saturating_sub(since.elapsed()));
            Ok(())
        };
        let result = alone();
        Cluster::outside(start)?;
        result?;
        let away = since.elapsed();
        wait("the API server", LIMIT, || suite.cluster.kubectl(&["get", "--raw", "/readyz"]).map(|_| None))?;
        agents_ready(suite)?;
        eprintln!("API server away for {:.0} s", away.as_secs_f64());
        Ok(())
    })
}

/// Does something while pods talk, and counts what they lose.
fn under_traffic(suite: &Suite<'_>, action: impl FnOnce() -> Result<()>) -> Result<()> {
    let streams = start(suite)?;
    let judged = || {
        let before = counts(suite, &streams)?;
        let since = Instant::now();
        action()?;
        settled(suite)?;
        thread::sleep(SETTLE);
        let time = since.elapsed();
        let after = counts(suite, &streams)?;
        judge(&streams, &before, &after, time)
    };
    let result = judged();
    let mut delete = vec!["delete", "pod", "-n", NAMESPACE, "--wait=false"];
    delete.extend(streams.iter().map(|(name, _)| name.as_str()));
    let deleted = suite.cluster.kubectl(&delete);
    result.and(deleted.map(drop))
}

/// Pods that stream to another: around through all nodes, and within one. Their names and what they are.
fn start(suite: &Suite<'_>) -> Result<Vec<(String, String)>> {
    let probes: Vec<Pod> = pods::probes(suite)?.into_iter().filter(|pod| !pod.host).collect();
    let mut names: Vec<_> = probes.iter().map(|pod| pod.node.clone()).collect();
    names.sort();
    names.dedup();
    let on = |node: &str| probes.iter().find(|pod| pod.node == node).context("find a probe");
    let mut pairs = Vec::new();
    for (at, node) in names.iter().enumerate() {
        let next = &names[(at + 1) % names.len()];
        pairs.push((node, on(next)?));
    }
    if names.len() > 1 {
        pairs.push((&names[0], on(&names[0])?));
    }
    let mut streams = Vec::new();
    for (number, (node, target)) in pairs.into_iter().enumerate() {
        let name = format!("stream-{number}-{}", std::process::id());
        let mut pod = template("stream", &["stream", &target.address, &PORT.to_string()]);
        pod["apiVersion"] = "v1".into();
        pod["kind"] = "Pod".into();
        pod["metadata"]["name"] = name.as_str().into();
        pod["metadata"]["namespace"] = NAMESPACE.into();
        pod["spec"]["nodeName"] = node.as_str().into();
        pod["spec"]["restartPolicy"] = "Never".into();
        suite.cluster.kubectl_with(&["create", "-f", "-"], &pod.to_string())?;
        streams.push((name, format!("{node} → {}", target.node)));
    }
    wait("traffic on all streams", LIMIT, || {
        for (name, what) in &streams {
            let counts = count(suite, name)?;
            if counts["ping"]["answered"].as_u64() < Some(100) {
                return Ok(Some(format!("{what}: {counts}")));
            }
        }
        Ok(None)
    })?;
    Ok(streams)
}

/// The newest counts of a stream.
fn count(suite: &Suite<'_>, pod: &str) -> Result<Value> {
    let text = suite.cluster.kubectl(&["logs", "-n", NAMESPACE, pod, "--tail=1"])?;
    serde_json::from_str(&text).with_context(|| format!("read the counts of {pod}: {text:?}"))
}

fn counts(suite: &Suite<'_>, streams: &[(String, String)]) -> Result<Vec<Value>> {
    streams.iter().map(|(name, _)| count(suite, name)).collect()
}

/// Says what happened between two counts, and refuses a loss, or traffic that has not gone on all the time.
fn judge(streams: &[(String, String)], before: &[Value], after: &[Value], time: Duration) -> Result<()> {
    let mut totals = json!({});
    let mut bad = Vec::new();
    for ((_, what), (before, after)) in streams.iter().zip(before.iter().zip(after)) {
        for kind in ["tcp", "udp", "ping"] {
            let of = |value: &Value, key: &str| value[kind][key].as_u64().unwrap_or(0);
            let since = |key: &str| of(after, key).saturating_sub(of(before, key));
            let gap = of(after, "gap_ms");
            // Half of what an idle machine would send.
            let wanted = time.as_secs().saturating_sub(3) * 50;
            if since("lost") > 0 || !after[kind]["broken"].is_null() || since("answered") < wanted {
                bad.push(format!("{what}: {kind}: was {}, is {}", before[kind], after[kind]));
            }
            for (key, add) in
                [("sent", since("sent")), ("lost", since("lost")), ("retransmitted", since("retransmitted"))]
            {
                totals[kind][key] = (totals[kind][key].as_u64().unwrap_or(0) + add).into();
            }
            totals[kind]["gap_ms"] = gap.max(totals[kind]["gap_ms"].as_u64().unwrap_or(0)).into();
        }
    }
    for kind in ["tcp", "udp", "ping"] {
        let of = |key: &str| totals[kind][key].as_u64().unwrap_or(0);
        let again = if kind == "tcp" {
            format!(", {} segments sent again", of("retransmitted"))
        } else {
            String::new()
        };
        eprintln!(
            "{kind}: {} packets on {} streams in {:.0} s, {} lost{again}, longest silence {} ms",
            of("sent"),
            streams.len(),
            time.as_secs_f64(),
            of("lost"),
            of("gap_ms")
        );
    }
    if bad.is_empty() { Ok(()) } else { bail!("{}", bad.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(answered: u64, lost: u64, broken: Value) -> Value {
        let kind = json!({ "sent": answered + lost, "answered": answered, "lost": lost, "gap_ms": 12 });
        let mut all = json!({ "tcp": kind, "udp": kind, "ping": kind });
        all["tcp"]["broken"] = broken;
        all
    }

    fn judged(after: Value) -> Result<()> {
        let streams = [("s".to_owned(), "n1 → n2".to_owned())];
        judge(&streams, &[counts(100, 1, Value::Null)], &[after], Duration::from_secs(10))
    }

    #[test]
    fn only_what_is_lost_between_the_counts_counts() {
        judged(counts(1100, 1, Value::Null)).unwrap();
        assert!(judged(counts(1100, 2, Value::Null)).unwrap_err().to_string().contains("n1 → n2"));
    }

    #[test]
    fn a_broken_connection_and_a_stream_that_stood_still_are_refused() {
        assert!(judged(counts(1100, 1, json!("connection reset"))).is_err());
        assert!(judged(counts(150, 1, Value::Null)).is_err());
    }
}
