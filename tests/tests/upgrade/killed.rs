//! Agents that are killed while they change the schema, at moments all over it, under traffic: nothing is lost, pods come
//! and go before another agent starts, and whichever build starts next finishes the change or takes it back.
//!
//! There are some hundred moments (steps, see `overlay_tests::trace`) in each direction. Each run takes some, spread over all of them and
//! others in every run.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use overlay_tests::attached::Mode;
use overlay_tests::lab::{Build, Cluster, CniCall, Network, Node, Pod, within};
use overlay_tests::trace::{End, kill_when};
use overlay_tests::traffic::ping;
use overlay_tests::traffic::steady::{Pods, Steady, connected};
use serde_json::json;

use crate::bed::{expect_kept, expect_only, facts, options, serve, through_service};

/// How often each node's agent is killed.
const KILLS: usize = 4;
/// More than a change has.
const STEPS_MAX: usize = 2000;
/// How long recording may take.
const SOON: Duration = Duration::from_secs(5);
/// See the plugin's tests.
const TRY_AGAIN_LATER: i64 = 11;

const fn other(build: Build) -> Build {
    match build {
        Build::Own => Build::Next,
        Build::Next | Build::Older => Build::Own,
    }
}

/// Which schema is in force, as the pins say.
#[track_caller]
fn in_force(node: &Node) -> u32 {
    let base = node.pins().parent().unwrap().to_owned();
    let schema = |name: &str| name.strip_prefix('v').and_then(|number| number.parse().ok());
    if let Ok(target) = fs::read_link(base.join("current")) {
        return schema(target.to_str().unwrap()).unwrap();
    }
    let entries = fs::read_dir(base).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let found: Vec<u32> = entries.filter_map(|name| schema(&name)).collect();
    assert_eq!(found.len(), 1, "{found:?}, and nothing says which is in force");
    found[0]
}

/// Whether a change is under way.
fn under_way(base: &Path) -> bool {
    base.join("current").is_symlink()
}

/// Starts an agent of `build` and kills it at that part (of 1) of the steps of a change, `None`: at its end. Gives the
/// number of steps.
#[track_caller]
fn kill_at(node: &Node, build: Build, at: Option<usize>) -> (usize, String) {
    node.use_agent(build);
    let base = node.pins().parent().unwrap().to_owned();
    let (mut steps, mut begun) = (0, false);
    let end = kill_when(node.agent_command(&options()), "", |number, _| {
        assert!(number < STEPS_MAX, "a change has more than {STEPS_MAX} steps");
        if !begun {
            begun = under_way(&base);
        }
        steps += usize::from(begun);
        begun && (at == Some(steps) || !under_way(&base))
    });
    match end {
        End::Killed { step } => (steps, step),
        End::Exited(code) => panic!("the agent of {} ended by itself with {code}", node.name()),
    }
}

/// A pod that comes while no agent runs, by the older plugin where that can.
#[track_caller]
fn visitor(cluster: &Cluster, node: &Node, pods: &Pods, name: &str) {
    node.use_plugin(Build::Own);
    let own = node.try_add_pod(cluster.lab(), &format!("{name}-own"));
    match (in_force(node) == Build::Own.schema(), own) {
        (true, Ok(pod)) => {
            ping::ping(pod.namespace(), pods.far.addr().into()).unwrap();
            ping::ping(pods.peer.namespace(), pod.addr().into()).unwrap();
            pod.del();
        }
        (false, Err(error)) if error.code == TRY_AGAIN_LATER => {}
        (own, result) => panic!("schema of the older build in force: {own}; {result:?}"),
    }
    node.use_plugin(Build::Next);
}

