//! What a runtime needs to start pods.

use std::fs;

use overlay_tests::lab::{ClusterFile, Docker, Network, Node};

use crate::bed::{Bed, doctor, follow, lan};

/// A node whose agent installs the plugin into the lab's directory.
fn installed() -> Bed {
    let bed = Bed::start();
    let dir = bed.lab.dir().join("cni");
    let more = format!(
        "[cni]\ninstall = true\nbin = \"{}\"\nconf = \"{}\"\n",
        dir.join("bin").display(),
        dir.join("net.d").display()
    );
    let nodes = vec![bed.a.entry(), bed.b.entry()];
    let file = ClusterFile { network: Network::default(), nodes };
    fs::write(bed.lab.cluster_file(), format!("{}{more}", file.to_toml())).unwrap();
    bed.a.restart_agent();
    let list = dir.join("net.d/10-overlay.conflist");
    overlay_tests::lab::within(std::time::Duration::from_secs(10), "the plugin is installed", || {
        list.exists()
    });
    bed
}

#[test]
pub(crate) fn a_plugin_that_is_missing_is_installed_by_what_the_finding_says() {
    let bed = installed();
    let seen = bed.doctor(&[]);
    seen.expect_fine();
    assert!(
        seen.findings.iter().any(|f| f.check == "cni" && f.what.contains("1 of 253 addresses")),
        "{seen:#?}"
    );
    // An agent would put it back.
    bed.a.stop_agent();
    let binary = bed.lab.dir().join("cni/bin/overlay");
    fs::remove_file(&binary).unwrap();
    let seen = bed.doctor(&["--only", "cni"]);
    let finding = &seen.expect(&[("cni", &binary.display().to_string())])[0];
    bed.follow(finding);
    assert!(binary.exists());
    bed.doctor(&["--only", "cni"]).expect_fine();
}

#[test]
pub(crate) fn a_list_that_comes_before_overlays_is_named() {
    let bed = installed();
    let other = bed.lab.dir().join("cni/net.d/05-bridge.conflist");
    fs::write(&other, r#"{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"bridge"}]}"#).unwrap();
    let seen = bed.doctor(&[]);
    let finding = &seen.expect(&[("cni", &other.display().to_string())])[0];
    bed.follow(finding);
    assert!(!other.exists());
    bed.doctor(&[]).expect_fine();
}

#[test]
pub(crate) fn a_subnet_without_a_free_address_is_named() {
    let (lab, lan) = lan();
    let node = Node::builder("a", "192.0.2.1/24".parse().unwrap(), "10.244.1.0/29".parse().unwrap());
    let node = node.docker(Docker::Absent).on_lan(&lab, &lan);
    let dir = lab.dir().join("cni");
    let file = ClusterFile { network: Network::default(), nodes: vec![node.entry()] };
    let more = format!(
        "[cni]\ninstall = true\nbin = \"{}\"\nconf = \"{}\"\n",
        dir.join("bin").display(),
        dir.join("net.d").display()
    );
    fs::write(lab.cluster_file(), format!("{}{more}", file.to_toml())).unwrap();
    node.start_agent();
    follow_install(&lab, &node);
    let mut pods: Vec<_> = (0..5).map(|i| node.add_pod(&lab, &format!("p{i}"))).collect();
    assert!(node.try_add_pod(&lab, "more").is_err());
    let seen = doctor(&lab, &node, &[]);
    let finding = &seen.expect(&[("cni", "addresses")])[0];
    assert!(finding.evidence.contains("5 of 5"), "{finding:?}");
    pods.pop().unwrap().del();
    doctor(&lab, &node, &[]).expect_fine();
}

/// The agent installs a moment after it is ready; the remedy does the same.
fn follow_install(lab: &overlay_tests::lab::Lab, node: &Node) {
    let list = lab.dir().join("cni/net.d/10-overlay.conflist");
    overlay_tests::lab::within(std::time::Duration::from_secs(10), "the plugin is installed", || {
        list.exists()
    });
    for finding in doctor(lab, node, &["--only", "cni"]).problems() {
        follow(lab, node, finding);
    }
}
