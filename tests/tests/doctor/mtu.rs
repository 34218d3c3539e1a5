//! What the tunnel carries, and what the way to another node carries.

use std::time::Duration;

use overlay_tests::lab::{Cluster, ClusterFile, Families, Network, within};
use overlay_tests::traffic::ping::{self, Probe};
use overlay_userspace::family::Family;

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
    assert!(finding.severity == "error" && finding.what.contains("large packets vanish"), "{finding:?}");
    // The other way round it is the router that may not send more, and says so.
    let w2 = cluster.node("w2");
    let back = doctor(cluster.lab(), w2, &["--only", "mtu,peers"])
        .expect(&[("mtu", "path to cp"), ("mtu", "path to w1")]);
    for told in &back {
        assert!(told.severity == "warning" && told.what.contains("senders are told"), "{told:?}");
        assert!(told.evidence.contains("the kernel of this node knows of 1400"), "{told:?}");
        assert!(told.remedy.contains("network.mtu = 1350 on all nodes"), "{told:?}");
    }
    let echo = |bytes| ping::unfragmented(far.namespace(), near.addr().into(), bytes).unwrap();
    assert_eq!(echo(1450), Probe::TooLong { mtu: 1350 });
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
pub(crate) fn a_path_of_the_other_family_is_measured_by_what_its_tunnel_adds() {
    let builder = Cluster::builder().families(Families::Dual);
    let cluster = builder.mixed("w2", Families::Dual, Families::Ipv6).build();
    cluster.start_agents_with(|_| with_mesh());
    // Pods' packets fit the tunnels over IPv4; those to w2 are 20 bytes longer, which the nodes' own devices know.
    let (cp, w2) = (cluster.node("cp"), cluster.node("w2"));
    let seen = doctor(cluster.lab(), cp, &[]);
    let finding = &seen.expect(&[("mtu", "path to w2")])[0];
    assert_eq!(finding.severity, "warning", "{finding:?}");
    assert!(finding.what.contains("carries 1500 bytes, tunnel packets have up to 1520"), "{finding:?}");
    assert!(finding.remedy.contains("network.mtu = 1430 on all nodes"), "{finding:?}");
    // w2 has no other way than over IPv6: its pods' MTU is less.
    doctor(cluster.lab(), w2, &[]).expect_fine();
    let (near, far) = (cluster.add_pod("cp", "near"), cluster.add_pod("w2", "far"));
    for family in Family::ALL {
        let to = far.addr_of(family);
        let told = ping::unfragmented(near.namespace(), to, 1450).unwrap();
        assert_eq!(told, Probe::TooLong { mtu: 1430 }, "{family}");
        let fits = ping::unfragmented(near.namespace(), to, 1430).unwrap();
        assert!(matches!(fits, Probe::Reply(_)), "{family}: {fits:?}");
    }
    // Now the router's end of the wire takes no more than 1404 bytes, and may send 1400 the other way.
    cluster.router().ip("link set lan-a mtu 1400");
    let finding = &doctor(cluster.lab(), cp, &["--only", "mtu"]).expect(&[("mtu", "path to w2")])[0];
    assert!(finding.severity == "error" && finding.what.contains("carries 1404 bytes"), "{finding:?}");
    let wanted = [("mtu", "path to cp"), ("mtu", "path to w1")];
    for told in doctor(cluster.lab(), w2, &["--only", "mtu"]).expect(&wanted) {
        assert_eq!(told.severity, "warning", "{told:?}");
        assert!(told.what.contains("carries 1400 bytes, tunnel packets have up to 1500"), "{told:?}");
    }
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
