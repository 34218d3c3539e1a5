//! What the tests stand on: two nodes on one LAN with a pod each, and the doctor's call.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ipnet::Ipv4Net;
use overlay_tests::lab::{
    AgentOptions, ClusterFile, Docker, Lab, Lan, Link, Network, Node, Pod, exec, overlay_binary,
};
use overlay_tests::traffic::ping;
use serde_json::Value;

/// More than a run takes on a busy machine: some checks wait for answers that do not come.
const LIMIT: Duration = Duration::from_mins(1);

/// Fields drop in order: pods first, the lab last.
pub(crate) struct Bed {
    pub(crate) pod_a: Pod,
    pub(crate) pod_b: Pod,
    pub(crate) a: Node,
    pub(crate) b: Node,
    pub(crate) lan: Lan,
    pub(crate) lab: Lab,
}

/// What a run has said.
#[derive(Debug)]
pub(crate) struct Diagnosis {
    pub(crate) status: i32,
    pub(crate) findings: Vec<Finding>,
    /// What `--fix` did.
    pub(crate) did: String,
}

/// One row.
#[derive(Clone, Debug, serde::Deserialize)]
pub(crate) struct Finding {
    pub(crate) check: String,
    pub(crate) severity: String,
    pub(crate) object: String,
    pub(crate) what: String,
    pub(crate) evidence: String,
    pub(crate) remedy: String,
    pub(crate) fix: Option<String>,
}

/// An agent that answers probes.
pub(crate) fn with_mesh() -> AgentOptions {
    AgentOptions { mesh: true, ..AgentOptions::default() }
}

/// A LAN with no nodes on it yet.
pub(crate) fn lan() -> (Lab, Lan) {
    let lab = Lab::new();
    let lan = Lan::new(&lab, "lan", Link::default());
    (lab, lan)
}

/// The node of this number, without an agent.
#[track_caller]
pub(crate) fn node(lab: &Lab, lan: &Lan, name: &str, number: u8, docker: Docker) -> Node {
    let address = Ipv4Net::new_assert([192, 0, 2, number].into(), 24);
    let subnet = Ipv4Net::new_assert([10, 244, number, 0].into(), 24);
    Node::builder(name, address, subnet).docker(docker).on_lan(lab, lan)
}

impl Bed {
    /// Both agents run, and each node has a pod.
    #[track_caller]
    pub(crate) fn start() -> Self {
        Self::start_with("")
    }

    /// The same with more tables at the end of the configuration.
    #[track_caller]
    pub(crate) fn start_with(more: &str) -> Self {
        let (lab, lan) = lan();
        let (a, b) = (node(&lab, &lan, "a", 1, Docker::Down), node(&lab, &lan, "b", 2, Docker::Down));
        configure(&lab, &[&a, &b], Network::default(), more);
        a.start_agent_with(&with_mesh());
        b.start_agent_with(&with_mesh());
        let (pod_a, pod_b) = (a.add_pod(&lab, "pod"), b.add_pod(&lab, "pod"));
        Self { pod_a, pod_b, a, b, lan, lab }
    }

    /// Runs on node a.
    #[track_caller]
    pub(crate) fn doctor(&self, arguments: &[&str]) -> Diagnosis {
        doctor(&self.lab, &self.a, arguments)
    }

    /// Runs a command in the namespace of node a.
    #[track_caller]
    pub(crate) fn run(&self, command: &str) -> String {
        exec::must(self.a.namespace().command("sh").args(["-c", command]), "")
    }

    /// Runs what a finding says that helps, as it is written.
    #[track_caller]
    pub(crate) fn follow(&self, finding: &Finding) {
        follow(&self.lab, &self.a, finding);
    }

    /// The pods reach each other.
    #[track_caller]
    pub(crate) fn expect_traffic(&self) {
        for (from, to) in [(&self.pod_a, &self.pod_b), (&self.pod_b, &self.pod_a)] {
            ping::ping(from.namespace(), to.addr().into()).unwrap();
        }
    }
}

/// Writes the configuration of all nodes.
#[track_caller]
pub(crate) fn configure(lab: &Lab, nodes: &[&Node], network: Network, more: &str) {
    let nodes = nodes.iter().map(|node| node.entry()).collect();
    let file = ClusterFile { network, nodes };
    let new = lab.dir().join("overlay.toml.next");
    std::fs::write(&new, format!("{}{more}", file.to_toml())).unwrap();
    std::fs::rename(new, lab.cluster_file()).unwrap();
}

