//! The agent, or that there is none.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use overlay_tests::lab::{Network, within};

use crate::bed::{Bed, configure, expect_fine_soon};

const PROBES: &str = "[agent]\nhealth = \"127.0.0.1:9879\"\n";

#[test]
pub(crate) fn an_agent_that_does_not_run_is_missed() {
    let bed = Bed::start_with(PROBES);
    bed.doctor(&[]).expect_fine();
    bed.a.kill_agent(Signal::SIGKILL);
    let seen = bed.doctor(&[]);
    let finding = &seen.expect(&[("agent", "agent")])[0];
    assert_eq!(finding.severity, "warning", "{finding:?}");
    // As the finding says.
    bed.expect_traffic();
    bed.a.start_agent();
    bed.doctor(&[]).expect_fine();
}

#[test]
pub(crate) fn an_agent_that_is_stopped_is_named_with_what_continues_it() {
    let bed = Bed::start();
    let pid = Pid::from_raw(bed.a.agent_pid().unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    let seen = bed.doctor(&[]);
    let finding = &seen.expect(&[("agent", "agent")])[0];
    assert_eq!(finding.remedy, format!("kill -CONT {pid}"));
    bed.follow(finding);
    expect_fine_soon(&bed.lab, &bed.a, &["--only", "agent"]);
}

#[test]
pub(crate) fn an_agent_that_does_not_answer_is_named() {
    let bed = Bed::start_with(PROBES);
    bed.run(
        "nft add table ip cut; nft 'add chain ip cut input { type filter hook input priority 0; }'; \
             nft add rule ip cut input tcp dport 9879 drop",
    );
    let seen = bed.doctor(&["--only", "agent"]);
    let finding = &seen.expect(&[("agent", "agent")])[0];
    assert!(finding.what.contains("does not answer probes"), "{finding:?}");
    bed.run("nft delete table ip cut");
    bed.doctor(&["--only", "agent"]).expect_fine();
}

#[test]
pub(crate) fn an_agent_that_cannot_do_all_is_named_with_what_it_cannot() {
    let bed = Bed::start_with(PROBES);
    let network = Network { interface: Some("eth9".into()), ..Network::default() };
    configure(&bed.lab, &[&bed.a, &bed.b], network, PROBES);
    within(Duration::from_secs(15), "the agent has tried", || {
        !bed.doctor(&["--only", "agent"]).problems().is_empty()
    });
    let findings = bed.doctor(&[]).expect(&[("agent", "agent"), ("mtu", "underlay"), ("drift", "underlay")]);
    assert!(findings[0].evidence.contains("no interface eth9"), "{findings:#?}");
    configure(&bed.lab, &[&bed.a, &bed.b], Network::default(), PROBES);
    within(Duration::from_secs(15), "the agent has tried", || {
        bed.doctor(&["--only", "agent"]).problems().is_empty()
    });
    bed.doctor(&[]).expect_fine();
}
