//! One node on a LAN whose agent takes its nodes from an API server in the node's own namespace.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use overlay_tests::api::{self, Api, facts, kubeconfig};
use overlay_tests::lab::{Lab, Lan, Link, Node, within};
use overlay_userspace::datapath::pins::Pins;
use overlay_userspace::datapath::tables::Nodes;
use serde_json::Value;

/// More than anything here takes on a machine that is busy; backoff after several faults included.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// Where the API listens, and where the agent answers probes.
pub(crate) const API: &str = "127.0.0.1:6443";
const HEALTH: &str = "127.0.0.1:9879";

/// Fields drop in order: the lab last.
pub(crate) struct Bed {
    pub(crate) node: Node,
    pub(crate) api: Api,
    _lan: Lan,
    pub(crate) lab: Lab,
}

impl Bed {
    /// The node `a`, 192.0.2.1, and an API that does not know it yet. No agent.
    #[track_caller]
    pub(crate) fn new() -> Self {
        let lab = Lab::new();
        let lan = Lan::new(&lab, "lan", Link::default());
        let node = Node::builder("a", on_lan(1), "10.244.1.0/24".parse().unwrap()).on_lan(&lab, &lan);
        let api = Api::new();
        api.listen(node.namespace(), API.parse().unwrap());
        let bed = Self { node, api, _lan: lan, lab };
        fs::write(bed.kubeconfig(), kubeconfig(API.parse().unwrap())).unwrap();
        bed.write("", "10.244.0.0/16");
        bed
    }

    /// As [`Bed::new`], with a network of both families, that of IPv6 first; the node has 2001:db8::1 as well.
    #[track_caller]
    pub(crate) fn dual() -> Self {
        let bed = Self::new();
        bed.node.namespace().ip("address add 2001:db8::1/64 dev eth0 nodad");
        bed.write_network("", "cidr = [\"fd00:10:244::/48\", \"10.244.0.0/16\"]");
        bed
    }

    /// As [`Bed::new`], with the Node `a`, a Node `b`, and the agent running.
    #[track_caller]
    pub(crate) fn start() -> Self {
        let bed = Self::new();
        bed.api.put(own());
        bed.api.put(peer("b", 2));
        bed.node.start_agent();
        bed.settles("the first list");
        bed
    }

    fn kubeconfig(&self) -> PathBuf {
        self.lab.dir().join("kubeconfig")
    }

    /// Writes the agent's configuration, with `more` after the tables that are always there: keys of `[kubernetes]` first.
    #[track_caller]
    pub(crate) fn write(&self, more: &str, cidr: &str) {
        self.write_network(more, &format!("cidr = \"{cidr}\""));
    }

    #[track_caller]
    fn write_network(&self, more: &str, network: &str) {
        let kubeconfig = self.kubeconfig();
        let mut text = format!("source = \"kubernetes\"\n[network]\n{network}\n");
        writeln!(text, "[agent]\nhealth = \"{HEALTH}\"").unwrap();
        writeln!(text, "[kubernetes]\nkubeconfig = \"{}\"\n{more}", kubeconfig.display()).unwrap();
        fs::write(self.lab.cluster_file(), text).unwrap();
    }

    /// Waits until the map of nodes equals what the API has, but for the Nodes named in `without`.
    #[track_caller]
    pub(crate) fn settles_without(&self, what: &str, without: &[&str]) -> Duration {
        let took = within_or(
            LIMIT,
            || self.map() == self.expected(without),
            || {
                format!(
                    "{what}: the map is {:?}, the API says {:?}; the log:\n{}",
                    self.map(),
                    self.expected(without),
                    self.node.log()
                )
            },
        );
        println!("{what}: after {} ms", took.as_millis());
        took
    }

    /// Waits until the map of nodes equals what the API has.
    #[track_caller]
    pub(crate) fn settles(&self, what: &str) -> Duration {
        self.settles_without(what, &[])
    }

    /// The entries that the map has to have: from keys, with prefix length, to VTEPs, which are IPv4 where a Node has that.
    pub(crate) fn expected(&self, without: &[&str]) -> BTreeMap<String, String> {
        let mut entries = BTreeMap::new();
        for node in self.api.nodes() {
            if without.contains(&node["metadata"]["name"].as_str().unwrap()) {
                continue;
            }
            if let Some((subnets, addresses)) = facts(&node) {
                let vtep = addresses.iter().find(|address| address.is_ipv4()).unwrap_or(&addresses[0]);
                let hosts = addresses.iter().map(|address| IpNet::from(*address));
                entries
                    .extend(subnets.into_iter().chain(hosts).map(|net| (net.to_string(), vtep.to_string())));
            }
        }
        entries
    }

    /// The entries that it has.
    pub(crate) fn map(&self) -> BTreeMap<String, String> {
        let entries = Nodes::open(&Pins::new(self.node.pins())).and_then(|nodes| nodes.entries());
        let text = |(key, node): (overlay_common::maps::Addr, overlay_common::maps::Node)| {
            // A subnet may be there in several pieces.
            let net = IpNet::new(key.to_ip(), node.prefix_len).unwrap().trunc();
            (net.to_string(), node.vtep.to_ip().to_string())
        };
        entries.unwrap_or_default().into_iter().map(text).collect()
    }

    /// What a probe gets: status and text; `None` where nobody answers.
    pub(crate) fn probe(&self, path: &str) -> Option<(u16, String)> {
        self.node.namespace().run(|| {
            let address: SocketAddr = HEALTH.parse().unwrap();
            let mut stream = TcpStream::connect(address).ok()?;
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            let status = answer.split(' ').nth(1)?.parse().ok()?;
            Some((status, answer.split_once("\r\n\r\n")?.1.trim_end().to_owned()))
        })
    }

    /// Waits until `/readyz` answers this status, with `words` in its text.
    #[track_caller]
    pub(crate) fn answers_ready(&self, status: u16, words: &str) {
        within_or(
            LIMIT,
            || self.probe("/readyz").is_some_and(|(is, text)| is == status && text.contains(words)),
            || format!("/readyz says {:?}; the log:\n{}", self.probe("/readyz"), self.node.log()),
        );
    }

    /// Waits until an Event with this reason is written, and gives the first.
    #[track_caller]
    pub(crate) fn event(&self, reason: &str) -> Value {
        let find = || self.api.events().into_iter().find(|event| event["reason"] == reason);
        within(LIMIT, &format!("an Event {reason}"), || find().is_some());
        find().unwrap()
    }

    /// Lines of the log that have `text` in them.
    pub(crate) fn said(&self, text: &str) -> usize {
        self.node.log().lines().filter(|line| line.contains(text)).count()
    }
}

/// As [`within`], with a message that is made when it is needed.
#[track_caller]
pub(crate) fn within_or(
    limit: Duration,
    mut holds: impl FnMut() -> bool,
    why: impl Fn() -> String,
) -> Duration {
    let start = std::time::Instant::now();
    while !holds() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {}", why());
        std::thread::sleep(Duration::from_millis(25));
    }
    start.elapsed()
}

/// The address of host `number` on the LAN.
pub(crate) fn on_lan(number: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 2, number), 24)
}

/// The Node of the agent.
pub(crate) fn own() -> Value {
    api::node("a", "192.0.2.1", "10.244.1.0/24")
}

/// A Node with the subnet and the address of this number.
pub(crate) fn peer(name: &str, number: u8) -> Value {
    api::younger(
        api::node(name, &format!("192.0.2.{number}"), &format!("10.244.{number}.0/24")),
        number.min(50),
    )
}
