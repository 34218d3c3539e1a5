//! What the agent keeps of the node's own network, in each address family by itself.

use std::io::Write as _;
use std::process::Stdio;

use overlay_tests::lab::{
    AgentOptions, ClusterFile, Families, Lab, Lan, Link, Listed, Network, Node, NodeEntry, exec, within,
};
use overlay_userspace::family::Family;

use crate::bed::{PERIOD, SOON, expect_idle};

/// One node with an agent; its peer is a row of the file. Fields drop in order.
struct Alone {
    node: Node,
    _lan: Lan,
    lab: Lab,
}

const CIDRS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/56"];
const PEER: [&str; 2] = ["192.0.2.2", "2001:db8::2"];

impl Alone {
    /// Forwards nothing yet, in no family.
    #[track_caller]
    fn new(which: Families) -> Self {
        let lab = Lab::new();
        let lan = Lan::new(&lab, "lan", Link::default());
        let of = |each: [&str; 2]| which.map(|family| each[family.index()].parse().unwrap());
        let underlay = of(["192.0.2.1/24", "2001:db8::1/64"]);
        let subnets = of(["10.244.1.0/24", "fd00:10:244:1::/64"]);
        let node = Node::builder_of("a", underlay, subnets).on_lan(&lab, &lan);
        let host = node.namespace();
        host.sysctl("net.ipv4.ip_forward", "0");
        host.sysctl("net.ipv6.conf.all.forwarding", "0");
        let first = if which.has(Family::Ipv4) { Family::Ipv4 } else { Family::Ipv6 };
        let peer = NodeEntry {
            name: "b".into(),
            address: Listed::ordered(&which.map(|family| PEER[family.index()].parse().unwrap()), first),
            subnet: Listed::ordered(&of(["10.244.2.0/24", "fd00:10:244:2::/64"]), first),
            vtep_mac: None,
        };
        let cidr = Listed::ordered(&of(CIDRS), first);
        let network = Network { cidr, ..Network::default() };
        lab.write_cluster(&ClusterFile { network, nodes: vec![node.entry(), peer] });
        Self { node, _lan: lan, lab }
    }

    /// What there is of overlay in a family: address, routes, rules, the table, and settings of the kernel.
    #[track_caller]
    fn state(&self, family: Family) -> String {
        let host = self.node.namespace();
        let flag = flag(family);
        let run = |line: &str| {
            let mut words = line.split_whitespace();
            let out = exec::output(host.command(words.next().unwrap()).args(words), b"", exec::COMMAND_LIMIT);
            // Nothing there is an error of some of them.
            out.unwrap().stdout
        };
        let lines = |text: String, with: &str| -> String {
            let found = text.lines().filter(|line| line.contains(with)).map(str::trim);
            found.flat_map(|line| [line, "\n"]).collect()
        };
        let general = match family {
            Family::Ipv4 => "net.ipv4.ip_forward",
            Family::Ipv6 => "net.ipv6.conf.all.forwarding",
        };
        [
            lines(run(&format!("ip {flag} address show dev {} scope global", Node::ANCHOR)), "inet"),
            lines(run(&format!("ip {flag} route show table all proto 79")), ""),
            lines(run(&format!("ip {flag} rule show")), "lookup 79"),
            run(&format!("nft -s list table {} overlay", family.nft())),
            run(&format!("sysctl {general}")),
        ]
        .concat()
    }

    fn states(&self) -> [String; 2] {
        Family::ALL.map(|family| self.state(family))
    }
}

/// The option of ip(8).
fn flag(family: Family) -> &'static str {
    if family == Family::Ipv4 { "-4" } else { "-6" }
}

