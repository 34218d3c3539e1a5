//! One node with an agent, and a machine beside it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use overlay_tests::lab::families::nets;
use overlay_tests::lab::{
    AgentOptions, ClusterFile, CniCall, CniError, Docker, Families, Lab, Lan, Link, Listed, Namespace,
    Network, Node, NodeEntry, exec, within,
};
use overlay_userspace::family::{ByFamily, Family};
use serde_json::{Map, Value, json};

/// Fields drop in order: the agent first, the lab last.
pub(crate) struct Bed {
    pub(crate) node: Node,
    pub(crate) beside: Namespace,
    _lan: Lan,
    pub(crate) lab: Lab,
}

/// The node's underlay address.
pub(crate) const NODE: &str = "192.0.2.1";

/// How long duplicate address detection may take.
const SETTLED: Duration = Duration::from_secs(10);

/// The gateway of the pods.
pub(crate) const GATEWAY: &str = "10.244.1.1";
/// That of a node with IPv6.
pub(crate) const GATEWAY6: &str = "fd00:10:244:1::1";

impl Bed {
    #[track_caller]
    pub(crate) fn start() -> Self {
        Self::start_with(Families::Ipv4)
    }

    /// A node whose pods have these families.
    #[track_caller]
    pub(crate) fn start_with(families: Families) -> Self {
        let bed = Self::without_agent_with(families);
        bed.node.start_agent_with(&AgentOptions::default());
        // What the kernel does by itself to the node's own device is over.
        within(SETTLED, "no tentative address", || {
            bed.node.namespace().ip("address show tentative").trim().is_empty()
        });
        bed
    }

    #[track_caller]
    pub(crate) fn without_agent() -> Self {
        Self::without_agent_with(Families::Ipv4)
    }

    #[track_caller]
    pub(crate) fn without_agent_with(families: Families) -> Self {
        let lab = Lab::new();
        let lan = Lan::new(&lab, "lan", Link::default());
        let some = |all: ByFamily<IpNet>| families.map(|family| *all.get(family).unwrap());
        let underlay = some(nets(&[&format!("{NODE}/24"), "2001:db8::1/64"]));
        let subnets = some(nets(&["10.244.1.0/24", "fd00:10:244:1::/64"]));
        let node = Node::builder_of("n", underlay, subnets).docker(Docker::Absent).on_lan(&lab, &lan);
        let beside = lab.namespace("beside");
        lan.attach(&beside, "eth0");
        beside.ip("addr add 192.0.2.9/24 dev eth0");
        let bed = Self { node, beside, _lan: lan, lab };
        bed.carry(families, vec![bed.node.entry()]);
        bed
    }

    /// Writes the cluster file: ranges of these families, and these nodes.
    pub(crate) fn carry(&self, families: Families, nodes: Vec<NodeEntry>) {
        let ranges = nets(&["10.244.0.0/16", "fd00:10:244::/56"]);
        let cidr = Listed::ordered(&families.map(|family| *ranges.get(family).unwrap()), Family::Ipv4);
        self.lab.write_cluster(&ClusterFile { network: Network { cidr, ..Network::default() }, nodes });
    }

    /// A namespace as a runtime makes it for a pod.
    #[track_caller]
    pub(crate) fn sandbox(&self, name: &str) -> Namespace {
        self.lab.namespace(name)
    }

    /// A call for pod `name` in the newest version, with more keys in its configuration.
    pub(crate) fn call(&self, command: &str, pod: &Namespace, keys: Value) -> CniCall {
        let mut call = self.node.cni_call(command, pod, "p");
        call.conf["cniVersion"] = json!("1.1.0");
        if let (Value::Object(conf), Value::Object(keys)) = (&mut call.conf, keys) {
            conf.extend(keys);
        }
        call
    }

    /// Makes the call.
    #[track_caller]
    pub(crate) fn cni(&self, command: &str, pod: &Namespace, keys: Value) -> Result<Value, CniError> {
        self.node.cni(&self.call(command, pod, keys))
    }

