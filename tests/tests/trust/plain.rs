//! Packets from the underlay that come by no tunnel: a pod's address is believed only where its node vouches for it.

use std::net::SocketAddrV4;

use overlay_tests::traffic::inject::inject;
use overlay_tests::traffic::vxlan::udp_frame;

use crate::stage::{COUNT, MARK, PORT, SOME_MAC, Stage};

#[test]
fn a_pods_address_is_refused_outside_of_the_tunnel() {
    for xdp in [None, Some("guard")] {
        refused(&Stage::with(xdp));
    }
}

#[track_caller]
fn refused(stage: &Stage) {
    let lookout = stage.watch();
    let (pod, neighbour, peer) = (stage.pod.addr(), stage.neighbour.addr(), stage.peer.addr());
    for (what, from, to) in [
        ("a remote pod's, to a pod", peer, pod),
        ("a remote pod's, to the node", peer, stage.cp().address()),
        ("a remote pod's, to the gateway", peer, stage.cp().gateway_address()),
        ("a local pod's, to another", neighbour, pod),
        ("a local pod's, to a remote one: a node is no relay", pod, peer),
        ("a local pod's, to the world: a node is no way out", pod, stage.world()),
    ] {
        let frame = udp_frame(
            (SOME_MAC, stage.macs.underlay),
            SocketAddrV4::new(from, 1),
            SocketAddrV4::new(to, PORT),
            format!("{MARK}: {what}").as_bytes(),
        );
        let records = stage.dropped(what, "pod_address_on_wire", COUNT, || {
            inject(&stage.stranger, "eth0", &vec![frame; COUNT]);
        });
        assert_eq!(records[0]["hook"], stage.first_hook());
        assert_eq!(records[0]["source"], from.to_string());
    }
    lookout.saw_nothing();
}
