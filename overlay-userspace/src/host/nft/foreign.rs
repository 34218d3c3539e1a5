//! Foreign chains that drop what the stack carries for pods, as Docker leaves `ip filter FORWARD` with policy DROP, and
//! firewalld ends `filter_FORWARD` with a reject.
//!
//! The fast path passes them by; what takes the stack (services, the world) does not, and no accept of ours in a table
//! of our own would help: a packet has to pass the chains of every table. So an accept from and one to the cluster CIDR of
//! each family that a chain serves go to the top of each base chain on the way of forwarded packets that drops by default, by
//! its policy or by a rule without a condition, and nothing else there is touched. Rules with conditions are somebody's will. Ours are marked
//! with a comment, and such that iptables-nft can still show and save the chain.
//!
//! What may not be changed is said, with the chain and the remedy: chains of a table that another process owns, and
//! chains on the way of the tunnel's UDP port, which is the node's door and not the pods'.

use std::{collections::HashSet, fmt, net::IpAddr};

use ipnet::IpNet;
use serde_json::{Value, json};

use super::{NftError, is_own, json, run};
use crate::family::{ByFamily, Family, OfFamily as _};

mod fate;
mod legacy;

use fate::Fate;

/// What marks a rule as ours.
const COMMENT: &str = "overlay";

/// The table of firewalld.
const FIREWALLD: &str = "firewalld";

/// What has to get through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carried {
    /// The cluster CIDRs: what the stack forwards for pods.
    pub clusters: ByFamily<IpNet>,
    /// The node's addresses that tunnel packets go to.
    pub vteps: ByFamily<IpAddr>,
    /// The tunnel's UDP port (host byte order).
    pub port: u16,
}

/// What stands in the way of the stack's packets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Foreign {
    /// Chains that drop by default, now with accepts for the cluster on top.
    pub chains: Vec<DropChain>,
    /// What was found but cannot be helped, with the remedy, for people.
    pub warnings: Vec<Obstacle>,
    /// Chains that this rests on, by table and name: a change there is a reason to look again.
    pub examined: HashSet<(String, String)>,
}

/// What was found and cannot be helped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// The chain: family, table and name.
    pub chain: String,
    /// What it does, and why it stays so.
    pub what: String,
    /// What helps: after `run: `, commands.
    pub remedy: String,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.remedy)
    }
}

/// A foreign base chain on the way of forwarded packets that drops by default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DropChain {
    /// Family of its table: `ip`, `ip6` or `inet`; or `legacy iptables`, `legacy ip6tables`.
    pub family: String,
    /// Its table.
    pub table: String,
    /// Its name.
    pub chain: String,
    /// Accepts were missing, or not on top, and were written just now.
    pub changed: bool,
}

impl DropChain {
    /// The ranges that have to pass it.
    pub fn of<'a>(&self, clusters: &'a ByFamily<IpNet>) -> impl Iterator<Item = IpNet> + use<'a> {
        let family = self.family.clone();
        clusters.iter().filter(move |(version, _)| serves(&family, *version)).map(|(_, net)| net.trunc())
    }

    /// The commands that let the clusters through the chain: accepts on top of it, or what its owner has for that.
    pub fn commands(&self, clusters: &ByFamily<IpNet>) -> Vec<String> {
        if self.table == FIREWALLD {
            return firewall_cmd(self.of(clusters));
        }
        if let Some(family) = legacy::family(&self.family) {
            return self
                .of(clusters)
                .flat_map(|cluster| legacy::commands(family, &legacy::accepts(cluster)))
                .collect();
        }
        let insert = |(side, cluster): (&str, IpNet)| {
            let version = cluster.family().nft();
            format!("nft insert rule {self} {version} {side} {cluster} counter accept comment overlay")
        };
        // Each goes on top of the one before.
        let mut clusters: Vec<_> = self.of(clusters).collect();
        clusters.reverse();
        clusters.into_iter().flat_map(|net| ["daddr", "saddr"].map(|side| (side, net))).map(insert).collect()
    }
}

