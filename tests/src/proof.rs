//! The proof that `cargo xtask run --lab` prints: what a pod network has to do, each shown by real packets in the
//! default cluster with two pods on every node.

mod rows;

use crate::lab::{Cluster, Node, Pod, interrupt};
use crate::report::{Report, Row};

/// The names of the pods on every node.
const PODS: [&str; 2] = ["a", "b"];

/// The default cluster with its pods.
#[derive(Debug)]
pub struct Stage {
    /// Two on each node, node by node. Before the cluster: a pod's namespace goes first.
    pods: Vec<Pod>,
    cluster: Cluster,
}

impl Stage {
    /// Adds two pods to every node of a running cluster.
    #[track_caller]
    pub fn new(cluster: Cluster) -> Self {
        let add = |node: &Node| PODS.map(|name| node.add_pod(cluster.lab(), name));
        let pods = cluster.nodes().iter().flat_map(add).collect();
        Self { pods, cluster }
    }

    /// The cluster.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// All pods.
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// Shows everything; `progress` gets the name of each row before it is tried.
    pub fn prove(&self, mut progress: impl FnMut(&str)) -> Report {
        let mut report = Report::default();
        let world = rows::can_leave(self);
        for (name, proof) in rows::ALL.into_iter().filter(|(name, _)| world || *name != rows::WORLD) {
            interrupt::check();
            progress(name);
            let (ok, seen) = match proof(self) {
                Ok(seen) => (true, seen),
                Err(seen) => (false, seen),
            };
            report.rows.push(Row { name: name.to_owned(), ok, seen: seen.join("\n") });
        }
        // Last: what Docker left is only proven harmless by all that went before.
        progress(rows::DOCKER);
        let (ok, seen) = rows::docker(self, &report);
        report.rows.push(Row { name: rows::DOCKER.to_owned(), ok, seen: seen.join("\n") });
        report
    }

    fn pods_on<'a>(&'a self, node: &'a Node) -> impl Iterator<Item = &'a Pod> {
        self.pods.iter().filter(move |pod| pod.node() == node.name())
    }

    /// Every ordered pair of two different nodes for which `wanted`.
    fn node_pairs(&self, wanted: impl Fn(&Node, &Node) -> bool) -> Vec<(&Node, &Node)> {
        let nodes = self.cluster.nodes();
        let pairs = nodes.iter().flat_map(|from| nodes.iter().map(move |to| (from, to)));
        pairs.filter(|(from, to)| from.name() != to.name() && wanted(from, to)).collect()
    }
}
