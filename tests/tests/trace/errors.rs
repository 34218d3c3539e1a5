//! Questions that have no answer: one line that names the remedy, and status 1.

use std::process::Command;

use overlay_tests::lab::{Lab, Node, exec, overlay_binary};

use crate::bed::Bed;

/// Runs it; gives the exit status and the line on standard error. Nothing is on standard output.
#[track_caller]
fn refused(mut command: Command) -> (Option<i32>, String) {
    let out = exec::output(&mut command, b"", exec::COMMAND_LIMIT).unwrap();
    assert_eq!(out.stdout, "", "{}", out.stderr);
    (out.status.code(), out.stderr.trim_end().to_owned())
}

#[track_caller]
fn trace(node: &Node, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = node.overlay(&["trace"]);
    command.args(arguments);
    let (code, line) = refused(command);
    assert_eq!(line.lines().count(), 1, "{line}");
    (code, line)
}

#[test]
fn an_unknown_pod_is_answered_with_those_that_there_are() {
    let bed = Bed::new();
    for asked in ["10.244.0.99", "no-such-container", "default/web"] {
        let (code, line) = trace(bed.cp(), &[asked, "10.244.1.2"]);
        assert_eq!(code, Some(1), "{line}");
        for part in [asked, &bed.pod.addr().to_string(), &bed.neighbour.addr().to_string()] {
            assert!(line.contains(part), "{part} in {line}");
        }
    }
    // What both containers' ids begin with.
    let prefix = &bed.pod.namespace().name()[..4];
    let (code, line) = trace(bed.cp(), &[prefix, "10.244.1.2"]);
    assert_eq!(code, Some(1), "{line}");
    assert!(line.contains("may be any of") && line.contains(&bed.neighbour.addr().to_string()), "{line}");
}

#[test]
fn packets_that_cannot_be_are_refused() {
    let bed = Bed::new();
    let pod = bed.pod.addr().to_string();
    let (code, line) = trace(bed.cp(), &[&pod, "10.244.1.2", "--protocol", "tcp", "--size", "30"]);
    assert_eq!(code, Some(1), "{line}");
    assert!(line.contains("--size 30") && line.contains("from 40"), "{line}");
    for (received, part) in [("zz", "hexadecimal"), ("0102", "less than"), ("{}", "report")] {
        let (code, line) = trace(bed.cp(), &["--received", received]);
        assert_eq!(code, Some(1), "{line}");
        assert!(line.contains(part), "{line}");
    }
    // A first half whose packet never gets on the wire has no second.
    let first = crate::ask::ask(bed.cp(), &[&pod, "198.51.100.10"]).report.to_string();
    let mut command = bed.w1().overlay(&["trace", "--received", &first]);
    let out = exec::output(&mut command, b"", exec::COMMAND_LIMIT).unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(out.stderr.contains("does not get on the wire on cp"), "{}", out.stderr);
}

#[test]
fn without_pins_or_rights_the_remedy_is_named() {
    let lab = Lab::new();
    let namespace = lab.namespace("bare");
    let mut command = namespace.command(overlay_binary());
    command.args(["--pins"]).arg(lab.dir().join("bpf/none/v1")).args(["trace", "10.244.0.2", "10.244.1.2"]);
    let (code, line) = refused(command);
    assert_eq!(code, Some(1), "{line}");
    assert!(line.contains("does not exist") && line.contains("agent"), "{line}");

    let mut command = namespace.command("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(overlay_binary());
    command.args(["trace", "10.244.0.2", "10.244.1.2"]);
    let (code, line) = refused(command);
    assert_eq!(code, Some(1), "{line}");
    assert!(line.contains("missing privileges"), "{line}");
}
