//! What `/metrics` exports: right numbers, a form that Prometheus takes, and the table of the docs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use aya::sys::{Stats, enable_stats};
use overlay_tests::api::{self, Api, kubeconfig};
use overlay_tests::lab::{AgentOptions, Cluster, Lab, Lan, Link, Node, exec, within};
use overlay_tests::traffic::{http, udp};
use overlay_userspace::datapath::{calls::Calls, pins::Pins};

use crate::bed::{LIMIT, http_of, metrics, repository, start};
use crate::scrape::Scrape;

/// A scrape with every family that there is: of a node on which everything has happened, and of one whose nodes come from an API
/// server. Made once for all tests.
pub(crate) fn everything() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let cluster = start();
        let (near, far) = (cluster.add_pod("cp", "a"), cluster.add_pod("w2", "b"));
        let _counting = enable_stats(Stats::RunTime).unwrap();
        udp::exchange(near.namespace(), far.namespace(), (far.addr(), 0).into()).unwrap();
        let cp = cluster.node("cp");
        cluster.add_pod("cp", "gone").del();
        within(LIMIT, "all peers have answered", || {
            let scrape = Scrape::parse(&metrics(cp));
            scrape.value("overlay_mesh_peers", &[("state", "up")]) > 1.0
                && scrape.of("overlay_program_run_seconds_total").len() > 2
        });
        metrics(cp) + &api_server_up()
    })
}

/// The one family that only an agent has that watches Nodes.
fn api_server_up() -> String {
    let lab = Lab::new();
    let lan = Lan::new(&lab, "lan", Link::default());
    let net = |text: &str| text.parse().unwrap();
    let node = Node::builder("a", net("192.0.2.1/24"), net("10.244.1.0/24")).on_lan(&lab, &lan);
    let api = Api::new();
    let address = "127.0.0.1:6443".parse().unwrap();
    api.listen(node.namespace(), address);
    api.put(api::node("a", "192.0.2.1", "10.244.1.0/24"));
    let path = lab.dir().join("kubeconfig");
    fs::write(&path, kubeconfig(address)).unwrap();
    let mut text = "source = \"kubernetes\"\n[network]\ncidr = \"10.244.0.0/16\"\n".to_owned();
    writeln!(text, "[kubernetes]\nkubeconfig = \"{}\"", path.display()).unwrap();
    fs::write(lab.cluster_file(), text).unwrap();
    node.start_agent_with(&AgentOptions::seen(&node));
    within(LIMIT, "the API server is up", || {
        Scrape::parse(&metrics(&node)).value("overlay_api_server_up", &[]).to_string() == "1"
    });
    api.stop();
    within(LIMIT, "the API server is away", || {
        Scrape::parse(&metrics(&node)).of("overlay_api_server_up").iter().any(|(_, up)| up.to_string() == "0")
    });
    let text = metrics(&node);
    let lines = text.lines().filter(|line| line.contains("overlay_api_server_up"));
    lines.fold(String::new(), |all, line| all + line + "\n")
}

#[track_caller]
pub(crate) fn promtool(arguments: &[&str], stdin: &str) {
    exec::must(Command::new("promtool").args(arguments).current_dir(repository("deploy/prometheus")), stdin);
}

#[test]
fn promtool_finds_nothing_to_complain_of() {
    promtool(&["check", "metrics"], everything());
}

