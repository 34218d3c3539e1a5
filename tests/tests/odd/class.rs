//! DSCP and ECN across the tunnel: RFC 2983's uniform model and RFC 6040.

use std::net::IpAddr;

use overlay_tests::lab::{Namespace, exec};
use overlay_tests::traffic::any_port;
use overlay_tests::traffic::capture::{Capture, Frame};
use overlay_tests::traffic::drops::Drops;
use overlay_tests::traffic::packet::Packet;
use overlay_userspace::family::Family;

use crate::bed::{Bed, eventually};

/// What a pod sends with each of these classes, as it arrives: pairs of what was sent and what came.
#[track_caller]
fn arriving(
    bed: &Bed,
    to: (&Namespace, IpAddr),
    classes: impl Iterator<Item = u8>,
    wanted: usize,
) -> Vec<(u8, u8)> {
    let capture = Capture::start(to.0, "eth0");
    let at = any_port(to.1);
    let mark = |class: u8| [b"class ".as_slice(), &[class]].concat();
    let frames: Vec<_> =
        classes.map(|class| Packet { class, ..bed.datagram(at, &mark(class)) }.frame()).collect();
    bed.send(&frames);
    eventually(|| capture.count(is_marked), |count| *count >= wanted);
    let mut seen: Vec<_> = capture
        .stop()
        .into_iter()
        .filter(is_marked)
        .map(|Frame { bytes, .. }| {
            let class = if bytes[12] == 8 { bytes[15] } else { bytes[14] << 4 | bytes[15] >> 4 };
            (bytes[bytes.len() - 1], class)
        })
        .collect();
    seen.sort_unstable();
    seen
}

/// Whether a frame is one of those sent, on its way in.
fn is_marked(frame: &Frame) -> bool {
    let data = frame.bytes.len().checked_sub(7);
    !frame.outgoing && data.is_some_and(|data| frame.bytes[data..].starts_with(b"class "))
}

#[test]
fn every_class_arrives_as_it_was_sent() {
    let bed = Bed::new();
    for to in [&bed.near, &bed.peer, &bed.far] {
        for family in Family::ALL {
            let seen = arriving(&bed, (to.namespace(), to.addr_of(family)), 0..=255, 256);
            let wanted: Vec<_> = (0..=255).map(|class| (class, class)).collect();
            assert_eq!(seen, wanted, "{family} to {}", to.name());
        }
    }
}

#[test]
fn congestion_on_the_way_reaches_who_can_hear_of_it_and_is_not_forged() {
    let bed = Bed::new();
    // A router that is congested at all times. It marks what says that it may be marked.
    let rules = |condition: &str| {
        format!(
            "table inet congestion {{ chain forward {{ type filter hook forward priority 0; \
             udp dport 8472 {condition} ip ecn set ce; }}; }}\n"
        )
    };
    let nft = |rules: &str| {
        exec::must(bed.cluster.router().command("nft").args(["-f", "-"]), rules);
    };
    nft(&rules("ip ecn != not-ect"));
    for family in Family::ALL {
        let to = (bed.far.namespace(), bed.far.addr_of(family));
        let seen = arriving(&bed, to, (0..4).map(|ecn| 0xb8 | ecn), 4);
        assert_eq!(seen, [(0xb8, 0xb8), (0xb9, 0xbb), (0xba, 0xbb), (0xbb, 0xbb)], "{family}");
    }
    // One that marks whatever comes: a sender that would not hear of congestion may not have its packets (RFC 6040, 4.2).
    nft("delete table inet congestion\n");
    nft(&rules(""));
    let before = Drops::read(bed.cluster.node("w2"));
    for family in Family::ALL {
        let to = (bed.far.namespace(), bed.far.addr_of(family));
        assert_eq!(arriving(&bed, to, 0..4, 3), [(1, 3), (2, 3), (3, 3)], "{family}");
    }
    let dropped = Drops::read(bed.cluster.node("w2")).since(&before);
    assert_eq!(dropped, [("ecn".to_owned(), 2)].into());
}
