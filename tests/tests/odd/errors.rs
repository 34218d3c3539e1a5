//! ICMP errors about what pods and nodes send, and packets that may go no further.

use std::io::ErrorKind;
use std::net::SocketAddr;

use overlay_tests::traffic::capture::Capture;
use overlay_tests::traffic::packet::Packet;
use overlay_tests::traffic::vxlan::ip_addresses;
use overlay_tests::traffic::{any_port, udp};
use overlay_userspace::family::Family;

use crate::bed::Bed;

#[test]
fn a_sender_hears_that_nobody_listens() {
    let bed = Bed::new();
    for node in bed.cluster.nodes() {
        node.namespace().sysctl("net.ipv4.icmp_ratelimit", "0");
        node.namespace().sysctl("net.ipv6.icmp.ratelimit", "0");
    }
    for way in bed.ways() {
        for family in Family::ALL {
            // The discard port: nobody's here.
            let socket =
                udp::connected(way.from.namespace(), SocketAddr::new(way.to.address(family), 9)).unwrap();
            socket.send(b"is anybody there").unwrap();
            let error = socket.recv(&mut [0; 8]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{family}, {}: {error}", way.name);
        }
    }
}

/// A packet that expires on its way is answered by the node where it does.
#[test]
fn a_packet_that_may_go_no_further_is_answered() {
    let bed = Bed::new();
    bed.cp().namespace().sysctl("net.ipv4.icmp_ratelimit", "0");
    bed.cp().namespace().sysctl("net.ipv6.icmp.ratelimit", "0");
    for to in [&bed.near, &bed.peer] {
        for family in Family::ALL {
            for hops in [0, 1] {
                let capture = Capture::start(bed.pod.namespace(), "eth0");
                let packet = bed.datagram(any_port(to.addr_of(family)), b"not far");
                bed.send(&[Packet { hops, ..packet }.frame()]);
                // Something later, whose way there and back is the same.
                udp::exchange(
                    bed.pod.namespace(),
                    bed.cp().namespace(),
                    any_port(bed.cp().address_of(family)),
                )
                .unwrap();
                let from = bed.cp().gateway_of(family);
                let answers = capture.stop().into_iter().filter(|frame| {
                    // "Time exceeded" (RFC 792, RFC 4443, 3.3).
                    let (at, kind) = if family == Family::Ipv4 { (34, 11) } else { (54, 3) };
                    ip_addresses(&frame.bytes).is_some_and(|(source, _)| source == from)
                        && frame.bytes.get(at) == Some(&kind)
                });
                assert_eq!(answers.count(), 1, "{family} to {}, {hops} hops", to.name());
            }
        }
    }
}

/// An error that a pod makes about a packet that it has got reaches whom that came from, and one about a packet that there has never been
/// harms nobody.
#[test]
fn an_error_about_nothing_arrives_and_changes_nothing() {
    let bed = Bed::new();
    let drops = bed.drops();
    for (to, place) in [(&bed.near, "same node"), (&bed.peer, "other node")] {
        let [from, at] = [bed.pod.addr_of(Family::Ipv4), to.addr_of(Family::Ipv4)];
        let quoted = Packet::udp(bed.macs(), SocketAddr::new(at, 7), SocketAddr::new(from, 7), b"never sent");
        let mut error = vec![3, 3, 0, 0, 0, 0, 0, 0];
        error.extend(&quoted.frame()[14..]);
        let words =
            error.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
        let sum: u32 = words.sum();
        let check = !((sum & 0xffff) + (sum >> 16)) as u16;
        error[2..4].copy_from_slice(&check.to_be_bytes());
        let capture = Capture::start(to.namespace(), "eth0");
        bed.send(&[Packet::new(bed.macs(), from, at, 1, error).frame()]);
        udp::exchange(bed.pod.namespace(), to.namespace(), any_port(at)).unwrap();
        let seen = capture.stop().into_iter().filter(|frame| {
            !frame.outgoing && ip_addresses(&frame.bytes) == Some((from, at)) && frame.bytes[23] == 1
        });
        assert_eq!(seen.count(), 1, "{place}");
        // Whoever was told that his packet did not arrive sends another, and has an answer.
        udp::exchange(to.namespace(), bed.pod.namespace(), any_port(from)).unwrap();
    }
    bed.expect_no_drops(&drops, "errors about nothing");
}
