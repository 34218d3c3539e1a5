//! A change of the schema that cannot be made leaves the node as it was.

use std::time::Duration;

use nix::sys::signal::Signal;
use overlay_common::maps::SCHEMA;
use overlay_tests::attached::{Attached, Mode};
use overlay_tests::lab::{AgentOptions, Build, Cluster, Network, Node, exec};
use overlay_tests::traffic::steady::{Pods, Steady};

use crate::bed::{change_agent, expect_only, facts, options};

/// How long an agent that has to refuse may take.
const REFUSAL: Duration = Duration::from_secs(15);

#[track_caller]
fn refused(node: &Node, options: &AgentOptions) -> exec::Output {
    let out = exec::output(&mut node.agent_command(options), b"", REFUSAL).unwrap();
    assert_eq!(out.status.code(), Some(1), "{out:?}");
    out
}

fn a_start_fails(mode: Mode) {
    let network = Network { attach: Some(mode.name().to_owned()), ..Network::default() };
    let cluster = Cluster::builder().network(network).start();
    let pods = Pods::new(&cluster);
    let steady = Steady::start(&cluster, &pods, true);
    let cp = cluster.node("cp");
    let (before, attached) = (facts(cp), Attached::read(cp, mode));
    cp.kill_agent(Signal::SIGTERM);
    cp.use_agent(Build::Next);
    // Forwarding cannot be looked at, which comes after all devices have the new programs.
    let blind = vec![("OVERLAY_PROC_SYS".to_owned(), "/proc/nothing".to_owned())];
    let out = refused(cp, &AgentOptions { env: blind, ..options() });
    assert!(out.stderr.contains(&format!("schema {SCHEMA} stays in force")), "{out:?}");
    cp.use_agent(Build::Own);
    expect_only(cp, Build::Own);
    assert_eq!((facts(cp), Attached::read(cp, mode)), (before.clone(), attached.clone()));
    cp.use_agent(Build::Next);
    cp.start_agent_with(&options());
    assert_eq!(facts(cp), before);
    Attached::read(cp, mode).adopts(&attached);
    expect_only(cp, Build::Next);
    steady.lost_nothing();
}

#[test]
fn a_start_that_fails_gives_the_devices_back_to_the_programs_of_before() {
    a_start_fails(Mode::Tcx);
}

#[test]
fn a_start_that_fails_gives_the_devices_back_to_the_programs_of_before_with_clsact() {
    a_start_fails(Mode::Clsact);
}

#[test]
fn an_older_agent_without_the_newer_build_says_what_it_needs_and_changes_nothing() {
    let network = Network { attach: Some("tcx".to_owned()), ..Network::default() };
    let cluster = Cluster::builder().network(network).start();
    let pods = Pods::new(&cluster);
    let cp = cluster.node("cp");
    change_agent(cp, Build::Next);
    let steady = Steady::start(&cluster, &pods, true);
    let (before, attached) = (facts(cp), Attached::read(cp, Mode::Tcx));
    cp.kill_agent(Signal::SIGTERM);
    cp.use_agent(Build::Own);
    // Not there; not a program of ours; one that does not know the schema either.
    for newer in ["/nonexistent/overlay", "/bin/false", Build::Own.binary().to_str().unwrap()] {
        let args = vec!["--newer-build".to_owned(), newer.to_owned()];
        let out = refused(cp, &AgentOptions { args, ..AgentOptions::default() });
        let said = out.stderr.lines().last().unwrap_or_default();
        assert!(said.contains("which needs the newer build") && said.contains(newer), "{out:?}");
    }
    cp.use_agent(Build::Next);
    expect_only(cp, Build::Next);
    assert_eq!((facts(cp), Attached::read(cp, Mode::Tcx)), (before, attached));
    cp.start_agent_with(&options());
    steady.lost_nothing();
}
