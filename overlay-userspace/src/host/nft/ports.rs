//! Host ports: what reaches a port of the node goes to a pod.
//!
//! Owns the tables `ip overlay-ports` and `ip6 overlay-ports`, which are alike and have nothing to do with each other. Packets
//! to an address of the node itself, from outside or by one of its own processes, are looked up in two maps, by address and
//! port and by port alone. The sender's address stays, but where the answer would not come back through the node, or could
//! not be sent at all: a pod that calls itself, and a process of the node that calls 127.0.0.1. Those two get the node's
//! gateway address.
//!
//! Devices of pods with host ports have `route_localnet`, without which an answer to 127.0.0.1 is not taken; the chain
//! `guard` takes away what else that would let in. IPv6 has nothing like it: the kernel looks for `::1` only behind the
//! device that a packet came in by, so an answer to it is lost. Packets to it, and to link-local addresses, whose
//! senders no router forwards, stay the node's own.
//!
//! The database is elsewhere (`HOST_PORTS`, see [`crate::ports`]), and the tables are made from it: nothing is decided by
//! what is in them. All writers hold that database's lock. There is no table where there is no port of its family.

use std::{
    collections::BTreeSet,
    fmt::{self, Write as _},
    net::IpAddr,
};

use overlay_common::maps::PortProtocol;
use serde_json::{Value, json};

use super::{NftError, apply, digest, json};
use crate::family::{ByFamily, Family, OfFamily};

/// The table, in the families `ip` and `ip6`.
pub const TABLE: &str = "overlay-ports";

/// A port of the node that leads to a pod. Both are of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mapping {
    /// The address of the node; none for all of the pod's family.
    pub address: Option<IpAddr>,
    /// The protocol.
    pub protocol: PortProtocol,
    /// The port, host order.
    pub port: u16,
    /// The pod.
    pub pod: IpAddr,
    /// The pod's port, host order.
    pub pod_port: u16,
}

impl OfFamily for Mapping {
    fn family(&self) -> Family {
        self.pod.family()
    }
}

/// As an element of its map.
impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, protocol, port, pod, pod_port } = self;
        if let Some(address) = address {
            write!(f, "{address} . ")?;
        }
        write!(f, "{} . {port} : {pod} . {pod_port}", protocol.name())
    }
}

/// Those of one family.
fn of(family: Family, mappings: &[Mapping]) -> Vec<Mapping> {
    mappings.iter().filter(|mapping| mapping.family() == family).copied().collect()
}

const ADDRESSED: &str = "addressed";
const ANY: &str = "any";
const PODS: &str = "pods";
const HAIRPINS: &str = "hairpins";

/// Name and head of a chain.
type Chain = (&'static str, &'static str);

const LEAD: Chain = ("lead", "");
/// Before connection tracking turns the answers to 127.0.0.1 into what is taken away here.
const GUARD: Chain = ("guard", "{ type filter hook prerouting priority raw; policy accept; }");
const PREROUTING: Chain = ("prerouting", "{ type nat hook prerouting priority dstnat; policy accept; }");
/// That has no name for this hook.
const OUTPUT: Chain = ("output", "{ type nat hook output priority -100; policy accept; }");
const POSTROUTING: Chain = ("postrouting", "{ type nat hook postrouting priority srcnat; policy accept; }");

/// What the table of a family consists of.
struct Shape {
    /// The name of an address's type.
    address: &'static str,
    chains: &'static [Chain],
    /// Chain and text of each rule but the last, which carries the digest.
    rules: &'static [(&'static str, &'static str)],
}

const V4: Shape = Shape {
    address: "ipv4_addr",
    chains: &[LEAD, GUARD, PREROUTING, OUTPUT, POSTROUTING],
    rules: &[
        ("lead", "dnat ip to ip daddr . meta l4proto . th dport map @addressed"),
        ("lead", "dnat ip to meta l4proto . th dport map @any"),
        ("guard", "ip saddr @pods ip daddr 127.0.0.0/8 drop"),
        ("prerouting", "fib daddr type local jump lead"),
        ("output", "fib daddr type local jump lead"),
        ("postrouting", "ct status dnat ip saddr 127.0.0.0/8 ip daddr @pods snat to"),
    ],
};

const V6: Shape = Shape {
    address: "ipv6_addr",
    chains: &[LEAD, PREROUTING, OUTPUT, POSTROUTING],
    rules: &[
        ("lead", "ip6 daddr ::1 return"),
        ("lead", "ip6 daddr fe80::/10 return"),
        ("lead", "dnat ip6 to ip6 daddr . meta l4proto . th dport map @addressed"),
        ("lead", "dnat ip6 to meta l4proto . th dport map @any"),
        ("prerouting", "fib daddr type local jump lead"),
        ("output", "fib daddr type local jump lead"),
    ],
};

