//! `to_pod`: what the stack sends to a pod passes, counted.

use etherparse::EtherType;
use overlay_common::{counter::Path, reason::Hook};
use overlay_userspace::datapath::run::Verdict;

use crate::bed::{ANCHOR_MAC, Bed, Case, Counted, Ip, Out, POD, POD_MAC, WORLD, frame, ipv4_frame};

#[test]
fn everything_from_the_stack_reaches_the_pod_unchanged() {
    Bed::with(|bed| {
        let case = |name, packet| Case {
            name,
            hook: Hook::ToPod,
            device: bed.devices.pod,
            packet,
            gso: None,
            verdict: Verdict::Pass,
            out: Out::Unchanged,
            counted: Counted::As(Path::StackToPod),
        };
        bed.check(vec![
            case("from the world", ipv4_frame(POD_MAC, ANCHOR_MAC, &Ip::udp(WORLD, POD, 53))),
            case("ARP", frame(POD_MAC, ANCHOR_MAC, EtherType::ARP, &[0; 28])),
        ]);
    });
}
