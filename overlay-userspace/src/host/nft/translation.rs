//! Who would send a packet to another destination: rules of the packet filter that name a Service's address and port.
//!
//! Read as text, as people would look for them: a rule or an element of a map that names address, protocol and port, and
//! the targets of the chains that it leads to. That is how kube-proxy writes in its iptables and nftables modes; rules of
//! another make may not be recognised, and so nothing found proves nothing. Rules are not changed. Called by
//! [`crate::trace`].

use std::{collections::BTreeSet, fs, net::IpAddr};

use serde_json::json;

use super::{NftError, is_own, json, run};
use crate::family::{Family, OfFamily as _};

/// What a packet is addressed to.
#[derive(Debug, Clone, Copy)]
pub struct Addressed {
    /// Its destination.
    pub dst: IpAddr,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// Its destination port.
    pub port: u16,
    /// The destination is an address of this node, where node ports are.
    pub local: bool,
}

/// A rule, or an element of a map, that is about such packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Translation {
    /// Table and chain or map: `ip kube-proxy service-ips`, `iptables nat KUBE-SERVICES`.
    pub place: String,
    /// As it was listed.
    pub rule: String,
    /// Where the chains that it leads to send packets: `10.244.1.2:80`.
    pub targets: Vec<String>,
    /// It refuses: the Service has no endpoints.
    pub refuses: bool,
}

/// A chain or a map.
#[derive(Debug, Default)]
struct Block {
    table: String,
    name: String,
    entries: Vec<String>,
}

/// The rules for such packets.
pub fn find(addressed: Addressed) -> Result<Vec<Translation>, NftError> {
    let mut found = Vec::new();
    let ip = addressed.dst.family().nft();
    let [nft_save, legacy_save, names] = match addressed.dst.family() {
        Family::Ipv4 => {
            ["iptables-nft-save", "iptables-legacy-save", "/proc/thread-self/net/ip_tables_names"]
        }
        Family::Ipv6 => {
            ["ip6tables-nft-save", "ip6tables-legacy-save", "/proc/thread-self/net/ip6_tables_names"]
        }
    };
    let objects = json(&[json!({ "list": { "chains": null } })], "list chains")?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let tables: BTreeSet<_> = objects
        .iter()
        .filter_map(|object| object.get("chain"))
        .filter(|chain| chain["type"] == "nat" && (chain["family"] == ip || chain["family"] == "inet"))
        .map(|chain| (text(&chain["family"]), text(&chain["table"])))
        .filter(|(family, table)| !is_own(family, table))
        .collect();
    for (family, table) in tables {
        if (family.as_str(), table.as_str()) == (ip, "nat") {
            // Not by nft, which has no words for what iptables' targets do.
            let saved = run(nft_save, "iptables", &[], "", "read the rules of iptables")?;
            found.extend(matching(&saved_blocks(&saved), addressed));
            continue;
        }
        let action = format!("read table {family} {table}");
        let listed = run("nft", "nftables", &["list", "table", &family, &table], "", &action)?;
        found.extend(matching(&listed_blocks(&listed), addressed));
    }
    // Asking legacy iptables would load its tables.
    let names = fs::read_to_string(names).unwrap_or_default();
    if names.lines().any(|name| name == "nat") {
        let saved = run(legacy_save, "iptables", &[], "", "read the rules of legacy iptables")?;
        found.extend(matching(&saved_blocks(&saved), addressed));
    }
    Ok(found)
}

/// The chains of `iptables-save`.
fn saved_blocks(text: &str) -> Vec<Block> {
    let mut table = String::new();
    let mut blocks: Vec<Block> = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = format!("iptables {name}");
        } else if let Some((name, _)) = line.strip_prefix("-A ").and_then(|rule| rule.split_once(' ')) {
            let at = blocks.iter().position(|block| block.name == name && block.table == table);
            let at = at.unwrap_or_else(|| {
                blocks.push(Block { table: table.clone(), name: name.to_owned(), entries: Vec::new() });
                blocks.len() - 1
            });
            if let Some(block) = blocks.get_mut(at) {
                block.entries.push(line.to_owned());
            }
        }
    }
    blocks
}

