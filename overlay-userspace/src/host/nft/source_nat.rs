//! Source addresses and ports that the node translates, in the tables `ip overlay` and `ip6 overlay`: one for each family
//! that is in use, made from the same rules and independent of each other.
//!
//! * Chain `postrouting`: masquerade at the edge. What the node's own pods send to the world leaves with the node's
//!   address; what stays in the cluster does not. UDP to the tunnel port is never translated, wherever it goes:
//!   receivers trust a tunnel packet by its outer source, so a pod must never get to borrow the node's.
//! * Chain `services`: what somebody else's rules (kube-proxy's, host ports) have sent to another destination than
//!   the one that was called. It comes after `srcnat`, where those masquerade what they want to: theirs wins, because
//!   a connection's source is translated once. Packets whose destination nobody translated are not touched there.
//!   - A pod's packet to a pod keeps its address and gets a source port that no kernel picks by itself
//!     (`SERVICE_PORTS`). So one pod's flow to a backend by way of a Service, and one to the same port of the same
//!     backend directly, are always two 5-tuples.
//!   - What came from another node's pod and leaves through the tunnel again gets the gateway address, because a peer
//!     believes an inner source only from the node that it belongs to.
//!
//! A table carries a digest of the text it was made from. Reconcile compares that digest, and the numbers of
//! chains, rules and elements, with what it wants, and replaces the table in one transaction only when they
//! differ: counters survive, and translations of existing connections are conntrack's in any case.

use std::{
    collections::BTreeSet,
    fmt::{Display, Write as _},
    net::IpAddr,
};

use ipnet::IpNet;
use serde_json::{Value, json};

use super::{NftError, TABLE, apply, digest, json, own};
use crate::family::{Family, OfFamily as _};

/// Source ports of Service flows between pods: below the range from which Linux picks ports for sockets that are not
/// bound to one (`net.ipv4.ip_local_port_range`, 32768 to 60999 by default).
const SERVICE_PORTS: &str = "1024-32767";

/// What is to be translated, in one family: that of `cluster`. All addresses are of that family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceNat {
    /// The node's own pod subnets.
    pub subnets: Vec<IpNet>,
    /// The cluster CIDR.
    pub cluster: IpNet,
    /// Name of the device that leads into the tunnel.
    pub anchor: String,
    /// What pods send to the world; `None` leaves it as it is.
    pub masquerade: Option<Masquerade>,
}

/// What is to be masqueraded, and what not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masquerade {
    /// Addresses of all nodes. What pods send there leaves by the anchor, with their own address; the set is needed
    /// only to keep it out of `never`.
    pub nodes: BTreeSet<IpAddr>,
    /// Destinations that see the pods' own addresses; of no effect on `nodes`, which do not take them off the
    /// underlay.
    pub never: Vec<IpNet>,
    /// UDP port of the tunnel (host byte order).
    pub port: u16,
}

/// A base chain of type `nat` on the postrouting hook.
struct Chain {
    name: &'static str,
    priority: &'static str,
    rules: Vec<String>,
}

/// What is for many, and never translated.
const fn multicast(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "224.0.0.0/4",
        Family::Ipv6 => "ff00::/8",
    }
}

impl SourceNat {
    /// The family of the table.
    pub fn family(&self) -> Family {
        self.cluster.family()
    }

    /// The elements of the set of nodes, where there is one: thousands that come and go are not to be written for nothing.
    fn nodes(&self) -> Option<&BTreeSet<IpAddr>> {
        let masquerade = self.masquerade.as_ref().filter(|masquerade| !masquerade.never.is_empty());
        masquerade.map(|masquerade| &masquerade.nodes)
    }

    /// All chains of the table; the last rule of the last one gets the digest.
    fn chains(&self) -> Vec<Chain> {
        let masquerade = self.masquerade.as_ref().map(|masquerade| Chain {
            name: "postrouting",
            priority: "srcnat",
            rules: masquerade.rules(self),
        });
        let services = Chain { name: "services", priority: "srcnat + 10", rules: self.services() };
        masquerade.into_iter().chain([services]).collect()
    }

    fn services(&self) -> Vec<String> {
        let Self { subnets, cluster, anchor, .. } = self;
        let ip = self.family().nft();
        let from_cluster = format!("ct status dnat {ip} saddr {}", cluster.trunc());
        vec![
            format!(
                "{from_cluster} {}oifname \"{anchor}\" masquerade fully-random comment \"relayed\"",
                unless_from(ip, subnets)
            ),
            // Other protocols have no ports; the range stands for one of these.
            format!(
                "{from_cluster} {ip} daddr {} meta l4proto {{ tcp, udp, sctp }} \
                 snat to :{SERVICE_PORTS} fully-random",
                cluster.trunc()
            ),
        ]
    }
}

impl Masquerade {
    fn rules(&self, nat: &SourceNat) -> Vec<String> {
        let Self { never, port, .. } = self;
        let SourceNat { subnets, cluster, anchor, .. } = nat;
        let mut rules = Vec::new();
        let ip = nat.family().nft();
        rules.push(format!("{}return", unless_from(ip, subnets)));
        rules.push(format!("{ip} daddr {} return", cluster.trunc()));
        // Only into the tunnel: on another way a node drops a pod's address, and so does the underlay.
        rules.push(format!("oifname \"{anchor}\" return"));
        rules.push(format!("{ip} daddr {} return", multicast(nat.family())));
        rules.push(format!("udp dport {port} return comment \"tunnel\""));
        if !never.is_empty() {
            // The kernel refuses a set whose elements overlap.
            rules.push(format!(
                "{ip} daddr != @nodes {ip} daddr {{ {} }} return",
                list(IpNet::aggregate(never))
            ));
        }
        rules.push("masquerade fully-random".to_owned());
        rules
    }
}

