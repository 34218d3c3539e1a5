//! `overlay cleanup` takes a node back to what it was before overlay came, and nothing else with it.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests panic, in helper functions as well, to keep the line number"
)]

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use overlay_tests::lab::{ClusterFile, Lab, Lan, Link, Network, Node, Pod, exec};

/// Two nodes with pods; the first one is the one that is cleaned up. Fields drop in order.
struct Bed {
    pods: Vec<Pod>,
    a: Node,
    b: Node,
    _lan: Lan,
    lab: Lab,
}

/// Somebody else's rules and filters, on the same devices and hooks.
const FOREIGN: &str = "table inet firewalld {
    chain filter_FORWARD { type filter hook forward priority filter + 10; policy accept; reject; }
}
table ip6 overlay { chain forward { type filter hook forward priority filter; policy accept; }; }
";

impl Bed {
    fn new(attach: Option<&str>, xdp: Option<&str>) -> Self {
        let lab = Lab::new();
        let lan = Lan::new(&lab, "lan", Link::default());
        let node = |name: &str, number: u8| {
            let address = Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 2, number), 24);
            let subnet = Ipv4Net::new_assert(Ipv4Addr::new(10, 244, number, 0), 24);
            Node::builder(name, address, subnet).on_lan(&lab, &lan)
        };
        let (a, b) = (node("a", 1), node("b", 2));
        let own = |text: Option<&str>| text.map(str::to_owned);
        let network = Network { attach: own(attach), xdp: own(xdp), ..Network::default() };
        lab.write_cluster(&ClusterFile { network, nodes: vec![a.entry(), b.entry()] });
        let host = a.namespace();
        exec::must(host.command("nft").args(["-f", "-"]), FOREIGN);
        host.ip("route add 198.51.100.0/24 via 192.0.2.100 proto static");
        host.ip("rule add from 198.51.100.0/24 table 7");
        Self { pods: Vec::new(), a, b, _lan: lan, lab }
    }

    fn cni(&self) -> PathBuf {
        self.lab.dir().join("cni")
    }

    /// Installs the plugin, starts the agents, and attaches a pod on each node.
    fn start(&mut self) {
        let mut install = self.a.overlay(&["cni", "install"]);
        exec::must(self.places(&mut install), "");
        self.a.start_agent();
        self.b.start_agent();
        self.pods = vec![self.a.add_pod(&self.lab, "pod"), self.b.add_pod(&self.lab, "pod")];
    }

    fn places<'a>(&self, command: &'a mut std::process::Command) -> &'a mut std::process::Command {
        command.arg("--bin-dir").arg(self.cni().join("bin")).arg("--conf-dir").arg(self.cni().join("net.d"))
    }

    #[track_caller]
    fn cleanup(&self, arguments: &[&str]) -> exec::Output {
        let mut command = self.a.overlay(&["cleanup"]);
        exec::output(self.places(&mut command).args(arguments), b"", exec::COMMAND_LIMIT).unwrap()
    }

    /// All that overlay may have had its hands on, but the counters, and the directories of CNI.
    fn snapshot(&self) -> String {
        let host = self.a.namespace();
        let run = |line: &str| {
            let mut words = line.split_whitespace();
            exec::must(host.command(words.next().unwrap()).args(words), "")
        };
        let mut text: String = [
            "ip -4 -d addr show",
            "ip -4 route show table all",
            "ip -6 route show proto 79",
            "ip rule show",
            "nft -s list ruleset",
            "iptables-nft -S",
            "tc qdisc show",
            "tc filter show dev eth0 ingress",
        ]
        .map(|line| format!("# {line}\n{}\n", run(line)))
        .concat();
        let pins = files(self.a.pins().parent().unwrap());
        for path in pins.iter().filter(|path| path.starts_with(self.a.pins())) {
            writeln!(text, "{}", path.display()).unwrap();
        }
        for path in files(&self.cni()).iter().filter(|path| path.is_file()) {
            writeln!(text, "{}", path.display()).unwrap();
        }
        text
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            paths.extend(files(&path));
        }
        paths.push(path);
    }
    paths.sort();
    paths
}

