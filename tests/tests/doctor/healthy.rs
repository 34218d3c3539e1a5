//! Nodes that are well, and nodes that overlay has not come to yet.

use overlay_tests::lab::{Cluster, Docker, Network, exec};

use crate::bed::{Bed, configure, diagnosis, doctor, lan, node, with_mesh};

/// All checks, in the order of the list.
const CHECKS: [&str; 14] = [
    "kernel",
    "bpffs",
    "agent",
    "nodes",
    "cni",
    "ports",
    "flannel",
    "sysctls",
    "firewall",
    "mtu",
    "peers",
    "checksums",
    "pins",
    "drift",
];

#[test]
fn nothing_is_found_on_healthy_nodes_and_every_check_has_looked() {
    let cluster = Cluster::builder().build();
    cluster.start_agents_with(|_| with_mesh());
    let _pods = [cluster.add_pod("cp", "a"), cluster.add_pod("w1", "b"), cluster.add_pod("w2", "c")];
    for node in cluster.nodes() {
        let seen = doctor(cluster.lab(), node, &[]);
        seen.expect_fine();
        let rows: Vec<_> = seen.findings.iter().map(|f| (f.check.as_str(), f.severity.as_str())).collect();
        // Nobody has installed the plugin for a runtime here.
        let wanted = CHECKS.map(|check| (check, if check == "cni" { "skipped" } else { "ok" }));
        assert_eq!(rows, wanted, "{seen:#?}");
        assert!(seen.findings.iter().all(|finding| !finding.what.is_empty()), "{seen:#?}");
        let mtu = &seen.findings[9].what;
        assert!(mtu.contains("2 of 2 paths carry 1500 bytes"), "{mtu}");
        let peers = &seen.findings[10].what;
        assert!(peers.contains("2 of 2 peers answer packets of up to 1450 bytes"), "{peers}");
        let checksums = &seen.findings[11].what;
        assert!(checksums.contains("1 of its pods"), "{checksums}");
    }
}

#[test]
fn a_healthy_node_is_left_as_it_is_by_fix() {
    let bed = Bed::start();
    // Addresses and routes of IPv6 that the kernel makes by itself come when it has found no duplicate.
    let state = || {
        bed.run(
            "ip -d link; ip -4 addr; ip -4 route show table all; ip -6 route show proto 79; nft -s list ruleset; \
             tc filter show dev eth0 ingress",
        )
    };
    let before = state();
    let seen = bed.doctor(&["--fix=flannel"]);
    seen.expect_fine();
    assert_eq!(seen.did, "");
    assert_eq!(state(), before);
}

#[test]
fn a_node_without_overlay_is_looked_at_before_it_comes() {
    let (lab, lan) = lan();
    let host = node(&lab, &lan, "a", 1, Docker::Down);
    let peer = node(&lab, &lan, "b", 2, Docker::Down);
    // Without a configuration, and with one.
    doctor(&lab, &host, &[]).expect_fine();
    configure(&lab, &[&host, &peer], Network::default(), "");
    let seen = doctor(&lab, &host, &["--fix=flannel"]);
    seen.expect_fine();
    assert_eq!(seen.did, "");
    let rows: Vec<_> = seen.findings.iter().map(|f| (f.check.as_str(), f.severity.as_str())).collect();
    for check in ["kernel", "bpffs", "nodes", "ports", "flannel", "firewall", "mtu", "checksums"] {
        assert!(rows.contains(&(check, "ok")), "{check}: {seen:#?}");
    }
    for check in ["agent", "cni", "sysctls", "peers", "pins", "drift"] {
        assert!(rows.contains(&(check, "skipped")), "{check}: {seen:#?}");
    }
    assert!(!host.pins().exists());
}

#[test]
fn people_and_machines_are_told_the_same() {
    let bed = Bed::start();
    let one = bed.doctor(&["--only", "kernel,drift"]);
    assert_eq!(one.findings.iter().map(|f| f.check.as_str()).collect::<Vec<_>>(), ["kernel", "drift"]);
    bed.a.stop_agent();
    let run = |arguments: &[&str]| {
        let mut command = bed.a.overlay(&["doctor", "--only", "agent"]);
        command.args(arguments).env("OVERLAY_CONFIG", bed.lab.cluster_file());
        exec::output(&mut command, b"", exec::COMMAND_LIMIT).unwrap()
    };
    let table = run(&[]);
    assert_eq!(table.status.code(), Some(0), "{table:?}");
    let seen = bed.doctor(&["--only", "agent"]);
    let finding = &seen.expect(&[("agent", "agent")])[0];
    for text in ["CHECK", "warning", &finding.what, &finding.evidence, &finding.remedy] {
        assert!(table.stdout.contains(text), "{text}: {}", table.stdout);
    }
    let wide = run(&["-o", "wide"]);
    assert!(wide.stdout.lines().count() == 2 && wide.stdout.contains(&finding.remedy), "{wide:?}");
    let yaml = run(&["-o", "yaml"]);
    assert!(yaml.stdout.contains("severity: warning"), "{yaml:?}");
    let unknown = run(&["--only", "none"]);
    assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
    let alone = run(&["--dry-run"]);
    assert_eq!(alone.status.code(), Some(2), "{alone:?}");
    // Without privileges it says so, and changes nothing.
    let mut bare = bed.a.namespace().command("setpriv");
    bare.args(["--bounding-set", "-all", "--inh-caps", "-all"]).arg(overlay_tests::lab::overlay_binary());
    bare.args(["doctor", "-o", "json", "--only", "kernel"]).env("OVERLAY_CONFIG", bed.lab.cluster_file());
    bare.env("OVERLAY_PINS", bed.a.pins()).env("NODE_NAME", "a");
    diagnosis(&mut bare).expect(&[("kernel", "this process")]);
}
