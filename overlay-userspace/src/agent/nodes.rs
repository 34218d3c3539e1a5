//! The `NODES` map: what it should hold for a snapshot, and the difference to what it holds.
//!
//! A lookup in the programs is one hash lookup with a masked address, which costs the same at 3 nodes and at 10 000.
//! For that all keys inside a range of the cluster have the same prefix length, that of the longest node subnet of the
//! family; a shorter subnet has one entry for each unit of that length. Entries that are right are not touched.
//!
//! An entry says by which way packets of its own family go. With a node that shares no family of tunnel addresses with
//! this one there is no way: it has no entry.

use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;
use overlay_common::maps::{Addr, NODE_CHECKSUM, NODE_HOST, NODE_SELF, Node};

use crate::{
    config::Config,
    datapath::{DatapathError, tables::Nodes},
    family::Family,
};

/// What `NODES` should hold.
pub(super) fn desired(config: &Config) -> HashMap<Addr, Node> {
    let (nodes, preferred) = (&config.nodes, config.network.underlay.preferred());
    let (units, own) = (nodes.node_prefixes(), nodes.own());
    let mut entries = HashMap::new();
    for (node, family) in nodes.nodes().iter().flat_map(|node| Family::ALL.map(|family| (node, family))) {
        let Some(tunnel) = node.tunnel(family, own, preferred) else { continue };
        let mut flags = if node.name == own.name { NODE_SELF } else { 0 };
        if !node.is_overlay() && tunnel.vtep.is_ipv6() {
            flags |= NODE_CHECKSUM;
        }
        let entry = |prefix_len, flags| Node {
            vtep: tunnel.vtep.into(),
            vtep_mac: tunnel.mac,
            prefix_len,
            flags,
            neigh_epoch: 0,
        };
        if let (Some(subnet), Some(unit)) = (node.subnets.get(family), units.get(family)) {
            for key in cut(*subnet, *unit) {
                entries.insert(key.into(), entry(subnet.prefix_len(), flags));
            }
        }
        if let Some(address) = node.addresses.get(family) {
            let host = IpNet::from(*address).prefix_len();
            entries.insert((*address).into(), entry(host, flags | NODE_HOST));
        }
    }
    entries
}

/// The network addresses of a subnet in units of `prefix`.
fn cut(subnet: IpNet, prefix: u8) -> Vec<IpAddr> {
    subnet.subnets(prefix).map(|nets| nets.map(|net| net.network()).collect()).unwrap_or_default()
}

/// The same but for the field that belongs to the programs.
fn same(a: &Node, b: &Node) -> bool {
    Node { neigh_epoch: 0, ..*a } == Node { neigh_epoch: 0, ..*b }
}

/// The difference of the map to what it should hold.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    /// Entries that are missing or wrong.
    pub(super) set: Vec<(Addr, Node)>,
    /// Keys that should not be there.
    pub(super) remove: Vec<Addr>,
}

/// Compares. Both lists are sorted by address.
pub(super) fn difference(present: &[(Addr, Node)], desired: &HashMap<Addr, Node>) -> Difference {
    let have: HashMap<Addr, &Node> = present.iter().map(|(key, node)| (*key, node)).collect();
    let mut set: Vec<_> = desired
        .iter()
        .filter(|(key, node)| !have.get(*key).is_some_and(|present| same(present, node)))
        .map(|(key, node)| (*key, *node))
        .collect();
    let mut remove: Vec<_> = have.into_keys().filter(|key| !desired.contains_key(key)).collect();
    set.sort_by_key(|(key, _)| *key);
    remove.sort();
    Difference { set, remove }
}