#[test]
fn a_node_is_as_it_was_before() {
    for (attach, xdp) in [(None, None), (Some("clsact"), None), (None, Some("guard"))] {
        let mut bed = Bed::new(attach, xdp);
        let before = bed.snapshot();
        bed.start();
        let running = bed.snapshot();
        assert_eq!(running.contains("xdp"), xdp.is_some(), "{running}");

        let out = bed.cleanup(&["--pods"]);
        assert!(!out.status.success() && out.stderr.contains("agent is running"), "{out:?}");
        bed.a.stop_agent();
        let out = bed.cleanup(&[]);
        assert!(!out.status.success(), "{out:?}");
        assert!(out.stderr.contains("1 pods are attached: drain the node and repeat"), "{out:?}");
        let out = bed.cleanup(&["--dry-run"]);
        assert!(out.status.success(), "{out:?}");
        let lines: Vec<_> = out.stdout.lines().collect();
        let (last, things) = lines.split_last().unwrap();
        assert_eq!(*last, "pods are attached: this will need --pods or --force");
        assert!(things.iter().all(|line| line.starts_with("would remove ")), "{out:?}");
        assert_eq!(bed.snapshot(), running);

        let out = bed.cleanup(&["--pods"]);
        assert!(out.status.success(), "{out:?}");
        for what in
            ["device overlay.1", "nft table ip overlay", "accepts in chain inet firewalld filter_FORWARD"]
        {
            assert!(out.stdout.contains(&format!("removed {what}\n")), "{what}: {}", out.stdout);
        }
        let after = bed.snapshot();
        let only_in = |one: &str, other: &str| -> Vec<String> {
            one.lines().filter(|line| !other.lines().any(|other| other == *line)).map(str::to_owned).collect()
        };
        let (left, missing) = (only_in(&after, &before), only_in(&before, &after));
        assert!(after == before, "left: {left:#?}\nmissing: {missing:#?}\n{}", out.stdout);
        let out = bed.cleanup(&["--pods"]);
        assert!(out.status.success() && out.stdout.is_empty(), "{out:?}");
    }
}

#[test]
fn devices_of_pods_stay_where_only_the_rest_is_to_go() {
    let mut bed = Bed::new(None, None);
    bed.start();
    let device = bed.pods[0].host_device();
    bed.a.stop_agent();
    let out = bed.cleanup(&["--force"]);
    assert!(out.status.success(), "{out:?}");
    let host = bed.a.namespace();
    host.ip(&format!("link show {device}"));
    let mut tc = host.command("tc");
    assert_eq!(exec::must(tc.args(["filter", "show", "dev", &device, "ingress"]), ""), "");
    assert_eq!(host.ip("route show proto 79"), "");
    assert!(!bed.a.pins().exists());
    // The map of pods is gone; their devices are seen all the same.
    let out = bed.cleanup(&[]);
    assert!(!out.status.success() && out.stderr.contains("1 pods are attached"), "{out:?}");
    // And it can begin anew.
    assert!(bed.cleanup(&["--pods"]).status.success());
    bed.a.start_agent();
    let pod = bed.a.add_pod(&bed.lab, "next");
    overlay_tests::traffic::ping::ping(pod.namespace(), bed.pods[1].addr().into()).unwrap();
}

#[test]
fn one_thing_that_cannot_be_removed_keeps_nothing_else_from_it() {
    let mut bed = Bed::new(None, None);
    bed.start();
    bed.a.stop_agent();
    // Not empty, and no file: it cannot be read as a configuration, nor be removed as one.
    let list = bed.cni().join("net.d/10-overlay.conflist");
    fs::remove_file(&list).unwrap();
    fs::create_dir(&list).unwrap();
    let out = bed.cleanup(&["--pods"]);
    assert!(!out.status.success(), "{out:?}");
    assert!(
        out.stderr.contains("not all could be removed: read ") && out.stderr.lines().count() == 1,
        "{out:?}"
    );
    assert!(!bed.a.pins().exists());
    let links = bed.a.namespace().ip("-br link");
    assert!(!links.contains("overlay.1"), "{links}");
    assert_eq!(bed.a.namespace().ip("route show proto 79"), "");
}