/// The chains and maps of `nft list table`.
fn listed_blocks(text: &str) -> Vec<Block> {
    let mut table = String::new();
    let mut blocks: Vec<Block> = Vec::new();
    let mut elements: Option<String> = None;
    for line in text.lines().map(str::trim) {
        let words: Vec<_> = line.split_whitespace().collect();
        match words.as_slice() {
            ["table", family, name, ..] => table = format!("{family} {name}"),
            ["chain" | "map" | "set", name, "{"] => {
                blocks.push(Block { table: table.clone(), name: (*name).to_owned(), entries: Vec::new() });
            }
            _ => {
                let Some(block) = blocks.last_mut() else { continue };
                let begun = line.strip_prefix("elements = {").map(str::to_owned);
                let Some(mut list) = begun.or_else(|| elements.take().map(|list| format!("{list} {line}")))
                else {
                    block.entries.push(line.to_owned());
                    continue;
                };
                if list.ends_with('}') {
                    list.pop();
                    block.entries.extend(list.split(',').map(|element| element.trim().to_owned()));
                } else {
                    elements = Some(list);
                }
            }
        }
    }
    blocks
}

fn words(entry: &str) -> impl Iterator<Item = &str> {
    entry.split_whitespace().map(|word| word.trim_matches([',', '"']))
}

/// Whether an entry names all that a packet is addressed to.
fn is_about(block: &Block, entry: &str, addressed: Addressed) -> bool {
    let Addressed { dst, protocol, port, local } = addressed;
    let has = |wanted: &str| words(entry).any(|word| word == wanted);
    let whole = if dst.is_ipv4() { 32 } else { 128 };
    let to = has(&dst.to_string()) || has(&format!("{dst}/{whole}"));
    let node_port = local && block.name.to_lowercase().contains("nodeport");
    (to || node_port) && has(protocol) && has(&port.to_string())
}

/// Where an entry leads to: chains by jump or goto.
fn next(entry: &str) -> Vec<&str> {
    let all: Vec<_> = words(entry).collect();
    all.windows(2)
        .filter(|pair| ["jump", "goto", "-j", "-g"].contains(&pair[0]))
        .map(|pair| pair[1])
        .collect()
}

/// What an entry translates a destination to.
fn target(entry: &str) -> Option<&str> {
    let mut words = words(entry).skip_while(|word| *word != "dnat" && *word != "--to-destination");
    if words.next()? == "dnat" {
        words.find(|word| *word == "to")?;
    }
    words.next()
}

fn refuses(entry: &str) -> bool {
    words(entry).any(|word| ["reject", "REJECT", "reject-chain", "drop", "DROP"].contains(&word))
}

fn matching(blocks: &[Block], addressed: Addressed) -> Vec<Translation> {
    let mut found = Vec::new();
    for block in blocks {
        for entry in block.entries.iter().filter(|entry| is_about(block, entry, addressed)) {
            let targets = follow(blocks, &block.table, entry);
            let refuses = refuses(entry);
            // What leads nowhere only marks the packet.
            if !targets.is_empty() || refuses {
                let place = format!("{} {}", block.table, block.name);
                found.push(Translation { place, rule: entry.clone(), targets, refuses });
            }
        }
    }
    found
}

