//! Thousands of Node objects: the map has them all, and what that costs the agent.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    SYSTEM, Suite,
    cluster::wait,
    fresh::{self, agents, agents_ready, name},
    members::{NodeMap, identity},
};

/// On the Node objects that no machine stands behind.
pub(super) const LABEL: &str = "overlay-e2e-crowd";
/// Objects in one request of ours.
const BATCH: usize = 500;
const LIMIT: Duration = Duration::from_mins(15);
/// How long the agent is watched at rest.
const REST: Duration = Duration::from_secs(30);

/// The case.
pub(super) fn run(suite: &Suite<'_>) -> Result<()> {
    let count = suite.options.crowd;
    let measured = measure(suite, count);
    let selector = format!("{LABEL}=1");
    let deleted = suite.cluster.kubectl(&["delete", "nodes", "-l", &selector, "--wait=false"]);
    let gone = deleted.and_then(|_| wait("the crowd's nodes gone from all maps", LIMIT, || complete(suite)));
    measured?;
    let time = gone?;
    eprintln!("deleted: maps equal to the API {:.1} s later", time.as_secs_f64());
    Ok(())
}

fn measure(suite: &Suite<'_>, count: usize) -> Result<()> {
    let subnets = Subnets::new(&suite.options.pod_cidr, &fresh::nodes(suite)?, count)?;
    for first in (0..count).step_by(BATCH) {
        let items: Vec<_> =
            (first..count.min(first + BATCH)).map(|number| subnets.node(number)).collect::<Result<_>>()?;
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
        suite.cluster.kubectl_with(&["create", "-f", "-"], &list.to_string())?;
    }
    let time = wait("maps equal to the API", LIMIT, || complete(suite))?;
    eprintln!(
        "{count} Node objects more: maps equal to the API {:.1} s after the last was made",
        time.as_secs_f64()
    );

    let agents = agents(suite)?;
    let (node, pod) = agents.first().context("find an agent")?;
    suite.cluster.kubectl(&["delete", "pod", "-n", SYSTEM, name(pod)])?;
    let start = Instant::now();
    agents_ready(suite)?;
    let ready = start.elapsed();
    let usage = Usage::of(suite, node)?;
    eprintln!(
        "agent of {node} started with them: pod ready {:.1} s after its predecessor was gone, CPU {:.2} s, memory at most {} MiB, \
         now {} MiB",
        ready.as_secs_f64(),
        usage.cpu.as_secs_f64(),
        usage.peak >> 10,
        usage.resident >> 10
    );
    wait("the map of the new agent equal to the API", LIMIT, || complete(suite))?;
    let before = Usage::of(suite, node)?;
    std::thread::sleep(REST);
    let after = Usage::of(suite, node)?;
    let used = after.cpu.saturating_sub(before.cpu);
    eprintln!(
        "at rest: {:.2} % of a CPU over {} s, memory {} MiB",
        100.0 * used.as_secs_f64() / REST.as_secs_f64(),
        REST.as_secs(),
        after.resident >> 10
    );
    Ok(())
}

/// The upper end of the pods' range, whose lower end the controller manager gives to nodes of its own.
struct Subnets {
    /// Behind the last address of the range.
    end: u32,
    prefix: u8,
}

impl Subnets {
    /// Of the length that the cluster's nodes have.
    fn new(range: &str, nodes: &[Value], count: usize) -> Result<Self> {
        let parse = |range: &str| -> Option<(u32, u8)> {
            let (address, prefix) = range.split_once('/')?;
            let prefix = prefix.parse().ok().filter(|prefix| (1..=32).contains(prefix))?;
            Some((address.parse::<Ipv4Addr>().ok()?.into(), prefix))
        };
        let (start, length) = parse(range).with_context(|| format!("read --pod-cidr {range}"))?;
        let node = nodes.first().and_then(|node| node["spec"]["podCIDR"].as_str());
        let (_, prefix) = node.and_then(parse).context("find the IPv4 podCIDR of a node")?;
        let room = 1_usize << prefix.saturating_sub(length);
        ensure!(
            room >= count + 2 * nodes.len(),
            "{range} has {room} subnets, too few for {count} nodes more: take a larger one, or less with --crowd"
        );
        Ok(Self { end: start.wrapping_add(1 << (32 - length)), prefix })
    }

