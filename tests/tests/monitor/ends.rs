//! How the commands end: by a number, a time, a signal, or a reader that goes away.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use overlay_tests::lab::exec;
use overlay_tests::traffic::drops::Monitor;

use crate::bed::{Bed, NO_NODE, run, send};

#[test]
fn the_last_drops_are_there_when_somebody_begins_to_look() {
    let bed = Bed::new();
    for port in 5001..5006 {
        send(&bed.a, 4000, (NO_NODE, port), 1);
    }
    let out = run(bed.cp(), &["monitor", "--last", "2"]);
    assert!(out.status.success() && out.stderr.is_empty(), "{out:?}");
    let lines: Vec<_> = out.stdout.lines().collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    for (line, port) in lines.iter().zip([5004, 5005]) {
        let said = format!(
            "{}:4000 (default/a) -> {NO_NODE}:{port} no_node DROPPED (UDP; from_pod on ",
            bed.a.addr()
        );
        assert!(line.contains(&said), "{said} in {line}");
    }
    let out = run(bed.cp(), &["monitor", "--last", "9", "--port", "5002"]);
    assert_eq!(out.stdout.lines().count(), 1, "{out:?}");
}

#[test]
fn a_number_of_packets_or_a_time_ends_it() {
    let bed = Bed::new();
    let out = run(bed.cp(), &["monitor", "--timeout", "100ms"]);
    assert!(out.status.success() && out.stdout.is_empty(), "{out:?}");
    let out = run(bed.cp(), &["capture", "a", "--timeout", "100ms"]);
    assert!(out.status.success(), "{out:?}");

    let mut command = bed.cp().overlay(&["monitor", "-n", "2"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = exec::spawn_tied(command).unwrap();
    let mut errors = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(errors.next().unwrap().unwrap().contains("listening"));
    send(&bed.a, 4000, (NO_NODE, 5000), 5);
    let status = exec::wait_until(&mut child, Instant::now() + Duration::from_secs(5)).unwrap();
    assert!(status.expect("ends after two").success());
    assert_eq!(BufReader::new(child.stdout.take().unwrap()).lines().count(), 2);
}

#[test]
fn a_reader_that_goes_away_ends_it_even_while_nothing_happens() {
    let bed = Bed::new();
    for arguments in [&["monitor"][..], &["monitor", "-t", "trace", "-o", "json"], &["capture", "a"]] {
        let mut command = bed.cp().overlay(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = exec::spawn_tied(command).unwrap();
        let mut errors = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(errors.next().unwrap().unwrap().contains("listening"));
        drop(child.stdout.take());
        let status = exec::wait_until(&mut child, Instant::now() + Duration::from_secs(5)).unwrap();
        assert!(status.unwrap_or_else(|| panic!("{arguments:?} goes on")).success());
    }
}

#[test]
fn ctrl_c_is_an_orderly_end() {
    let bed = Bed::new();
    let monitor = Monitor::start(bed.cp());
    send(&bed.a, 4000, (NO_NODE, 5000), 1);
    // What has happened before the signal is shown.
    let mut records = monitor.take(0);
    records.extend(monitor.interrupt());
    assert_eq!(records.len(), 1, "{records:?}");
}
