//! Nodes of which parts are missing, broken or another's.

use std::fs;
use std::os::unix::fs::symlink;

use overlay_tests::lab::{Node, exec};

use crate::bed::{Bed, run};

/// A node that overlay has been on, without an agent, after `breaks`; and what it was like before overlay came, with what
/// is another's of what `breaks` has done.
fn broken(foreign: impl Fn(&Node), breaks: impl Fn(&Bed)) -> (Bed, String) {
    let mut bed = Bed::new(None, None);
    foreign(&bed.a);
    let before = bed.snapshot();
    bed.start();
    bed.a.stop_agent();
    breaks(&bed);
    (bed, before)
}

/// Cleans up; the node is as it was before.
#[track_caller]
fn expect_clean(bed: &Bed, before: &str) {
    let announced = bed.cleanup(&["--pods", "--dry-run"]);
    assert!(announced.status.success(), "{announced:?}");
    let out = bed.cleanup(&["--pods"]);
    assert!(out.status.success(), "{out:?}");
    assert_eq!(out.stdout, announced.stdout.replace("would remove ", "removed "));
    let after = bed.snapshot();
    let left: Vec<_> = after.lines().filter(|line| !before.lines().any(|other| other == *line)).collect();
    assert!(after == before, "left: {left:#?}");
}

#[test]
fn pins_that_are_damaged_foreign_or_of_another_schema_are_removed() {
    let (bed, before) = broken(
        |_| {},
        |bed| {
            let root = bed.a.pins();
            fs::remove_file(root.join("maps/ENDPOINTS")).unwrap();
            fs::remove_file(root.join("maps/LOCAL")).unwrap();
            let mut bpftool = bed.a.namespace().command("bpftool");
            bpftool.args(["map", "create"]).arg(root.join("maps/LOCAL"));
            bpftool.args(["type", "array", "key", "4", "value", "4", "entries", "1", "name", "foreign"]);
            exec::must(&mut bpftool, "");
            fs::create_dir_all(root.join("links/mine/deeper")).unwrap();
            symlink("nowhere", root.join("programs/dangling")).unwrap();
            // What is left where a change of the schema was killed.
            let base = root.parent().unwrap();
            fs::create_dir_all(base.join("v77/maps")).unwrap();
            fs::rename(root.join("maps/DROPS"), base.join("v77/maps/DROPS")).unwrap();
            symlink("v77", base.join("current")).unwrap();
        },
    );
    expect_clean(&bed, &before);
}

#[test]
fn devices_that_were_renamed_are_known_and_namesakes_left() {
    let (bed, before) = broken(
        |node| {
            node.namespace().ip("link add overlay.7 type bridge");
            node.namespace().ip("link add ov0123456789a type bridge");
        },
        |bed| {
            let host = bed.a.namespace();
            for (from, to) in [(Node::ANCHOR, "renamed1"), (&bed.pods[0].host_device(), "renamed2")] {
                host.ip(&format!("link set {from} down"));
                host.ip(&format!("link set {from} name {to}"));
            }
        },
    );
    expect_clean(&bed, &before);
}

#[test]
fn what_is_gone_already_is_no_obstacle() {
    let (bed, before) = broken(
        |_| {},
        |bed| {
            let host = bed.a.namespace();
            host.ip(&format!("link del {}", bed.pods[0].host_device()));
            host.ip(&format!("link del {}", Node::ANCHOR));
            host.ip("route flush proto 79");
            host.ip("rule del from 10.244.1.0/24 table 79");
            exec::must(host.command("nft").args(["delete", "table", "ip", "overlay"]), "");
            fs::remove_dir_all(bed.a.pins().join("links")).unwrap();
        },
    );
    expect_clean(&bed, &before);
}

#[test]
fn without_nft_the_rest_is_removed_and_that_is_said() {
    let (bed, before) = broken(|_| {}, |_| {});
    let mut command = bed.cleanup_command(&["--pods"]);
    let out = run(command.env("PATH", "/nonexistent"));
    assert_eq!(out.status.code(), Some(1), "{out:?}");
    assert!(
        out.stderr.starts_with("overlay: not all could be removed: ") && out.stderr.contains("nft"),
        "{out:?}"
    );
    assert_eq!(out.stderr.lines().count(), 1, "{out:?}");
    let links = bed.a.namespace().ip("-br link");
    assert!(!links.contains("overlay.1"), "{links}");
    assert!(!bed.a.pins().exists());
    // With it, the rest.
    expect_clean(&bed, &before);
}

#[test]
fn a_directory_that_is_on_no_bpffs_is_left() {
    let (bed, before) = broken(|_| {}, |_| {});
    let plain = bed.lab.dir().join("plain/overlay");
    fs::create_dir_all(plain.join("v1/maps")).unwrap();
    fs::write(plain.join("v1/maps/NODES"), "somebody's").unwrap();
    for (base, said) in [(plain.clone(), true), (bed.lab.dir().join("none"), false)] {
        let mut command = bed.cleanup_command(&["--pods"]);
        let out = run(command.env("OVERLAY_PINS", base.join("v1")));
        assert!(out.status.success(), "{out:?}");
        let left = format!("left {}: it is not on a BPF file system", base.display());
        assert_eq!(out.stdout.contains(&left), said, "{out:?}");
    }
    assert!(plain.join("v1/maps/NODES").exists() && bed.a.pins().exists());
    expect_clean(&bed, &before);
}
