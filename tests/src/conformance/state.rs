//! The state of a host that a plugin may change, as lines; and what differs between two moments.
//!
//! Left out, because it changes without anybody's doing: counters, handles, the state of carriers, MACs of bridges,
//! IPv6 link-local addresses, neighbours that the kernel has learnt.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::host::{self, Host};
use super::kernel::View;

/// How long the kernel may take to remove a deleted namespace with its devices; it does so in the background.
const SETTLE: Duration = Duration::from_secs(4);

/// Forwarding is what plugins switch on in passing.
const SYSCTLS: [&str; 2] = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];

/// What a host has: sorted lines, equal ones as often as they occur.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    lines: Vec<String>,
}

impl State {
    /// Reads it.
    pub(crate) fn read(host: &Host) -> Result<Self> {
        let mut lines = Vec::new();
        for link in View::Host.links()? {
            let mac = if link.kind == "bridge" { "" } else { &link.mac };
            let (name, up) = (&link.name, if link.up { "up" } else { "down" });
            let line = format!("link {name} {} {mac} mtu {} {up} {}", link.kind, link.mtu, link.master);
            lines.push(line.trim_end().to_owned());
            lines.extend(link.addresses.iter().map(|address| format!("address {address} dev {name}")));
        }
        lines.extend(View::Host.routes()?.iter().map(|route| format!("route {}", route.line)));
        for (what, words) in [
            ("rule", "-4 rule show"),
            ("rule", "-6 rule show"),
            ("neighbour", "neighbour show nud permanent"),
        ] {
            lines.extend(View::Host.ip_json(words)?.iter().map(|json| format!("{what} {json}")));
        }
        // Names of namespaces belong to the machine, where others come and go.
        let names = if host.is_isolated() { host::tool("ip", "netns list")? } else { String::new() };
        let names = names.lines().filter_map(|line| line.split_whitespace().next());
        lines.extend(names.filter(|name| !host.owns(name)).map(|name| format!("netns {name}")));
        for key in SYSCTLS {
            let value = fs::read_to_string(Path::new("/proc/sys").join(key)).unwrap_or_default();
            lines.push(format!("sysctl {} {}", key.replace('/', "."), value.trim()));
        }
        filters(&mut lines);
        for dir in host.state_dirs() {
            list(dir, &mut lines);
        }
        lines.sort_unstable();
        Ok(Self { lines })
    }

    /// What is there now and was not at the time of `self`, and the reverse; one line each.
    pub(crate) fn difference(&self, now: &Self) -> Vec<String> {
        let mut lines: Vec<String> = surplus(&now.lines, &self.lines).map(|l| format!("left: {l}")).collect();
        lines.extend(surplus(&self.lines, &now.lines).map(|line| format!("lost: {line}")));
        lines
    }

    /// The host must be as at the time of `self` again, as soon as the kernel is done with what it does later.
    pub(crate) fn must_be_back(&self, host: &Host) -> Result<()> {
        let start = Instant::now();
        loop {
            let difference = self.difference(&Self::read(host)?);
            if difference.is_empty() {
                return Ok(());
            }
            ensure!(start.elapsed() < SETTLE, "the host is not as before: {}", summary(&difference));
            thread::sleep(Duration::from_millis(50));
        }
    }
}

fn summary(lines: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = lines.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
    match lines.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}

/// The lines of `a` that `b` does not have, or has less often. Both are sorted.
fn surplus<'a>(a: &'a [String], b: &'a [String]) -> impl Iterator<Item = &'a String> {
    let mut b = b.iter().peekable();
    a.iter().filter(move |line| {
        while b.next_if(|other| other < line).is_some() {}
        b.next_if(|other| other == line).is_none()
    })
}

/// Packet filters and queueing disciplines; tools that are not installed have set nothing up.
fn filters(lines: &mut Vec<String>) {
    let ruleset = host::tool("nft", "-json -stateless list ruleset").unwrap_or_default();
    let ruleset: Value = serde_json::from_str(&ruleset).unwrap_or_default();
    for object in ruleset["nftables"].as_array().into_iter().flatten() {
        if object["metainfo"].is_null() {
            lines.push(format!("nft {}", without_handles(object.clone())));
        }
    }
    // What nft cannot name is shown by iptables; asked only then, as asking loads modules.
    let foreign = lines.iter().any(|line| line.starts_with("nft ") && line.contains("\"xt\""));
    let legacy = fs::read_to_string("/proc/net/ip_tables_names").is_ok_and(|names| !names.is_empty());
    for (needed, program) in
        [(foreign, "iptables-save"), (foreign, "ip6tables-save"), (legacy, "iptables-legacy-save")]
    {
        let text = if needed { host::tool(program, "").unwrap_or_default() } else { String::new() };
        let rules = text.lines().filter(|line| line.starts_with("-A"));
        lines.extend(rules.map(|rule| format!("{program} {rule}")));
    }
    let queues = host::tool("tc", "-json qdisc show").unwrap_or_default();
    let queues: Value = serde_json::from_str(&queues).unwrap_or_default();
    for queue in queues.as_array().into_iter().flatten() {
        lines.push(format!("qdisc {} dev {} {}", queue["kind"], queue["dev"], queue["parent"]));
    }
}

fn without_handles(mut json: Value) -> Value {
    for object in json.as_object_mut().into_iter().flat_map(|all| all.values_mut()) {
        if let Value::Object(fields) = object {
            fields.remove("handle");
        }
    }
    json
}

fn list(dir: &Path, lines: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        lines.push(format!("file {}", entry.path().display()));
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list(&entry.path(), lines);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn state(lines: &[&str]) -> State {
        let mut lines: Vec<String> = lines.iter().map(|&line| line.to_owned()).collect();
        lines.sort_unstable();
        State { lines }
    }

    #[test]
    fn the_difference_counts_equal_lines() {
        let before = state(&["route a", "rule x", "rule x", "link gone"]);
        let now = state(&["route a", "rule x", "rule x", "rule x", "link veth1"]);
        assert_eq!(before.difference(&now), ["left: link veth1", "left: rule x", "lost: link gone"]);
        assert_eq!(before.difference(&before), [""; 0]);
    }

    #[test]
    fn handles_do_not_count() {
        let rule = json!({"rule": {"chain": "c", "handle": 7, "expr": [{"counter": null}]}});
        let expected = json!({"rule": {"chain": "c", "expr": [{"counter": null}]}});
        assert_eq!(without_handles(rule), expected);
    }

    #[test]
    fn a_long_difference_is_cut() {
        let lines: Vec<String> = (0..20).map(|n| n.to_string()).collect();
        assert!(summary(&lines).ends_with("7; and 12 more"));
    }
}