impl fmt::Display for DropChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.family, self.table, self.chain)
    }
}

/// Lets the clusters' packets through every chain that drops by default, and says which those are.
///
/// Takes its accepts back from a chain that no longer drops. A chain that cannot be changed is a warning.
pub fn ensure(carried: &Carried) -> Result<Foreign, NftError> {
    examine(carried, true)
}

/// What [`ensure`] would find, `changed` where it would write; nothing is written.
pub fn look(carried: &Carried) -> Result<Foreign, NftError> {
    examine(carried, false)
}

fn examine(carried: &Carried, write: bool) -> Result<Foreign, NftError> {
    let Carried { clusters, vteps, port } = *carried;
    let mut foreign = Foreign::default();
    for chain in base_chains()? {
        let served = |family: &Family| serves(&chain.family, *family);
        let tunnel = chain.carries_tunnel() && vteps.iter().any(|(family, _)| served(&family));
        let accepts: Vec<_> = clusters
            .iter()
            .filter(|(family, _)| served(family))
            .flat_map(|(_, cluster)| accepts(cluster.trunc()))
            .collect();
        if accepts.is_empty() && !tunnel {
            continue;
        }
        let (rules, drops) = match chain.look(&mut foreign.examined) {
            Ok(seen) => seen,
            // It went away.
            Err(error) if error.is_absent() => continue,
            Err(error) => return Err(error),
        };
        let wanted: &[Value] = if drops { &accepts } else { &[] };
        let held = !chain.forwards() || is_held(&rules, wanted);
        if drops && (tunnel || !held) {
            let table = Listing::read(&chain);
            if table.is_dormant() {
                continue;
            }
            if tunnel && !table.is_about(port) {
                foreign.warnings.push(chain.closes(port));
            }
        }
        if !chain.forwards() {
            continue;
        }
        match if held || !write { Ok(!held) } else { chain.hold(wanted) } {
            Ok(changed) if drops => foreign.chains.push(chain.found(changed)),
            Ok(_) => {}
            Err(error) => foreign.warnings.push(Obstacle {
                chain: chain.to_string(),
                what: format!(
                    "chain {chain} drops what the stack forwards for pods, and cannot be changed: {error}"
                ),
                remedy: chain.remedy(&clusters),
            }),
        }
    }
    for cluster in clusters.values() {
        legacy::examine(*cluster, &mut foreign, write);
    }
    Ok(foreign)
}

/// Takes every accept of ours away; returns from which chains.
pub fn remove() -> Result<Vec<DropChain>, NftError> {
    let mut chains = held()?;
    for chain in &mut chains {
        remove_from(chain)?;
        chain.changed = true;
    }
    Ok(chains)
}

/// Takes our accepts out of one chain.
pub fn remove_from(chain: &DropChain) -> Result<(), NftError> {
    if let Some(family) = legacy::family(&chain.family) {
        return legacy::remove(family);
    }
    let DropChain { family, table, chain, .. } = chain.clone();
    Chain { family, table, name: chain, hook: String::new(), drops_by_policy: false }.hold(&[]).map(drop)
}

/// The chains that hold accepts of ours.
pub fn held() -> Result<Vec<DropChain>, NftError> {
    let mut held = Vec::new();
    for chain in base_chains()?.iter().filter(|chain| chain.forwards()) {
        match chain.rules(&chain.name) {
            Ok(rules) if rules.iter().any(|rule| rule["comment"] == COMMENT) => held.push(chain.found(false)),
            Ok(_) => {}
            Err(error) if error.is_absent() => {}
            Err(error) => return Err(error),
        }
    }
    for family in Family::ALL {
        held.extend(legacy::held(family)?);
    }
    Ok(held)
}

