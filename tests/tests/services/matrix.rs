//! Every scenario in every mode, plain and beside Docker.

use std::thread;
use std::time::Instant;

use overlay_tests::lab::services::{KubeBinaries, ProxyMode};

use crate::bed::{Bed, Ground};
use crate::health::Health;
use crate::scenarios::{self, Scenario};

/// What became of a scenario.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// Why it failed, if it did.
    pub(crate) error: Option<String>,
}

/// Runs these scenarios one after the other.
pub(crate) fn run(bed: &mut Bed, scenarios: impl IntoIterator<Item = &'static Scenario>) -> Vec<Row> {
    let mut rows = Vec::new();
    for scenario in scenarios {
        let start = Instant::now();
        let before = Health::read(bed);
        let result = (scenario.run)(bed).and_then(|()| before.unchanged(bed, scenario.moves));
        let error = result.err().map(|error| format!("{error:#}"));
        println!("{:>5} ms  {}{}", start.elapsed().as_millis(), scenario.name, failure(error.as_deref()));
        rows.push(Row { name: scenario.name, error });
    }
    rows
}

fn failure(error: Option<&str>) -> String {
    error.map(|error| format!(": FAILED: {error}")).unwrap_or_default()
}

/// Everything works.
#[track_caller]
fn expect_all(ground: Ground, mode: &ProxyMode, docker: bool) {
    let mut bed = Bed::start(ground, mode, docker);
    let failed: Vec<String> = run(&mut bed, scenarios::all(docker))
        .into_iter()
        .filter_map(|row| Some(format!("{}: {}", row.name, row.error?)))
        .collect();
    assert!(failed.is_empty(), "{} scenarios failed:\n{}", failed.len(), failed.join("\n"));
}

fn overlay() -> Ground {
    Ground::Overlay(Box::default())
}

#[test]
fn rules_of_the_iptables_mode() {
    expect_all(overlay(), &ProxyMode::Iptables, false);
}

#[test]
fn rules_of_the_iptables_mode_beside_docker() {
    expect_all(overlay(), &ProxyMode::Iptables, true);
}

#[test]
fn rules_of_the_nftables_mode() {
    expect_all(overlay(), &ProxyMode::Nft, false);
}

#[test]
fn rules_of_the_nftables_mode_beside_docker() {
    expect_all(overlay(), &ProxyMode::Nft, true);
}

/// The real kube-proxy, if there is one on this machine. CI's machines have none; the rules above are what it writes.
#[test]
fn real_kube_proxy() {
    if let Some(binaries) = KubeBinaries::find() {
        expect_all(overlay(), &ProxyMode::Real(binaries), false);
    }
}

#[test]
fn real_kube_proxy_beside_docker() {
    if let Some(binaries) = KubeBinaries::find() {
        expect_all(overlay(), &ProxyMode::Real(binaries), true);
    }
}

/// The control: the same scenarios on a network that has been beside kube-proxy for ten years.
#[test]
fn flannel_passes_the_same_scenarios() {
    thread::scope(|scope| {
        scope.spawn(|| expect_all(Ground::Flannel, &ProxyMode::Iptables, false));
        scope.spawn(|| expect_all(Ground::Flannel, &ProxyMode::Nft, true));
    });
}

#[test]
fn twenty_thousand_connections_at_once() {
    let mut bed = Bed::start(overlay(), &ProxyMode::Iptables, false);
    let rows = run(&mut bed, &[scenarios::crowd::LARGE]);
    assert!(rows[0].error.is_none(), "{:?}", rows[0].error);
}