/// Somebody takes something away that only this family has.
fn damages(family: Family) -> Vec<String> {
    let (ip, flag) = (family.nft(), flag(family));
    let [cidr, subnet, gateway, general] = match family {
        Family::Ipv4 => [CIDRS[0], "10.244.1.0/24", "10.244.1.1/32", "net.ipv4.ip_forward"],
        Family::Ipv6 => {
            [CIDRS[1], "fd00:10:244:1::/64", "fd00:10:244:1::1/128", "net.ipv6.conf.all.forwarding"]
        }
    };
    let mut damages = vec![
        format!("ip address del {gateway} dev overlay.1"),
        format!("ip {flag} route del {cidr}"),
        format!("ip {flag} route flush table all proto 79"),
        format!("ip {flag} rule del from {subnet} table 79"),
        format!("nft delete table {ip} overlay"),
        format!("sysctl -w {general}=0"),
    ];
    if family == Family::Ipv6 {
        damages.push("sysctl -w net/ipv6/conf/overlay.1/disable_ipv6=1".into());
    }
    damages
}

#[test]
fn what_one_family_loses_comes_back_and_the_other_never_misses_anything() {
    let bed = Alone::new(Families::Dual);
    bed.node.start_agent();
    let good = bed.states();
    for (family, text) in Family::ALL.into_iter().zip(&good) {
        for part in [CIDRS[family.index()], PEER[family.index()], "lookup 79", "chain services", "= 1"] {
            assert!(text.contains(part), "{part} of {family}: {text}");
        }
    }
    for family in Family::ALL {
        let other = family.other();
        for damage in damages(family) {
            let mut words = damage.split_whitespace();
            exec::must(bed.node.namespace().command(words.next().unwrap()).args(words), "");
            within(PERIOD, &damage, || {
                assert_eq!(bed.state(other), good[other.index()], "{damage}");
                bed.state(family) == good[family.index()]
            });
        }
    }
    expect_idle(&bed.node);
}

#[test]
fn a_device_that_was_down_has_the_addresses_of_both_families_again() {
    let bed = Alone::new(Families::Dual);
    bed.node.start_agent();
    let good = bed.states();
    bed.node.namespace().ip("link set overlay.1 down");
    within(SOON, "addresses and routes", || bed.states() == good);
}

#[test]
fn a_node_of_one_family_needs_and_gets_nothing_of_the_other() {
    for (which, own) in [(Families::Ipv4, Family::Ipv4), (Families::Ipv6, Family::Ipv6)] {
        let bed = Alone::new(which);
        let other = own.other();
        let before = bed.state(other);
        assert!(before.ends_with("= 0\n"), "{before}");
        bed.node.start_agent();
        assert_eq!(bed.state(other), before, "{other} of a node of {own}");
        assert!(bed.state(own).contains("lookup 79"), "{}", bed.state(own));
        let disabled = bed.node.namespace().read_sysctl("net/ipv6/conf/overlay.1/disable_ipv6");
        assert_eq!(disabled, if own == Family::Ipv6 { "0" } else { "1" });
        expect_idle(&bed.node);
    }
}

/// Leaves of all that is a list of addresses the first: IPv4 alone.
fn first(value: &mut toml::Value) {
    match value {
        toml::Value::Array(list) if list.iter().all(toml::Value::is_str) => *value = list[0].clone(),
        toml::Value::Array(list) => list.iter_mut().for_each(first),
        toml::Value::Table(table) => table.iter_mut().for_each(|(_, value)| first(value)),
        _ => {}
    }
}

#[test]
fn a_family_that_the_file_no_longer_has_goes_and_comes_back_with_it() {
    let bed = Alone::new(Families::Dual);
    let nothing = bed.states();
    bed.node.start_agent();
    let good = bed.states();
    let dual = std::fs::read_to_string(bed.lab.cluster_file()).unwrap();
    let write = |text: &str| {
        let next = bed.lab.dir().join("next");
        std::fs::write(&next, text).unwrap();
        std::fs::rename(next, bed.lab.cluster_file()).unwrap();
    };
    let mut file: toml::Table = dual.parse().unwrap();
    file.iter_mut().for_each(|(_, value)| first(value));
    write(&file.to_string());
    // Forwarding stays, as for IPv4: others may have come to rest on it.
    let gone = nothing[1].replace("= 0", "= 1");
    within(PERIOD, "IPv6 is gone", || bed.state(Family::Ipv6) == gone);
    assert_eq!(bed.state(Family::Ipv4), good[0]);
    write(&dual);
    within(PERIOD, "both", || bed.states() == good);
}