#[test]
fn numbers_are_those_of_the_node() {
    let cluster = start();
    let cp = cluster.node("cp");
    let pods = ["a", "b", "c"].map(|name| cluster.add_pod("cp", name));
    let far = cluster.add_pod("w2", "a");
    pods[2].del();
    udp::exchange(pods[0].namespace(), far.namespace(), (far.addr(), 0).into()).unwrap();
    let nobody = Ipv4Addr::new(10, 244, 99, 9);
    let socket = pods[0].namespace().run(|| UdpSocket::bind((pods[0].addr(), 0))).unwrap();
    for _ in 0..7 {
        socket.send_to(b"anybody there", (nobody, 9)).unwrap();
    }
    let expected = [
        ("overlay_ready", vec![], 1.0),
        ("overlay_build_info", vec![("version", env!("CARGO_PKG_VERSION"))], 1.0),
        ("overlay_nodes", vec![], 3.0),
        ("overlay_endpoints", vec![], 2.0),
        // A /24 without network, broadcast and gateway.
        ("overlay_ipam_addresses", vec![("family", "ipv4"), ("state", "used")], 2.0),
        ("overlay_ipam_addresses", vec![("family", "ipv4"), ("state", "free")], 251.0),
        ("overlay_bpf_map_entries", vec![("map", "ENDPOINTS")], 2.0),
        ("overlay_bpf_map_entries", vec![("map", "NODES")], 6.0),
        ("overlay_bpf_map_max_entries", vec![("map", "NODES")], 65_536.0),
        ("overlay_cni_requests_total", vec![("verb", "ADD"), ("code", "0")], 3.0),
        ("overlay_cni_requests_total", vec![("verb", "DEL"), ("code", "0")], 1.0),
        ("overlay_cni_request_duration_seconds_count", vec![("verb", "ADD")], 3.0),
        ("overlay_cni_request_duration_seconds_bucket", vec![("verb", "ADD"), ("le", "+Inf")], 3.0),
        ("overlay_dropped_packets_total", vec![("reason", "no_node")], 7.0),
        // Ethernet, IPv4, UDP and the text.
        ("overlay_dropped_bytes_total", vec![("reason", "no_node")], 7.0 * (14.0 + 20.0 + 8.0 + 13.0)),
        ("overlay_dropped_packets_total", vec![("reason", "vni")], 0.0),
        ("overlay_reconcile_problems", vec![], 0.0),
        ("overlay_reconcile_failures_total", vec![], 0.0),
    ];
    within(LIMIT, "a scrape that is not of before", || {
        let scrape = Scrape::parse(&metrics(cp));
        scrape.value("overlay_dropped_packets_total", &[("reason", "no_node")]) > 6.0
    });
    let scrape = Scrape::parse(&metrics(cp));
    for (name, labels, value) in expected {
        let found = scrape.value(name, &labels);
        assert!((found - value).abs() < 1e-9, "{name} {labels:?} is {found}, not {value}");
    }
    let native = scrape.value("overlay_forwarded_packets_total", &[("path", "encap_native")]);
    assert!(native >= 1.0, "{native}");
    assert!(scrape.value("overlay_reconcile_duration_seconds_count", &[("scope", "everything")]) >= 1.0);
    let sum = scrape.value("overlay_cni_request_duration_seconds_sum", &[("verb", "ADD")]);
    assert!(sum > 0.0 && sum < 60.0, "{sum}");
    // A failure has its code.
    let failed = cp.cni(&cp.cni_call("CHECK", pods[2].namespace(), "c")).unwrap_err();
    within(LIMIT, &format!("a failed CHECK is counted: {failed:?}"), || {
        let scrape = Scrape::parse(&metrics(cp));
        let checks = scrape.of("overlay_cni_requests_total").iter();
        checks.filter(|(labels, _)| labels["verb"] == "CHECK" && labels["code"] != "0").count() == 1
    });
}

#[test]
fn a_call_of_the_plugin_counts_itself_whoever_else_counts_meanwhile() {
    const CALLS: u32 = 1000;
    let cluster = Cluster::builder().build();
    let cp = cluster.node("cp");
    cp.start_agent();
    let pins = Pins::new(cp.pins());
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for call in 0..CALLS {
                    let code = if call % 10 == 0 { 11 } else { 0 };
                    Calls::open(&pins).unwrap().count("ADD", code, Duration::from_millis(3));
                }
            });
        }
    });
    println!("one call, with open and close: {:?}", began.elapsed() / CALLS / 2);
    let read = Calls::open(&pins).unwrap().read();
    let add = &read[0];
    assert_eq!((add.name, add.count, add.sum), ("ADD", 2000, Duration::from_secs(6)));
    assert_eq!(add.results, [("0".to_owned(), 1800), ("11".to_owned(), 200)]);
    let within: Vec<u64> = add.durations.iter().map(|(_, count)| *count).take(4).collect();
    assert_eq!(within, [0, 0, 2000, 2000]);
    assert!(read[1..].iter().all(|verb| verb.count == 0), "{read:?}");
}

/// The rows of the table of metrics in the docs: name, type, labels.
fn documented() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let text = fs::read_to_string(repository("docs/observability.md")).unwrap();
    let rows = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter(|row| row.starts_with("overlay_") || row.starts_with("process_"));
    let row = |row: &str| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let labels = cells[2].split(',').map(|label| label.trim().trim_matches('`').to_owned());
        let name = cells[0].trim_end_matches('`').to_owned();
        (name, (cells[1].to_owned(), labels.filter(|label| !label.is_empty()).collect()))
    };
    rows.map(row).collect()
}

#[test]
fn the_docs_list_what_is_exported_and_nothing_else() {
    let scrape = Scrape::parse(everything());
    let mut exported = BTreeMap::new();
    for (family, (kind, help)) in &scrape.families {
        assert!(help.len() > 10, "{family} has no help");
        let name = if kind == "histogram" { format!("{family}_bucket") } else { family.clone() };
        let labels = scrape.of(&name).iter().flat_map(|(labels, _)| labels.keys().cloned());
        let labels: BTreeSet<_> = labels.filter(|label| label != "le").collect();
        exported.insert(family.clone(), (kind.clone(), labels));
    }
    assert_eq!(documented(), exported);
}

/// Whoever asks in a loop gets the same answer for half a second, and the agent stays an agent.
#[test]
fn asking_in_a_loop_does_not_hold_the_agent_up() {
    let cluster = Cluster::builder().build();
    let cp = cluster.node("cp");
    cp.start_agent_with(&AgentOptions::seen(cp));
    let texts: BTreeSet<String> = (0..100).map(|_| metrics(cp)).collect();
    assert!(texts.len() < 50, "{} different answers", texts.len());
    let health = http::get(cp.namespace(), http_of(cp), "/healthz").unwrap();
    assert_eq!((health.status, health.body.as_str()), (200, "ok\n"));
    within(Duration::from_secs(5), "it still reconciles", || {
        Scrape::parse(&metrics(cp)).value("overlay_reconcile_success_age_seconds", &[]) < 10.0
    });
}
