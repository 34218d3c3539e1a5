//! Masquerade at the edge: what pods send to the world leaves with the node's address.
//!
//! Owns the table `ip overlay`. Inside of the cluster nothing is translated: packets to the cluster CIDR and
//! to the nodes' addresses return before. Neither is UDP to the tunnel port ever translated, wherever it goes:
//! receivers trust a tunnel packet by its outer source, so a pod must never get to borrow the node's.
//!
//! The table carries a digest of the text it was made from. Reconcile compares that digest, and the numbers of
//! chains, rules and elements, with what it wants, and replaces the table in one transaction only when they
//! differ: counters survive, and translations of existing connections are conntrack's in any case.

use std::{
    collections::BTreeSet,
    fmt::{Display, Write as _},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;
use serde_json::{Value, json};

use super::{NftError, TABLE, apply, digest, json};

/// What is to be masqueraded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masquerade {
    /// The node's own pod subnets.
    pub subnets: Vec<Ipv4Net>,
    /// The cluster CIDR.
    pub cluster: Ipv4Net,
    /// Addresses of all nodes.
    pub nodes: BTreeSet<Ipv4Addr>,
    /// UDP port of the tunnel (host byte order).
    pub port: u16,
}

/// The script that puts the table in place of whatever has its name; the same for equal input.
pub fn render(masquerade: &Masquerade) -> String {
    let body = body(masquerade);
    // `add` first, so that `delete` cannot fail; all of it is one transaction.
    format!(
        "add table ip {TABLE}\n\
         delete table ip {TABLE}\n\
         table ip {TABLE} {{\n{body}\
         \t\tmasquerade fully-random comment \"{}\"\n\t}}\n}}\n",
        digest(&body)
    )
}

/// Everything of the table but the last rule, which carries the digest.
fn body(masquerade: &Masquerade) -> String {
    let Masquerade { subnets, cluster, nodes, port } = masquerade;
    let mut text = String::from("\tset nodes {\n\t\ttype ipv4_addr\n");
    if !nodes.is_empty() {
        let _ = writeln!(text, "\t\telements = {{ {} }}", list(nodes));
    }
    let _ = write!(
        text,
        "\t}}\n\
         \tchain postrouting {{\n\
         \t\ttype nat hook postrouting priority srcnat; policy accept;\n"
    );
    if subnets.is_empty() {
        text.push_str("\t\treturn comment \"no pods\"\n");
    } else {
        let _ = writeln!(text, "\t\tip saddr != {{ {} }} return", list(subnets));
    }
    let _ = write!(
        text,
        "\t\tip daddr {} return\n\
         \t\tip daddr @nodes return\n\
         \t\tip daddr 224.0.0.0/4 return\n\
         \t\tudp dport {port} return comment \"tunnel\"\n",
        cluster.trunc()
    );
    text
}

fn list(items: impl IntoIterator<Item = impl Display>) -> String {
    let items: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    items.join(", ")
}

/// Loads the table if what is loaded differs; true when it did.
pub fn ensure(masquerade: &Masquerade) -> Result<bool, NftError> {
    if loaded()?.is_some_and(|table| table == Loaded::wanted(masquerade)) {
        return Ok(false);
    }
    apply(&render(masquerade), "load the masquerade table")?;
    Ok(true)
}

/// Removes the table; false when there was none.
pub fn remove() -> Result<bool, NftError> {
    let table = json!({ "delete": { "table": { "family": "ip", "name": TABLE } } });
    match json(&[table], "remove the masquerade table") {
        Ok(_) => Ok(true),
        Err(error) if error.is_absent() => Ok(false),
        Err(error) => Err(error),
    }
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
    fn wanted(masquerade: &Masquerade) -> Self {
        Self {
            digest: Some(digest(&body(masquerade))),
            chains: 1,
            rules: 6,
            elements: masquerade.nodes.len(),
        }
    }
}

