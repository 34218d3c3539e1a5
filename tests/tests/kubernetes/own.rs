//! The agent's own Node: absent, incomplete, changed, in conflict, with annotations.

use overlay_tests::api::{node, younger};
use overlay_tests::lab::AgentOptions;

use crate::bed::{Bed, LIMIT, own, peer};

#[test]
fn without_its_own_node_an_agent_waits() {
    let bed = Bed::new();
    bed.api.put(peer("b", 2));
    bed.node.spawn_agent(&AgentOptions::default());
    bed.answers_ready(503, "there is no Node a");
    bed.api.put(node("a", "192.0.2.1", ""));
    bed.answers_ready(503, "node a has no IPv4 podCIDR yet");
    let event = bed.event("OverlayNodeWaiting");
    assert_eq!(event["regarding"]["name"], "a");
    assert!(!bed.node.pins().exists());
    bed.api.put(own());
    bed.settles("the podCIDR is there");
    bed.answers_ready(200, "ok");
    bed.node.wait_agent_ready();
}

#[test]
fn of_two_with_one_address_the_younger_does_not_begin() {
    let bed = Bed::new();
    bed.api.put(node("elder", "192.0.2.1", "10.244.9.0/24"));
    bed.api.put(younger(own(), 30));
    bed.node.spawn_agent(&AgentOptions::default());
    bed.answers_ready(503, "address 192.0.2.1 is that of elder");
    assert_eq!(bed.event("OverlayNodeConflict")["regarding"]["name"], "a");
    bed.api.delete("elder");
    bed.settles("the elder is gone");
    bed.node.wait_agent_ready();
}

#[test]
fn pods_keep_their_subnet_when_the_node_is_gone_and_a_new_one_is_taken_over() {
    let bed = Bed::start();
    let pod = bed.node.add_pod(&bed.lab, "pod");
    let before = bed.map();
    bed.api.delete("a");
    bed.api.put(peer("c", 3));
    overlay_tests::lab::within(LIMIT, "the other node is there", || bed.map().contains_key("10.244.3.0/24"));
    assert!(before.iter().all(|(key, vtep)| bed.map().get(key) == Some(vtep)), "{:?}", bed.map());

    bed.api.put(node("a", "192.0.2.1", "10.244.99.0/24"));
    bed.settles("another podCIDR");
    let note = bed.event("OverlayNodeChanged")["note"].as_str().unwrap().to_owned();
    assert!(
        note.starts_with("this node is 10.244.99.0/24 at 192.0.2.1 now, was 10.244.1.0/24 at 192.0.2.1"),
        "{note}"
    );
    let new = bed.node.add_pod(&bed.lab, "new");
    assert_eq!(new.addr().octets()[2], 99, "{}", new.addr());
    drop((pod, new));
}

#[test]
fn annotations_override_the_tunnel_address_and_the_mac() {
    let bed = Bed::start();
    let mut other = node("c", "198.51.100.3", "10.244.3.0/24");
    other["metadata"]["annotations"]["overlay.network/tunnel-address"] = "192.0.2.33".into();
    other["metadata"]["annotations"]["overlay.network/vtep-mac"] = "02:00:00:00:00:33".into();
    bed.api.put(other);
    overlay_tests::lab::within(LIMIT, "the annotated address is in the map", || {
        bed.map().get("10.244.3.0/24").is_some_and(|vtep| vtep == "192.0.2.33")
    });
    assert!(!bed.map().contains_key("198.51.100.3/32"), "{:?}", bed.map());
    let rows = bed.node.show("nodes");
    let row = rows.as_array().unwrap().iter().find(|row| row["address"] == "10.244.3.0").unwrap();
    assert!(row.to_string().contains("02:00:00:00:00:33"), "{row}");
}
