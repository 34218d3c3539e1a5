//! The conformance suite `cni-conformance`, on three kinds of plugins: ours, which must pass; Debian's `bridge` with
//! `host-local`, which must fail exactly what is known of it; and plugins that are broken on purpose, which must fail
//! exactly what they break. A suite that passes everybody shows nothing.
//!
//! What fails for `bridge`, and why, is explained in `docs/conformance.md`.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests panic, in helper functions as well, to keep the line number"
)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ipnet::IpNet;
use overlay_tests::lab::families::nets;
use overlay_tests::lab::{
    ClusterFile, Families, Lab, Lan, Link, Listed, Network, Node, exec, overlay_binary,
};
use overlay_userspace::family::{ByFamily, Family};
use serde_json::{Value, json};

/// Where Debian's package `containernetworking-plugins` has its plugins.
const DEBIAN: &str = "/usr/lib/cni";

/// The suite does hundreds of calls; it needs about 30 s on two cores that are busy.
const LIMIT: Duration = Duration::from_mins(3);

/// What Debian's `bridge` and `host-local` 1.1.1 do not do.
const BRIDGE_FAILS: [&str; 9] = [
    "version-echoes-the-cniversion/0.3.1",
    "version-echoes-the-cniversion/0.4.0",
    "command-is-required",
    "error-has-the-cniversion",
    "del-of-one-interface-leaves-the-other",
    "add-hands-on-the-previous-result/0.3.1",
    "add-hands-on-the-previous-result/0.4.0",
    "add-hands-on-the-previous-result/1.0.0",
    "del-with-a-path-that-is-no-namespace",
];

/// A directory for one test, removed with everything in it.
struct TempDir(PathBuf);

impl TempDir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("cni-conformance-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The suite's verdict.
struct Report {
    json: Value,
    status: Option<i32>,
}

impl Report {
    /// Names of the cases that ended in this way.
    fn names(&self, outcome: &str) -> BTreeSet<String> {
        let cases = self.json["cases"].as_array().unwrap().iter().filter(|case| case["outcome"] == outcome);
        cases.map(|case| case["name"].as_str().unwrap().to_owned()).collect()
    }

    /// What was seen where a case failed, for the message of an assertion.
    fn failures(&self) -> String {
        let cases = self.json["cases"].as_array().unwrap().iter().filter(|case| case["outcome"] == "failed");
        let lines = cases.map(|case| format!("{}: {}", case["name"], case["reason"]));
        lines.collect::<Vec<_>>().join("\n")
    }

    #[track_caller]
    fn must_fail_exactly<'a>(&self, expected: impl IntoIterator<Item = &'a str>) {
        let expected: BTreeSet<String> = expected.into_iter().map(str::to_owned).collect();
        assert_eq!(self.names("failed"), expected, "{}", self.failures());
        assert_eq!(self.status, Some(i32::from(!expected.is_empty())));
        assert!(!self.names("passed").is_empty());
    }
}

#[track_caller]
fn conformance(conflist: &Path, arguments: &[&str]) -> Report {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cni-conformance"));
    command.arg("--json").arg("--conflist").arg(conflist).args(arguments);
    let out = exec::output(&mut command, b"", LIMIT).unwrap();
    let json = serde_json::from_str(&out.stdout);
    let json = json.unwrap_or_else(|error| panic!("{error}: {}{}", out.stdout, out.stderr));
    Report { json, status: out.status.code() }
}

fn bridge(name: &str) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": name,
        "plugins": [{
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "ipMasq": true,
            "ipam": { "type": "host-local", "subnet": "10.88.0.0/16", "routes": [{ "dst": "0.0.0.0/0" }] },
        }],
    })
}

/// One node with an agent.
fn node(lab: &Lab, families: Families) -> (Lan, Node) {
    let lan = Lan::new(lab, "lan", Link::default());
    let some = |all: ByFamily<IpNet>| families.map(|family| *all.get(family).unwrap());
    let underlay = some(nets(&["192.0.2.11/24", "2001:db8::11/64"]));
    let subnets = some(nets(&["10.244.1.0/24", "fd00:10:244:1::/64"]));
    let node = Node::builder_of("n1", underlay, subnets).on_lan(lab, &lan);
    let cidr = Listed::ordered(&some(nets(&["10.244.0.0/16", "fd00:10:244::/56"])), Family::Ipv4);
    let network = Network { cidr, ..Network::default() };
    lab.write_cluster(&ClusterFile { network, nodes: vec![node.entry()] });
    node.start_agent();
    (lan, node)
}