/// Takes our accepts out of the chains that serve this family alone, for when that is not in use any more; the others are
/// [`ensure`]'s.
pub fn release(family: Family) -> Result<(), NftError> {
    let alone = |chain: &DropChain| serves(&chain.family, family) && !serves(&chain.family, family.other());
    held()?.iter().filter(|chain| alone(chain)).try_for_each(remove_from)
}

/// Whether packets of an IP version pass the chains of a family of nft, or of legacy iptables.
fn serves(family: &str, version: Family) -> bool {
    family == "inet" || family == version.nft() || legacy::family(family) == Some(version)
}

/// The matches of our rules, from top to bottom.
fn accepts(cluster: IpNet) -> [Value; 2] {
    let protocol = cluster.family().nft();
    ["saddr", "daddr"].map(|field| {
        json!({ "match": {
            "op": "==",
            "left": { "payload": { "protocol": protocol, "field": field } },
            "right": { "prefix": { "addr": cluster.addr().to_string(), "len": cluster.prefix_len() } },
        } })
    })
}

/// A foreign base chain that filters.
#[derive(Debug)]
struct Chain {
    family: String,
    table: String,
    name: String,
    hook: String,
    drops_by_policy: bool,
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.family, self.table, self.name)
    }
}

impl Chain {
    fn found(&self, changed: bool) -> DropChain {
        let Self { family, table, name, .. } = self;
        DropChain { family: family.clone(), table: table.clone(), chain: name.clone(), changed }
    }

    /// Whether forwarded packets pass it.
    fn forwards(&self) -> bool {
        matches!(self.hook.as_str(), "prerouting" | "forward" | "postrouting")
    }

    /// Whether the packets of the tunnel that the stack sends and receives pass it.
    fn carries_tunnel(&self) -> bool {
        self.hook != "forward"
    }

    /// The rules of a chain of the same table.
    fn rules(&self, chain: &str) -> Result<Vec<Value>, NftError> {
        let list =
            json!({ "list": { "chain": { "family": self.family, "table": self.table, "name": chain } } });
        let objects = json(&[list], &format!("read chain {} {} {chain}", self.family, self.table))?;
        Ok(objects.into_iter().filter_map(|mut object| object.get_mut("rule").map(Value::take)).collect())
    }

    /// Its rules, and whether it drops what none of its conditions is about; adds the chains that say so to `examined`.
    fn look(&self, examined: &mut HashSet<(String, String)>) -> Result<(Vec<Value>, bool), NftError> {
        let own = self.rules(&self.name)?;
        let mut steps = |chain: &str| {
            examined.insert((self.table.clone(), chain.to_owned()));
            if chain == self.name {
                return Ok(own.iter().map(fate::step).collect());
            }
            Ok(self.rules(chain)?.iter().map(fate::step).collect())
        };
        let drops = match fate::fate(&self.name, &mut steps)? {
            Fate::Accepted => false,
            Fate::Dropped => true,
            Fate::Returned => self.drops_by_policy,
        };
        Ok((own, drops))
    }

    fn closes(&self, port: u16) -> Obstacle {
        let what = format!(
            "chain {self} ({}) drops by default and no rule of its table is about UDP port {port}: tunnel packets that take \
             the stack, as UDP in large pieces does, are lost there, unless another rule accepts what comes from nodes",
            self.hook
        );
        let remedy = format!("run: nft insert rule {self} udp dport {port} accept");
        Obstacle { chain: self.to_string(), what, remedy }
    }

