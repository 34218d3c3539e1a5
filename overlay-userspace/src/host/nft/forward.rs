//! Foreign chains that drop what is forwarded, as Docker leaves `ip filter FORWARD` with policy DROP.
//!
//! The fast path passes them by; what takes the stack (services, large UDP) does not, and no accept of ours in
//! a table of our own would help: a packet has to pass the chains of every table. So an accept from and one
//! to the cluster CIDR go to the top of each such chain, marked with a comment, and nothing else there is
//! touched. Only policies are answered: a rule that drops is somebody's will.
//!
//! The rules are such that iptables-nft can still show and save the chain. Chains of legacy iptables are
//! reported, not edited.

use std::fmt;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::{NftError, TABLE, json, run};

/// What marks a rule as ours.
const COMMENT: &str = "overlay";

/// Where the kernel lists the tables of legacy iptables; absent where that is not loaded.
///
/// Not `/proc/net`: that is the main thread's namespace, whichever thread reads.
const LEGACY_TABLES: &str = "/proc/thread-self/net/ip_tables_names";

/// What stands in the way of forwarded packets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forward {
    /// Chains with policy drop, now with accepts for the cluster on top.
    pub chains: Vec<DropChain>,
    /// What was found but cannot be helped, with the remedy, for people.
    pub warnings: Vec<String>,
}

/// A foreign base chain on the forward hook whose policy is drop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DropChain {
    /// Family of its table: `ip`, `ip6` or `inet`.
    pub family: String,
    /// Its table.
    pub table: String,
    /// Its name.
    pub chain: String,
    /// Accepts were missing, or not on top, and were written just now.
    pub changed: bool,
}

impl fmt::Display for DropChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.family, self.table, self.chain)
    }
}

/// Lets the cluster's packets through every chain that drops by policy, and says which those are.
///
/// Takes its accepts back from a chain that no longer drops.
pub fn ensure(cluster: IpNet) -> Result<Forward, NftError> {
    let wanted = accepts(cluster.trunc());
    let mut forward = Forward::default();
    for chain in forward_chains()? {
        if !chain.serves(cluster) {
            continue;
        }
        let wanted: &[Value] = if chain.drops { &wanted } else { &[] };
        let changed = chain.hold(wanted)?;
        if chain.drops {
            let Chain { family, table, name, .. } = chain;
            forward.chains.push(DropChain { family, table, chain: name, changed });
        }
    }
    forward.warnings.extend(legacy(cluster.trunc()));
    Ok(forward)
}

/// Takes every accept of ours away; returns from which chains.
pub fn remove() -> Result<Vec<DropChain>, NftError> {
    let mut cleaned = Vec::new();
    for chain in forward_chains()? {
        if chain.hold(&[])? {
            let Chain { family, table, name, .. } = chain;
            cleaned.push(DropChain { family, table, chain: name, changed: true });
        }
    }
    Ok(cleaned)
}

/// The matches of our rules, from top to bottom.
fn accepts(cluster: IpNet) -> [Value; 2] {
    let protocol = match cluster {
        IpNet::V4(_) => "ip",
        IpNet::V6(_) => "ip6",
    };
    ["saddr", "daddr"].map(|field| {
        json!({ "match": {
            "op": "==",
            "left": { "payload": { "protocol": protocol, "field": field } },
            "right": { "prefix": { "addr": cluster.addr().to_string(), "len": cluster.prefix_len() } },
        } })
    })
}

/// A foreign base chain on the forward hook.
#[derive(Debug)]
struct Chain {
    family: String,
    table: String,
    name: String,
    drops: bool,
}

impl Chain {
    /// Whether packets of the cluster's IP version pass it.
    fn serves(&self, cluster: IpNet) -> bool {
        match self.family.as_str() {
            "inet" => true,
            "ip" => matches!(cluster, IpNet::V4(_)),
            "ip6" => matches!(cluster, IpNet::V6(_)),
            _ => false,
        }
    }

    /// Makes accepts for `wanted` the only rules of ours, and the first of the chain; true when they were not.
    fn hold(&self, wanted: &[Value]) -> Result<bool, NftError> {
        match self.try_hold(wanted) {
            // A rule, or the chain, went away between reading and writing: look once more.
            Err(error) if error.is_absent() => match self.try_hold(wanted) {
                Err(error) if error.is_absent() => Ok(false),
                result => result,
            },
            result => result,
        }
    }

