//! What is new in a configuration, one line for each thing: a change that is taken over at run time is said in the log.

use std::{collections::HashMap, fmt::Display};

use ipnet::IpNet;

use crate::{
    cluster::NodeSpec,
    config::{Config, Network},
};

/// The differences, the network's before the nodes'.
pub(super) fn news(before: &Config, now: &Config) -> Vec<String> {
    let mut news = network(&before.network, &now.network);
    if before.node != now.node {
        news.push(format!("this node is {} now, was {}", now.node, before.node));
    }
    let by_name = |config| -> HashMap<String, NodeSpec> {
        let Config { nodes, .. }: &Config = config;
        nodes.nodes().iter().map(|node| (node.name.clone(), node.clone())).collect()
    };
    let old = by_name(before);
    for node in now.nodes.nodes() {
        let NodeSpec { name, addresses, subnets, .. } = node;
        match old.get(name) {
            None => news.push(format!("node {name} added: {subnets} at {addresses}")),
            Some(old) if old != node => {
                news.push(format!(
                    "node {name} changed: {subnets} at {addresses}, was {} at {}",
                    old.subnets, old.addresses
                ));
            }
            Some(_) => {}
        }
    }
    let new = by_name(now);
    for old in before.nodes.nodes().iter().filter(|node| !new.contains_key(&node.name)) {
        news.push(format!("node {} removed", old.name));
    }
    news
}

fn network(before: &Network, now: &Network) -> Vec<String> {
    let Network {
        cidrs,
        underlay,
        vni,
        port,
        mtu,
        interface,
        masquerade,
        no_masquerade,
        masquerade_to_nodes,
        attach,
        stack_flows,
        xdp,
    } = now;
    [
        changed("cidr", before.cidrs, cidrs),
        changed("underlay", before.underlay, underlay),
        changed("vni", before.vni, vni),
        changed("port", before.port, port),
        changed("mtu", or_auto(before.mtu.as_ref()), or_auto(mtu.as_ref())),
        changed("interface", or_auto(before.interface.as_ref()), or_auto(interface.as_ref())),
        changed("masquerade", before.masquerade, masquerade),
        changed("no_masquerade", or_nothing(&before.no_masquerade), or_nothing(no_masquerade)),
        changed("masquerade_to_nodes", before.masquerade_to_nodes, masquerade_to_nodes),
        changed("attach", before.attach, attach),
        changed("stack_flows", or_auto(before.stack_flows), or_auto(*stack_flows)),
        changed("xdp", before.xdp, xdp),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn changed(key: &str, before: impl Display, now: impl Display) -> Option<String> {
    let (before, now) = (before.to_string(), now.to_string());
    (before != now).then(|| format!("network.{key} is {now} now, was {before}"))
}

fn or_auto(value: Option<impl Display>) -> String {
    value.map_or_else(|| "automatic".into(), |value| value.to_string())
}

fn or_nothing(nets: &[IpNet]) -> String {
    match nets {
        [] => "nothing".into(),
        nets => nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const FILE: &str = r#"
        node = "a"
        [network]
        cidr = "10.244.0.0/16"
        [[nodes]]
        name = "a"
        address = "192.0.2.1"
        subnet = "10.244.1.0/24"
        [[nodes]]
        name = "b"
        address = "192.0.2.2"
        subnet = "10.244.2.0/24"
    "#;

    fn parse(text: &str) -> Config {
        Config::parse(text, Path::new("overlay.toml"), None).unwrap()
    }

    #[track_caller]
    fn said(text: &str, expected: &[&str]) {
        assert_eq!(news(&parse(FILE), &parse(text)), expected);
    }

    #[test]
    fn nothing_new_is_nothing_to_say() {
        said(FILE, &[]);
        said(&format!("# a comment\n{FILE}"), &[]);
    }

    #[test]
    fn nodes_that_come_move_and_go_are_named() {
        said(
            &FILE.replace("192.0.2.2", "192.0.2.9"),
            &["node b changed: 10.244.2.0/24 at 192.0.2.9, was 10.244.2.0/24 at 192.0.2.2"],
        );
        said(
            &FILE.replace("\"b\"", "\"c\""),
            &["node c added: 10.244.2.0/24 at 192.0.2.2", "node b removed"],
        );
    }

    #[test]
    fn settings_are_named_with_both_values() {
        said(
            &FILE.replace("[network]", "[network]\nvni = 7\nmasquerade = false"),
            &["network.vni is 7 now, was 1", "network.masquerade is false now, was true"],
        );
        said(
            &FILE
                .replace("[network]", "[network]\nmtu = 1400\nattach = \"tcx\"\nport = 4789\nxdp = \"auto\""),
            &[
                "network.port is 4789 now, was 8472",
                "network.mtu is 1400 now, was automatic",
                "network.attach is tcx now, was auto",
                "network.xdp is auto now, was off",
            ],
        );
        said(
            &FILE.replace(
                "[network]",
                "[network]\nno_masquerade = [\"192.168.0.0/16\", \"172.16.0.0/12\"]\nmasquerade_to_nodes = true",
            ),
            &[
                "network.no_masquerade is 192.168.0.0/16, 172.16.0.0/12 now, was nothing",
                "network.masquerade_to_nodes is true now, was false",
            ],
        );
    }
}
