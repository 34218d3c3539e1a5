//! Traces: the steps of a connection on both nodes, and nothing of them once nobody asks.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use overlay_tests::lab::Node;
use overlay_tests::traffic::drops::Monitor;
use overlay_tests::traffic::tcp;
use overlay_userspace::datapath::{pins::Pins, tracing};
use serde_json::{Value, json};

use crate::bed::Bed;

fn is_on(node: &Node) -> bool {
    tracing::is_on(&Pins::new(node.pins())).unwrap()
}

/// Hook, path and flags of a record.
fn step(record: &Value) -> [&str; 3] {
    ["hook", "path", "summary"].map(|field| record[field].as_str().unwrap_or_default())
}

#[test]
fn a_connection_is_seen_at_each_step_on_both_nodes() {
    let bed = Bed::new();
    let address = bed.a.addr().to_string();
    let arguments = ["--type", "trace", "--pod", &address, "--protocol", "tcp"];
    let (here, there) =
        (Monitor::start_with(bed.cp(), &arguments), Monitor::start_with(bed.w1(), &arguments));
    assert!(is_on(bed.cp()) && is_on(bed.w1()) && !is_on(bed.cluster.node("w2")));
    // Not of the pod that was asked for.
    tcp::exchange(bed.b.namespace(), bed.peer.namespace(), (bed.peer.addr(), 0).into()).unwrap();
    let seen = tcp::exchange(bed.a.namespace(), bed.peer.namespace(), (bed.peer.addr(), 0).into()).unwrap();

    let has_all = |wanted: &'static [[&'static str; 3]]| {
        move |records: &[Value]| {
            wanted.iter().all(|wanted| records.iter().any(|record| step(record) == *wanted))
        }
    };
    let at_cp = here.take_until(
        "all steps",
        has_all(&[
            ["from_pod", "encap_native", "TCP Flags: SYN"],
            ["from_wire", "decap_native", "TCP Flags: SYN, ACK"],
        ]),
    );
    let at_w1 = there.take_until(
        "all steps",
        has_all(&[
            ["from_wire", "decap_native", "TCP Flags: SYN"],
            ["from_pod", "encap_native", "TCP Flags: SYN, ACK"],
        ]),
    );
    for record in at_cp.iter().chain(&at_w1) {
        assert_eq!((&record["type"], &record["verdict"]), (&json!("trace"), &json!("FORWARDED")), "{record}");
        let ends = [&record["source"], &record["destination"]];
        assert!(ends.contains(&&json!(bed.a.addr())) && ends.contains(&&json!(bed.peer.addr())), "{record}");
        let ports = [&record["source_port"], &record["destination_port"]];
        assert!(ports.contains(&&json!(seen.client.port())), "{record}");
    }
    // Each node knows its own pods by name, and others by their node.
    let first = &at_cp[0];
    assert_eq!(
        [&first["source_pod"], &first["destination_pod"], &first["destination_node"], &first["node"]],
        [&json!("default/a"), &Value::Null, &json!("w1"), &json!("cp")]
    );
    let first = &at_w1[0];
    assert_eq!(
        [&first["source_pod"], &first["source_node"], &first["destination_pod"], &first["node"]],
        [&Value::Null, &json!("cp"), &json!("default/peer"), &json!("w1")]
    );

    // An orderly end turns it off at once.
    here.interrupt();
    assert!(!is_on(bed.cp()) && is_on(bed.w1()));
}

#[test]
fn a_connection_within_a_node_is_one_step() {
    let bed = Bed::new();
    let monitor = Monitor::start_with(bed.cp(), &["--type", "all", "--from", "a", "--to", "b"]);
    tcp::exchange(bed.a.namespace(), bed.b.namespace(), (bed.b.addr(), 0).into()).unwrap();
    let records = monitor.take(2);
    assert_eq!(step(&records[0]), ["from_pod", "local", "TCP Flags: SYN"]);
    assert!(records.iter().all(|record| record["destination_pod"] == "default/b"), "{records:?}");
}

#[test]
fn a_monitor_that_is_killed_leaves_no_tracing() {
    let bed = Bed::new();
    let monitor = Monitor::start_with(bed.cp(), &["--type", "trace"]);
    assert!(is_on(bed.cp()));
    kill(monitor.pid(), Signal::SIGKILL).unwrap();
    drop(monitor);
    let start = Instant::now();
    while is_on(bed.cp()) {
        assert!(start.elapsed() < tracing::LEASE + Duration::from_secs(5), "traces go on after SIGKILL");
        std::thread::sleep(Duration::from_millis(50));
    }
    // And nothing is written any more, for nobody.
    let records = Monitor::start_with(bed.cp(), &["--pod", "a"]);
    tcp::exchange(bed.a.namespace(), bed.peer.namespace(), (bed.peer.addr(), 0).into()).unwrap();
    assert_eq!(records.interrupt(), [0; 0]);
}