/// While no agent runs a pod goes that was there before, and another one gets its address.
#[track_caller]
fn heir(cluster: &Cluster, node: &Node, pods: &Pods, before: &Pod) {
    before.del();
    let sandbox = cluster.lab().namespace(&format!("{}-{}-heir", node.name(), before.name()));
    let mut call = node.cni_call("ADD", &sandbox, "heir");
    call.args = format!("IP={}", before.addr());
    node.cni(&call).unwrap();
    ping::ping(pods.peer.namespace(), before.addr().into()).unwrap();
    ping::ping(&sandbox, pods.far.addr().into()).unwrap();
    node.cni(&CniCall { command: "DEL".to_owned(), ..call }).unwrap();
}

fn agents_are_killed(mode: Mode) {
    let network = Network { attach: Some(mode.name().to_owned()), ..Network::default() };
    let cluster = Cluster::builder().network(network).start();
    let pods = Pods::new(&cluster);
    let cp = cluster.node("cp");
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    let _published = cp.add_pod_with_ports(cluster.lab(), "published", &ports);
    serve(cp, pods.far.addr());
    let seed = std::process::id() as usize;
    let mut steady = Steady::start(&cluster, &pods, true);
    through_service(&mut steady, &pods.a, &pods.far);
    within(SOON, "the flows through the Service are recorded", || {
        cp.show("flows").as_array().unwrap().len() >= 2
    });
    thread::scope(|scope| {
        for (index, node) in cluster.nodes().iter().enumerate() {
            let (cluster, pods) = (&cluster, &pods);
            scope.spawn(move || {
                let before = facts(node);
                node.use_plugin(Build::Next);
                // How many there are, each way.
                let mut steps = [0, 0];
                node.kill_agent(Signal::SIGKILL);
                for (steps, build) in steps.iter_mut().zip([Build::Next, Build::Own]) {
                    *steps = kill_at(node, build, None).0;
                    assert!(*steps > 20, "a change has {steps} steps: the tracer sees too little");
                }
                let mut build = Build::Own;
                for kill in 0..KILLS {
                    let to = other(build);
                    let all = steps[usize::from(to == Build::Own)];
                    // Each of nodes and kills a part of the steps, at another place in it in every run.
                    let kills = cluster.nodes().len() * KILLS;
                    let part = (kill * cluster.nodes().len() + index) * all / kills;
                    let at = 1 + (part + seed % (all / kills).max(1)) % all;
                    let goes = cluster.add_pod(node.name(), &format!("goes{kill}"));
                    let (_, step) = kill_at(node, to, Some(at));
                    let after = format!("{} after step {at} of {all} ({step}) to {to:?}", node.name());
                    println!("killed {after}");

                    visitor(cluster, node, pods, &format!("visitor{kill}"));
                    heir(cluster, node, pods, &goes);
                    let stays = cluster.add_pod(node.name(), &format!("stays{kill}"));
                    let reached = |when: &str| {
                        for (from, to) in [(&stays, &pods.far), (&pods.peer, &stays), (&stays, &pods.a)] {
                            let answer = ping::ping(from.namespace(), to.addr().into());
                            answer.unwrap_or_else(|error| panic!("{when} {after}: {error:#}"));
                        }
                    };
                    reached("no agent");
                    // On, or back.
                    build = if (kill + index) % 2 == 0 { to } else { build };
                    node.use_agent(build);
                    node.start_agent_with(&options());
                    reached("the next agent");
                    stays.del();
                    expect_kept(node, &before, &after);
                    expect_only(node, build);
                    node.kill_agent(Signal::SIGKILL);
                }
                node.use_agent(Build::Own);
                node.start_agent_with(&options());
            });
        }
    });
    steady.lost_nothing();
    connected(&cluster, &cluster.add_pod("cp", "new"), &pods.all());
}

#[test]
fn a_change_of_the_schema_that_is_killed_loses_nothing_and_is_finished_or_taken_back() {
    agents_are_killed(Mode::Tcx);
}

#[test]
fn a_change_of_the_schema_that_is_killed_loses_nothing_with_clsact() {
    agents_are_killed(Mode::Clsact);
}
