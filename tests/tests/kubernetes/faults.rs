//! Nodes that come, change and go, and an API server that does what servers do.

use std::time::Duration;

use overlay_tests::api::{Fault, node};

use crate::bed::{Bed, peer};

#[test]
fn nodes_that_come_change_and_go_are_followed() {
    let bed = Bed::start();
    bed.api.put(peer("c", 3));
    bed.settles("a node is added");
    bed.api.put(node("c", "192.0.2.33", "10.244.3.0/24"));
    bed.settles("its address changes");
    bed.api.put(node("c", "192.0.2.33", "10.244.34.0/24"));
    bed.settles("its podCIDR changes");
    bed.api.delete("c");
    bed.settles("it is deleted");
    // Nothing but one list and watches that follow on.
    let lists = bed.api.requests().iter().filter(|request| !request.contains("watch=")).count();
    assert_eq!(lists, 1, "{:?}", bed.api.requests());
    for line in ["node c added", "node c changed", "node c removed"] {
        assert!(bed.said(line) > 0, "{line}: {}", bed.node.log());
    }
}

#[test]
fn a_heartbeat_is_no_change() {
    let bed = Bed::start();
    let before = bed.node.log_mark();
    for number in 0..50 {
        let mut node = peer("b", 2);
        node["status"]["conditions"][0]["lastHeartbeatTime"] = format!("{number}").into();
        bed.api.put(node);
    }
    bed.api.put(peer("c", 3));
    bed.settles("the node after the heartbeats");
    assert_eq!(before.lines().len(), 1, "{:?}", before.lines());
}

/// Each with a change that nobody tells the agent of while it lasts.
#[test]
fn after_every_fault_the_map_is_what_the_api_says() {
    let bed = Bed::start();
    let mut number = 10;
    let mut step = |what: &str, faults: &[Fault], cause: &dyn Fn(&Bed)| {
        let name = format!("n{number}");
        bed.api.faults(faults);
        cause(&bed);
        bed.api.put(peer(&name, number));
        bed.settles(what);
        bed.api.delete(&name);
        bed.settles(&format!("{what}, deleted again"));
        number += 1;
    };
    let cut: &dyn Fn(&Bed) = &|bed| bed.api.cut();
    let nothing: &dyn Fn(&Bed) = &|_| {};
    step("the connection drops", &[], cut);
    step("the watch is too old", &[], &|bed| bed.api.forget());
    step("the watch is refused as too old", &[Fault::Gone], cut);
    step("after a bookmark, another connection", &[], &|bed| {
        bed.api.bookmark();
        bed.api.cut();
    });
    step("the line of an event is cut in its middle", &[Fault::Cut], cut);
    step("an event is no Node", &[Fault::Garbage], cut);
    step("watches end at once", &[Fault::EndsAtOnce; 5], cut);
    step("internal errors", &[Fault::Internal; 2], cut);
    step("a slow watch", &[Fault::Slow(40)], cut);
    step("nothing at all", &[], nothing);
}

#[test]
fn a_list_that_fails_half_way_is_begun_again() {
    let bed = Bed::new();
    bed.api.put(crate::bed::own());
    for number in 2..200 {
        bed.api.put(peer(&format!("n{number}"), number));
    }
    bed.api.faults(&[Fault::Cut, Fault::Garbage, Fault::Slow(20)]);
    bed.node.start_agent();
    bed.settles("the list");
    assert_eq!(bed.said("no Nodes from the API server"), 1, "{}", bed.node.log());
    assert_eq!(bed.said("the API server answers again"), 1, "{}", bed.node.log());
}

#[test]
fn a_server_that_ends_every_watch_is_not_asked_without_end() {
    let bed = Bed::start();
    bed.api.lasting_fault(Some(Fault::EndsAtOnce));
    bed.api.cut();
    let before = bed.api.requests().len();
    std::thread::sleep(Duration::from_secs(2));
    let more = bed.api.requests().len() - before;
    bed.api.lasting_fault(None);
    assert!((1..=35).contains(&more), "{more} requests within two seconds");
    bed.api.put(peer("c", 3));
    bed.settles("a node is added");
}
