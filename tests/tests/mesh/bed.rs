//! The default cluster with agents that take part in the mesh.

use std::net::SocketAddrV4;
use std::time::Duration;

use overlay_tests::lab::{AgentOptions, Cluster, Node};
use overlay_userspace::mesh::{self, Answered, Entry, ProbeError};

/// More than anything here takes on a machine that is busy.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// How long a single probe is waited for: lost is what has not come then.
pub(crate) const SOON: Duration = Duration::from_secs(3);

pub(crate) fn with_mesh() -> AgentOptions {
    AgentOptions { mesh: true, ..AgentOptions::default() }
}

/// Where the agent of a node answers.
pub(crate) fn port_of(node: &Node) -> SocketAddrV4 {
    SocketAddrV4::new(node.gateway_address(), mesh::PORT)
}

/// A probe of `size` bytes from one node to another, as the command line sends it.
pub(crate) fn probe(from: &Node, to: &Node, size: usize) -> Result<Answered, ProbeError> {
    from.namespace().run(|| mesh::probe(from.gateway_address(), port_of(to), size, SOON))
}

/// What the agent of a node knows of its peers; nothing while it does not answer.
pub(crate) fn row(node: &Node) -> Vec<Entry> {
    node.namespace().run(|| mesh::row(node.gateway_address(), port_of(node), SOON)).unwrap_or_default()
}

/// What a node knows of another one.
#[track_caller]
pub(crate) fn cell(cluster: &Cluster, from: &str, to: &str) -> Option<Entry> {
    let address = cluster.node(to).address().into();
    row(cluster.node(from)).into_iter().find(|entry| entry.node == address)
}
