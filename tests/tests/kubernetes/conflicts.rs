//! Nodes that contradict each other or the configuration: the others have their network, and an operator hears of it.

use overlay_tests::api::{node, younger};

use crate::bed::{Bed, LIMIT, peer};

#[test]
fn an_inconsistent_node_stops_no_other_and_is_said_once() {
    let bed = Bed::start();
    let mark = bed.node.log_mark();
    bed.api.put(younger(node("twin", "192.0.2.2", "10.244.7.0/24"), 40));
    bed.api.put(younger(node("overlap", "192.0.2.8", "10.244.2.128/25"), 41));
    bed.api.put(node("outside", "192.0.2.9", "10.99.0.0/24"));
    bed.api.put(node("fresh", "192.0.2.10", ""));
    bed.api.put(node("nowhere", "", "10.244.11.0/24"));
    bed.api.put(peer("c", 12));
    let bad = ["twin", "overlap", "outside"];
    bed.settles_without("the good ones", &bad);
    for said in [
        "address 192.0.2.2 is that of b, which is older: twin is left out",
        "podCIDR 10.244.2.128/25 overlaps 10.244.2.0/24 of b, which is older: overlap is left out",
        "podCIDR 10.99.0.0/24 is not inside network.cidr 10.244.0.0/16",
        "node fresh has no IPv4 podCIDR yet",
        "node nowhere has no InternalIP yet",
    ] {
        mark.wait_for(said, LIMIT);
    }
    bed.api.put(peer("d", 13));
    bed.settles_without("another good one", &bad);
    for name in ["twin", "overlap", "outside", "fresh", "nowhere"] {
        let lines = mark.lines();
        let about = lines.iter().filter(|line| line.contains(&format!("node {name}"))).count();
        assert_eq!(about, 1, "{name}: {lines:#?}");
    }
    // None of them is this agent's to write Events about.
    assert_eq!(bed.api.events(), [0; 0]);

    // The elder goes, and the younger takes its place; the others become good.
    bed.api.delete("b");
    bed.settles_without("the elder is gone", &["outside"]);
    bed.api.put(node("outside", "192.0.2.9", "10.244.9.0/24"));
    bed.api.put(node("fresh", "192.0.2.10", "10.244.10.0/24"));
    bed.api.put(node("nowhere", "192.0.2.11", "10.244.11.0/24"));
    bed.settles("all are good");
    mark.wait_for("over: node twin", LIMIT);
}

#[test]
fn a_conflict_with_this_node_is_an_event_on_it() {
    let bed = Bed::start();
    bed.api.put(younger(node("twin", "192.0.2.1", "10.244.7.0/24"), 40));
    let event = bed.event("OverlayNodeConflict");
    assert_eq!(event["regarding"]["kind"], "Node");
    assert_eq!(
        (event["regarding"]["name"].as_str(), event["regarding"]["uid"].as_str()),
        (Some("a"), Some("uid-of-a"))
    );
    assert_eq!(
        (event["type"].as_str(), event["reportingController"].as_str()),
        (Some("Warning"), Some("overlay.network/agent"))
    );
    assert!(event["note"].as_str().unwrap().contains("twin is left out"), "{event:#}");
    // Once, though nodes come and go.
    bed.api.put(peer("c", 3));
    bed.settles_without("another node", &["twin"]);
    assert_eq!(bed.api.events().len(), 1);
}