/// The arguments that run the suite on a node, with our plugin and Debian's; pins are state.
fn place(node: &Node) -> Vec<String> {
    let binary = overlay_binary();
    let own = binary.parent().unwrap().to_str().unwrap();
    let (netns, pins) = (node.namespace().name(), node.pins().to_str().unwrap());
    let words = ["--netns", netns, "--plugin-dir", own, "--plugin-dir", DEBIAN, "--state-dir", pins];
    words.map(str::to_owned).into()
}

#[test]
fn overlay_passes_every_case_in_every_version() {
    expect_to_pass(Families::Ipv4);
}

#[test]
fn overlay_passes_every_case_in_ipv6_alone() {
    expect_to_pass(Families::Ipv6);
}

#[test]
fn overlay_passes_every_case_in_both_families() {
    expect_to_pass(Families::Dual);
}

#[track_caller]
fn expect_to_pass(families: Families) {
    let (lab, dir) = (Lab::new(), TempDir::new(&format!("overlay-{families:?}")));
    let (_lan, node) = node(&lab, families);
    let conf = json!({
        "cniVersion": "1.1.0",
        "name": "overlay",
        "plugins": [{ "type": "overlay", "pins": node.pins() }],
    });
    let conflist = dir.write("overlay.conflist", &conf.to_string());
    let place = place(&node);
    let mut arguments: Vec<&str> = place.iter().map(String::as_str).collect();
    arguments.push("--gc");
    let report = conformance(&conflist, &arguments);
    report.must_fail_exactly([]);
    assert_eq!(report.json["versions"], json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
    let skipped = [
        // Pods send under the MAC that they were given, which CNI may set: by the capability `mac`.
        "check-allows-another-mac-from-a-later-plugin",
        // There is no second plugin in the list.
        "chained-plugins-keep-the-previous-result/0.3.1",
        "chained-plugins-keep-the-previous-result/0.4.0",
        "chained-plugins-keep-the-previous-result/1.0.0",
        "chained-plugins-keep-the-previous-result/1.1.0",
        // Results of these versions do not say it.
        "result-ips-say-their-version-before-1-0-0/1.0.0",
        "result-ips-say-their-version-before-1-0-0/1.1.0",
    ];
    assert_eq!(report.names("skipped"), skipped.map(str::to_owned).into());
}

#[test]
fn overlay_comes_first_in_a_chain_of_debians_plugins() {
    let (lab, dir) = (Lab::new(), TempDir::new("chain"));
    let (_lan, node) = node(&lab, Families::Ipv4);
    let conf = json!({
        "cniVersion": "1.0.0",
        "name": "overlay-chain",
        "plugins": [
            { "type": "overlay", "pins": node.pins() },
            { "type": "tuning", "dataDir": &dir.0, "sysctl": { "net.ipv4.conf.all.log_martians": "1" } },
            { "type": "bandwidth", "ingressRate": 80_000_000, "ingressBurst": 800_000 },
            { "type": "firewall" },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    });
    let conflist = dir.write("chain.conflist", &conf.to_string());
    let place = place(&node);
    let mut arguments: Vec<&str> = place.iter().map(String::as_str).collect();
    arguments.extend([
        "--cap-args",
        r#"{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}"#,
    ]);
    for only in ["add-creates", "chained", "communicate", "del-undoes", "del-removes", "check-succeeds"] {
        arguments.extend(["--only", only]);
    }
    let report = conformance(&conflist, &arguments);
    // The last plugin's CHECK wants rules for both families, whatever addresses there are.
    report
        .must_fail_exactly(["check-succeeds-right-after-add/0.4.0", "check-succeeds-right-after-add/1.0.0"]);
    let failures = report.failures();
    assert!(failures.lines().all(|line| line.contains("CHECK of portmap")), "{failures}");
}

#[test]
fn bridge_fails_exactly_what_is_known_of_it() {
    assert!(
        Path::new(DEBIAN).join("bridge").is_file(),
        "the reference is missing: apt-get install containernetworking-plugins"
    );
    let dir = TempDir::new("bridge");
    let conflist = dir.write("bridge.conflist", &bridge("conformance").to_string());
    let report = conformance(&conflist, &["--plugin-dir", DEBIAN]);
    report.must_fail_exactly(BRIDGE_FAILS.into_iter().chain(["nothing-is-left-after-the-last-del"]));
    let skipped = report.json["cases"].as_array().unwrap().iter().filter(|case| case["outcome"] == "skipped");
    assert!(skipped.clone().all(|case| case["reason"].as_str().is_some_and(|reason| !reason.is_empty())));
    // It claims nothing beyond 1.0.0.
    let late = |case: &&Value| {
        ["gc-", "status-"].iter().any(|verb| case["name"].as_str().unwrap().starts_with(verb))
    };
    assert_eq!(skipped.filter(late).count(), 13);
}

/// `bridge` behind a shell script that breaks one thing.
fn broken(name: &str, script: &str, only: &[&str]) -> Report {
    let dir = TempDir::new(name);
    let plugin = dir.write("bridge", &format!("#!/bin/sh\nreal={DEBIAN}/bridge\n{script}\n"));
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
    let conflist = dir.write("broken.conflist", &bridge("broken").to_string());
    let own = dir.0.to_string_lossy().into_owned();
    let mut arguments = vec!["--plugin-dir", &own, "--plugin-dir", DEBIAN];
    arguments.extend(only.iter().flat_map(|name| ["--only", name]));
    conformance(&conflist, &arguments)
}

#[test]
fn garbage_after_the_json_is_found() {
    let report =
        broken("chatty", r#""$real"; code=$?; echo done; exit $code"#, &["add-", "error-is", "version-"]);
    report.must_fail_exactly([
        "version-outputs-a-json-object/0.3.1",
        "version-outputs-a-json-object/0.4.0",
        "version-outputs-a-json-object/1.0.0",
        "version-echoes-the-cniversion/0.3.1",
        "version-echoes-the-cniversion/0.4.0",
        "add-outputs-a-result-and-nothing-else/0.3.1",
        "add-outputs-a-result-and-nothing-else/0.4.0",
        "add-outputs-a-result-and-nothing-else/1.0.0",
        "error-is-a-json-object-on-stdout",
        "add-hands-on-the-previous-result/0.3.1",
        "add-hands-on-the-previous-result/0.4.0",
        "add-hands-on-the-previous-result/1.0.0",
    ]);
}

#[test]
fn a_plugin_that_ignores_the_interface_name_is_found() {
    let script = r#"[ -z "$CNI_IFNAME" ] || export CNI_IFNAME=eth0; exec "$real""#;
    let report = broken("deaf", script, &["interface-name", "add-creates", "add-with-another"]);
    report.must_fail_exactly([
        "impossible-interface-names-are-errors",
        "add-takes-any-interface-name",
        "add-with-another-interface-name",
    ]);
}

#[test]
fn del_that_fails_for_the_unknown_is_found() {
    let script = r#"
        if [ "$CNI_COMMAND" = DEL ] && ! nsenter --net="$CNI_NETNS" ip link show dev "$CNI_IFNAME" >/dev/null 2>&1; then
            echo '{"code":3,"msg":"no such container"}'; exit 1
        fi
        exec "$real""#;
    let only = ["del-removes", "del-can", "del-of-the", "del-needs-no-namespace", "del-after-the"];
    broken("strict", script, &only).must_fail_exactly([
        "del-can-be-repeated",
        "del-of-the-unknown-succeeds",
        "del-needs-no-namespace",
        "del-after-the-namespace-is-gone",
        "del-after-the-interface-is-gone",
    ]);
}

#[test]
fn del_that_does_nothing_is_found() {
    let script = r#"[ "$CNI_COMMAND" != DEL ] || exit 0; exec "$real""#;
    let only =
        ["del-can", "del-removes", "del-undoes", "del-after-the-namespace", "parallel-dels", "add-again"];
    broken("idle", script, &only).must_fail_exactly([
        "add-again-after-del",
        "del-removes-the-interface/0.3.1",
        "del-removes-the-interface/0.4.0",
        "del-removes-the-interface/1.0.0",
        "del-undoes-what-add-did",
        "del-after-the-namespace-is-gone",
        "parallel-dels-leave-nothing-behind",
    ]);
}

#[test]
fn errors_that_exit_with_0_are_found() {
    let report =
        broken("cheerful", r#""$real"; exit 0"#, &["failure-exits", "input-that-is-not", "version-lists"]);
    report.must_fail_exactly(["failure-exits-non-zero", "input-that-is-not-json-is-code-6"]);
}

#[test]
fn a_result_that_is_not_true_is_found() {
    let script = r#""$real" | sed 's/"10\.88\./"10.99./; s/"sandbox": *"[^"]*"/"sandbox": "elsewhere"/'"#;
    let report =
        broken("liar", script, &["result-ips-are-on", "result-names/1.0.0", "result-names", "add-creates"]);
    let failed = report.names("failed");
    for name in ["result-ips-are-on-the-interface", "result-names-the-interface-and-its-sandbox/1.0.0"] {
        assert!(failed.contains(name), "{name}: {failed:?}");
    }
}

#[test]
fn check_that_is_content_with_everything_is_found() {
    let script = r#"[ "$CNI_COMMAND" != CHECK ] || exit 0; exec "$real""#;
    broken("content", script, &["check-"]).must_fail_exactly([
        "check-names-missing-variables",
        "check-finds-a-missing-interface",
        "check-finds-a-missing-address",
        "check-finds-a-missing-route",
        "check-finds-an-interface-that-is-down",
        "check-requires-the-previous-result",
        "check-compares-with-the-previous-result",
    ]);
}

#[test]
fn a_plugin_that_is_missing_is_no_verdict() {
    let dir = TempDir::new("missing");
    let conflist =
        dir.write("x.conflist", r#"{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"no-such"}]}"#);
    let mut command = Command::new(env!("CARGO_BIN_EXE_cni-conformance"));
    command.arg("--conflist").arg(&conflist).args(["--plugin-dir", DEBIAN]);
    let out = exec::output(&mut command, b"", LIMIT).unwrap();
    assert_eq!(out.status.code(), Some(2));
    assert!(out.stderr.contains("no plugin no-such"), "{}", out.stderr);
    assert_eq!(out.stdout, "");
}

/// Prints what ADD and DEL take; with `OVERLAY_BIN` of a release build, on a machine that does nothing else:
/// `cargo test -p overlay-tests --test conformance -- --ignored --nocapture add_and_del`.
#[test]
#[ignore = "measures, judges nothing"]
fn how_long_add_and_del_take_with_one_family_and_with_both() {
    let dir = TempDir::new("bench");
    let bridge = dir.write("bridge.conflist", &bridge("bench").to_string());
    let labs = [Families::Ipv4, Families::Dual].map(|families| {
        let lab = Lab::new();
        let (lan, node) = node(&lab, families);
        (families, node, lan, lab)
    });
    for round in 1..=2 {
        for (families, node, ..) in &labs {
            let conf = json!({
                "cniVersion": "1.1.0",
                "name": "overlay",
                "plugins": [{ "type": "overlay", "pins": node.pins() }],
            });
            let conflist = dir.write("overlay.conflist", &conf.to_string());
            let mut command = Command::new(env!("CARGO_BIN_EXE_cni-conformance"));
            command.arg("--conflist").arg(&conflist).args(place(node)).args(["--bench", "150"]);
            // Once is enough for what others have measured as well.
            if (round, *families) == (1, Families::Ipv4) {
                command.arg("--against").arg(&bridge);
            }
            let out = exec::output(&mut command, b"", LIMIT).unwrap();
            assert!(out.status.success(), "{}", out.stderr);
            println!("{families:?}, round {round}\n{}", out.stdout);
        }
    }
}
