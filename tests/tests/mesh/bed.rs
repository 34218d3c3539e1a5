//! The default cluster with agents that take part in the mesh, and what they tell over HTTP.

use std::net::{SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::Duration;

use overlay_tests::lab::{AgentOptions, Cluster, Node};
use overlay_tests::traffic::http;
use overlay_userspace::mesh::{self, Answered, Entry, ProbeError};
use serde_json::Value;

use crate::scrape::Scrape;

/// More than anything here takes on a machine that is busy.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// How long a single probe is waited for: lost is what has not come then.
pub(crate) const SOON: Duration = Duration::from_secs(3);

/// Where agents answer HTTP.
pub(crate) const HTTP_PORT: u16 = 9879;

/// An agent in the mesh that answers HTTP on the node's own address.
pub(crate) fn with_mesh(node: &Node) -> AgentOptions {
    let health = format!("--health={}", http_of(node));
    AgentOptions { mesh: true, args: vec![health], ..AgentOptions::default() }
}

/// The default cluster, running.
#[track_caller]
pub(crate) fn start() -> Cluster {
    let cluster = Cluster::builder().build();
    for node in cluster.nodes() {
        node.spawn_agent(&with_mesh(node));
    }
    for node in cluster.nodes() {
        node.wait_agent_ready();
    }
    cluster
}

pub(crate) fn http_of(node: &Node) -> SocketAddr {
    SocketAddr::new(node.address().into(), HTTP_PORT)
}

/// A file of deploy/ or docs/.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

#[track_caller]
fn get(node: &Node, path: &str) -> String {
    let answer = http::get(node.namespace(), http_of(node), path);
    let answer = answer.unwrap_or_else(|| panic!("{} does not answer {path}: {}", node.name(), node.log()));
    assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    answer.body
}

/// The text of `/metrics`.
#[track_caller]
pub(crate) fn metrics(node: &Node) -> String {
    get(node, "/metrics")
}

#[track_caller]
pub(crate) fn scrape(node: &Node) -> Scrape {
    Scrape::parse(&metrics(node))
}

/// What `/api/status` says.
#[track_caller]
pub(crate) fn status(node: &Node) -> Value {
    let text = get(node, "/api/status");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Where the agent of a node answers probes.
pub(crate) fn port_of(node: &Node) -> SocketAddrV4 {
    SocketAddrV4::new(node.gateway_address(), mesh::PORT)
}

/// A probe of `size` bytes from one node to another, as the command line sends it.
pub(crate) fn probe(from: &Node, to: &Node, size: usize) -> Result<Answered, ProbeError> {
    from.namespace().run(|| mesh::probe(from.gateway_address(), port_of(to), size, SOON))
}

/// What the agent of a node knows of another node; nothing while it does not answer.
pub(crate) fn cell(from: &Node, to: &Node) -> Option<Entry> {
    let row = from.namespace().run(|| mesh::row(from.gateway_address(), port_of(from), SOON)).ok()?;
    row.into_iter().find(|entry| entry.node == to.address().into())
}
