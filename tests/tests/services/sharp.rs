//! Whether the suite can fail: with the table of flows switched off, and nothing else changed.
//!
//! The scenarios that hold without it are those whose answers return through the stack for another reason: a node's own
//! traffic, and what was masqueraded.

use std::collections::BTreeSet;
use std::thread;

use overlay_tests::lab::Network;
use overlay_tests::lab::services::ProxyMode;

use crate::bed::{Bed, Ground, Kind};
use crate::matrix;
use crate::scenarios::{self, Scenario};

/// What fails.
const FAILS: &[&str] = &[
    "1 800 connections at once",
    "10 000 queries, 20 at once on one socket, backend on another node",
    "10 000 queries, 20 at once on one socket, backend on the same node",
    "20 first queries at once on each of 100 sockets",
    "backend speaks first on connections idle since the start",
    "backends move while connections are open",
    "bulk data both ways",
    "closed port of a backend, TCP: refused",
    "closed port of a backend, UDP: refused",
    "connections left open from the start",
    "direct and through a Service at once, TCP from one port",
    "direct and through a Service at once, UDP from one socket",
    "fragmented datagrams both ways",
    "new connections go to every backend",
    "node to NodePort Local of another node",
    "path of the tunnel becomes too narrow",
    "pod to ClusterIP of another node's address",
    "pod to ClusterIP, backend on another node",
    "pod to ClusterIP, backend on the same node",
    "pod to NodePort Local of another node, backend there",
    "pod to NodePort Local of its node",
    "session affinity",
];

/// Runs a group of scenarios; gives the names of those that failed.
fn failed(group: Vec<&'static Scenario>) -> BTreeSet<&'static str> {
    let network = Network { stack_flows: Some(0), ..Network::default() };
    let mut bed = Bed::start(Ground::Overlay(Box::new(network)), &ProxyMode::Nft, Kind::PLAIN);
    let rows = matrix::run(&mut bed, group);
    rows.into_iter().filter(|row| row.error.is_some()).map(|row| row.name).collect()
}

#[test]
fn without_the_table_of_flows_services_between_pods_fail() {
    // A scenario that fails waits for an answer for seconds: a bed for each group, at the same time.
    let failed: BTreeSet<&str> = thread::scope(|scope| {
        let threads = scenarios::groups().map(|group| scope.spawn(|| failed(group)));
        threads.into_iter().flat_map(|thread| thread.join().expect("a bed can be built")).collect()
    });
    assert_eq!(failed, FAILS.iter().copied().collect());
}