/// `overlay doctor` with its configuration, in the namespace of a node.
#[track_caller]
pub(crate) fn command(lab: &Lab, node: &Node, arguments: &[&str]) -> Command {
    let mut command = node.overlay(&["doctor", "-o", "json"]);
    command.args(arguments).env("OVERLAY_CONFIG", lab.cluster_file());
    command
}

/// Runs it.
#[track_caller]
pub(crate) fn doctor(lab: &Lab, node: &Node, arguments: &[&str]) -> Diagnosis {
    diagnosis(&mut command(lab, node, arguments))
}

#[track_caller]
pub(crate) fn diagnosis(command: &mut Command) -> Diagnosis {
    let out = exec::output(command, b"", LIMIT).unwrap();
    let rows: Value = serde_json::from_str(&out.stdout).unwrap_or_else(|error| panic!("{error}: {out:?}"));
    let findings = serde_json::from_value(rows).unwrap();
    Diagnosis { status: out.status.code().expect("it ends by itself"), findings, did: out.stderr }
}

/// Runs a remedy in the environment of a person on that node.
#[track_caller]
pub(crate) fn follow(lab: &Lab, node: &Node, finding: &Finding) {
    let binaries = overlay_binary().parent().unwrap().to_owned();
    let path = format!("{}:{}", binaries.display(), std::env::var("PATH").unwrap());
    let mut shell = node.namespace().command("sh");
    shell.args(["-c", &finding.remedy]).env("PATH", path);
    shell
        .env("OVERLAY_PINS", node.pins())
        .env("NODE_NAME", node.name())
        .env("OVERLAY_CONFIG", lab.cluster_file());
    let out = exec::output(&mut shell, b"", LIMIT).unwrap();
    assert!(out.status.success(), "{}: {out:?}", finding.remedy);
}

/// A script in a mount namespace of its own, in the network namespace of a node.
pub(crate) fn in_mounts(lab: &Lab, node: &Node, script: &str) -> Command {
    let mut command = node.namespace().command("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-ec", script]);
    command
        .env("OVERLAY_PINS", node.pins())
        .env("NODE_NAME", node.name())
        .env("OVERLAY_CONFIG", lab.cluster_file());
    command.env("OVERLAY", overlay_binary()).env("LAB", lab.dir());
    command
}

impl Diagnosis {
    /// The findings that are more than a note.
    pub(crate) fn problems(&self) -> Vec<&Finding> {
        self.findings.iter().filter(|finding| matches!(&*finding.severity, "warning" | "error")).collect()
    }

    /// Exactly these were found, each by its check and its object; gives them in this order.
    #[track_caller]
    pub(crate) fn expect(&self, wanted: &[(&str, &str)]) -> Vec<Finding> {
        let problems = self.problems();
        let mut found: Vec<_> = problems.iter().map(|f| (f.check.as_str(), f.object.as_str())).collect();
        let mut expected = wanted.to_vec();
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected, "{self:#?}");
        let error = problems.iter().any(|finding| finding.severity == "error");
        assert_eq!(self.status, if error { 3 } else { 0 }, "{self:#?}");
        for finding in &problems {
            crate::page::explains(finding);
            for (text, what) in
                [(&finding.what, "what"), (&finding.evidence, "evidence"), (&finding.remedy, "remedy")]
            {
                assert!(!text.is_empty() && !text.contains('\n'), "{what} of {finding:?}");
            }
        }
        let find = |(check, object): &(&str, &str)| {
            (*problems.iter().find(|f| f.check == *check && f.object == *object).unwrap()).clone()
        };
        wanted.iter().map(find).collect()
    }

    /// Nothing is wrong.
    #[track_caller]
    pub(crate) fn expect_fine(&self) {
        self.expect(&[]);
    }
}

/// Waits until what a run finds is nothing.
#[track_caller]
pub(crate) fn expect_fine_soon(lab: &Lab, node: &Node, arguments: &[&str]) {
    for _ in 0..20 {
        if doctor(lab, node, arguments).problems().is_empty() {
            return;
        }
    }
    doctor(lab, node, arguments).expect_fine();
}

/// The names below a directory of pins.
pub(crate) fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
