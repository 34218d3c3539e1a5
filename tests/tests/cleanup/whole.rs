//! Nodes on which overlay works.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use overlay_tests::lab::{Families, exec};
use overlay_userspace::family::Family;

use crate::bed::Bed;
use crate::inventory::{Inventory, sorted, things};

/// How long something may take that takes milliseconds.
const SOON: Duration = Duration::from_secs(5);

#[test]
fn a_node_is_as_it_was_before() {
    use Families::{Dual, Ipv4, Ipv6};
    for (families, attach, xdp) in [
        (Ipv4, None, None),
        (Ipv4, Some("clsact"), None),
        (Ipv4, None, Some("guard")),
        (Dual, None, None),
        (Ipv6, None, None),
    ] {
        let mut bed = Bed::of(families, attach, xdp);
        let (before, nothing) = (bed.snapshot(), Inventory::read(&bed));
        bed.start();
        let running = bed.snapshot();
        assert_eq!(running.contains("xdp"), xdp.is_some(), "{running}");

        let out = bed.cleanup(&["--pods"]);
        assert!(!out.status.success() && out.stderr.contains("agent is running"), "{out:?}");
        bed.a.stop_agent();
        let out = bed.cleanup(&[]);
        assert!(!out.status.success(), "{out:?}");
        assert!(out.stderr.contains("1 pods are attached: drain the node and repeat"), "{out:?}");
        let out = bed.cleanup(&["--dry-run"]);
        assert!(out.status.success(), "{out:?}");
        assert!(out.stdout.ends_with("\npods are attached: this will need --pods or --force\n"), "{out:?}");
        let out = bed.cleanup(&["--dry-run", "--pods"]);
        assert!(out.status.success(), "{out:?}");
        let announced = things(&out.stdout, "would remove ");
        assert_eq!(bed.snapshot(), running);
        // Exactly what has come since.
        let came = Inventory::read(&bed).since(&nothing);
        assert_eq!(sorted(&announced), came);

        let out = bed.cleanup(&["--pods"]);
        assert!(out.status.success(), "{out:?}");
        assert_eq!(things(&out.stdout, "removed "), announced);
        let tables = ["nft table ip overlay", "nft table ip6 overlay"].iter().zip(Family::ALL);
        let tables = tables.filter(|(_, family)| families.has(*family)).map(|(table, _)| *table);
        for what in
            ["device overlay.1", "accepts in chain inet firewalld filter_FORWARD"].into_iter().chain(tables)
        {
            assert!(announced.iter().any(|thing| thing == what), "{what}: {announced:#?}");
        }
        // The kernel takes a link off its device a moment after its last pin is gone (RCU).
        let mut after = bed.snapshot();
        let deadline = Instant::now() + SOON;
        while after != before && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
            after = bed.snapshot();
        }
        let only_in = |one: &str, other: &str| -> Vec<String> {
            one.lines().filter(|line| !other.lines().any(|other| other == *line)).map(str::to_owned).collect()
        };
        let (left, missing) = (only_in(&after, &before), only_in(&before, &after));
        assert!(after == before, "left: {left:#?}\nmissing: {missing:#?}\n{}", out.stdout);
        let out = bed.cleanup(&["--pods"]);
        assert!(out.status.success() && out.stdout.is_empty(), "{out:?}");
    }
}

#[test]
fn devices_of_pods_stay_where_only_the_rest_is_to_go() {
    let mut bed = Bed::new(None, None);
    bed.start();
    let device = bed.pods[0].host_device();
    bed.a.stop_agent();
    let out = bed.cleanup(&["--force"]);
    assert!(out.status.success(), "{out:?}");
    let host = bed.a.namespace();
    host.ip(&format!("link show {device}"));
    let mut tc = host.command("tc");
    assert_eq!(exec::must(tc.args(["filter", "show", "dev", &device, "ingress"]), ""), "");
    assert_eq!(host.ip("route show proto 79"), "");
    assert!(!bed.a.pins().exists());
    // The map of pods is gone; their devices are seen all the same.
    let out = bed.cleanup(&[]);
    assert!(!out.status.success() && out.stderr.contains("1 pods are attached"), "{out:?}");
    // And it can begin anew.
    assert!(bed.cleanup(&["--pods"]).status.success());
    bed.a.start_agent();
    let pod = bed.a.add_pod(&bed.lab, "next");
    overlay_tests::traffic::ping::ping(pod.namespace(), bed.pods[1].addr().into()).unwrap();
}

#[test]
fn one_thing_that_cannot_be_removed_keeps_nothing_else_from_it() {
    let mut bed = Bed::new(None, None);
    bed.start();
    bed.a.stop_agent();
    // Not empty, and no file: it cannot be read as a configuration, nor be removed as one.
    let list = bed.cni().join("net.d/10-overlay.conflist");
    fs::remove_file(&list).unwrap();
    fs::create_dir(&list).unwrap();
    let out = bed.cleanup(&["--pods"]);
    assert!(!out.status.success(), "{out:?}");
    assert!(
        out.stderr.contains("not all could be removed: read ") && out.stderr.lines().count() == 1,
        "{out:?}"
    );
    assert!(!bed.a.pins().exists());
    let links = bed.a.namespace().ip("-br link");
    assert!(!links.contains("overlay.1"), "{links}");
    assert_eq!(bed.a.namespace().ip("route show proto 79"), "");
}