const fn shape(family: Family) -> &'static Shape {
    match family {
        Family::Ipv4 => &V4,
        Family::Ipv6 => &V6,
    }
}

/// The table of the gateway's family without elements; brings one that is there into this state, and keeps its elements.
fn skeleton(gateway: IpAddr) -> String {
    let family = gateway.family();
    let (Shape { address, chains, rules }, ip) = (shape(family), family.nft());
    let mut text = format!(
        "add table {ip} {TABLE}\n\
         add map {ip} {TABLE} {ADDRESSED} {{ type {address} . inet_proto . inet_service : {address} . inet_service; }}\n\
         add map {ip} {TABLE} {ANY} {{ type inet_proto . inet_service : {address} . inet_service; }}\n\
         add set {ip} {TABLE} {PODS} {{ type {address}; }}\n\
         add set {ip} {TABLE} {HAIRPINS} {{ type {address} . {address}; }}\n"
    );
    for (name, head) in *chains {
        let _ = writeln!(text, "add chain {ip} {TABLE} {name} {head}");
        let _ = writeln!(text, "flush chain {ip} {TABLE} {name}");
    }
    for (chain, rule) in *rules {
        let gateway = if rule.ends_with("snat to") { format!(" {gateway}") } else { String::new() };
        let _ = writeln!(text, "add rule {ip} {TABLE} {chain} {rule}{gateway}");
    }
    let last = format!("ct status dnat {ip} saddr . {ip} daddr @{HAIRPINS} snat to {gateway}");
    let digest = digest(&format!("{text}{last}"));
    let _ = writeln!(text, "add rule {ip} {TABLE} postrouting {last} comment \"{digest}\"");
    text
}

/// Adds the elements of `mappings`, which are of this family, or takes them away, by `verb`.
fn elements(verb: &str, family: Family, mappings: &[Mapping]) -> String {
    let (mut text, ip) = (String::new(), family.nft());
    let mut write = |set: &str, elements: Vec<String>| {
        if !elements.is_empty() {
            let _ = writeln!(text, "{verb} element {ip} {TABLE} {set} {{ {} }}", elements.join(", "));
        }
    };
    let (addressed, any): (Vec<&Mapping>, Vec<&Mapping>) =
        mappings.iter().partition(|mapping| mapping.address.is_some());
    for (map, mappings) in [(ADDRESSED, addressed), (ANY, any)] {
        write(map, mappings.iter().map(ToString::to_string).collect());
    }
    let pods: BTreeSet<_> = mappings.iter().map(|mapping| mapping.pod).collect();
    write(PODS, pods.iter().map(ToString::to_string).collect());
    write(HAIRPINS, pods.iter().map(|pod| format!("{pod} . {pod}")).collect());
    text
}

/// Adds mappings, and makes the tables where there are none; one transaction for both families.
///
/// # Errors
///
/// Also where a port leads elsewhere already: then the table is not what the database says, see [`replace`].
pub fn add(gateways: &ByFamily<IpAddr>, mappings: &[Mapping]) -> Result<(), NftError> {
    let mut script = String::new();
    for (family, gateway) in gateways.iter() {
        let mappings = of(family, mappings);
        if !mappings.is_empty() {
            script += &skeleton(*gateway);
            script += &elements("add", family, &mappings);
        }
    }
    apply(&script, "add host ports")
}

/// Takes mappings away, all of the pods that they lead to, and the table of a family that has none of the `rest`; one
/// transaction for both families.
///
/// # Errors
///
/// Also where one of them is not there, see [`replace`].
pub fn delete(mappings: &[Mapping], rest: &[Mapping]) -> Result<(), NftError> {
    let mut script = String::new();
    for family in Family::ALL {
        let gone = of(family, mappings);
        if of(family, rest).is_empty() && !gone.is_empty() {
            script += &removal(family);
        } else {
            script += &elements("delete", family, &gone);
        }
    }
    apply(&script, "delete host ports")
}

/// Removes the table of a family, or does nothing where there is none.
fn removal(family: Family) -> String {
    let ip = family.nft();
    // `add` first, so that `delete` cannot fail.
    format!("add table {ip} {TABLE}\ndelete table {ip} {TABLE}\n")
}

