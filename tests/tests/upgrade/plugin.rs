//! The CNI plugin and the agent are of different builds for a while, and pods come and go all the time.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use overlay_tests::lab::{AgentOptions, Build, Cluster, ClusterFile, CniCall, Node, exec, within};
use overlay_tests::traffic::ping;
use serde_json::{Value, json};

use crate::bed::{change_agent, expect_only, facts};

/// The specification's "try again later", and "the plugin cannot service ADD requests".
const TRY_AGAIN_LATER: i64 = 11;
const UNAVAILABLE: i64 = 50;
/// How long an installation, or a handful of calls, may take.
const SOON: Duration = Duration::from_secs(20);

/// A call for a container that has no namespace of its own.
fn call(node: &Node, command: &str, name: &str) -> CniCall {
    let mut call = node.cni_call(command, node.namespace(), name);
    name.clone_into(&mut call.container_id);
    call.conf["cniVersion"] = json!("1.1.0");
    call
}

#[test]
fn a_newer_plugin_works_on_the_older_schema() {
    let cluster = Cluster::builder().start();
    let cp = cluster.node("cp");
    cp.use_plugin(Build::Next);
    let far = cluster.add_pod("w2", "far");
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    let pod = cp.add_pod_with_ports(cluster.lab(), "pod", &ports);
    ping::ping(pod.namespace(), far.addr().into()).unwrap();
    ping::ping(far.namespace(), pod.addr().into()).unwrap();
    assert_eq!(cp.show("endpoints").as_array().unwrap().len(), 1);
    assert_eq!(cp.show("ports").as_array().unwrap().len(), 1);
    expect_only(cp, Build::Own);

    let mut check = cp.cni_call("CHECK", pod.namespace(), "pod");
    check.conf["cniVersion"] = json!("1.1.0");
    check.conf["runtimeConfig"] = json!({ "portMappings": ports });
    check.conf["prevResult"] = pod.result().clone();
    cp.cni(&check).unwrap();
    cp.cni(&call(cp, "STATUS", "any")).unwrap();
    let mut collect = call(cp, "GC", "any");
    collect.conf["cni.dev/valid-attachments"] = json!([]);
    cp.cni(&collect).unwrap();
    assert_eq!((cp.show("endpoints"), cp.show("ports")), (json!([]), json!([])));
}

#[test]
fn an_older_plugin_has_the_runtime_try_again_until_the_newer_one_is_there() {
    let cluster = Cluster::builder().start();
    let cp = cluster.node("cp");
    let pod = cluster.add_pod("cp", "pod");
    change_agent(cp, Build::Next);
    let before = facts(cp);
    for verb in ["ADD", "DEL", "STATUS"] {
        let mut call = call(cp, verb, "pod");
        call.netns = Some(pod.namespace().path());
        pod.namespace().name().clone_into(&mut call.container_id);
        let error = cp.cni(&call).unwrap_err();
        let code = if verb == "STATUS" { UNAVAILABLE } else { TRY_AGAIN_LATER };
        assert_eq!(error.code, code, "{verb}: {error}");
        assert!(error.message.contains("run `overlay cni install` of the newer build"), "{error}");
    }
    assert_eq!(facts(cp), before);
    ping::ping(pod.namespace(), cp.gateway_address().into()).unwrap();
    cp.use_plugin(Build::Next);
    pod.del();
    assert_eq!(cp.show("endpoints"), json!([]));
    // So does the command line.
    cp.use_agent(Build::Own);
    let out = exec::output(&mut cp.overlay(&["endpoints"]), b"", exec::COMMAND_LIMIT).unwrap();
    assert!(!out.status.success() && out.stderr.contains("the pins of a newer overlay"), "{out:?}");
}

/// A cluster file that has the agent install the plugin.
fn installing(cluster: &Cluster) -> (AgentOptions, PathBuf) {
    let dir = cluster.lab().dir().join("cni");
    let (bin, conf) = (dir.join("bin"), dir.join("net.d"));
    let file = ClusterFile { network: cluster.network().clone(), nodes: cluster.entries() };
    let text = format!(
        "{}\n[cni]\ninstall = true\nbin = {:?}\nconf = {:?}\n",
        file.to_toml(),
        bin.to_str().unwrap(),
        conf.to_str().unwrap()
    );
    let path = cluster.lab().dir().join("installing.toml");
    std::fs::write(&path, text).unwrap();
    (AgentOptions { config: Some(path), ..AgentOptions::default() }, bin.join("overlay"))
}

#[test]
fn calls_of_the_installed_plugin_never_fail_while_agents_change_the_schema() {
    let cluster = Cluster::builder().build();
    let (options, plugin) = installing(&cluster);
    let cp = cluster.node("cp");
    cp.start_agent_with(&options);
    within(SOON, "the plugin is installed", || plugin.is_file());
    cp.use_plugin_at(&plugin);
    let stay = cluster.add_pod("cp", "stay");
    let held = Mutex::new(HashSet::from([stay.addr()]));
    let (over, calls) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for worker in 0..3 {
            let (cluster, held, over, calls) = (&cluster, &held, &over, &calls);
            scope.spawn(move || {
                let mut round = 0;
                while !over.load(Ordering::Relaxed) {
                    let pod = cluster.add_pod("cp", &format!("w{worker}r{round}"));
                    assert!(held.lock().unwrap().insert(pod.addr()), "{} was given twice", pod.addr());
                    let reached = ping::ping(pod.namespace(), cluster.node("cp").gateway_address().into());
                    reached.unwrap_or_else(|error| panic!("{}: {error:#}", pod.addr()));
                    assert!(held.lock().unwrap().remove(&pod.addr()));
                    pod.del();
                    round += 1;
                    calls.fetch_add(2, Ordering::Relaxed);
                }
            });
        }
        for build in [Build::Next, Build::Own, Build::Next, Build::Own] {
            let before = calls.load(Ordering::Relaxed);
            cp.kill_agent(Signal::SIGKILL);
            cp.use_agent(build);
            // The older one finds the newer build where that has installed itself.
            cp.start_agent_with(&options);
            within(SOON, "calls go on", || calls.load(Ordering::Relaxed) >= before + 4);
        }
        over.store(true, Ordering::Relaxed);
    });
    let endpoints = cp.show("endpoints");
    let addresses: Vec<&Value> = endpoints.as_array().unwrap().iter().map(|row| &row["address"]).collect();
    assert_eq!(addresses, [&json!(stay.addr())], "{endpoints}");
    expect_only(cp, Build::Own);
    println!("{} calls", calls.load(Ordering::Relaxed));
}
