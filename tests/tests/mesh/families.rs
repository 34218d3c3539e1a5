//! The mesh in clusters of IPv6 alone, of both families, and of nodes that lack one.

use std::net::{IpAddr, SocketAddr};

use overlay_tests::lab::{AgentOptions, Cluster, Families, Node, exec, within};
use overlay_tests::traffic::http;
use overlay_userspace::family::Family;
use overlay_userspace::mesh::{self, Answered, Entry, ProbeError, State};
use serde_json::Value;

use crate::bed::{LIMIT, SOON};

/// A probe by the gateways of this family.
fn probe(from: &Node, to: &Node, family: Family, size: usize) -> Result<Answered, ProbeError> {
    let to = SocketAddr::new(to.gateway_of(family), mesh::PORT);
    from.namespace().run(|| mesh::probe(from.gateway_of(family), to, size, SOON))
}

/// What the agent of a node knows of the others, asked by this family.
fn row(node: &Node, family: Family) -> Vec<Entry> {
    let own = node.gateway_of(family);
    node.namespace().run(|| mesh::row(own, SocketAddr::new(own, mesh::PORT), SOON)).unwrap_or_default()
}

fn status(node: &Node) -> Value {
    let address = SocketAddr::new(node.primary_address(), AgentOptions::HTTP_PORT);
    let answer = http::get(node.namespace(), address, "/api/status");
    answer.map_or(Value::Null, |answer| serde_json::from_str(&answer.body).unwrap())
}

/// Waits until each node sees all others up, by gateways of this family.
#[track_caller]
fn all_up(cluster: &Cluster, expected: impl Fn(&Node, &Node) -> Family) {
    for from in cluster.nodes() {
        within(LIMIT, &format!("{} knows the ways to all others", from.name()), || {
            let peers = status(from)["mesh"]["shown"].as_array().cloned().unwrap_or_default();
            peers.len() == 2 && peers.iter().all(|peer| peer["state"] == "up")
        });
        for peer in status(from)["mesh"]["shown"].as_array().unwrap() {
            let to = cluster.node(peer["name"].as_str().unwrap());
            let gateway = to.gateway_of(expected(from, to));
            assert_eq!(
                peer["gateway"].as_str().unwrap(),
                gateway.to_string(),
                "{} to {}",
                from.name(),
                to.name()
            );
        }
    }
}

#[test]
fn an_ipv6_cluster_measures_its_ways_and_fits_what_it_carries() {
    let cluster = Cluster::builder().families(Families::Ipv6).build();
    cluster.start_agents_with(AgentOptions::seen);
    all_up(&cluster, |_, _| Family::Ipv6);
    let (cp, w2) = (cluster.node("cp"), cluster.node("w2"));
    for size in [mesh::ask::SMALLEST, 500, 1430] {
        probe(cp, w2, Family::Ipv6, size).unwrap_or_else(|error| panic!("{size}: {error}"));
    }
    let error = probe(cp, w2, Family::Ipv6, 1431).unwrap_err();
    assert!(matches!(error, ProbeError::TooLong { size: 1431, .. }), "{error}");
    let text = exec::must(&mut cp.overlay(&["status"]), "");
    assert!(text.contains("2 of 2 peers answer, 0 are lost, 0 have no agent"), "{text}");
    w2.stop_agent();
    within(LIMIT, "a closed port comes back", || {
        let address: IpAddr = w2.primary_address();
        row(cp, Family::Ipv6)
            .iter()
            .any(|entry| entry.node == address.into() && entry.state == State::NoAgent)
    });
}

#[test]
fn of_two_families_the_primary_one_is_measured_and_both_are_answered() {
    for primary in Family::ALL {
        let cluster = Cluster::builder().families(Families::Dual).primary(primary).build();
        cluster.start_agents_with(AgentOptions::seen);
        all_up(&cluster, |_, _| primary);
        let (cp, w2) = (cluster.node("cp"), cluster.node("w2"));
        for family in Family::ALL {
            probe(cp, w2, family, 1450).unwrap_or_else(|error| panic!("{family}: {error}"));
        }
        let status = status(cp);
        let subnets = status["subnets"].as_array().unwrap();
        assert_eq!(subnets.len(), 2, "{status}");
        assert_eq!(status["subnet"].as_str().unwrap(), cp.subnet_of(primary).to_string());
    }
}

#[test]
fn a_node_that_lacks_a_family_is_measured_in_the_other() {
    let cluster = Cluster::builder()
        .families(Families::Dual)
        .underlay(Families::Dual)
        .mixed("w2", Families::Ipv6, Families::Dual)
        .build();
    cluster.start_agents_with(AgentOptions::seen);
    all_up(&cluster, |from, to| {
        if [from, to].iter().any(|node| node.name() == "w2") { Family::Ipv6 } else { Family::Ipv4 }
    });
}