fn loaded() -> Result<Option<Loaded>, NftError> {
    let list = json!({ "list": { "table": { "family": "ip", "name": TABLE } } });
    let objects = match json(&[list], "read the masquerade table") {
        Ok(objects) => objects,
        Err(error) if error.is_absent() => return Ok(None),
        Err(error) => return Err(error),
    };
    let all = |kind: &'static str| objects.iter().filter_map(move |object| object.get(kind));
    let digest = all("rule").next_back().and_then(|rule| rule["comment"].as_str()).map(str::to_owned);
    let elements = all("set").filter_map(|set| set.get("elem").and_then(Value::as_array)).map(Vec::len).sum();
    Ok(Some(Loaded { digest, chains: all("chain").count(), rules: all("rule").count(), elements }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netns::testing::{in_fresh_netns, run};

    fn example() -> Masquerade {
        Masquerade {
            subnets: vec!["10.244.1.0/24".parse().unwrap()],
            cluster: "10.244.0.0/16".parse().unwrap(),
            nodes: ["192.168.50.2", "192.168.50.1"].map(|node| node.parse().unwrap()).into(),
            port: 8472,
        }
    }

    fn listing() -> String {
        run("nft -s list table ip overlay")
    }

    #[test]
    fn script_is_as_agreed() {
        let example = example();
        let expected = "\
add table ip overlay
delete table ip overlay
table ip overlay {
	set nodes {
		type ipv4_addr
		elements = { 192.168.50.1, 192.168.50.2 }
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr != { 10.244.1.0/24 } return
		ip daddr 10.244.0.0/16 return
		ip daddr @nodes return
		ip daddr 224.0.0.0/4 return
		udp dport 8472 return comment \"tunnel\"
		masquerade fully-random comment \"DIGEST\"
	}
}
";
        assert_eq!(render(&example), expected.replace("DIGEST", &digest(&body(&example))));
    }

    #[test]
    fn digest_follows_every_input() {
        let base = example();
        let variants = [
            Masquerade { subnets: vec!["10.244.2.0/24".parse().unwrap()], ..base.clone() },
            Masquerade { cluster: "10.0.0.0/8".parse().unwrap(), ..base.clone() },
            Masquerade { nodes: BTreeSet::new(), ..base.clone() },
            Masquerade { port: 4789, ..base.clone() },
        ];
        for variant in variants {
            assert_ne!(digest(&body(&variant)), digest(&body(&base)), "{variant:?}");
        }
    }

    #[test]
    fn loaded_once_and_replaced_only_when_the_input_changes() {
        in_fresh_netns(|| {
            let mut wanted = example();
            assert!(ensure(&wanted).unwrap());
            let handles = run("nft -a list table ip overlay");
            assert!(!ensure(&wanted).unwrap());
            assert_eq!(run("nft -a list table ip overlay"), handles);
            wanted.nodes.insert("192.168.50.3".parse().unwrap());
            assert!(ensure(&wanted).unwrap());
            assert!(listing().contains("192.168.50.3"));
            assert!(!ensure(&wanted).unwrap());
        });
    }

    #[test]
    fn tampering_of_any_kind_is_repaired() {
        in_fresh_netns(|| {
            let wanted = example();
            ensure(&wanted).unwrap();
            let good = listing();
            for tampering in [
                "nft flush chain ip overlay postrouting",
                "nft delete table ip overlay",
                "nft delete element ip overlay nodes { 192.168.50.2 }",
                "nft insert rule ip overlay postrouting accept",
                "nft add rule ip overlay postrouting accept",
                "nft add chain ip overlay extra",
            ] {
                run(tampering);
                assert!(ensure(&wanted).unwrap(), "{tampering}");
                assert_eq!(listing(), good, "{tampering}");
            }
        });
    }

    #[test]
    fn nodes_and_subnets_may_be_none_or_several() {
        in_fresh_netns(|| {
            let none = Masquerade { subnets: vec![], nodes: BTreeSet::new(), ..example() };
            assert!(ensure(&none).unwrap());
            assert!(!ensure(&none).unwrap());
            let subnets = ["10.244.1.0/24", "10.244.7.0/24"].map(|subnet| subnet.parse().unwrap()).into();
            let several = Masquerade { subnets, ..none };
            assert!(ensure(&several).unwrap());
            assert!(!ensure(&several).unwrap());
            assert!(listing().contains("10.244.7.0/24"));
        });
    }

    #[test]
    fn other_tables_are_left_alone_and_removal_is_idempotent() {
        in_fresh_netns(|| {
            run("nft add table ip nat");
            run("nft add table inet overlay");
            ensure(&example()).unwrap();
            assert!(remove().unwrap());
            assert!(!remove().unwrap());
            assert_eq!(run("nft list tables"), "table ip nat\ntable inet overlay\n");
        });
    }
}
