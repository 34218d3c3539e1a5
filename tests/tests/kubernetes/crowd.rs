//! Five thousand nodes.

use std::fs;
use std::time::{Duration, Instant};

use overlay_tests::api::{node, younger};
use overlay_tests::lab::AgentOptions;

use crate::bed::{Bed, within_or};

/// Generous: a debug build of the agent on a busy machine.
const LIMIT: Duration = Duration::from_mins(1);

const NODES: u32 = 5000;

fn member(number: u32) -> serde_json::Value {
    let (high, low) = (number / 250, number % 250 + 1);
    younger(
        node(
            &format!("n{number:04}"),
            &format!("198.18.{high}.{low}"),
            &format!("10.{}.{low}.0/24", 64 + high),
        ),
        9,
    )
}

fn kib(bed: &Bed, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", bed.node.agent_pid().unwrap())).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn five_thousand_nodes_are_in_the_map_and_follow() {
    let bed = Bed::new();
    bed.write("", "10.0.0.0/8");
    bed.api.put(node("a", "192.0.2.1", "10.244.1.0/24"));
    for number in 0..NODES {
        bed.api.put(member(number));
    }
    let expected = bed.expected(&[]);
    assert_eq!(expected.len(), 2 * (NODES as usize + 1));
    let settles = |what: &str, since: Instant| {
        let expected = bed.expected(&[]);
        within_or(
            LIMIT,
            || bed.map() == expected,
            || {
                format!(
                    "{what}: {} entries of {}; the log:\n{}",
                    bed.map().len(),
                    expected.len(),
                    bed.node.log()
                )
            },
        );
        println!("{what}: after {} ms, {} KiB", since.elapsed().as_millis(), kib(&bed, "VmRSS"));
    };

    let start = Instant::now();
    bed.node.spawn_agent(&AgentOptions::default());
    settles("from the start of the agent", start);
    println!("largest: {} KiB", kib(&bed, "VmHWM"));
    let pages = bed.api.requests().iter().filter(|request| request.contains("limit=500")).count();
    assert_eq!(pages, 11, "{:?}", bed.api.requests());

    // Every other one goes at once, as fast as the API can say so.
    let start = Instant::now();
    for number in (0..NODES).step_by(2) {
        bed.api.delete(&format!("n{number:04}"));
    }
    settles("2500 deleted one by one", start);
    let start = Instant::now();
    bed.api.forget();
    for number in (0..NODES).step_by(2) {
        bed.api.put(member(number));
    }
    settles("added again, over a new list", start);
}
