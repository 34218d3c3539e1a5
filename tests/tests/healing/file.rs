//! The cluster file: nodes that come, move and go, files that make no sense, and the ways in which a file is replaced.

use std::fs;
use std::os::unix::fs::symlink;
use std::thread;
use std::time::{Duration, Instant};

use overlay_tests::lab::{AgentOptions, ClusterFile, Network, within};
use overlay_tests::traffic::ping;

use crate::bed::{A_SECOND, Bed, entry, expect_idle, expect_nothing_lost, has, map, on_lan};

/// Keys of the map, and the VTEP that they lead to, if they are there.
type Expected = &'static [(&'static str, Option<&'static str>)];

#[test]
fn a_node_that_comes_moves_or_goes_is_in_the_map_within_a_second_and_no_other_entry_is_touched() {
    let bed = Bed::start();
    // So that the entries of `b` differ from fresh ones: the programs have noted the use.
    thread::sleep(Duration::from_millis(300));
    let before = map(&bed.a);
    let used = before.iter().filter(|(_, entry)| entry.neigh_epoch != 0).count();
    assert!(used > 0, "no entry shows traffic: {before:?}");

    let steps: [(&str, Option<[&str; 2]>, Expected, &str); 4] = [
        (
            "added",
            Some(["192.0.2.30", "10.244.30.0/24"]),
            &[("10.244.30.0/24", Some("192.0.2.30")), ("192.0.2.30/32", Some("192.0.2.30"))],
            "node c added: 10.244.30.0/24 at 192.0.2.30",
        ),
        (
            "moved to another address",
            Some(["192.0.2.31", "10.244.30.0/24"]),
            &[
                ("10.244.30.0/24", Some("192.0.2.31")),
                ("192.0.2.31/32", Some("192.0.2.31")),
                ("192.0.2.30/32", None),
            ],
            "node c changed: 10.244.30.0/24 at 192.0.2.31",
        ),
        (
            "moved to another subnet",
            Some(["192.0.2.31", "10.244.31.0/24"]),
            &[("10.244.31.0/24", Some("192.0.2.31")), ("10.244.30.0/24", None)],
            "node c changed: 10.244.31.0/24 at 192.0.2.31",
        ),
        ("removed", None, &[("10.244.31.0/24", None), ("192.0.2.31/32", None)], "node c removed"),
    ];
    for (what, node, expected, said) in steps {
        let log = bed.a.log_mark();
        let more: Vec<_> = node.map(|[address, subnet]| entry("c", address, subnet)).into_iter().collect();
        bed.write_more(&more);
        let renamed = Instant::now();
        for (key, vtep) in expected {
            within(A_SECOND.saturating_sub(renamed.elapsed()), &format!("{what}: {key}"), || {
                has(&bed.a, key, *vtep)
            });
        }
        println!("{what}: in the map {} ms after the rename", renamed.elapsed().as_millis());
        assert!(renamed.elapsed() <= A_SECOND);
        log.wait_for(said, A_SECOND);
        let now = map(&bed.a);
        for kept in &before {
            assert!(now.contains(kept), "{what}: {kept:?} is not in {now:?}");
        }
        assert_eq!(now.len(), before.len() + more.len() * 2, "{what}: {now:?}");
    }
    expect_idle(&bed.a);
}

#[test]
fn traffic_to_other_nodes_loses_nothing_while_the_file_changes() {
    let bed = Bed::start();
    let streams = bed.streams();
    for round in 0..6 {
        let number = 40 + round % 3;
        let node = entry("c", &format!("192.0.2.{number}"), &format!("10.244.{number}.0/24"));
        bed.write_more(if round % 2 == 0 { std::slice::from_ref(&node) } else { &[] });
        thread::sleep(Duration::from_millis(250));
    }
    expect_nothing_lost(streams);
    bed.expect_traffic();
}

#[test]
fn a_node_that_moves_with_its_pods_is_found_again() {
    let bed = Bed::start();
    let log = bed.b.log_mark();
    // Else the second address of a network goes with the first.
    bed.b.namespace().sysctl("net.ipv4.conf.eth0.promote_secondaries", "1");
    bed.b.namespace().ip(&format!("addr add {} dev eth0", on_lan(22)));
    let moved = entry("b", "192.0.2.22", "10.244.2.0/24");
    bed.write(&Network::default(), &[bed.a.entry(), moved]);
    within(A_SECOND, "a knows", || has(&bed.a, "10.244.2.0/24", Some("192.0.2.22")));
    within(A_SECOND, "b knows", || has(&bed.b, "192.0.2.22/32", Some("192.0.2.22")));
    log.wait_for("node b changed: 10.244.2.0/24 at 192.0.2.22", A_SECOND);
    bed.b.namespace().ip(&format!("addr del {} dev eth0", on_lan(2)));
    ping::ping(bed.pod_a.namespace(), bed.pod_b.addr().into()).unwrap();
    bed.expect_traffic();
    expect_idle(&bed.b);
}