/// Matches all sources but those.
fn unless_from(ip: &str, subnets: &[IpNet]) -> String {
    match subnets {
        [] => String::new(),
        subnets => format!("{ip} saddr != {{ {} }} ", list(subnets)),
    }
}

/// The script that puts the table in place of whatever has its name; the same for equal input.
pub fn render(nat: &SourceNat) -> String {
    let body = body(nat);
    let ip = nat.family().nft();
    // `add` first, so that `delete` cannot fail; all of it is one transaction.
    format!(
        "add table {ip} {TABLE}\n\
         delete table {ip} {TABLE}\n\
         table {ip} {TABLE} {{\n{body} comment \"{}\"\n\t}}\n}}\n",
        digest(&body)
    )
}

/// Everything of the table up to the last rule, which gets the digest.
fn body(nat: &SourceNat) -> String {
    let mut text = String::new();
    if let Some(nodes) = nat.nodes() {
        let kind = match nat.family() {
            Family::Ipv4 => "ipv4_addr",
            Family::Ipv6 => "ipv6_addr",
        };
        let _ = writeln!(text, "\tset nodes {{\n\t\ttype {kind}");
        if !nodes.is_empty() {
            let _ = writeln!(text, "\t\telements = {{ {} }}", list(nodes));
        }
        text.push_str("\t}\n");
    }
    let chains = nat.chains().into_iter().map(|Chain { name, priority, rules }| {
        format!(
            "\tchain {name} {{\n\
             \t\ttype nat hook postrouting priority {priority}; policy accept;\n\
             \t\t{}",
            rules.join("\n\t\t")
        )
    });
    text.push_str(&chains.collect::<Vec<_>>().join("\n\t}\n"));
    text
}

fn list(items: impl IntoIterator<Item = impl Display>) -> String {
    let items: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    items.join(", ")
}

/// Whether what is loaded is just that.
pub fn is_loaded(nat: &SourceNat) -> Result<bool, NftError> {
    Ok(loaded(nat.family())?.is_some_and(|table| table == Loaded::wanted(nat)))
}

/// Loads the table if what is loaded differs; true when it did.
pub fn ensure(nat: &SourceNat) -> Result<bool, NftError> {
    if is_loaded(nat)? {
        return Ok(false);
    }
    apply(&render(nat), &format!("load the table of translated {} sources", nat.family()))?;
    Ok(true)
}

/// The rule that gives what a pod sends to this destination, outside of the cluster, the node's address, as nft lists it;
/// `None` where there is none, or an exception before it.
pub fn rule_for(dst: IpAddr) -> Result<Option<String>, NftError> {
    let ip = dst.family().nft();
    let arguments = ["list", "chain", ip, TABLE, "postrouting"];
    match super::run("nft", "nftables", &arguments, "", "read the masquerade") {
        Ok(listed) => Ok(masquerading(&listed, dst)),
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error),
    }
}

fn masquerading(listed: &str, dst: IpAddr) -> Option<String> {
    let excepted = |rule: &str| {
        let nets = rule.split([' ', ',']).filter_map(|word| {
            word.parse::<IpNet>().ok().or_else(|| word.parse::<IpAddr>().ok().map(IpNet::from))
        });
        rule.contains(&format!("{} daddr", dst.family().nft()))
            && nets.into_iter().any(|net| net.contains(&dst))
    };
    for rule in listed.lines().map(str::trim) {
        let words: Vec<_> = rule.split_whitespace().collect();
        if words.contains(&"return") && excepted(rule) {
            return None;
        }
        if words.contains(&"masquerade") {
            return Some(rule.to_owned());
        }
    }
    None
}

/// Removes the table of a family; false when there was none.
pub fn remove(family: Family) -> Result<bool, NftError> {
    own::remove(family, TABLE)
}

/// What tells an untouched table from a changed one.
#[derive(Debug, PartialEq, Eq)]
struct Loaded {
    digest: Option<String>,
    chains: usize,
    rules: usize,
    elements: usize,
}

impl Loaded {
    fn wanted(nat: &SourceNat) -> Self {
        let chains = nat.chains();
        Self {
            digest: Some(digest(&body(nat))),
            chains: chains.len(),
            rules: chains.iter().map(|chain| chain.rules.len()).sum(),
            elements: nat.nodes().map_or(0, BTreeSet::len),
        }
    }
}

fn loaded(family: Family) -> Result<Option<Loaded>, NftError> {
    let list = json!({ "list": { "table": { "family": family.nft(), "name": TABLE } } });
    let objects = match json(&[list], &format!("read the table of translated {family} sources")) {
        Ok(objects) => objects,
        Err(error) if error.is_absent() => return Ok(None),
        // What nft writes of a table with flags (that has an owner, say) is no JSON (1.0.6). Ours has none.
        Err(NftError::Output { .. }) => Vec::new(),
        Err(error) => return Err(error),
    };
    let all = |kind: &'static str| objects.iter().filter_map(move |object| object.get(kind));
    let digest = all("rule").next_back().and_then(|rule| rule["comment"].as_str()).map(str::to_owned);
    let elements = all("set").filter_map(|set| set.get("elem").and_then(Value::as_array)).map(Vec::len).sum();
    Ok(Some(Loaded { digest, chains: all("chain").count(), rules: all("rule").count(), elements }))
}

#[cfg(test)]
mod tests;
