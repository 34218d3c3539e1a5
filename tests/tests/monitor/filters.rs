//! Filters: each shows what it is for and nothing else; and several monitors at once each see all of theirs.

use std::collections::BTreeSet;

use overlay_tests::traffic::drops::Monitor;
use overlay_tests::traffic::inject::inject;
use serde_json::Value;

use crate::bed::{Bed, NO_NODE, PORT, STRANGER, run, send};

/// Which of the packets below a record is of, by its ports and protocol.
fn which(record: &Value) -> &'static str {
    match (record["source_port"].as_u64(), record["destination_port"].as_u64()) {
        (Some(4001), Some(5001)) => "a to nobody",
        (Some(4002), Some(5002)) => "b to nobody",
        (Some(4000), Some(port)) if port == u64::from(PORT) => "stranger to a",
        _ => panic!("an unexpected record: {record}"),
    }
}

#[test]
fn each_filter_shows_what_it_is_for() {
    let bed = Bed::new();
    let (cp, a) = (bed.cp(), bed.a.addr().to_string());
    let (nobody, stranger, container) =
        (NO_NODE.to_string(), STRANGER.to_string(), bed.a.namespace().name().to_owned());
    let cases: [(&[&str], &[&str]); 14] = [
        (&[], &["a to nobody", "b to nobody", "stranger to a"]),
        (&["--pod", "default/a"], &["a to nobody", "stranger to a"]),
        (&["--pod", "b"], &["b to nobody"]),
        (&["--pod", &a], &["a to nobody", "stranger to a"]),
        (&["--pod", &container], &["a to nobody", "stranger to a"]),
        (&["--node", "w1"], &["stranger to a"]),
        (&["--reason", "no_node"], &["a to nobody", "b to nobody"]),
        (&["--reason", "no_node,unknown_vtep", "--pod", "a"], &["a to nobody", "stranger to a"]),
        (&["--from", "a"], &["a to nobody"]),
        (&["--to", "10.244.99.0/24"], &["a to nobody", "b to nobody"]),
        (&["--from", "10.244.0.0/24", "--to", &nobody, "--port", "5002"], &["b to nobody"]),
        (&["--port", "4001"], &["a to nobody"]),
        (&["--protocol", "tcp"], &[]),
        (&["--protocol", "udp", "--to", "default/a"], &["stranger to a"]),
    ];
    // All at once: each reads on its own.
    let monitors = cases.map(|(arguments, _)| Monitor::start_with(cp, arguments));
    send(&bed.a, 4001, (NO_NODE, 5001), 1);
    send(&bed.b, 4002, (NO_NODE, 5002), 1);
    inject(&bed.stranger, "eth0", &[bed.tunnel(STRANGER, bed.peer.addr(), bed.a.addr()).encode()]);
    // The one without a filter has seen the last of them.
    let all = monitors[0].take(3);
    assert_eq!(all[2]["outer_source"], stranger);
    for (monitor, (arguments, expected)) in monitors.into_iter().zip(cases).skip(1) {
        let mut records = monitor.take(expected.len());
        records.extend(monitor.interrupt());
        let seen: BTreeSet<_> = records.iter().map(which).collect();
        assert_eq!(seen, expected.iter().copied().collect(), "{arguments:?}");
        assert_eq!(records.len(), expected.len(), "{arguments:?}");
    }
}

#[test]
fn what_nothing_can_match_is_refused() {
    let bed = Bed::new();
    for (arguments, said) in [
        (
            &["monitor", "--pod", "nobody"][..],
            "no pod of this node is called nobody: `overlay endpoints` lists them",
        ),
        (&["monitor", "--from", "nobody"], "nobody is neither an address nor a pod of this node"),
        (&["monitor", "--node", "w9"], "no node is called w9: `overlay nodes` lists them"),
        (&["capture", "nobody"], "no pod of this node is called nobody"),
    ] {
        let out = run(bed.cp(), arguments);
        assert_eq!(out.status.code(), Some(1), "{arguments:?}: {out:?}");
        assert!(
            out.stderr.contains(said) && out.stderr.lines().count() == 1,
            "{arguments:?}: {}",
            out.stderr
        );
    }
    for arguments in
        [["monitor", "--reason", "bad_luck"], ["monitor", "--protocol", "http"], ["monitor", "--type", "x"]]
    {
        assert_eq!(run(bed.cp(), &arguments).status.code(), Some(2), "{arguments:?}");
    }
}
