//! Host ports: what reaches a port of the node goes to a pod.
//!
//! Owns the table `ip overlay-ports`. Packets to an address of the node itself, from outside or by one of its own
//! processes, are looked up in two maps, by address and port and by port alone. The sender's address stays, but where the
//! answer would not come back through the node, or could not be sent at all: a pod that calls itself, and a process of
//! the node that calls 127.0.0.1. Those two get the node's gateway address.
//!
//! Devices of pods with host ports have `route_localnet`, without which an answer to 127.0.0.1 is not taken; the chain
//! `guard` takes away what else that would let in.
//!
//! The database is elsewhere (`HOST_PORTS`, see [`crate::ports`]), and the table is made from it: nothing is decided by
//! what is in it. All writers hold that database's lock. There is no table where there is no port.

use std::{
    collections::BTreeSet,
    fmt::{self, Write as _},
    net::Ipv4Addr,
};

use overlay_common::maps::PortProtocol;
use serde_json::{Value, json};

use super::{NftError, apply, digest, json};

/// The table, in family `ip`.
pub const TABLE: &str = "overlay-ports";

/// A port of the node that leads to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mapping {
    /// The address of the node; none for all of them.
    pub address: Option<Ipv4Addr>,
    /// The protocol.
    pub protocol: PortProtocol,
    /// The port, host order.
    pub port: u16,
    /// The pod.
    pub pod: Ipv4Addr,
    /// The pod's port, host order.
    pub pod_port: u16,
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

const ADDRESSED: &str = "addressed";
const ANY: &str = "any";
const PODS: &str = "pods";
const HAIRPINS: &str = "hairpins";

/// Name and head of each chain.
const CHAINS: [(&str, &str); 5] = [
    ("lead", ""),
    // Before connection tracking turns the answers to 127.0.0.1 into what is taken away here.
    ("guard", "{ type filter hook prerouting priority raw; policy accept; }"),
    ("prerouting", "{ type nat hook prerouting priority dstnat; policy accept; }"),
    // That has no name for this hook.
    ("output", "{ type nat hook output priority -100; policy accept; }"),
    ("postrouting", "{ type nat hook postrouting priority srcnat; policy accept; }"),
];

/// Chain and text of each rule but the last, which carries the digest.
const RULES: [(&str, &str); 6] = [
    ("lead", "dnat ip to ip daddr . meta l4proto . th dport map @addressed"),
    ("lead", "dnat ip to meta l4proto . th dport map @any"),
    ("guard", "ip saddr @pods ip daddr 127.0.0.0/8 drop"),
    ("prerouting", "fib daddr type local jump lead"),
    ("output", "fib daddr type local jump lead"),
    ("postrouting", "ct status dnat ip saddr 127.0.0.0/8 ip daddr @pods snat to"),
];

/// The table without elements; brings one that is there into this state, and keeps its elements.
fn skeleton(gateway: Ipv4Addr) -> String {
    let mut text = format!(
        "add table ip {TABLE}\n\
         add map ip {TABLE} {ADDRESSED} {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}\n\
         add map ip {TABLE} {ANY} {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}\n\
         add set ip {TABLE} {PODS} {{ type ipv4_addr; }}\n\
         add set ip {TABLE} {HAIRPINS} {{ type ipv4_addr . ipv4_addr; }}\n"
    );
    for (name, head) in CHAINS {
        let _ = writeln!(text, "add chain ip {TABLE} {name} {head}");
        let _ = writeln!(text, "flush chain ip {TABLE} {name}");
    }
    for (chain, rule) in RULES {
        let gateway = if rule.ends_with("snat to") { format!(" {gateway}") } else { String::new() };
        let _ = writeln!(text, "add rule ip {TABLE} {chain} {rule}{gateway}");
    }
    let last = format!("ct status dnat ip saddr . ip daddr @{HAIRPINS} snat to {gateway}");
    let digest = digest(&format!("{text}{last}"));
    let _ = writeln!(text, "add rule ip {TABLE} postrouting {last} comment \"{digest}\"");
    text
}

