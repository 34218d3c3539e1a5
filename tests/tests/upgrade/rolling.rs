//! A cluster is taken to the next schema node by node, with both in the cluster meanwhile, back, and there again.

use overlay_tests::attached::{Attached, Mode};
use overlay_tests::lab::{Build, Cluster, Families, Network, Node, exec};
use overlay_tests::traffic::ping;
use overlay_tests::traffic::steady::{Pods, Steady, connected};
use serde_json::json;

use crate::bed::{change_agent, expect_only, facts, options, serve, through_service};

fn there_and_back(mode: Mode, families: Families, ways: &[Build]) {
    let network = Network { attach: Some(mode.name().to_owned()), ..Network::default() };
    let cluster = Cluster::builder().network(network).families(families).build();
    for node in cluster.nodes() {
        node.start_agent_with(&options());
    }
    let pods = Pods::new(&cluster);
    let cp = cluster.node("cp");
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    let published = cp.add_pod_with_ports(cluster.lab(), "published", &ports);
    serve(cp, pods.far.addr());

    let mut steady = Steady::start(&cluster, &pods, true);
    through_service(&mut steady, &pods.a, &pods.far);
    let logs: Vec<_> = cluster.nodes().iter().map(Node::log_mark).collect();
    for &build in ways {
        for node in cluster.nodes() {
            // Newer plugins know both schemas: first on the way up, last on the way back.
            if build == Build::Next {
                node.use_plugin(build);
            }
            let (attached, before) = (Attached::read(node, mode), facts(node));
            change_agent(node, build);
            assert_eq!(facts(node), before, "{} with {build:?}", node.name());
            Attached::read(node, mode).adopts(&attached);
            expect_only(node, build);
            node.use_plugin(build);
            let passing = cluster.add_pod(node.name(), "passing");
            for (other, family) in
                pods.all().into_iter().flat_map(|pod| families.iter().map(move |f| (pod, f)))
            {
                ping::ping(passing.namespace(), other.addr_of(family)).unwrap();
                ping::ping(other.namespace(), passing.addr_of(family)).unwrap();
            }
            passing.del();
        }
    }
    steady.lost_nothing();
    for log in logs {
        let lines = log.lines();
        let wrong = lines.iter().find(|line| line.contains("WARN") || line.contains("ERROR"));
        assert_eq!(wrong, None);
    }
    connected(&cluster, &cluster.add_pod("w1", "new"), &pods.all());
    published.del();
    assert_eq!(cp.show("ports"), json!([]));
    let tables = exec::must(cp.namespace().command("nft").args(["list", "tables"]), "");
    assert!(!tables.contains("overlay-ports"), "{tables}");
}

#[test]
fn a_cluster_goes_to_the_next_schema_and_back_without_loss() {
    there_and_back(Mode::Tcx, Families::Ipv4, &[Build::Next, Build::Own, Build::Next, Build::Own]);
}

#[test]
fn a_cluster_of_both_families_goes_to_the_next_schema_and_back_without_loss_with_clsact() {
    there_and_back(Mode::Clsact, Families::Dual, &[Build::Next, Build::Own]);
}
