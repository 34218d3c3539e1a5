//! The order of a start: maps, programs, ready, and the CNI configuration last.

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use overlay_tests::api::Fault;
use overlay_tests::lab::{AgentOptions, within};

use crate::bed::{Bed, LIMIT, own, peer};

fn dirs(bed: &Bed) -> (PathBuf, PathBuf) {
    (bed.lab.dir().join("cni-bin"), bed.lab.dir().join("cni-conf"))
}

#[track_caller]
fn write(bed: &Bed, kubernetes: &str) -> (PathBuf, PathBuf) {
    let (bin, conf) = dirs(bed);
    let cni = format!("[cni]\ninstall = true\nbin = \"{}\"\nconf = \"{}\"", bin.display(), conf.display());
    bed.write(&format!("{kubernetes}\n{cni}"), "10.244.0.0/16");
    (bin.join("overlay"), conf.join("10-overlay.conflist"))
}

#[test]
fn the_configuration_for_the_runtime_comes_last_and_stays() {
    let bed = Bed::new();
    let (binary, list) = write(&bed, "");
    bed.api.put(peer("b", 2));
    bed.node.spawn_agent(&AgentOptions::default());
    bed.answers_ready(503, "there is no Node a");
    assert!(!binary.exists() && !list.exists());
    bed.api.put(overlay_tests::api::node("a", "192.0.2.1", ""));
    bed.answers_ready(503, "node a has no IPv4 podCIDR yet");
    assert!(!binary.exists() && !list.exists());
    bed.api.put(own());
    within(LIMIT, "the configuration is there", || list.exists());
    // When it is there, all else is.
    assert_eq!(bed.probe("/readyz"), Some((200, "ok".into())));
    assert_eq!(bed.map(), bed.expected(&[]));
    assert!(binary.exists());
    let text = fs::read_to_string(&list).unwrap();
    assert!(text.contains(bed.node.pins().to_str().unwrap()), "{text}");

    // Over a restart, and without an API.
    let modified = || fs::metadata(&list).unwrap().modified().unwrap();
    let before = modified();
    bed.node.kill_agent(Signal::SIGKILL);
    bed.api.lasting_fault(Some(Fault::Internal));
    bed.node.start_agent();
    assert_eq!(modified(), before);

    // Somebody removes them.
    fs::remove_file(&list).unwrap();
    within(LIMIT, "the configuration is there again", || list.exists());
    fs::remove_file(&binary).unwrap();
    within(LIMIT, "the plugin is there again", || binary.exists());
    bed.node.stop_agent();
    assert!(list.exists() && binary.exists());
}

#[test]
fn a_start_that_fails_writes_nothing_and_is_tried_again() {
    let bed = Bed::new();
    let (binary, list) = write(&bed, "");
    bed.api.put(overlay_tests::api::node("a", "192.0.2.9", "10.244.1.0/24"));
    bed.node.spawn_agent(&AgentOptions::default());
    bed.answers_ready(503, "no interface holds the node's address 192.0.2.9");
    assert!(!binary.exists() && !list.exists() && !bed.node.pins().exists());
    assert_eq!(bed.probe("/healthz"), Some((200, "ok".into())));
    let event = bed.event("OverlayStartFailed");
    assert_eq!((event["type"].as_str(), event["regarding"]["name"].as_str()), (Some("Warning"), Some("a")));
    bed.node.namespace().ip("addr add 192.0.2.9/24 dev eth0");
    within(LIMIT, "the configuration is there", || list.exists());
    assert_eq!(bed.said("cannot start yet"), 2, "once, and that it is over: {}", bed.node.log());
}

#[test]
fn the_condition_of_the_node_is_written_only_where_that_is_switched_on() {
    let bed = Bed::start();
    bed.api.put(peer("c", 3));
    bed.settles("a node is added");
    assert_eq!(bed.api.written(), []);
    bed.node.stop_agent();

    bed.write("network_available = true", "10.244.0.0/16");
    bed.node.start_agent();
    within(LIMIT, "the condition is written", || !bed.api.written().is_empty());
    let (method, path, body) = bed.api.written().remove(0);
    assert_eq!((method.as_str(), path.as_str()), ("PATCH", "/api/v1/nodes/a/status"));
    let condition = &body["status"]["conditions"][0];
    assert_eq!(
        (condition["type"].as_str(), condition["status"].as_str()),
        (Some("NetworkUnavailable"), Some("False"))
    );
}