    fn try_hold(&self, wanted: &[Value]) -> Result<bool, NftError> {
        let action = format!("set accepts in chain {} {} {}", self.family, self.table, self.name);
        let list = json!({ "list": { "chain": {
            "family": self.family, "table": self.table, "name": self.name,
        } } });
        let objects = json(&[list], &action)?;
        let rules: Vec<_> = objects.iter().filter_map(|object| object.get("rule")).collect();
        let ours: Vec<_> = rules.iter().filter(|rule| rule["comment"] == COMMENT).collect();
        let on_top = rules.len() >= wanted.len()
            && rules.iter().zip(wanted).all(|(rule, matching)| accepts_matching(rule, matching));
        if on_top && ours.len() == wanted.len() {
            return Ok(false);
        }
        let deletes = ours.iter().map(|rule| {
            json!({ "delete": { "rule": {
                "family": self.family, "table": self.table, "chain": self.name, "handle": rule["handle"],
            } } })
        });
        // Each goes on top of the one before.
        let inserts = wanted.iter().rev().map(|matching| {
            json!({ "insert": { "rule": {
                "family": self.family, "table": self.table, "chain": self.name, "comment": COMMENT,
                // iptables shows a rule with its counter.
                "expr": [matching, { "counter": { "packets": 0, "bytes": 0 } }, { "accept": null }],
            } } })
        });
        json(&deletes.chain(inserts).collect::<Vec<_>>(), &action)?;
        Ok(true)
    }
}

/// Whether a rule is ours, and just as it was written.
fn accepts_matching(rule: &Value, matching: &Value) -> bool {
    let accept = json!({ "accept": null });
    rule["comment"] == COMMENT
        && rule["expr"].as_array().is_some_and(|expr| match expr.as_slice() {
            [first, counter, last] => {
                first == matching && counter.get("counter").is_some() && *last == accept
            }
            _ => false,
        })
}

/// All foreign base chains on the forward hook, in the order of nft.
fn forward_chains() -> Result<Vec<Chain>, NftError> {
    let objects = json(&[json!({ "list": { "chains": null } })], "list chains")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(objects
        .iter()
        .filter_map(|object| object.get("chain"))
        .filter(|chain| chain["hook"] == "forward" && chain["table"] != TABLE)
        .map(|chain| Chain {
            family: text(&chain["family"]),
            table: text(&chain["table"]),
            name: text(&chain["name"]),
            drops: chain["policy"] == "drop",
        })
        .collect())
}

/// What legacy iptables would drop, with the remedy.
fn legacy(cluster: IpNet) -> Option<String> {
    // Asking the program would load the module; only ask where the table is in use.
    let tables = std::fs::read_to_string(LEGACY_TABLES).unwrap_or_default();
    if cluster.addr().is_ipv6() || !tables.lines().any(|table| table == "filter") {
        return None;
    }
    let program = "iptables-legacy";
    match run(program, "iptables", &["-w", "-S", "FORWARD"], "", "read the legacy chain FORWARD") {
        Ok(rules) => legacy_warning(&rules, cluster),
        // Without the program nobody has set rules, unless from within a container.
        Err(NftError::Missing { .. }) => None,
        Err(error) => Some(error.to_string()),
    }
}

fn legacy_warning(rules: &str, cluster: IpNet) -> Option<String> {
    let has = |wanted: &str| rules.lines().any(|line| line.trim() == wanted);
    let missing: Vec<_> = ["-s", "-d"]
        .into_iter()
        .map(|side| format!("FORWARD {side} {cluster} -j ACCEPT"))
        .filter(|rule| !has(&format!("-A {rule}")))
        .map(|rule| format!("iptables-legacy -I {rule}"))
        .collect();
    (has("-P FORWARD DROP") && !missing.is_empty()).then(|| {
        format!(
            "the chain FORWARD of legacy iptables drops by policy what the stack forwards for pods; run: {}",
            missing.join("; ")
        )
    })
}

#[cfg(test)]
mod tests;