/// The targets of an entry and of all chains that it leads to.
fn follow(blocks: &[Block], table: &str, entry: &str) -> Vec<String> {
    let mut targets: Vec<String> = target(entry).map(str::to_owned).into_iter().collect();
    let mut seen = BTreeSet::new();
    let mut ahead = next(entry);
    while let Some(chain) = ahead.pop() {
        if !seen.insert(chain) {
            continue;
        }
        for entry in
            blocks.iter().filter(|block| block.table == table && block.name == chain).flat_map(|b| &b.entries)
        {
            targets.extend(target(entry).map(str::to_owned));
            ahead.extend(next(entry));
        }
    }
    targets.sort();
    targets.dedup();
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: Addressed = Addressed { dst: at(10, 96, 0, 10), protocol: "tcp", port: 80, local: false };

    const fn at(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
        IpAddr::V4(std::net::Ipv4Addr::new(a, b, c, d))
    }

    const SAVED: &str = r#"*filter
-A KUBE-SERVICES -d 10.96.0.11/32 -p tcp -m comment --comment "default/none has no endpoints" -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable
COMMIT
*nat
:KUBE-SVC-A - [0:0]
-A KUBE-SERVICES ! -s 10.244.0.0/16 -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment "default/web cluster IP" -m tcp --dport 80 -j KUBE-SVC-A
-A KUBE-SERVICES -d 10.96.0.10/32 -p udp -m udp --dport 80 -j KUBE-SVC-B
-A KUBE-NODEPORTS -p tcp -m tcp --dport 30080 -j KUBE-SVC-A
-A KUBE-SVC-A -m statistic --mode random --probability 0.5 -j KUBE-SEP-1
-A KUBE-SVC-A -j KUBE-SEP-2
-A KUBE-SEP-1 -p tcp -j DNAT --to-destination 10.244.1.2:8080
-A KUBE-SEP-2 -p tcp -j DNAT --to-destination 10.244.2.2:8080
-A KUBE-SVC-B -j DNAT --to-destination 10.244.1.9:80
COMMIT
"#;

    const LISTED: &str = r"table ip kube-proxy {
	map service-ips {
		type ipv4_addr . inet_proto . inet_service : verdict
		elements = { 10.96.0.10 . tcp . 80 : goto service-A-default/web/tcp/tcp,
			     10.96.0.10 . tcp . 81 : goto other, 10.96.0.11 . tcp . 80 : goto reject-chain }
	}

	chain service-A-default/web/tcp/tcp {
		ip daddr 10.96.0.10 ip saddr != 10.244.0.0/16 jump mark-for-masquerade
		numgen random mod 2 vmap { 0 : goto endpoint-1, 1 : goto endpoint-2 }
	}

	chain endpoint-1 {
		meta l4proto 6 dnat to 10.244.1.2:8080
	}

	chain endpoint-2 {
		meta l4proto 6 dnat to 10.244.2.2:8080
	}
}
";

    #[test]
    fn rules_of_both_makes_are_followed_to_their_targets() {
        for (blocks, place) in [
            (saved_blocks(SAVED), "iptables nat KUBE-SERVICES"),
            (listed_blocks(LISTED), "ip kube-proxy service-ips"),
        ] {
            let found = matching(&blocks, WEB);
            assert_eq!(found.len(), 1, "{found:#?}");
            assert_eq!(found[0].place, place);
            assert_eq!(found[0].targets, ["10.244.1.2:8080", "10.244.2.2:8080"]);
            assert!(!found[0].refuses);
        }
    }

    #[test]
    fn another_port_protocol_or_address_is_not_meant() {
        let blocks = [saved_blocks(SAVED), listed_blocks(LISTED)];
        for other in [
            Addressed { port: 8, ..WEB },
            Addressed { dst: at(10, 96, 0, 1), ..WEB },
            Addressed { protocol: "sctp", ..WEB },
        ] {
            for blocks in &blocks {
                assert_eq!(matching(blocks, other), [], "{other:?}");
            }
        }
    }

    #[test]
    fn a_service_without_endpoints_refuses() {
        for blocks in [saved_blocks(SAVED), listed_blocks(LISTED)] {
            let found = matching(&blocks, Addressed { dst: at(10, 96, 0, 11), ..WEB });
            assert_eq!(found.len(), 1, "{found:#?}");
            assert!(found[0].refuses && found[0].targets.is_empty());
        }
    }

    #[test]
    fn node_ports_are_meant_at_addresses_of_the_node_alone() {
        let at = |local| Addressed { dst: at(192, 0, 2, 1), port: 30080, local, ..WEB };
        let blocks = saved_blocks(SAVED);
        assert_eq!(matching(&blocks, at(false)), []);
        assert_eq!(matching(&blocks, at(true))[0].targets.len(), 2);
    }

    #[test]
    fn services_of_ipv6_are_followed_to_their_targets() {
        const SAVED: &str = "*nat
-A KUBE-SERVICES -d fd00:96::a/128 -p tcp -m tcp --dport 80 -j KUBE-SVC-A
-A KUBE-SVC-A -j KUBE-SEP-1
-A KUBE-SEP-1 -p tcp -j DNAT --to-destination [fd00:10:244:1::2]:8080
COMMIT
";
        const LISTED: &str = "table ip6 kube-proxy {
	map service-ips {
		elements = { fd00:96::a . tcp . 80 : goto service-A }
	}

	chain service-A {
		meta l4proto tcp dnat ip6 to [fd00:10:244:1::2]:8080
	}
}
";
        let web = Addressed { dst: "fd00:96::a".parse().unwrap(), ..WEB };
        for blocks in [saved_blocks(SAVED), listed_blocks(LISTED)] {
            let found = matching(&blocks, web);
            assert_eq!(found.len(), 1, "{found:#?}");
            assert_eq!(found[0].targets, ["[fd00:10:244:1::2]:8080"]);
        }
    }
}
