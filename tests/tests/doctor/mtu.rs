//! What the tunnel carries, and what the way to another node carries.

use std::time::Duration;

use overlay_tests::lab::{Cluster, ClusterFile, Network, within};
use overlay_tests::traffic::ping::{self, Probe};

use crate::bed::{Bed, doctor, with_mesh};

#[test]
pub(crate) fn a_path_that_is_narrower_than_the_device_says_is_measured() {
    let cluster = Cluster::builder().build();
    cluster.start_agents_with(|_| with_mesh());
    let (near, far) = (cluster.add_pod("cp", "near"), cluster.add_pod("w2", "far"));
    // What is longer is dropped without a word: this end of the wire takes no more (but the four bytes of a VLAN tag), the
    // other one does not know.
    cluster.router().ip("link set lan-a mtu 1400");
    let echo = |bytes| ping::unfragmented(near.namespace(), far.addr().into(), bytes).unwrap();
    assert!(matches!(echo(1350), Probe::Reply(_)));
    assert!(!matches!(echo(1400), Probe::Reply(_)));
    let cp = cluster.node("cp");
    let seen = doctor(cluster.lab(), cp, &[]);
    let finding = &seen.expect(&[("mtu", "path to w2"), ("peers", "peer w2")])[0];
    assert!(finding.what.contains("carries 1404 bytes, tunnel packets have up to 1500"), "{finding:?}");
    assert!(finding.remedy.contains("network.mtu = 1354 on all nodes"), "{finding:?}");
    // The other way round it is the router that may not send more.
    let w2 = cluster.node("w2");
    let wanted = [("mtu", "path to cp"), ("mtu", "path to w1"), ("peers", "peer cp"), ("peers", "peer w1")];
    let back = doctor(cluster.lab(), w2, &["--only", "mtu,peers"]).expect(&wanted);
    assert!(back[0].remedy.contains("network.mtu = 1350 on all nodes"), "{back:#?}");
    // The least of both.
    let network = Network { mtu: Some(1350), ..cluster.network().clone() };
    cluster.lab().write_cluster(&ClusterFile { network, nodes: cluster.entries() });
    for node in cluster.nodes() {
        within(Duration::from_secs(10), "the agent takes it over", || {
            node.status().is_some_and(|status| status["mtu"] == 1350)
        });
    }
    near.del();
    drop(near);
    let near = cluster.add_pod("cp", "again");
    doctor(cluster.lab(), cp, &[]).expect_fine();
    let echo = ping::unfragmented(near.namespace(), far.addr().into(), 1350).unwrap();
    assert!(matches!(echo, Probe::Reply(_)));
}

#[test]
pub(crate) fn a_pod_that_was_made_for_a_larger_underlay_is_named() {
    let bed = Bed::start();
    bed.a.namespace().ip("link set eth0 mtu 1400");
    within(Duration::from_secs(10), "the agent takes it over", || {
        bed.a.status().is_some_and(|status| status["mtu"] == 1350)
    });
    let seen = bed.doctor(&[]);
    let object = format!("pod {}", bed.pod_a.addr());
    let finding = &seen.expect(&[("mtu", &object)])[0];
    assert!(finding.what.contains("up to 1450 bytes, the tunnel carries 1350"), "{finding:?}");
    bed.pod_a.del();
    let _pod = bed.a.add_pod(&bed.lab, "again");
    bed.doctor(&[]).expect_fine();
}

#[test]
pub(crate) fn a_configured_mtu_that_does_not_fit_is_named() {
    let bed = Bed::start();
    let network = Network { mtu: Some(1500), ..Network::default() };
    crate::bed::configure(&bed.lab, &[&bed.a, &bed.b], network, "");
    let seen = bed.doctor(&["--only", "mtu"]);
    let finding = &seen.expect(&[("mtu", "eth0")])[0];
    assert!(finding.evidence.contains("set network.mtu to 1450 or less"), "{finding:?}");
    crate::bed::configure(&bed.lab, &[&bed.a, &bed.b], Network::default(), "");
    bed.doctor(&["--only", "mtu"]).expect_fine();
}
