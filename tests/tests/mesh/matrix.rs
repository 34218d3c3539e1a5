//! What the nodes know of each other: everybody of everybody, and what is wrong where.

use std::net::Ipv4Addr;
use std::time::Instant;

use ipnet::Ipv4Net;
use overlay_tests::lab::{AgentOptions, Cluster, NodeEntry, exec, within};
use overlay_userspace::mesh::State;
use serde_json::Value;

use crate::bed::{LIMIT, cell, scrape, start, status};
use crate::scrape::Scrape;

#[test]
fn every_node_knows_the_ways_of_all_others() {
    let cluster = start();
    for from in cluster.nodes() {
        within(LIMIT, &format!("the row and the matrix of {}", from.name()), || {
            let mesh = status(from)["mesh"].clone();
            let peers = mesh["shown"].as_array().unwrap();
            let known = |cell: &Value| cell["state"] == "up" && cell["latency_seconds"].as_f64() > Some(0.0);
            let whole = |peer: &Value| {
                let row = peer["row"].as_object().unwrap();
                known(peer) && row.len() == 2 && row.values().all(known)
            };
            peers.len() == 2 && peers.iter().all(whole)
        });
        let text = exec::must(&mut from.overlay(&["status"]), "");
        assert!(text.contains("2 of 2 peers answer, 0 are lost, 0 have no agent"), "{text}");
        for to in cluster.nodes().iter().filter(|to| to.name() != from.name()) {
            let line = text.lines().find(|line| line.starts_with(&to.address().to_string()));
            let line = line.unwrap_or_else(|| panic!("{} in {text}", to.name()));
            assert!(line.contains("  up  ") && line.contains(" ms  "), "{line}");
            let name = to.name().to_owned();
            assert!(scrape(from).value("overlay_mesh_peer_latency_seconds", &[("peer", &name)]) > 0.0);
        }
    }
}

#[test]
fn a_node_without_an_agent_and_a_node_that_is_cut_off_are_told_apart_and_come_back() {
    let cluster = start();
    let [cp, w1, w2] = ["cp", "w1", "w2"].map(|name| cluster.node(name));
    let sees = |to, wanted: State| {
        within(LIMIT, &format!("{wanted:?}"), || cell(cp, to).is_some_and(|entry| entry.state == wanted));
    };
    sees(w1, State::Up);
    sees(w2, State::Up);

    w1.stop_agent();
    cluster.router().ip("link set dev lan-b down");
    sees(w1, State::NoAgent);
    sees(w2, State::Lost);
    assert!(cell(cp, w2).unwrap().loss > 0);
    // The metrics may be half a second old.
    within(LIMIT, "the metrics", || {
        let scrape = scrape(cp);
        let count = |state| scrape.value("overlay_mesh_peers", &[("state", state)]).to_string();
        [count("up"), count("no_agent"), count("lost")] == ["0", "1", "1"]
    });
    let scrape = scrape(cp);
    assert!(scrape.value("overlay_mesh_probes_total", &[("result", "lost")]) >= 3.0);
    assert!(scrape.value("overlay_mesh_probes_total", &[("result", "refused")]) >= 1.0);
    assert!(scrape.value("overlay_mesh_peer_loss_ratio", &[("peer", "w2")]) > 0.0);
    let text = exec::must(&mut cp.overlay(&["status"]), "");
    assert!(text.contains("0 of 2 peers answer, 1 are lost, 1 have no agent"), "{text}");

    cluster.router().ip("link set dev lan-b up");
    w1.start_agent_with(&AgentOptions::seen(w1));
    sees(w1, State::Up);
    sees(w2, State::Up);
}

#[test]
fn a_node_that_takes_no_part_asks_nobody_and_is_not_lost() {
    let cluster = Cluster::builder().build();
    let [cp, w1] = ["cp", "w1"].map(|name| cluster.node(name));
    let off = AgentOptions { mesh: false, ..AgentOptions::seen(w1) };
    cp.start_agent_with(&AgentOptions::seen(cp));
    w1.start_agent_with(&off);
    within(LIMIT, "cp knows", || cell(cp, w1).is_some_and(|entry| entry.state == State::NoAgent));
    assert_eq!(status(w1)["mesh"], Value::Null);
    assert!(scrape(w1).of("overlay_mesh_peers").is_empty());
    let text = exec::must(&mut w1.overlay(&["status"]), "");
    assert!(text.contains("no agent with agent.mesh answers on this node"), "{text}");
}

/// An agent that cannot have the port says so, and does all else.
#[test]
fn a_port_that_is_taken_is_said_once_and_stops_nothing() {
    let cluster = Cluster::builder().build();
    let cp = cluster.node("cp");
    let taken = cp.namespace().run(|| std::net::UdpSocket::bind(("0.0.0.0", 8473))).unwrap();
    cp.start_agent_with(&AgentOptions::seen(cp));
    within(LIMIT, "the log says it", || cp.log().contains("agent.mesh.port"));
    assert_eq!(status(cp)["ready"], true);
    drop(taken);
    within(LIMIT, "it is over", || cp.log().contains("over: measure the ways"));
    let log = cp.log();
    let said = log.lines().filter(|line| line.contains("WARN") && line.contains("measure the ways"));
    assert_eq!(said.count(), 1, "{log}");
}

#[test]
fn with_many_nodes_there_are_sums_only_and_no_more_probes_than_with_few() {
    let cluster = Cluster::builder().build();
    let cp = cluster.node("cp");
    let mut entries = cluster.entries();
    entries.extend((10..110).map(|number| NodeEntry {
        name: format!("absent-{number}"),
        address: Ipv4Addr::new(198, 18, 0, number).into(),
        subnet: Ipv4Net::new_assert(Ipv4Addr::new(10, 244, number, 0), 24).into(),
        vtep_mac: None,
    }));
    cluster.write_nodes(&entries);
    let began = Instant::now();
    cluster.start_agents_with(AgentOptions::seen);
    let sent = |scrape: &Scrape| -> f64 {
        scrape.of("overlay_mesh_probes_total").iter().map(|(_, count)| count).sum()
    };
    let peers = |scrape: &Scrape, state| scrape.value("overlay_mesh_peers", &[("state", state)]);
    within(LIMIT, "some are known to be lost, and those that are there answer", || {
        let scrape = scrape(cp);
        peers(&scrape, "lost") >= 1.0 && peers(&scrape, "up") > 1.5
    });
    let scrape = scrape(cp);
    let (sent, limit) = (sent(&scrape), 10.0 * began.elapsed().as_secs_f64() + 1.0);
    assert!(sent <= limit, "{sent} probes, not {limit}");
    let by_peer: Vec<_> = scrape.names().into_iter().filter(|name| name.contains("mesh_peer_")).collect();
    assert!(by_peer.is_empty(), "{by_peer:?}");
    let mesh = status(cp)["mesh"].clone();
    assert_eq!((&mesh["detailed"], &mesh["peers"]), (&Value::Bool(false), &Value::from(102)));
    assert!(mesh["shown"].as_array().unwrap().iter().all(|peer| peer["state"] == "lost"), "{mesh}");
    let text = exec::must(&mut cp.overlay(&["status"]), "");
    assert!(!text.contains(&cluster.node("w1").address().to_string()), "{text}");
}
