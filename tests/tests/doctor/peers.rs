//! Peers that packets through the tunnel do not reach.

use nix::sys::signal::Signal;
use overlay_tests::lab::exec;
use overlay_tests::traffic::ping;

use crate::bed::{Bed, with_mesh};

/// What a firewall between the nodes drops.
fn cut(bed: &Bed, what: &str) {
    let script =
        format!("table bridge cut {{ chain c {{ type filter hook forward priority 0; {what} drop; }}; }}");
    exec::must(bed.lan.switch().command("nft").args(["-f", "-"]), &script);
}

fn uncut(bed: &Bed) {
    exec::must(bed.lan.switch().command("nft").args(["delete", "table", "bridge", "cut"]), "");
}

#[test]
pub(crate) fn a_peer_whose_tunnel_port_is_shut_is_named_and_told_from_one_that_is_away() {
    let bed = Bed::start();
    cut(&bed, "ip daddr 192.0.2.2 udp dport 8472");
    assert!(ping::ping(bed.pod_a.namespace(), bed.pod_b.addr().into()).is_err());
    let finding = &bed.doctor(&[]).expect(&[("peers", "peer b")])[0];
    assert!(finding.evidence.contains("192.0.2.2 itself answers an echo"), "{finding:?}");
    assert!(finding.remedy.contains("let UDP port 8472 pass"), "{finding:?}");
    // As it says.
    uncut(&bed);
    bed.doctor(&[]).expect_fine();
    bed.expect_traffic();

    bed.b.namespace().ip("link set eth0 down");
    let finding = &bed.doctor(&["--only", "peers"]).expect(&[("peers", "peer b")])[0];
    assert!(finding.evidence.contains("192.0.2.2 itself answers no echo either"), "{finding:?}");
    bed.b.namespace().ip("link set eth0 up");
    bed.doctor(&["--only", "peers"]).expect_fine();
}

#[test]
pub(crate) fn a_peer_that_gets_small_packets_only_is_named() {
    let bed = Bed::start();
    cut(&bed, "ip length > 1000");
    let findings = bed.doctor(&[]).expect(&[("mtu", "path to b"), ("peers", "peer b")]);
    assert!(findings[1].what.contains("large ones vanish"), "{findings:#?}");
    uncut(&bed);
    bed.doctor(&[]).expect_fine();
}

#[test]
pub(crate) fn a_peer_without_an_agent_is_told_from_one_that_is_not_reached() {
    let bed = Bed::start();
    bed.b.kill_agent(Signal::SIGKILL);
    let finding = &bed.doctor(&[]).expect(&[("peers", "peer b")])[0];
    assert_eq!(finding.severity, "warning", "{finding:?}");
    bed.expect_traffic();
    bed.b.start_agent_with(&with_mesh());
    bed.doctor(&[]).expect_fine();
}
