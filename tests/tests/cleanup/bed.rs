//! Two nodes, of which one is cleaned up.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use overlay_tests::lab::{ClusterFile, Families, Lab, Lan, Link, Listed, Network, Node, Pod, exec, nets};
use overlay_userspace::family::Family;

/// Two nodes with pods; the first one is the one that is cleaned up. Fields drop in order.
pub(crate) struct Bed {
    pub(crate) pods: Vec<Pod>,
    pub(crate) a: Node,
    pub(crate) b: Node,
    _lan: Lan,
    pub(crate) lab: Lab,
}

/// Somebody else's rules and filters, on the same devices and hooks.
const FOREIGN: &str = "table inet firewalld {
    chain filter_FORWARD { type filter hook forward priority filter + 10; policy accept; reject; }
}
table inet overlay { chain forward { type filter hook forward priority filter; policy accept; }; }
";

impl Bed {
    pub(crate) fn new(attach: Option<&str>, xdp: Option<&str>) -> Self {
        Self::of(Families::Ipv4, attach, xdp)
    }

    /// With pods of these families.
    pub(crate) fn of(families: Families, attach: Option<&str>, xdp: Option<&str>) -> Self {
        let lab = Lab::new();
        let lan = Lan::new(&lab, "lan", Link::default());
        let node = |name: &str, number: u8| {
            let all = [
                nets(&[&format!("192.0.2.{number}/24"), &format!("2001:db8::{number}/64")]),
                nets(&[&format!("10.244.{number}.0/24"), &format!("fd00:10:244:{number}::/64")]),
            ];
            let [underlay, subnets] = all.map(|both| families.map(|family| *both.get(family).unwrap()));
            Node::builder_of(name, underlay, subnets).on_lan(&lab, &lan)
        };
        let (a, b) = (node("a", 1), node("b", 2));
        let own = |text: Option<&str>| text.map(str::to_owned);
        let both = nets(&["10.244.0.0/16", "fd00:10:244::/56"]);
        let cidr = Listed::ordered(&families.map(|family| *both.get(family).unwrap()), Family::Ipv4);
        let network = Network { cidr, attach: own(attach), xdp: own(xdp), ..Network::default() };
        lab.write_cluster(&ClusterFile { network, nodes: vec![a.entry(), b.entry()] });
        let host = a.namespace();
        exec::must(host.command("nft").args(["-f", "-"]), FOREIGN);
        if families.has(Family::Ipv4) {
            host.ip("route add 198.51.100.0/24 via 192.0.2.100 proto static");
            host.ip("rule add from 198.51.100.0/24 table 7");
        }
        if families.has(Family::Ipv6) {
            host.ip("-6 route add 2001:db8:7::/48 via 2001:db8::100 proto static");
            host.ip("-6 rule add from 2001:db8:7::/48 table 7");
        }
        host.sysctl("net.ipv4.ip_forward", "0");
        Self { pods: Vec::new(), a, b, _lan: lan, lab }
    }

    pub(crate) fn cni(&self) -> PathBuf {
        self.lab.dir().join("cni")
    }

    /// Installs the plugin, starts the agents, and attaches a pod on each node.
    pub(crate) fn start(&mut self) {
        let mut install = self.a.overlay(&["cni", "install"]);
        exec::must(self.places(&mut install), "");
        self.a.start_agent();
        self.b.start_agent();
        self.pods = vec![self.a.add_pod(&self.lab, "pod"), self.b.add_pod(&self.lab, "pod")];
    }

    fn places<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.arg("--bin-dir").arg(self.cni().join("bin")).arg("--conf-dir").arg(self.cni().join("net.d"))
    }

    #[track_caller]
    pub(crate) fn cleanup(&self, arguments: &[&str]) -> exec::Output {
        run(&mut self.cleanup_command(arguments))
    }

    pub(crate) fn cleanup_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.a.overlay(&["cleanup"]);
        self.places(&mut command).args(arguments);
        command
    }

    /// All that overlay may have had its hands on, but the counters, and the directories of CNI.
    pub(crate) fn snapshot(&self) -> String {
        let host = self.a.namespace();
        let run = |line: &str| {
            let mut words = line.split_whitespace();
            exec::must(host.command(words.next().unwrap()).args(words), "")
        };
        let mut text: String = [
            "ip -4 -d addr show",
            "ip -4 route show table all",
            "ip -6 route show proto 79",
            "ip -6 route show table all proto 79",
            "ip -6 route show proto static",
            "ip -6 address show scope global",
            "ip rule show",
            "ip -6 rule show",
            "nft -s list ruleset",
            "iptables-nft -S",
            "ip6tables-nft -S",
            "tc qdisc show",
            "tc filter show dev eth0 ingress",
            "sysctl net.ipv4.ip_forward net.ipv4.conf.all.send_redirects net.ipv4.conf.eth0.forwarding",
            "sysctl net.ipv6.conf.all.forwarding net.ipv6.conf.eth0.forwarding net.ipv6.conf.eth0.accept_ra",
        ]
        .map(|line| format!("# {line}\n{}\n", run(line)))
        .concat();
        for path in files(self.a.pins().parent().unwrap()) {
            writeln!(text, "{}", path.display()).unwrap();
        }
        for path in files(&self.cni()).iter().filter(|path| path.is_file()) {
            writeln!(text, "{}", path.display()).unwrap();
        }
        text
    }
}

/// Runs a cleanup.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> exec::Output {
    exec::output(command, b"", exec::COMMAND_LIMIT).unwrap()
}

pub(crate) fn files(directory: &Path) -> Vec<PathBuf> {
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
