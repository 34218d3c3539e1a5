//! Every scenario in every mode, plain and beside Docker.

use std::thread;
use std::time::Instant;

use overlay_tests::lab::Families;
use overlay_tests::lab::services::{KubeBinaries, ProxyMode};

use crate::bed::{Bed, Ground, Kind};
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

/// Everything works, in each family of the lab.
#[track_caller]
fn expect_all(ground: Ground, mode: &ProxyMode, kind: Kind) {
    let mut bed = Bed::start(ground, mode, kind);
    let mut failed = Vec::new();
    for family in kind.families.iter() {
        bed.turn_to(family);
        let rows = run(&mut bed, scenarios::all(kind.docker));
        failed.extend(
            rows.into_iter().filter_map(|row| Some(format!("{family}: {}: {}", row.name, row.error?))),
        );
    }
    assert!(failed.is_empty(), "{} scenarios failed:\n{}", failed.len(), failed.join("\n"));
}

fn overlay() -> Ground {
    Ground::Overlay(Box::default())
}

#[test]
fn rules_of_the_iptables_mode() {
    expect_all(overlay(), &ProxyMode::Iptables, Kind::PLAIN);
}

#[test]
fn rules_of_the_iptables_mode_beside_docker() {
    expect_all(overlay(), &ProxyMode::Iptables, Kind::DOCKER);
}

#[test]
fn rules_of_the_nftables_mode() {
    expect_all(overlay(), &ProxyMode::Nft, Kind::PLAIN);
}

#[test]
fn rules_of_the_nftables_mode_beside_docker() {
    expect_all(overlay(), &ProxyMode::Nft, Kind::DOCKER);
}

/// The real kube-proxy, if there is one on this machine. CI's machines have none; the rules above are what it writes.
#[test]
fn real_kube_proxy() {
    if let Some(binaries) = KubeBinaries::find() {
        expect_all(overlay(), &ProxyMode::Real(binaries), Kind::PLAIN);
    }
}

#[test]
fn real_kube_proxy_beside_docker() {
    if let Some(binaries) = KubeBinaries::find() {
        expect_all(overlay(), &ProxyMode::Real(binaries), Kind::DOCKER);
    }
}

/// Everything again in IPv6 alone: without Docker in one mode, with it in the other.
#[test]
fn rules_of_the_nftables_mode_in_ipv6_alone() {
    expect_all(overlay(), &ProxyMode::Nft, Kind { docker: false, families: Families::Ipv6 });
}

#[test]
fn rules_of_the_iptables_mode_in_ipv6_alone_beside_docker() {
    expect_all(overlay(), &ProxyMode::Iptables, Kind { docker: true, families: Families::Ipv6 });
}

/// Both families at once, each with Services of its own.
#[test]
fn rules_of_the_iptables_mode_in_both_families() {
    expect_all(overlay(), &ProxyMode::Iptables, Kind { docker: false, families: Families::Dual });
}

/// The control: the same scenarios on a network that has been beside kube-proxy for ten years.
#[test]
fn flannel_passes_the_same_scenarios() {
    thread::scope(|scope| {
        scope.spawn(|| expect_all(Ground::Flannel, &ProxyMode::Iptables, Kind::PLAIN));
        scope.spawn(|| expect_all(Ground::Flannel, &ProxyMode::Nft, Kind::DOCKER));
        let ipv6 = Kind { docker: false, families: Families::Ipv6 };
        scope.spawn(move || expect_all(Ground::Flannel, &ProxyMode::Nft, ipv6));
    });
}

#[test]
fn twenty_thousand_connections_at_once() {
    let mut bed = Bed::start(overlay(), &ProxyMode::Iptables, Kind::PLAIN);
    let rows = run(&mut bed, &[scenarios::crowd::LARGE]);
    assert!(rows[0].error.is_none(), "{:?}", rows[0].error);
}
