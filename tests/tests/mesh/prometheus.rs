//! A real Prometheus scrapes three agents, evaluates the rules and answers what the dashboard asks.

use std::fs;
use std::net::SocketAddr;
use std::process::{Child, Stdio};

use overlay_tests::lab::{Cluster, exec, within};
use overlay_tests::traffic::http;
use serde_json::{Value, json};

use crate::alerts::{alerts, panels};
use crate::bed::{LIMIT, http_of, repository, start};

const ADDRESS: &str = "127.0.0.1:9090";

/// A server in the namespace of `cp`; ends when it is dropped.
struct Prometheus<'a> {
    cluster: &'a Cluster,
    child: Child,
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl<'a> Prometheus<'a> {
    #[track_caller]
    fn start(cluster: &'a Cluster) -> Self {
        let dir = cluster.lab().dir().join("prometheus");
        fs::create_dir(&dir).unwrap();
        let targets: Vec<String> = cluster.nodes().iter().map(|node| http_of(node).to_string()).collect();
        let config = json!({
            "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
            "rule_files": [repository("deploy/prometheus/alerts.yaml").canonicalize().unwrap()],
            "scrape_configs": [{ "job_name": "overlay", "static_configs": [{ "targets": targets }] }],
        });
        // JSON is YAML.
        fs::write(dir.join("prometheus.yml"), config.to_string()).unwrap();
        let mut command = cluster.node("cp").namespace().command("prometheus");
        command.arg(format!("--config.file={}", dir.join("prometheus.yml").display()));
        command.arg(format!("--storage.tsdb.path={}", dir.join("data").display()));
        command.arg(format!("--web.listen-address={ADDRESS}"));
        let log = fs::File::create(dir.join("log")).unwrap();
        command.current_dir(&dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Self { cluster, child: exec::spawn_tied(command).unwrap() }
    }

    fn get(&self, path: &str) -> Option<Value> {
        let at: SocketAddr = ADDRESS.parse().unwrap();
        let answer = http::get(self.cluster.node("cp").namespace(), at, path)?;
        // Chunks are not taken apart: the object is between the first brace and the last.
        let object = answer.body.get(answer.body.find('{')?..=answer.body.rfind('}')?)?;
        serde_json::from_str(object).ok()
    }

    /// What a query gives.
    fn query(&self, expression: &str) -> Option<Value> {
        let encoded: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        self.get(&format!("/api/v1/query?query={encoded}"))
    }

    /// The only value of a query.
    fn value(&self, expression: &str) -> Option<String> {
        let answer = self.query(expression)?;
        answer["data"]["result"][0]["value"][1].as_str().map(str::to_owned)
    }
}

#[test]
fn prometheus_scrapes_three_agents_and_answers_what_rules_and_dashboard_ask() {
    let cluster = start();
    for name in ["cp", "w1"] {
        cluster.add_pod(name, "a");
    }
    let prometheus = Prometheus::start(&cluster);
    let says = |expression: &str, wanted: &str| {
        within(LIMIT, &format!("{expression} is {wanted}"), || {
            prometheus.value(expression).as_deref() == Some(wanted)
        });
    };
    says("count(up{job=\"overlay\"} == 1)", "3");
    says("sum(overlay_ready)", "3");
    says("sum(overlay_mesh_peers{state=\"up\"})", "6");
    // The pods of this test have gone with the values of `add_pod`, their addresses have not.
    says("sum(overlay_ipam_addresses)", &(3 * 253).to_string());
    // Two scrapes, and with them a rate.
    says("count(rate(overlay_forwarded_packets_total{path=\"encap_native\"}[1m]))", "3");

    let mut empty = Vec::new();
    for (title, expression) in panels() {
        let expression =
            expression.replace("$__rate_interval", "1m").replace("$job", ".*").replace("$instance", ".*");
        let answer = prometheus.query(&expression).unwrap_or_else(|| panic!("{title}: no answer"));
        assert_eq!(answer["status"], "success", "{title}: {answer}");
        if answer["data"]["result"].as_array().unwrap().is_empty() {
            empty.push(title);
        }
    }
    // What shows trouble only, and what the kernel counts on demand.
    empty.sort();
    assert_eq!(empty, ["CPU time of programs", "Drops by reason", "Failed calls", "Problems"]);

    let mut rules = Value::Null;
    within(LIMIT, "all rules are evaluated", || {
        rules = prometheus.get("/api/v1/rules").unwrap_or_default();
        let rules = rules["data"]["groups"][0]["rules"].as_array();
        rules.is_some_and(|rules| rules.iter().all(|rule| rule["health"] == "ok"))
    });
    let rules = rules["data"]["groups"][0]["rules"].as_array().unwrap();
    assert_eq!(rules.len(), alerts().len());
    // Nothing is wrong here.
    let firing: Vec<_> = rules.iter().filter(|rule| rule["state"] != "inactive").collect();
    assert!(firing.is_empty(), "{firing:#?}");
}
