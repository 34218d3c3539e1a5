//! What an upgrade must not change, and how an agent of another build takes over.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};

use nix::sys::signal::Signal;
use overlay_tests::lab::{AgentOptions, Build, Node, Pod, exec};
use overlay_tests::traffic::steady::Steady;
use overlay_tests::traffic::stream::{Kind, Stream};
use serde_json::{Value, json};

/// Requests a second.
const RATE: u32 = 50;

/// A Service's address that [`serve`] leads to a pod.
pub(crate) const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// Leads what the node's pods send to the Service to this backend.
#[track_caller]
pub(crate) fn serve(node: &Node, backend: Ipv4Addr) {
    let rules = format!(
        "table ip service {{ chain pre {{ type nat hook prerouting priority dstnat; ip daddr {SERVICE} dnat to {backend}; }}; }}"
    );
    exec::must(node.namespace().command("nft").args(["-f", "-"]), &rules);
}

/// How agents are started here: an older one finds the newer build.
pub(crate) fn options() -> AgentOptions {
    with_newer(Build::Next)
}

/// How agents are started that find this newer build.
pub(crate) fn with_newer(newer: Build) -> AgentOptions {
    let newer = newer.binary().to_str().unwrap().to_owned();
    AgentOptions { args: vec!["--newer-build".to_owned(), newer], ..AgentOptions::default() }
}

/// Replaces the agent of `node` by one of `build`.
#[track_caller]
pub(crate) fn change_agent(node: &Node, build: Build) {
    node.kill_agent(Signal::SIGTERM);
    node.use_agent(build);
    node.start_agent_with(&options());
}

/// The facts of a node that are the same in every schema, as the commands of the build in charge print them.
#[track_caller]
pub(crate) fn facts(node: &Node) -> Value {
    let mut flows: Vec<Value> = node.show("flows").as_array().unwrap().clone();
    for flow in &mut flows {
        flow.as_object_mut().unwrap().remove("age_seconds");
    }
    flows.sort_by_key(Value::to_string);
    json!({
        "endpoints": node.show("endpoints"),
        "ports": node.show("ports"),
        "nodes": node.show("nodes"),
        "flows": flows,
    })
}

/// The node's facts are those of `before`; more flows may have been recorded since.
#[track_caller]
pub(crate) fn expect_kept(node: &Node, before: &Value, when: &str) {
    expect_same(&facts(node), before, when);
}

/// As [`expect_kept`], of facts that were read.
#[track_caller]
pub(crate) fn expect_same(after: &Value, before: &Value, when: &str) {
    for what in ["endpoints", "ports", "nodes"] {
        assert_eq!(after[what], before[what], "{what} {when}");
    }
    let flows = after["flows"].as_array().unwrap();
    let lost: Vec<_> =
        before["flows"].as_array().unwrap().iter().filter(|flow| !flows.contains(flow)).collect();
    assert!(lost.is_empty(), "{when}: flows {lost:?} are gone");
}

/// Streams of `from` to the Service, which `serve` leads to `backend`.
pub(crate) fn through_service(steady: &mut Steady<'_>, from: &Pod, backend: &Pod) {
    for kind in [Kind::Tcp, Kind::Udp] {
        let through = (IpAddr::V4(backend.addr()), IpAddr::V4(SERVICE));
        let stream = Stream::start_through(kind, from.namespace(), backend.namespace(), through, RATE);
        steady.add(&format!("{kind:?} through a Service"), stream.unwrap());
    }
}

/// Nothing but this build's schema is pinned, and nothing half-made.
#[track_caller]
pub(crate) fn expect_only(node: &Node, build: Build) {
    let base = node.pins().parent().unwrap();
    let mut names: Vec<_> =
        fs::read_dir(base).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    // What kernel settings were is of no schema.
    names.retain(|name| name != "settings");
    names.sort();
    assert_eq!(names, [format!("v{}", build.schema())], "{}", node.name());
    for directory in ["maps", "programs", "links"] {
        for entry in fs::read_dir(node.pins_of(build).join(directory)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(!name.ends_with("_new"), "{}: {directory}/{name}", node.name());
        }
    }
}