    /// Makes the call; it has to succeed.
    #[track_caller]
    pub(crate) fn must(&self, command: &str, pod: &Namespace, keys: Value) -> Value {
        self.cni(command, pod, keys).unwrap_or_else(|error| panic!("{command} of {}: {error}", pod.name()))
    }

    /// GC with these pods to be kept.
    #[track_caller]
    pub(crate) fn collect(&self, keep: &[&Namespace]) -> Result<Value, CniError> {
        let list: Vec<_> =
            keep.iter().map(|pod| json!({"containerID": pod.name(), "ifname": "eth0"})).collect();
        // The attachment of the environment does not matter.
        self.cni("GC", &self.beside, json!({"cni.dev/valid-attachments": list}))
    }

    /// Everything of the node that the plugin may change, to be compared.
    #[track_caller]
    pub(crate) fn snapshot(&self) -> Value {
        let node = self.node.namespace();
        let mut nft = node.command("nft");
        let mut tc = node.command("tc");
        json!({
            "links": node.ip_json("-details link show"),
            "routes": node.ip_json("-details route show table all"),
            "rules": node.ip_json("rule show"),
            // Of the kernel's own it is only the routes of all tables that come and go.
            "ipv6": [node.ip_json("-6 route show proto 79"), node.ip_json("-6 rule show")],
            "proxies": node.ip("-6 neighbour show proxy"),
            "neighbours": node.ip_json("neighbour show nud permanent"),
            "qdiscs": exec::must(tc.args(["qdisc", "show"]), ""),
            "nft": exec::must(nft.args(["list", "ruleset"]), ""),
            "endpoints": self.node.show("endpoints"),
            "ports": self.node.show("ports"),
            "pins": pins(self.node.pins()),
        })
    }

    /// Everything of a pod's namespace that the plugin may change.
    #[track_caller]
    pub(crate) fn inside(pod: &Namespace) -> Value {
        json!({
            "addresses": pod.ip_json("-details address show"),
            "routes": pod.ip_json("-details route show table all"),
            "neighbours": pod.ip_json("neighbour show"),
        })
    }

    /// Who holds which address.
    #[track_caller]
    pub(crate) fn holders(&self) -> usize {
        self.node.show("endpoints").as_array().unwrap().len()
    }
}

/// The names of all pins.
fn pins(root: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for directory in ["maps", "programs", "links"] {
        for entry in fs::read_dir(root.join(directory)).unwrap() {
            names.push(format!("{directory}/{}", entry.unwrap().file_name().to_string_lossy()));
        }
    }
    names.sort();
    names
}

/// The address in a result.
#[track_caller]
pub(crate) fn address(result: &Value) -> String {
    result["ips"][0]["address"].as_str().unwrap().trim_end_matches("/32").to_owned()
}

/// Both are the same; else the test fails with what differs, and nothing of the rest.
#[track_caller]
pub(crate) fn expect_same(after: &Value, before: &Value, when: &str) {
    let mut found = Vec::new();
    differences("", after, before, &mut found);
    assert!(found.is_empty(), "{when}:\n{}", found.join("\n"));
}

fn differences(path: &str, after: &Value, before: &Value, found: &mut Vec<String>) {
    match (after, before) {
        (Value::Object(left), Value::Object(right)) => {
            for key in left.keys().chain(right.keys().filter(|key| !left.contains_key(*key))) {
                let side = |object: &Map<String, Value>| object.get(key).cloned().unwrap_or_default();
                differences(&format!("{path}.{key}"), &side(left), &side(right), found);
            }
        }
        (Value::Array(left), Value::Array(right)) if left.len() == right.len() => {
            for (index, (left, right)) in left.iter().zip(right).enumerate() {
                differences(&format!("{path}[{index}]"), left, right, found);
            }
        }
        _ if after != before => found.push(format!("{path} was {before}, is {after}")),
        _ => {}
    }
}
