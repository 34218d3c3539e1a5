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

/// What it is called, what befalls the next requests, and what makes the agent send some.
type Step<'a> = (&'a str, &'a [Fault], &'a dyn Fn(&Bed));

/// Each fault comes with a change that nobody tells the agent of while it lasts: a node more, and one less.
#[track_caller]
fn survives(bed: &Bed, steps: &[Step<'_>]) {
    bed.api.put(peer("n9", 9));
    for ((what, faults, cause), number) in steps.iter().zip(10..) {
        bed.api.faults(faults);
        cause(bed);
        bed.api.put(peer(&format!("n{number}"), number));
        bed.api.delete(&format!("n{}", number - 1));
        bed.settles(what);
    }
}

fn cut(bed: &Bed) {
    bed.api.cut();
}

#[test]
fn after_a_connection_that_breaks_the_map_is_what_the_api_says() {
    let bookmark = |bed: &Bed| {
        bed.api.bookmark();
        bed.api.cut();
    };
    survives(
        &Bed::start(),
        &[
            ("the connection drops", &[], &cut),
            ("after a bookmark, the connection drops", &[], &bookmark),
            ("the line of an event is cut in its middle", &[Fault::Cut], &cut),
            ("watches end at once", &[Fault::EndsAtOnce; 5], &cut),
            ("a slow watch", &[Fault::Slow(40)], &cut),
        ],
    );
}

#[test]
fn after_an_answer_that_is_no_use_the_map_is_what_the_api_says() {
    survives(
        &Bed::start(),
        &[
            ("the watch is too old", &[], &|bed| bed.api.forget()),
            ("the watch is refused as too old", &[Fault::Gone], &cut),
            ("an event is no Node", &[Fault::Garbage], &cut),
            ("an internal error", &[Fault::Internal], &cut),
            ("nothing at all", &[], &|_| {}),
        ],
    );
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
    std::thread::sleep(Duration::from_secs(1));
    let more = bed.api.requests().len() - before;
    bed.api.lasting_fault(None);
    assert!((1..=25).contains(&more), "{more} requests within a second");
    bed.api.put(peer("c", 3));
    bed.settles("a node is added");
}