    /// A Node object that nothing runs on. Its address is of the range for benchmarks (RFC 2544).
    fn node(&self, number: usize) -> Result<Value> {
        let number = u32::try_from(number).context("number nodes")?;
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 1)) + number);
        let subnet = Ipv4Addr::from(self.end.wrapping_sub((number + 1) << (32 - self.prefix)));
        let subnet = format!("{subnet}/{}", self.prefix);
        Ok(json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": format!("crowd-{number}"), "labels": { LABEL: "1" } },
            "spec": { "unschedulable": true, "podCIDR": subnet, "podCIDRs": [subnet] },
            "status": { "addresses": [{ "type": "InternalIP", "address": address.to_string() }] },
        }))
    }
}

/// What is missing for every agent's map to have the nodes that the API server has, and no other.
fn complete(suite: &Suite<'_>) -> Result<Option<String>> {
    let nodes = suite.cluster.list(&["nodes"])?;
    let wanted: BTreeSet<_> = nodes.iter().filter_map(|node| identity(node).ok()).collect();
    for (of, agent) in agents(suite)? {
        let map = NodeMap::read(suite, &agent)?;
        if map.subnets != wanted {
            let (more, less) =
                (map.subnets.difference(&wanted).count(), wanted.difference(&map.subnets).count());
            return Ok(Some(format!(
                "{of} has {more} subnets too many, and lacks {less} of {}",
                wanted.len()
            )));
        }
        let hosts: BTreeSet<_> = wanted.iter().map(|(_, address)| address.clone()).collect();
        if map.hosts != hosts {
            return Ok(Some(format!(
                "{of} has {} node addresses, the API server {}",
                map.hosts.len(),
                hosts.len()
            )));
        }
    }
    Ok(None)
}

/// What a process has used.
struct Usage {
    cpu: Duration,
    /// KiB.
    resident: u64,
    peak: u64,
}

impl Usage {
    /// Of the agent of a node.
    fn of(suite: &Suite<'_>, node: &str) -> Result<Self> {
        let script =
            r#"p=$(pgrep -o -f "^/overlay agent") && cat /proc/$p/stat /proc/$p/status && getconf CLK_TCK"#;
        Self::parse(&suite.cluster.on_node(node, &["sh", "-c", script])?)
    }

    /// `/proc/PID/stat`, `/proc/PID/status` and the clock ticks of a second, one after the other.
    fn parse(text: &str) -> Result<Self> {
        let ticks: u64 =
            text.lines().last().and_then(|line| line.trim().parse().ok()).context("read CLK_TCK")?;
        ensure!(ticks > 0, "CLK_TCK is 0");
        // The command, in parentheses, may hold anything.
        let (_, stat) = text.lines().next().and_then(|line| line.rsplit_once(") ")).context("read stat")?;
        let field = |at: usize| stat.split_whitespace().nth(at).and_then(|word| word.parse::<u64>().ok());
        let cpu = field(11).zip(field(12)).map(|(user, system)| user + system).context("read stat")?;
        let size = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key)).context("read status")?;
            line.trim().trim_end_matches(" kB").parse().context("read status")
        };
        Ok(Self {
            cpu: Duration::from_millis(cpu * 1000 / ticks),
            resident: size("VmRSS:")?,
            peak: size("VmHWM:")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_of_the_crowd_have_addresses_and_subnets_of_their_own() {
        let nodes = [json!({ "spec": { "podCIDR": "10.128.0.0/24" } })];
        let subnets = Subnets::new("10.128.0.0/10", &nodes, 5000).unwrap();
        let of = |number| {
            let node = subnets.node(number).unwrap();
            (node["status"]["addresses"][0]["address"].clone(), node["spec"]["podCIDR"].clone())
        };
        assert_eq!(of(0), (json!("198.18.0.1"), json!("10.191.255.0/24")));
        assert_eq!(of(4999), (json!("198.18.19.136"), json!("10.172.120.0/24")));
        let error = Subnets::new("10.244.0.0/16", &nodes, 5000).err().unwrap().to_string();
        assert!(error.contains("has 256 subnets"), "{error}");
    }

    #[test]
    fn usage_is_read_from_proc() {
        let text = "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 1 0 1 1 1\n\
                    Name:\toverlay\nVmHWM:\t  20480 kB\nVmRSS:\t   10240 kB\n100\n";
        let usage = Usage::parse(text).unwrap();
        assert_eq!((usage.cpu, usage.resident, usage.peak), (Duration::from_secs(2), 10240, 20480));
        assert!(Usage::parse("").is_err());
    }
}
