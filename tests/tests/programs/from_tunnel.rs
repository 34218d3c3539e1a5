//! `from_tunnel` without tunnel metadata, which only a real vxlan device gives; the rest is in the lab's trust tests.

use overlay_common::reason::{Hook, Reason};
use overlay_userspace::datapath::run::Verdict;

use crate::bed::{ANCHOR_MAC, Bed, Case, Counted, Ip, Out, PEER_MAC, POD, REMOTE_POD, ipv4_frame};

#[test]
fn a_packet_that_came_by_no_tunnel_is_dropped() {
    Bed::with(|bed| {
        bed.check(vec![Case {
            name: "no tunnel key",
            hook: Hook::FromTunnel,
            device: bed.devices.anchor,
            packet: ipv4_frame(ANCHOR_MAC, PEER_MAC, &Ip::udp(REMOTE_POD, POD, 53)),
            gso: None,
            verdict: Verdict::Drop,
            out: Out::Unchanged,
            counted: Counted::Dropped(Reason::TunnelKey),
        }]);
    });
}
