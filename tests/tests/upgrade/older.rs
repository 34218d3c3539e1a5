//! From the first schema, by a build of that time which `OVERLAY_OLD_BIN` names: to this build's and, where the older build knows how
//! to go back, back and there again. Measures nothing that the rehearsal does not, but with layouts that really were.

use nix::sys::signal::Signal;
use overlay_tests::attached::{Attached, Mode};
use overlay_tests::lab::{AgentOptions, Build, Cluster, Network, Node, exec, within};
use overlay_tests::traffic::ping;
use overlay_tests::traffic::steady::{Pods, Steady, connected};
use serde_json::{Value, json};

use crate::bed::{expect_only, expect_same, facts, serve, through_service, with_newer};

/// Starts an agent of `build` on a node that has none. Facts are read by this build, which knows both schemas.
#[track_caller]
fn start(node: &Node, build: Build, knows_schemas: bool) {
    let options = if knows_schemas { with_newer(Build::Own) } else { AgentOptions::default() };
    node.use_agent(build);
    node.start_agent_with(&options);
    node.use_agent(Build::Own);
}

/// The facts of a node but for names, which the first schema does not have.
#[track_caller]
fn nameless(node: &Node) -> Value {
    let mut facts = facts(node);
    for (what, names) in [("endpoints", &["namespace", "pod"][..]), ("nodes", &["name"])] {
        for row in facts[what].as_array_mut().unwrap() {
            row.as_object_mut().unwrap().retain(|key, _| !names.contains(&key.as_str()));
        }
    }
    facts
}

/// Whether the older build has heard of other schemas than its own.
#[track_caller]
fn knows_schemas() -> bool {
    let mut help = std::process::Command::new(Build::Older.binary());
    exec::must(help.args(["agent", "--help"]), "").contains("--newer-build")
}

fn there_and_back(mode: Mode) {
    let network = Network { attach: Some(mode.name().to_owned()), ..Network::default() };
    let cluster = Cluster::builder().network(network).first(Build::Older).build();
    let goes_back = knows_schemas();
    for node in cluster.nodes() {
        start(node, Build::Older, goes_back);
        expect_only(node, Build::Older);
    }
    // Added by the older plugin.
    let pods = Pods::new(&cluster);
    let cp = cluster.node("cp");
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    let published = cp.add_pod_with_ports(cluster.lab(), "published", &ports);
    serve(cp, pods.far.addr());
    let mut steady = Steady::start(&cluster, &pods, true);
    through_service(&mut steady, &pods.a, &pods.far);
    within(std::time::Duration::from_secs(5), "the flows through the Service are recorded", || {
        cp.show("flows").as_array().unwrap().len() >= 2
    });
    let ways: &[Build] = if goes_back { &[Build::Own, Build::Older, Build::Own] } else { &[Build::Own] };
    for &build in ways {
        for node in cluster.nodes() {
            if build == Build::Own {
                node.use_plugin(build);
            }
            let (attached, before) = (Attached::read(node, mode), nameless(node));
            node.kill_agent(Signal::SIGTERM);
            start(node, build, goes_back);
            expect_same(&nameless(node), &before, &format!("on {} with {build:?}", node.name()));
            Attached::read(node, mode).adopts(&attached);
            expect_only(node, build);
            node.use_plugin(build);
            let passing = cluster.add_pod(node.name(), "passing");
            for other in pods.all() {
                ping::ping(passing.namespace(), other.addr().into()).unwrap();
                ping::ping(other.namespace(), passing.addr().into()).unwrap();
            }
            passing.del();
        }
        println!("{mode:?}: all nodes at {build:?}, schema {}", build.schema());
    }
    steady.lost_nothing();
    connected(&cluster, &cluster.add_pod("w1", "new"), &pods.all());
    published.del();
    assert_eq!(cp.show("ports"), json!([]));
}

#[test]
#[ignore = "needs OVERLAY_OLD_BIN, a build of the first schema"]
fn a_cluster_of_the_first_schema_comes_here_and_back_without_loss() {
    there_and_back(Mode::Tcx);
}

#[test]
#[ignore = "needs OVERLAY_OLD_BIN, a build of the first schema"]
fn a_cluster_of_the_first_schema_comes_here_and_back_without_loss_with_clsact() {
    there_and_back(Mode::Clsact);
}
