//! A flood of drops: few are shown, all are counted.

use std::net::UdpSocket;

use overlay_tests::traffic::drops::{Drops, Monitor};
use overlay_tests::traffic::inject::inject;
use serde_json::Value;

use crate::bed::{Bed, NO_NODE, STRANGER};

const FLOOD: u64 = 30_000;

/// Records, and those that were not shown.
fn sums(records: &[Value]) -> (u64, u64) {
    let shown = records.iter().filter(|record| record["type"] == "drop").count() as u64;
    let lost = records.iter().filter(|record| record["type"] == "lost");
    let count = |record: &Value| {
        let drops = record["drops"].as_object().expect("drops by reason").values();
        drops.map(|drops| drops.as_u64().expect("a number")).sum::<u64>()
            + record["missed"].as_u64().expect("a number")
    };
    (shown, lost.map(count).sum())
}

#[test]
fn what_is_shown_and_what_is_not_is_what_was_dropped() {
    let bed = Bed::new();
    let cp = bed.cp();
    let before = Drops::read(cp);
    let monitor = Monitor::start(cp);
    let second = Monitor::start(cp);
    let socket = bed.a.namespace().run(|| UdpSocket::bind((bed.a.addr(), 4000))).unwrap();
    for _ in 0..FLOOD {
        socket.send_to(b"anybody there", (NO_NODE, 5000)).unwrap();
    }
    // One for another reason, in the middle of it, is shown all the same.
    let other = bed.tunnel(STRANGER, bed.peer.addr(), bed.a.addr()).encode();
    inject(&bed.stranger, "eth0", &[other]);
    let mut records = monitor.take_until("unknown_vtep", |records| {
        records.iter().any(|record| record["reason"] == "unknown_vtep")
    });
    records.extend(monitor.interrupt());
    let dropped: u64 = Drops::read(cp).since(&before).values().sum();
    assert_eq!(dropped, FLOOD + 1);
    let (shown, lost) = sums(&records);
    assert_eq!(shown + lost, dropped, "{shown} shown, {lost} not");
    assert!(lost > 0, "{shown} of {dropped} shown: no flood");
    assert!(shown >= 2, "{shown} shown");
    let (shown, lost) = sums(&second.interrupt());
    assert_eq!(shown + lost, dropped, "{shown} shown, {lost} not, by the second");
}
