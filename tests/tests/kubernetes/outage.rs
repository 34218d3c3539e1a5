//! The API server is away: at the first start, at another one, and later.

use nix::sys::signal::Signal;
use overlay_tests::api::Fault;
use overlay_tests::lab::{AgentOptions, Node};

use crate::bed::{Bed, LIMIT, own, peer};

#[test]
fn a_first_start_waits_for_the_api_and_is_not_ready() {
    let bed = Bed::new();
    bed.api.put(own());
    bed.api.put(peer("b", 2));
    bed.api.stop();
    bed.node.spawn_agent(&AgentOptions::default());
    bed.answers_ready(503, "waiting for the nodes from the API server");
    bed.node.log_mark();
    overlay_tests::lab::within(LIMIT, "the agent says what it waits for", || {
        bed.said("nothing is pinned on this node that could do without") == 1
    });
    assert_eq!(bed.probe("/healthz"), Some((200, "ok".into())));
    assert!(!bed.node.pins().exists(), "something is pinned");
    assert_eq!(
        bed.node.namespace().ip("-br link").lines().filter(|line| line.contains(Node::ANCHOR)).count(),
        0
    );
    bed.api.start();
    bed.settles("the API is there");
    bed.answers_ready(200, "ok");
    bed.node.wait_agent_ready();
}

#[test]
fn a_restarted_agent_goes_by_what_is_pinned_and_catches_up_later() {
    let bed = Bed::start();
    for number in [3, 4, 5] {
        bed.api.put(peer(&format!("n{number}"), number));
    }
    bed.settles("more nodes");
    let before = bed.map();
    bed.node.kill_agent(Signal::SIGKILL);
    bed.api.stop();
    let mark = bed.node.log_mark();
    bed.node.start_agent();
    assert_eq!(bed.map(), before);
    bed.answers_ready(200, "ok");
    mark.wait_for("carrying on with the 5 nodes that are pinned", LIMIT);

    // What happens meanwhile is not seen.
    bed.api.delete("n3");
    bed.api.put(peer("n4", 44));
    bed.api.put(peer("n6", 6));
    assert_eq!(bed.map(), before);
    let mark = bed.node.log_mark();
    bed.api.start();
    bed.settles("the API is back");
    mark.wait_for("the API server answers: 5 nodes", LIMIT);
    let text = mark.lines().join("\n");
    assert!(text.contains("node 192.0.2.3 removed"), "{text}");
    assert!(!text.contains("node b "), "{text}");
}

#[test]
fn a_server_that_does_not_answer_is_as_good_as_none() {
    let bed = Bed::start();
    let before = bed.map();
    bed.node.stop_agent();
    bed.api.lasting_fault(Some(Fault::Silent));
    bed.node.start_agent();
    assert_eq!(bed.map(), before);
    bed.api.put(peer("c", 3));
    bed.api.lasting_fault(None);
    bed.settles("the API answers");
}

#[test]
fn a_later_outage_changes_nothing_and_is_said_once() {
    let bed = Bed::start();
    let pod = bed.node.add_pod(&bed.lab, "pod");
    let before = bed.map();
    let mark = bed.node.log_mark();
    bed.api.stop();
    mark.wait_for("the 2 nodes known before stay", LIMIT);
    // Several attempts, and a periodic pass.
    std::thread::sleep(std::time::Duration::from_secs(6));
    assert_eq!(bed.map(), before);
    bed.answers_ready(200, "ok");
    // The plugin needs neither.
    let other = bed.node.add_pod(&bed.lab, "other");
    bed.api.delete("b");
    bed.api.start();
    bed.settles("the API is back");
    mark.wait_for("the API server answers again", LIMIT);
    let lines = mark.lines();
    assert_eq!(lines.iter().filter(|line| line.contains("API server")).count(), 2, "{lines:#?}");
    drop((pod, other));
}
