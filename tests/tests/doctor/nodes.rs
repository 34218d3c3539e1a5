//! Where the list of nodes comes from.

use std::fs;
use std::time::Duration;

use overlay_tests::api::{Api, Fault, kubeconfig, node, younger};
use overlay_tests::lab::{Docker, Lab, Lan, Network, Node, within};

use crate::bed::{Bed, configure, doctor, lan, node as lab_node};

#[test]
pub(crate) fn a_configuration_that_is_not_valid_is_named_with_its_line() {
    let bed = Bed::start();
    let file = bed.lab.cluster_file();
    let good = fs::read_to_string(&file).unwrap();
    fs::write(&file, good.replace("vni = 1", "vni = 1\nvin = 2")).unwrap();
    let seen = bed.doctor(&[]);
    let finding = &seen.expect(&[("nodes", &file.display().to_string())])[0];
    assert!(finding.evidence.contains("vin"), "{finding:?}");
    // The agent goes by what it has read before.
    bed.expect_traffic();
    fs::write(&file, good).unwrap();
    bed.doctor(&[]).expect_fine();
}

/// A node whose agent takes its nodes from an API server in its own namespace.
/// The peer is a row of the list and no more.
struct Cluster {
    node: Node,
    api: Api,
    _lan: Lan,
    lab: Lab,
}

const API: &str = "127.0.0.1:6443";

impl Cluster {
    fn start() -> Self {
        let (lab, lan) = lan();
        let host = lab_node(&lab, &lan, "a", 1, Docker::Absent);
        let api = Api::new();
        api.listen(host.namespace(), API.parse().unwrap());
        let config = lab.dir().join("kubeconfig");
        fs::write(&config, kubeconfig(API.parse().unwrap())).unwrap();
        let text = format!(
            "source = \"kubernetes\"\n[network]\ncidr = \"10.244.0.0/16\"\n[agent]\nhealth = \"127.0.0.1:9879\"\n\
             [kubernetes]\nkubeconfig = \"{}\"\n",
            config.display()
        );
        fs::write(lab.cluster_file(), text).unwrap();
        api.put(node("a", "192.0.2.1", "10.244.1.0/24"));
        api.put(younger(node("b", "192.0.2.2", "10.244.2.0/24"), 2));
        host.start_agent();
        Self { node: host, api, _lan: lan, lab }
    }
}

#[test]
pub(crate) fn an_api_server_that_does_not_answer_is_named_with_its_reason() {
    let cluster = Cluster::start();
    let b = ("peers", "peer b");
    doctor(&cluster.lab, &cluster.node, &[]).expect(&[b]);
    cluster.api.stop();
    let heard = || doctor(&cluster.lab, &cluster.node, &["--only", "agent"]).problems().is_empty();
    within(Duration::from_secs(20), "the agent has noticed", || !heard());
    let seen = doctor(&cluster.lab, &cluster.node, &[]);
    let findings = seen.expect(&[("nodes", "API server"), ("agent", "agent"), ("peers", "peer 192.0.2.2")]);
    assert!(findings[1].what.contains("does not hear the API server"), "{findings:#?}");
    let finding = &findings[0];
    assert!(finding.what.contains("the 2 nodes that are pinned stay in force"), "{finding:?}");
    assert!(finding.evidence.to_lowercase().contains("connect"), "{finding:?}");
    cluster.api.start();
    within(Duration::from_secs(20), "the agent has noticed", heard);
    doctor(&cluster.lab, &cluster.node, &[]).expect(&[b]);
}

#[test]
pub(crate) fn a_watch_that_tells_nothing_is_found_by_what_it_has_missed() {
    let cluster = Cluster::start();
    cluster.api.lasting_fault(Some(Fault::Mute));
    // Whoever watches is to ask anew, and to be told nothing from then on.
    let asked = cluster.api.requests().len();
    cluster.api.cut();
    let watches = || cluster.api.requests()[asked..].iter().any(|request| request.contains("watch="));
    within(Duration::from_secs(20), "the agent watches again", watches);
    doctor(&cluster.lab, &cluster.node, &["--only", "agent,nodes,drift"]).expect_fine();
    cluster.api.put(younger(node("c", "192.0.2.3", "10.244.3.0/24"), 3));
    // The doctor asks for the list itself.
    let seen = doctor(&cluster.lab, &cluster.node, &["--only", "agent,nodes,drift"]);
    seen.expect(&[
        ("drift", "map NODES, 10.244.3.0"),
        ("drift", "map NODES, 192.0.2.3"),
        ("drift", "route 192.0.2.3/32 in table 79"),
    ]);
    cluster.api.lasting_fault(None);
    cluster.api.cut();
    let cured = || doctor(&cluster.lab, &cluster.node, &["--only", "drift"]).problems().is_empty();
    within(Duration::from_secs(20), "the agent has heard of it", cured);
}

#[test]
pub(crate) fn a_node_that_contradicts_another_is_named() {
    let cluster = Cluster::start();
    cluster.api.put(younger(node("twin", "192.0.2.2", "10.244.7.0/24"), 40));
    let seen = doctor(&cluster.lab, &cluster.node, &[]);
    let finding = &seen.expect(&[("nodes", "Node twin"), ("peers", "peer b")])[0];
    assert!(finding.what.contains("192.0.2.2"), "{finding:?}");
    cluster.api.delete("twin");
    doctor(&cluster.lab, &cluster.node, &["--only", "nodes"]).expect_fine();
}

#[test]
pub(crate) fn a_node_that_the_source_does_not_have_is_told_so() {
    let (lab, lan) = lan();
    let (a, b) = (lab_node(&lab, &lan, "a", 1, Docker::Absent), lab_node(&lab, &lan, "b", 2, Docker::Absent));
    configure(&lab, &[&b], Network::default(), "");
    let seen = doctor(&lab, &a, &[]);
    let finding = &seen.expect(&[("nodes", &lab.cluster_file().display().to_string())])[0];
    assert!(finding.evidence.contains('a'), "{finding:?}");
    configure(&lab, &[&a, &b], Network::default(), "");
    doctor(&lab, &a, &[]).expect_fine();
}
