//! The whole proof of the lab, under settings other than the default.

use overlay_tests::lab::{Cluster, ClusterBuilder, Link, Network, Node, WireMode, exec};
use overlay_tests::proof::Stage;

use crate::bed;

/// Every row of the proof's table holds.
#[track_caller]
pub(crate) fn prove(cluster: ClusterBuilder) -> Stage {
    let stage = Stage::new(cluster.start());
    let report = stage.prove(|_| ());
    let failed: Vec<_> = report.rows.iter().filter(|row| !row.ok).collect();
    assert!(report.ok() && failed.is_empty(), "{failed:#?}");
    stage
}

pub(crate) fn clsact() -> Network {
    Network { attach: Some("clsact".into()), ..Network::default() }
}

/// The programs that `tc filter show` names on a device, in both directions.
#[track_caller]
fn filters(node: &Node, device: &str) -> Vec<(&'static str, String)> {
    let show = |direction| {
        let mut command = node.namespace().command("tc");
        let text = exec::must(command.args(["filter", "show", "dev", device, direction]), "");
        let name = |line: &str| {
            let (_, rest) = line.split_once(" handle ")?;
            Some((direction, rest.split_whitespace().nth(1)?.to_owned()))
        };
        text.lines().filter(|line| line.contains("direct-action")).filter_map(name).collect::<Vec<_>>()
    };
    ["ingress", "egress"].into_iter().flat_map(show).collect()
}

/// Names as `tc` prints them, by device.
#[track_caller]
fn expect_filters(stage: &Stage, anchor: &str) {
    for node in stage.cluster().nodes() {
        let name = |direction, name: &str| (direction, name.to_owned());
        assert_eq!(filters(node, Node::DEVICE), [name("ingress", "from_wire")]);
        assert_eq!(filters(node, anchor), [name("ingress", "from_tunnel"), name("egress", "from_host")]);
        for pod in stage.pods().iter().filter(|pod| pod.node() == node.name()) {
            let wanted = [name("ingress", "from_pod"), name("egress", "to_pod")];
            assert_eq!(filters(node, &pod.host_device()), wanted);
        }
        assert_eq!(node.status().expect("overlay status answers")["attach"], "clsact");
    }
}

#[test]
fn everything_holds_with_clsact_filters() {
    let _traffic = bed::quiet();
    let stage = prove(Cluster::builder().network(clsact()));
    expect_filters(&stage, Node::ANCHOR);
}

#[test]
fn everything_holds_on_a_nic_wire() {
    let _traffic = bed::quiet();
    prove(Cluster::builder().link(Link { checksums: true, ..Link::new(WireMode::Nic) }));
}

#[test]
fn everything_holds_with_another_vni_and_port() {
    let _traffic = bed::quiet();
    prove(Cluster::builder().network(Network { vni: 42, port: 4789, ..Network::default() }));
}

#[test]
fn everything_holds_with_clsact_on_a_nic_wire_with_another_vni_and_port() {
    let _traffic = bed::quiet();
    let network = Network { vni: 1_234_567, port: 65_535, ..clsact() };
    let stage = prove(Cluster::builder().link(Link::new(WireMode::Nic)).network(network));
    expect_filters(&stage, "overlay.1234567");
}

/// The underlay devices run `xdp_wire` in native mode.
#[track_caller]
fn expect_xdp(stage: &Stage) {
    for node in stage.cluster().nodes() {
        let link = &node.namespace().ip_json(&format!("-d link show dev {}", Node::DEVICE))[0];
        assert_eq!(link["xdp"]["mode"], 1, "{}: {link}", node.name());
        assert_eq!(link["xdp"]["prog"]["name"], "xdp_wire", "{}: {link}", node.name());
    }
}

#[test]
fn everything_holds_with_a_guard_before_the_stack() {
    let _traffic = bed::quiet();
    let network = Network { xdp: Some("guard".into()), ..Network::default() };
    expect_xdp(&prove(Cluster::builder().network(network)));
}

#[test]
fn everything_holds_with_a_guard_on_a_nic_wire_with_clsact_filters() {
    let _traffic = bed::quiet();
    let network = Network { xdp: Some("guard".into()), ..clsact() };
    let link = Link { checksums: true, ..Link::new(WireMode::Nic) };
    expect_xdp(&prove(Cluster::builder().link(link).network(network)));
}