#[test]
fn a_bad_file_changes_nothing_is_one_line_in_the_log_and_the_next_good_one_is_taken() {
    let bed = Bed::start();
    let good =
        ClusterFile { network: Network::default(), nodes: vec![bed.a.entry(), bed.b.entry()] }.to_toml();
    let node = |name, address: &str, subnet: &str| {
        format!("{good}\n[[nodes]]\nname = \"{name}\"\naddress = \"{address}\"\nsubnet = \"{subnet}\"\n")
    };
    let bad = [
        ("not TOML", format!("{good}\n[[nodes\n"), "line "),
        ("unknown key", good.replace("vni", "vnid"), "unknown field `vnid`"),
        (
            "overlap",
            node("c", "192.0.2.30", "10.244.2.128/25"),
            "(10.244.2.0/24) and c (10.244.2.128/25) overlap",
        ),
        (
            "same address",
            node("c", "192.0.2.2", "10.244.3.0/24"),
            "nodes b and c have the same address 192.0.2.2",
        ),
        ("own node absent", good.replace("\"a\"", "\"z\""), "node a is not in the list of nodes"),
        ("empty", String::new(), "missing field `network`"),
    ];
    let path = bed.lab.cluster_file();
    let put = |text: &str| {
        let new = path.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, &path).unwrap();
    };
    let before = map(&bed.a);
    for (index, (what, text, said)) in bad.into_iter().enumerate() {
        let log = bed.a.log_mark();
        put(&text);
        log.wait_for("stays in force", A_SECOND);
        // The same file again is the same complaint, and not said again.
        put(&text);
        thread::sleep(Duration::from_millis(400));
        let lines: Vec<_> = log.lines().into_iter().filter(|line| line.contains("ERROR")).collect();
        assert_eq!(lines.len(), 1, "{what}: {lines:#?}");
        assert!(lines[0].contains(said) && lines[0].contains("overlay.toml"), "{what}: {lines:?}");
        assert_eq!(map(&bed.a), before, "{what}");

        let subnet = format!("10.244.{}.0/24", 50 + index);
        bed.write_more(&[entry("c", "192.0.2.30", &subnet)]);
        within(A_SECOND, what, || has(&bed.a, &subnet, Some("192.0.2.30")));
        bed.write_more(&[]);
        within(A_SECOND, what, || has(&bed.a, &subnet, None));
        assert_eq!(map(&bed.a), before, "{what}");
    }
}

#[test]
fn a_file_that_is_swapped_like_a_config_map_or_gone_for_a_moment_is_followed() {
    let bed = Bed::start();
    let dir = bed.lab.dir().join("etc");
    let file = dir.join("overlay.toml");
    let text = |more: &[_]| {
        let own = [bed.a.entry(), bed.b.entry()];
        ClusterFile { network: Network::default(), nodes: [&own, more].concat() }.to_toml()
    };
    // What the kubelet makes of a ConfigMap: the file is a link through `..data`, which is swapped by rename.
    let publish = |version: &str, more: &[_]| {
        let version_dir = dir.join(version);
        fs::create_dir_all(&version_dir).unwrap();
        fs::write(version_dir.join("overlay.toml"), text(more)).unwrap();
        symlink(version, dir.join("..data_tmp")).unwrap();
        fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    };
    publish("..2026_01", &[]);
    symlink("..data/overlay.toml", &file).unwrap();
    bed.a.stop_agent();
    bed.a.start_agent_with(&AgentOptions { config: Some(file.clone()), ..AgentOptions::default() });

    publish("..2026_02", &[entry("c", "192.0.2.30", "10.244.30.0/24")]);
    within(A_SECOND, "swap", || has(&bed.a, "10.244.30.0/24", Some("192.0.2.30")));
    fs::remove_dir_all(dir.join("..2026_01")).unwrap();
    publish("..2026_03", &[]);
    within(A_SECOND, "second swap", || has(&bed.a, "10.244.30.0/24", None));

    let before = map(&bed.a);
    let log = bed.a.log_mark();
    fs::remove_file(&file).unwrap();
    log.wait_for("No such file or directory", A_SECOND);
    assert_eq!(map(&bed.a), before);
    fs::write(&file, text(&[entry("c", "192.0.2.33", "10.244.33.0/24")])).unwrap();
    within(A_SECOND, "back", || has(&bed.a, "10.244.33.0/24", Some("192.0.2.33")));
    expect_idle(&bed.a);
}
