//! Alert rules and the dashboard read nothing that an agent does not export.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use crate::bed::repository;
use crate::metrics::{everything, promtool};
use crate::promql::selectors;
use crate::scrape::Scrape;

/// What Prometheus adds to every sample.
const TARGET_LABELS: [&str; 2] = ["job", "instance"];

fn read(path: &str) -> String {
    fs::read_to_string(repository(path)).unwrap_or_else(|error| panic!("read {path}: {error}"))
}

/// The expressions of all rules, by the names of their alerts.
pub(crate) fn alerts() -> Vec<(String, String)> {
    let file: Value = serde_saphyr::from_str(&read("deploy/prometheus/alerts.yaml")).unwrap();
    let groups = file["groups"].as_array().unwrap().iter();
    let rules = groups.flat_map(|group| group["rules"].as_array().unwrap());
    let text = |rule: &Value, key: &str| rule[key].as_str().unwrap().to_owned();
    rules.map(|rule| (text(rule, "alert"), text(rule, "expr"))).collect()
}

/// The expressions of all panels, by their titles.
pub(crate) fn panels() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/overlay.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let expressions = panels.flat_map(|panel| {
        let targets = panel["targets"].as_array().into_iter().flatten();
        let title = panel["title"].as_str().unwrap();
        targets.map(move |target| (title.to_owned(), target["expr"].as_str().unwrap().to_owned()))
    });
    expressions.collect()
}

/// Everything that an expression names is exported, values of labels included.
fn check(whose: &str, expression: &str, scrape: &Scrape) {
    let found = selectors(expression);
    assert!(!found.is_empty(), "{whose} reads nothing: {expression}");
    for selector in found {
        let (name, matchers) = (&selector.name, &selector.matchers);
        if name == "up" {
            continue;
        }
        assert!(scrape.names().contains(name.as_str()), "{whose}: nobody exports {name}");
        for (label, operator, value) in matchers.iter().filter(|m| !TARGET_LABELS.contains(&m.0.as_str())) {
            let has: BTreeSet<&str> = scrape
                .of(name)
                .iter()
                .filter_map(|(labels, _)| labels.get(label).map(String::as_str))
                .collect();
            assert!(!has.is_empty(), "{whose}: {name} has no label {label}");
            let wanted = value.split('|').filter(|_| matches!(operator.as_str(), "=" | "=~"));
            for value in wanted {
                assert!(has.contains(value), "{whose}: {name} has no {label}={value}, but {has:?}");
            }
        }
    }
}

#[test]
fn alerts_and_panels_read_what_agents_export() {
    let scrape = Scrape::parse(everything());
    let (alerts, panels) = (alerts(), panels());
    assert!(alerts.len() > 10 && panels.len() > 20, "{} and {}", alerts.len(), panels.len());
    for (whose, expression) in alerts.iter().chain(&panels) {
        check(whose, expression, &scrape);
    }
}

#[test]
#[should_panic(expected = "has no state=lots")]
fn a_value_that_nobody_exports_is_found() {
    let text = "# HELP a b\n# TYPE a gauge\na{state=\"lost\"} 1\n";
    check("it", "a{state=\"lots\"} > 0", &Scrape::parse(text));
}

#[test]
fn rules_are_valid_and_fire_when_they_should() {
    promtool(&["check", "rules", "alerts.yaml"], "");
    promtool(&["test", "rules", "alerts_test.yaml"], "");
    let tests = read("deploy/prometheus/alerts_test.yaml");
    for (alert, _) in alerts() {
        assert!(tests.contains(&format!("alertname: {alert}\n")), "{alert} has no test");
    }
}

#[test]
fn the_dashboard_has_no_panel_on_top_of_another() {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/overlay.json")).unwrap();
    let mut taken = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{}", panel["title"]);
        assert!(place("x") + place("w") <= 24, "{}", panel["title"]);
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(taken.insert((x, y)), "{} covers another panel", panel["title"]);
            }
        }
    }
}