impl Difference {
    /// Reads the map and compares.
    pub(super) fn read(map: &Nodes, desired: &HashMap<Addr, Node>) -> Result<Self, DatapathError> {
        Ok(difference(&map.entries()?, desired))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Node `a`, of a file with these nodes: names, addresses, subnets and further keys.
    fn config(network: &str, nodes: &[(&str, &str, &str, &str)]) -> Config {
        let mut text = format!("node = \"a\"\n[network]\n{network}\n");
        for (name, address, subnet, more) in nodes {
            text += "[[nodes]]\n";
            for (key, value) in [
                ("name", format!("\"{name}\"")),
                ("address", address.to_string()),
                ("subnet", subnet.to_string()),
            ] {
                text.extend([key, " = ", value.as_str(), "\n"]);
            }
            text.extend([*more, "\n"]);
        }
        Config::parse(&text, Path::new("overlay.toml"), None).unwrap()
    }

    fn ipv4(nodes: &[(&str, &str, &str)]) -> Config {
        let quoted: Vec<_> = nodes
            .iter()
            .map(|(name, address, subnet)| (*name, format!("\"{address}\""), format!("\"{subnet}\"")))
            .collect();
        let nodes: Vec<_> = quoted
            .iter()
            .map(|(name, address, subnet)| (*name, address.as_str(), subnet.as_str(), ""))
            .collect();
        config("cidr = \"10.244.0.0/16\"", &nodes)
    }

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn each_node_has_its_subnet_and_its_address() {
        let entries =
            desired(&ipv4(&[("a", "192.0.2.1", "10.244.1.0/24"), ("b", "192.0.2.2", "10.244.2.0/24")]));
        assert_eq!(entries.len(), 4);
        let subnet = entries[&addr("10.244.2.0")];
        assert_eq!((subnet.vtep, subnet.prefix_len, subnet.flags), (addr("192.0.2.2"), 24, 0));
        assert_eq!(subnet.vtep_mac, [0x0a, 0x6f, 192, 0, 2, 2]);
        let host = entries[&addr("192.0.2.2")];
        assert_eq!((host.vtep, host.prefix_len, host.flags), (addr("192.0.2.2"), 32, NODE_HOST));
        assert_eq!(entries[&addr("10.244.1.0")].flags, NODE_SELF);
        assert_eq!(entries[&addr("192.0.2.1")].flags, NODE_SELF | NODE_HOST);
    }

    #[test]
    fn a_shorter_subnet_is_cut_into_units_of_the_longest() {
        let entries =
            desired(&ipv4(&[("a", "192.0.2.1", "10.244.0.0/24"), ("b", "192.0.2.2", "10.244.1.0/26")]));
        let keys: Vec<_> =
            ["10.244.0.0", "10.244.0.64", "10.244.0.128", "10.244.0.192", "10.244.1.0"].map(addr).into();
        assert!(keys.iter().all(|key| entries.contains_key(key)));
        assert_eq!(entries.len(), keys.len() + 2);
        assert_eq!(entries[&addr("10.244.0.64")].prefix_len, 24);
    }

    #[test]
    fn only_what_differs_is_touched() {
        let before =
            desired(&ipv4(&[("a", "192.0.2.1", "10.244.1.0/24"), ("b", "192.0.2.2", "10.244.2.0/24")]));
        let mut present: Vec<_> = before.iter().map(|(k, v)| (*k, *v)).collect();
        for (_, node) in &mut present {
            node.neigh_epoch = 7;
        }
        assert_eq!(difference(&present, &before), Difference::default());

        let after =
            desired(&ipv4(&[("a", "192.0.2.1", "10.244.1.0/24"), ("c", "192.0.2.3", "10.244.2.0/24")]));
        let Difference { set, remove } = difference(&present, &after);
        assert_eq!(
            set.iter().map(|(key, _)| *key).collect::<Vec<_>>(),
            [addr("10.244.2.0"), addr("192.0.2.3")]
        );
        assert_eq!(remove, [addr("192.0.2.2")]);
    }

    const DUAL: &str = "cidr = [\"10.244.0.0/16\", \"fd00:10:244::/48\"]";
    const A: (&str, &str, &str, &str) =
        ("a", "[\"192.0.2.1\", \"2001:db8::1\"]", "[\"10.244.1.0/24\", \"fd00:10:244:1::/64\"]", "");

    /// The VTEPs of these keys, the last byte of the MACs, and the flags; `None` where there is no entry.
    fn ways<const N: usize>(config: &Config, keys: [&str; N]) -> [Option<(String, u8, u8)>; N] {
        let entries = desired(config);
        keys.map(|key| {
            entries.get(&addr(key)).map(|node| (node.vtep.to_ip().to_string(), node.vtep_mac[5], node.flags))
        })
    }

    #[test]
    fn both_families_of_an_overlay_node_go_by_one_tunnel() {
        let b = ("b", "[\"2001:db8::2\", \"192.0.2.2\"]", "[\"fd00:10:244:2::/64\", \"10.244.2.0/24\"]", "");
        let keys = ["10.244.2.0", "fd00:10:244:2::", "192.0.2.2", "2001:db8::2"];
        for (underlay, vtep) in [("auto", "192.0.2.2"), ("ipv4", "192.0.2.2"), ("ipv6", "2001:db8::2")] {
            let config = config(&format!("{DUAL}\nunderlay = \"{underlay}\""), &[A, b]);
            let entry = |flags| Some((vtep.to_owned(), 2, flags));
            assert_eq!(
                ways(&config, keys),
                [entry(0), entry(0), entry(NODE_HOST), entry(NODE_HOST)],
                "{underlay}"
            );
            let entries = desired(&config);
            assert_eq!(entries.len(), 8);
            let prefixes = keys.map(|key| entries[&addr(key)].prefix_len);
            assert_eq!(prefixes, [24, 64, 32, 128]);
        }
        // One that has no choice.
        let b = ("b", "\"2001:db8::2\"", "\"10.244.2.0/24\"", "");
        let mac = crate::cluster::vtep_mac("2001:db8::2".parse().unwrap());
        let found = ways(&config(DUAL, &[A, b]), ["10.244.2.0", "2001:db8::2"]);
        assert_eq!(found.map(|entry| entry.unwrap().0), ["2001:db8::2"; 2]);
        assert_eq!(desired(&config(DUAL, &[A, b]))[&addr("10.244.2.0")].vtep_mac, mac);
    }

    #[test]
    fn a_plain_peer_has_a_tunnel_for_each_family_and_wants_checksums_in_ipv6() {
        let b = (
            "b",
            "[\"192.0.2.2\", \"2001:db8::2\"]",
            "[\"10.244.2.0/24\", \"fd00:10:244:2::/64\"]",
            "vtep_mac = [\"02:00:00:00:00:04\", \"02:00:00:00:00:06\"]",
        );
        for underlay in ["ipv4", "ipv6"] {
            let config = config(&format!("{DUAL}\nunderlay = \"{underlay}\""), &[A, b]);
            let (v4, v6) = ("192.0.2.2".to_owned(), "2001:db8::2".to_owned());
            assert_eq!(
                ways(&config, ["10.244.2.0", "fd00:10:244:2::", "192.0.2.2", "2001:db8::2"]),
                [
                    Some((v4.clone(), 4, 0)),
                    Some((v6.clone(), 6, NODE_CHECKSUM)),
                    Some((v4, 4, NODE_HOST)),
                    Some((v6, 6, NODE_HOST | NODE_CHECKSUM)),
                ]
            );
        }
    }

    #[test]
    fn there_is_no_way_to_a_node_that_shares_no_family() {
        let a = ("a", "\"192.0.2.1\"", "\"10.244.1.0/24\"", "");
        let b = ("b", "\"2001:db8::2\"", "\"10.244.2.0/24\"", "");
        assert_eq!(ways(&config(DUAL, &[a, b]), ["10.244.2.0", "2001:db8::2"]), [None, None]);
        assert_eq!(desired(&config(DUAL, &[a, b])).len(), 2);
    }

    #[test]
    fn each_family_is_cut_into_its_own_units() {
        let b = ("b", "\"192.0.2.2\"", "[\"10.244.2.0/25\", \"fd00:10:244:2::/66\"]", "");
        let entries = desired(&config(DUAL, &[A, b]));
        for key in ["10.244.1.0", "10.244.1.128", "10.244.2.0"] {
            assert!(entries.contains_key(&addr(key)), "{key}");
        }
        for key in ["fd00:10:244:1::", "fd00:10:244:1:4000::", "fd00:10:244:1:c000::", "fd00:10:244:2::"] {
            assert!(entries.contains_key(&addr(key)), "{key}");
        }
        assert_eq!(entries.len(), 2 + 1 + 4 + 1 + 2 + 1);
    }
}
