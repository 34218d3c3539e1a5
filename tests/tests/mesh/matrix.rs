//! What the nodes know of each other: everybody of everybody, and what is wrong where.

use overlay_tests::lab::{AgentOptions, exec, within};
use overlay_userspace::mesh::State;
use serde_json::Value;

use crate::bed::{LIMIT, cell, http_of, scrape, start, status, with_mesh};

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
    w1.start_agent_with(&with_mesh(w1));
    sees(w1, State::Up);
    sees(w2, State::Up);
}

#[test]
fn a_node_that_takes_no_part_asks_nobody_and_is_not_lost() {
    let cluster = overlay_tests::lab::Cluster::builder().build();
    let [cp, w1] = ["cp", "w1"].map(|name| cluster.node(name));
    let off = AgentOptions { mesh: false, args: vec![format!("--health={}", http_of(w1))], ..with_mesh(w1) };
    cp.start_agent_with(&with_mesh(cp));
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
    let cluster = overlay_tests::lab::Cluster::builder().build();
    let cp = cluster.node("cp");
    let taken = cp.namespace().run(|| std::net::UdpSocket::bind(("0.0.0.0", 8473))).unwrap();
    cp.start_agent_with(&with_mesh(cp));
    within(LIMIT, "the log says it", || cp.log().contains("agent.mesh.port"));
    assert_eq!(status(cp)["ready"], true);
    drop(taken);
    within(LIMIT, "it is over", || cp.log().contains("over: measure the ways"));
    let log = cp.log();
    let said = log.lines().filter(|line| line.contains("WARN") && line.contains("measure the ways"));
    assert_eq!(said.count(), 1, "{log}");
}