/// Puts a table with those of the mappings that are of this family in the place of the one that is there; none where there
/// are no such mappings, or the node has no gateway of the family.
pub fn replace(family: Family, gateways: &ByFamily<IpAddr>, mappings: &[Mapping]) -> Result<(), NftError> {
    let mut script = removal(family);
    let mappings = of(family, mappings);
    if let (Some(gateway), false) = (gateways.get(family).copied(), mappings.is_empty()) {
        script += &skeleton(gateway);
        script += &elements("add", family, &mappings);
    }
    apply(&script, "write host ports")
}

/// What is loaded in one family, as far as it is compared.
#[derive(Debug, PartialEq, Eq)]
pub struct Loaded {
    digest: Option<String>,
    chains: usize,
    rules: usize,
    pods: BTreeSet<IpAddr>,
    hairpins: BTreeSet<IpAddr>,
    mappings: BTreeSet<Mapping>,
    /// Elements that no table of ours has.
    strange: usize,
}

impl Loaded {
    /// Whether it is the table of these mappings, as far as they are of the gateway's family.
    pub fn is(&self, gateway: IpAddr, mappings: &[Mapping]) -> bool {
        let mappings = of(gateway.family(), mappings);
        let pods: BTreeSet<_> = mappings.iter().map(|mapping| mapping.pod).collect();
        let hairpins = pods.clone();
        self.is_sound(gateway)
            && (&self.pods, &self.hairpins) == (&pods, &hairpins)
            && self.mappings.iter().eq(&mappings.iter().copied().collect::<BTreeSet<_>>())
    }

    /// Whether its rules are ours, whatever it leads where.
    pub fn is_sound(&self, gateway: IpAddr) -> bool {
        let (skeleton, Shape { chains, rules, .. }) = (skeleton(gateway), shape(gateway.family()));
        // The digest is all that the last line has in quotation marks.
        self.digest.as_deref() == skeleton.rsplit('"').nth(1)
            && (self.chains, self.rules, self.strange) == (chains.len(), rules.len() + 1, 0)
    }

    /// Whether a mapping is in it, with all that it needs.
    pub fn has(&self, mapping: &Mapping) -> bool {
        self.mappings.contains(mapping)
            && self.pods.contains(&mapping.pod)
            && self.hairpins.contains(&mapping.pod)
    }
}

/// Reads the table of a family; `None` where there is none.
pub fn loaded(family: Family) -> Result<Option<Loaded>, NftError> {
    let list = json!({ "list": { "table": { "family": family.nft(), "name": TABLE } } });
    let objects = match json(&[list], "read host ports") {
        Ok(objects) => objects,
        Err(error) if error.is_absent() => return Ok(None),
        Err(error) => return Err(error),
    };
    let all = |kind: &'static str| objects.iter().filter_map(move |object| object.get(kind));
    let elements = |kind, name: &'static str| {
        let named = all(kind).find(|set| set["name"] == name);
        named.and_then(|set| set["elem"].as_array()).into_iter().flatten()
    };
    let mut loaded = Loaded {
        digest: all("rule").next_back().and_then(|rule| rule["comment"].as_str()).map(str::to_owned),
        chains: all("chain").count(),
        rules: all("rule").count(),
        pods: elements("set", PODS).filter_map(address).collect(),
        hairpins: elements("set", HAIRPINS).filter_map(hairpin).collect(),
        mappings: BTreeSet::new(),
        strange: 0,
    };
    for element in elements("map", ADDRESSED).chain(elements("map", ANY)) {
        match mapping(element) {
            Some(mapping) => drop(loaded.mappings.insert(mapping)),
            None => loaded.strange += 1,
        }
    }
    Ok(Some(loaded))
}

fn address(value: &Value) -> Option<IpAddr> {
    value.as_str()?.parse().ok()
}

/// The parts of a concatenation.
fn parts(value: &Value) -> &[Value] {
    value["concat"].as_array().map_or(&[], Vec::as_slice)
}

fn hairpin(element: &Value) -> Option<IpAddr> {
    let [from, to] = parts(element) else { return None };
    address(from).filter(|pod| address(to) == Some(*pod))
}

fn mapping(element: &Value) -> Option<Mapping> {
    let [key, target] = element.as_array()?.as_slice() else { return None };
    let number = |value: &Value| u16::try_from(value.as_u64()?).ok();
    let (at, protocol, port) = match parts(key) {
        [protocol, port] => (None, protocol, port),
        [at, protocol, port] => (Some(address(at)?), protocol, port),
        _ => return None,
    };
    let [pod, pod_port] = parts(target) else { return None };
    Some(Mapping {
        address: at,
        protocol: PortProtocol::from_name(protocol.as_str()?)?,
        port: number(port)?,
        pod: address(pod)?,
        pod_port: number(pod_port)?,
    })
}

#[cfg(test)]
mod tests;
