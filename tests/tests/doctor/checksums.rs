//! Packets that arrive with a wrong checksum.

use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use overlay_tests::traffic::inject::{inject, mac_of};
use overlay_tests::traffic::vxlan::{FLAG_VNI, Tunnel, udp_frame};

use crate::bed::Bed;

/// A tunnel packet from node b to the pod of node a whose inner UDP checksum is not that of its contents.
fn damaged(bed: &Bed) -> Vec<u8> {
    let [anchor_a, anchor_b] = [&bed.a, &bed.b].map(|node| mac_of(node.namespace(), "overlay.1"));
    let to = SocketAddrV4::new(bed.pod_a.addr(), 53);
    let mut inner =
        udp_frame((anchor_b, anchor_a), SocketAddrV4::new(bed.pod_b.addr(), 5353), to, b"damaged");
    // Ethernet, IPv4 without options, UDP up to the checksum.
    let at = 14 + 20 + 6;
    inner[at] ^= 0x55;
    let [eth_a, eth_b] = [&bed.a, &bed.b].map(|node| mac_of(node.namespace(), "eth0"));
    let tunnel = Tunnel {
        macs: (eth_b, eth_a),
        source: SocketAddrV4::new(bed.b.address(), 50000).into(),
        destination: SocketAddrV4::new(bed.a.address(), 8472).into(),
        ttl: 64,
        tos: 0,
        dont_fragment: true,
        udp_checksum: 0,
        flags: FLAG_VNI,
        vni: 1,
        inner,
    };
    tunnel.encode()
}

#[test]
pub(crate) fn a_pod_that_receives_damaged_packets_is_named_while_they_come() {
    let bed = Bed::start();
    let frame = damaged(&bed);
    // The kernel looks at the checksum when somebody reads.
    let socket = bed.pod_a.namespace().run(|| std::net::UdpSocket::bind(("0.0.0.0", 53)).unwrap());
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let done = AtomicBool::new(false);
    let finding = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                inject(bed.b.namespace(), "eth0", std::slice::from_ref(&frame));
                assert!(socket.recv(&mut [0; 100]).is_err(), "a damaged packet was delivered");
            }
        });
        let seen = bed.doctor(&["--only", "checksums,drift"]);
        done.store(true, Ordering::Relaxed);
        seen.expect(&[("checksums", &format!("pod {}", bed.pod_a.addr()))]).remove(0)
    });
    assert!(finding.what.contains("Udp"), "{finding:?}");
    // What to do is to be done at the sender, where it takes effect.
    let command = finding.remedy.split_once(": ").unwrap().1;
    overlay_tests::lab::exec::must(bed.b.namespace().command("sh").args(["-c", command]), "");
    let state = overlay_tests::lab::device_feature(bed.b.namespace(), "eth0", "tx-checksum-ip-generic");
    assert_eq!(state.as_deref(), Some("off"));
    // What had come before does not count.
    let seen = bed.doctor(&["--only", "checksums"]);
    seen.expect_fine();
    assert!(!seen.findings[0].what.ends_with(", 0 before"), "{seen:?}");
    bed.expect_traffic();
}