/// Adds the elements of `mappings`, or takes them away, by `verb`.
fn elements(verb: &str, mappings: &[Mapping]) -> String {
    let mut text = String::new();
    let mut write = |set: &str, elements: Vec<String>| {
        if !elements.is_empty() {
            let _ = writeln!(text, "{verb} element ip {TABLE} {set} {{ {} }}", elements.join(", "));
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

/// Adds mappings, and makes the table where there is none.
///
/// # Errors
///
/// Also where a port leads elsewhere already: then the table is not what the database says, see [`replace`].
pub fn add(gateway: Ipv4Addr, mappings: &[Mapping]) -> Result<(), NftError> {
    apply(&format!("{}{}", skeleton(gateway), elements("add", mappings)), "add host ports")
}

/// Takes mappings away: all of the pods that they lead to.
///
/// # Errors
///
/// Also where one of them is not there, see [`replace`].
pub fn delete(mappings: &[Mapping]) -> Result<(), NftError> {
    apply(&elements("delete", mappings), "delete host ports")
}

/// Puts a table with these mappings in the place of the one that is there; none where there are no mappings.
pub fn replace(gateway: Ipv4Addr, mappings: &[Mapping]) -> Result<(), NftError> {
    // `add` first, so that `delete` cannot fail; all of it is one transaction.
    let mut script = format!("add table ip {TABLE}\ndelete table ip {TABLE}\n");
    if !mappings.is_empty() {
        script.push_str(&skeleton(gateway));
        script.push_str(&elements("add", mappings));
    }
    apply(&script, "write host ports")
}

/// What is loaded, as far as it is compared.
#[derive(Debug, PartialEq, Eq)]
pub struct Loaded {
    digest: Option<String>,
    chains: usize,
    rules: usize,
    pods: BTreeSet<Ipv4Addr>,
    hairpins: BTreeSet<Ipv4Addr>,
    mappings: BTreeSet<Mapping>,
    /// Elements that no table of ours has.
    strange: usize,
}

impl Loaded {
    /// Whether it is the table of these mappings.
    pub fn is(&self, gateway: Ipv4Addr, mappings: &[Mapping]) -> bool {
        let pods: BTreeSet<_> = mappings.iter().map(|mapping| mapping.pod).collect();
        let hairpins = pods.clone();
        self.is_sound(gateway)
            && (&self.pods, &self.hairpins) == (&pods, &hairpins)
            && self.mappings.iter().eq(&mappings.iter().copied().collect::<BTreeSet<_>>())
    }

    /// Whether its rules are ours, whatever it leads where.
    pub fn is_sound(&self, gateway: Ipv4Addr) -> bool {
        let skeleton = skeleton(gateway);
        // The digest is all that the last line has in quotation marks.
        self.digest.as_deref() == skeleton.rsplit('"').nth(1)
            && (self.chains, self.rules, self.strange) == (CHAINS.len(), RULES.len() + 1, 0)
    }

    /// Whether a mapping is in it, with all that it needs.
    pub fn has(&self, mapping: &Mapping) -> bool {
        self.mappings.contains(mapping)
            && self.pods.contains(&mapping.pod)
            && self.hairpins.contains(&mapping.pod)
    }
}

/// Reads the table; `None` where there is none.
pub fn loaded() -> Result<Option<Loaded>, NftError> {
    let list = json!({ "list": { "table": { "family": "ip", "name": TABLE } } });
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

fn address(value: &Value) -> Option<Ipv4Addr> {
    value.as_str()?.parse().ok()
}

/// The parts of a concatenation.
fn parts(value: &Value) -> &[Value] {
    value["concat"].as_array().map_or(&[], Vec::as_slice)
}

fn hairpin(element: &Value) -> Option<Ipv4Addr> {
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
mod tests {
    use super::*;
    use crate::host::netns::testing::{in_fresh_netns, run};

    const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);

    fn example(port: u16) -> Mapping {
        Mapping {
            address: None,
            protocol: PortProtocol::Tcp,
            port,
            pod: [10, 244, 1, 2].into(),
            pod_port: 80,
        }
    }

    fn several() -> [Mapping; 4] {
        [
            example(8080),
            Mapping { address: Some([192, 0, 2, 1].into()), protocol: PortProtocol::Udp, ..example(53) },
            Mapping { protocol: PortProtocol::Sctp, pod: [10, 244, 1, 3].into(), ..example(8080) },
            Mapping { address: Some([127, 0, 0, 1].into()), pod: [10, 244, 1, 3].into(), ..example(8081) },
        ]
    }

    fn listing() -> String {
        run("nft -s list table ip overlay-ports")
    }

    #[test]
    fn mappings_come_and_go_and_what_is_loaded_is_read_back() {
        in_fresh_netns(|| {
            assert_eq!(loaded().unwrap(), None);
            let all = several();
            add(GATEWAY, &all[..2]).unwrap();
            assert!(loaded().unwrap().unwrap().is(GATEWAY, &all[..2]));
            add(GATEWAY, &all[2..]).unwrap();
            let read = loaded().unwrap().unwrap();
            assert!(read.is(GATEWAY, &all) && all.iter().all(|mapping| read.has(mapping)));
            assert!(!read.is(GATEWAY, &all[..3]) && !read.is([10, 244, 1, 9].into(), &all));
            delete(&all[..2]).unwrap();
            let read = loaded().unwrap().unwrap();
            assert!(read.is(GATEWAY, &all[2..]) && !read.has(&all[0]));
            replace(GATEWAY, &all).unwrap();
            assert!(loaded().unwrap().unwrap().is(GATEWAY, &all));
            replace(GATEWAY, &[]).unwrap();
            assert_eq!(loaded().unwrap(), None);
            replace(GATEWAY, &[]).unwrap();
        });
    }

    #[test]
    fn a_port_that_leads_elsewhere_or_nowhere_is_an_error_and_changes_nothing() {
        in_fresh_netns(|| {
            let all = several();
            add(GATEWAY, &all).unwrap();
            let before = listing();
            let elsewhere = Mapping { pod: [10, 244, 1, 9].into(), ..all[0] };
            add(GATEWAY, &[example(9000), elsewhere]).unwrap_err();
            delete(&[all[0], example(9000)]).unwrap_err();
            assert_eq!(listing(), before);
            // The same again is fine.
            add(GATEWAY, &all).unwrap();
            assert_eq!(listing(), before);
        });
    }

    #[test]
    fn tampering_of_any_kind_is_seen() {
        in_fresh_netns(|| {
            let all = several();
            replace(GATEWAY, &all).unwrap();
            let good = listing();
            for tampering in [
                "nft flush chain ip overlay-ports prerouting",
                "nft delete element ip overlay-ports any { tcp . 8080 }",
                "nft add element ip overlay-ports any { udp . 1 : 10.244.1.9 . 1 }",
                "nft add element ip overlay-ports any { icmp . 1 : 10.244.1.9 . 1 }",
                "nft delete element ip overlay-ports pods { 10.244.1.2 }",
                "nft flush set ip overlay-ports hairpins",
                "nft insert rule ip overlay-ports lead accept",
                "nft add rule ip overlay-ports postrouting accept",
                "nft add chain ip overlay-ports extra",
                "nft delete table ip overlay-ports",
            ] {
                run(tampering);
                let read = loaded().unwrap();
                assert!(!read.is_some_and(|read| read.is(GATEWAY, &all)), "{tampering}");
                replace(GATEWAY, &all).unwrap();
                assert_eq!(listing(), good, "{tampering}");
            }
        });
    }

    #[test]
    fn thousands_are_one_transaction() {
        in_fresh_netns(|| {
            let all: Vec<_> = (1..=5000).map(example).collect();
            add(GATEWAY, &all).unwrap();
            assert!(loaded().unwrap().unwrap().is(GATEWAY, &all));
            delete(&all).unwrap();
            assert!(loaded().unwrap().unwrap().is(GATEWAY, &[]));
        });
    }

    #[test]
    fn other_tables_are_left_alone() {
        in_fresh_netns(|| {
            run("nft add table ip overlay");
            add(GATEWAY, &several()).unwrap();
            replace(GATEWAY, &[]).unwrap();
            assert_eq!(run("nft list tables"), "table ip overlay\n");
        });
    }
}