    /// What lets the clusters through where we may not.
    fn remedy(&self, clusters: &ByFamily<IpNet>) -> String {
        let chain = self.found(false);
        if self.table == FIREWALLD {
            return format!("run: {}", firewall_cmd(chain.of(clusters)).join("; "));
        }
        let nets: Vec<_> = chain.of(clusters).map(|net| net.to_string()).collect();
        format!("have its owner accept what is from or to {} in that chain", nets.join(" and "))
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
        let rules = self.rules(&self.name)?;
        let ours: Vec<_> = rules.iter().filter(|rule| rule["comment"] == COMMENT).collect();
        if is_held(&rules, wanted) {
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
        let action = format!("set accepts in chain {self}");
        json(&deletes.chain(inserts).collect::<Vec<_>>(), &action)?;
        Ok(true)
    }
}

/// How firewalld is told; what is written into its table by others it may not keep, or not allow.
fn firewall_cmd(clusters: impl Iterator<Item = IpNet>) -> Vec<String> {
    let trust = |cluster| format!("firewall-cmd --permanent --zone=trusted --add-source={cluster}");
    clusters.map(trust).chain(["firewall-cmd --reload".to_owned()]).collect()
}

/// Whether accepts for `wanted` are the only rules of ours, and the first of all.
fn is_held(rules: &[Value], wanted: &[Value]) -> bool {
    let ours = rules.iter().filter(|rule| rule["comment"] == COMMENT).count();
    ours == wanted.len()
        && rules.len() >= wanted.len()
        && rules.iter().zip(wanted).all(|(rule, matching)| accepts_matching(rule, matching))
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

/// All foreign base chains that filter IP packets, in the order of nft.
fn base_chains() -> Result<Vec<Chain>, NftError> {
    let objects = json(&[json!({ "list": { "chains": null } })], "list chains")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let hooks = ["prerouting", "input", "forward", "output", "postrouting"];
    Ok(objects
        .iter()
        .filter_map(|object| object.get("chain"))
        .filter(|chain| chain["type"] == "filter" && hooks.iter().any(|hook| chain["hook"] == *hook))
        .map(|chain| Chain {
            family: text(&chain["family"]),
            table: text(&chain["table"]),
            name: text(&chain["name"]),
            hook: text(&chain["hook"]),
            drops_by_policy: chain["policy"] == "drop",
        })
        .filter(|chain| Family::ALL.iter().any(|family| serves(&chain.family, *family)))
        .filter(|chain| !is_own(&chain.family, &chain.table))
        .collect())
}

/// A table in nft's language. Not in JSON: nft 1.0.6 crashes when it has to write down a table's flags.
struct Listing(Option<String>);

impl Listing {
    /// What cannot be listed is `None`: a table called like a keyword, or one that went away.
    fn read(chain: &Chain) -> Self {
        let Chain { family, table, .. } = chain;
        let action = format!("read table {family} {table}");
        Self(run("nft", "nftables", &["-n", "list", "table", family, table], "", &action).ok())
    }

    fn lines(&self) -> impl Iterator<Item = &str> {
        self.0.iter().flat_map(|text| text.lines()).map(str::trim)
    }

    /// Whether the chains are out of use.
    fn is_dormant(&self) -> bool {
        self.lines()
            .filter_map(|line| line.strip_prefix("flags "))
            .any(|flags| flags.split(',').any(|flag| flag.trim() == "dormant"))
    }

    /// Whether some rule is about that destination port, or may be.
    fn is_about(&self, port: u16) -> bool {
        // What nft cannot translate of iptables' rules.
        let opaque = |line: &str| line.contains("xt match") || line.contains("xt_");
        self.0.is_none()
            || self.lines().any(|line| {
                opaque(line) || line.split_once("dport ").is_some_and(|(_, rest)| names(rest, port))
            })
    }
}

/// Whether that is among ports, ranges and sets; a named set may have it.
fn names(text: &str, port: u16) -> bool {
    text.split([' ', ',']).any(|word| match word.split_once('-') {
        Some((low, high)) => {
            low.parse().is_ok_and(|low: u16| low <= port) && high.parse().is_ok_and(|high: u16| port <= high)
        }
        None => word.starts_with('@') || word.parse() == Ok(port),
    })
}

#[cfg(test)]
mod tests;