#[test]
fn what_cannot_be_had_in_one_family_is_said_and_stops_nothing_in_the_other() {
    let bed = Alone::new(Families::Dual);
    bed.node.start_agent();
    let good = bed.states();
    let log = bed.node.log_mark();
    // Another process takes the table for its own: the kernel lets nobody else write there.
    let mut nft = bed.node.namespace().command("nft");
    nft.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut owner = exec::spawn_tied(nft).unwrap();
    let mut stdin = owner.stdin.take().unwrap();
    writeln!(stdin, "delete table ip6 overlay; add table ip6 overlay {{ flags owner; }}").unwrap();
    stdin.flush().unwrap();
    log.wait_for("load the table of translated IPv6 sources", PERIOD);
    for damage in damages(Family::Ipv4) {
        let mut words = damage.split_whitespace();
        exec::must(bed.node.namespace().command(words.next().unwrap()).args(words), "");
        within(PERIOD, &damage, || bed.state(Family::Ipv4) == good[0]);
    }
    assert_ne!(bed.state(Family::Ipv6), good[1]);
    drop(stdin);
    owner.wait().unwrap();
    within(PERIOD, "IPv6 as well", || bed.states() == good);
}

#[test]
fn a_start_that_fails_in_one_family_leaves_nothing_of_either() {
    let bed = Alone::new(Families::Dual);
    let before = bed.states();
    let mut nft = bed.node.namespace().command("nft");
    nft.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut owner = exec::spawn_tied(nft).unwrap();
    let mut stdin = owner.stdin.take().unwrap();
    writeln!(stdin, "add table ip6 overlay {{ flags owner; }}").unwrap();
    stdin.flush().unwrap();
    let host = bed.node.namespace();
    within(SOON, "the other's table", || {
        exec::must(host.command("nft").args(["list", "tables"]), "").contains("ip6 overlay")
    });
    let mut agent = bed.node.agent_command(&AgentOptions::default());
    let out = exec::output(&mut agent, b"", exec::COMMAND_LIMIT).unwrap();
    assert!(!out.status.success() && out.stderr.contains("translated IPv6 sources"), "{out:?}");
    drop(stdin);
    owner.wait().unwrap();
    assert_eq!(bed.states(), before);
    assert!(!host.ip("-br link").contains("overlay.1"));
    bed.node.start_agent();
}

#[test]
fn a_default_route_from_a_router_is_kept_and_cleaned_up_with_the_rest() {
    let bed = Alone::new(Families::Ipv6);
    let host = bed.node.namespace();
    host.sysctl("net/ipv6/conf/eth0/accept_ra", "1");
    // As the kernel writes it when a router has advertised itself.
    host.ip("-6 route add default via fe80::1 dev eth0 proto ra metric 1024 expires 1800");
    let route = || host.ip("-6 route show default proto ra");
    bed.node.start_agent();
    assert!(route().contains("via fe80::1 dev eth0"), "{}", route());
    let settings =
        || ["accept_ra", "forwarding"].map(|name| host.read_sysctl(&format!("net/ipv6/conf/eth0/{name}")));
    assert_eq!(settings(), ["2", "1"]);
    // Set back by somebody: the kernel would let the route end with its time.
    host.sysctl("net/ipv6/conf/eth0/accept_ra", "1");
    within(PERIOD, "accept_ra", || settings()[0] == "2");
    bed.node.stop_agent();
    let mut cleanup = bed.node.overlay(&["cleanup"]);
    for (option, name) in [("--bin-dir", "bin"), ("--conf-dir", "net.d")] {
        cleanup.arg(option).arg(bed.lab.dir().join(name));
    }
    exec::must(&mut cleanup, "");
    assert_eq!(settings(), ["1", "0"]);
    assert!(route().contains("via fe80::1 dev eth0"), "{}", route());
}
