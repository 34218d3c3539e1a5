//! What comes in by the wire and is not what a peer should send.

use overlay_tests::lab::{Cluster, Network, Node};
use overlay_tests::traffic::inject::{inject, mac_of};

use crate::ask::{ask, ask_with, hex};
use crate::bed::{Bed, Counters, Live, PORT};

/// Offsets in a tunnel packet.
const OUTER_SRC: usize = 26;
const VNI: usize = 46;
const INNER_DST: usize = 80;

fn with(frame: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

#[test]
fn forged_and_stray_packets_are_dropped_for_the_reason_that_is_explained() {
    forged_and_stray(&Bed::new(), &["from_wire", "from_tunnel"]);
}

#[test]
fn a_guard_drops_them_first_and_the_answer_says_so() {
    let network = Network { xdp: Some("guard".into()), ..Network::default() };
    let bed = Bed::on(Cluster::builder().network(network).start());
    forged_and_stray(&bed, &["xdp_wire"]);
    // And lets the others by.
    let (pod, to) = (bed.pod.addr().to_string(), bed.near.addr().to_string());
    let frame = ask(bed.cp(), &[&pod, &to]).wire();
    let answer = ask_with(bed.w1().overlay(&[]), &["--received", &hex(&frame)], "");
    answer.is("the right packet", "delivered");
    let text = answer.step("guard")["text"].as_str().unwrap();
    assert!(text.starts_with("xdp_wire (") && text.ends_with("passes it on"), "{text}");
}

/// Each is dropped by one of `programs`, as is said before.
#[track_caller]
fn forged_and_stray(bed: &Bed, programs: &[&str]) {
    let sockets = bed.sockets();
    let port = PORT.to_string();
    let (pod, to) = (bed.pod.addr().to_string(), bed.near.addr().to_string());
    let arguments = [&pod, &to, "--protocol", "udp", "--port", &port];
    let right = ask(bed.cp(), &arguments).wire();
    let plain = ask(bed.cp(), &arguments).frame();

    let cases = [
        (
            "outer source of another node",
            with(&right, OUTER_SRC, &bed.w2().address().octets()),
            "inner_source",
        ),
        ("outer source of nobody", with(&right, OUTER_SRC, &[192, 0, 2, 50]), "unknown_vtep"),
        ("pod of another node", with(&right, INNER_DST, &bed.far.addr().octets()), "inner_destination"),
        ("another VNI", with(&right, VNI, &[0, 0, 2]), "vni"),
        ("a pod's address outside of the tunnel", plain, "pod_address_on_wire"),
    ];
    let w1 = bed.w1();
    let mac = mac_of(w1.namespace(), Node::DEVICE);
    for (name, frame, reason) in cases {
        let live = Live::read(w1);
        let answer = ask_with(w1.overlay(&[]), &["--received", &hex(&frame)], "");
        answer.is(name, "dropped");
        assert_eq!(answer.report["verdict"]["reason"], reason, "{name}");
        let text = answer.report["verdict"]["text"].as_str().unwrap();
        let by = |program: &&str| text.starts_with(&format!("dropped by {program}: "));
        assert!(programs.iter().any(by), "{name}: {text}");
        assert_eq!(Live::read(w1), live, "{name}: asking changes nothing");
        let before = Counters::read(w1);
        // The kernel's own path looks at the outer checksum as well.
        inject(bed.cluster.router(), "lan-a", &[valid(with(&with(&frame, 6, &[2; 6]), 0, &mac))]);
        assert_eq!(before.since(w1, &answer.counted()), answer.counted(), "{name}");
        sockets.got_nothing(name);
    }
}

#[test]
fn the_right_packet_is_delivered_whoever_brought_it() {
    let bed = Bed::new();
    let sockets = bed.sockets();
    let (pod, to, port) = (bed.pod.addr().to_string(), bed.near.addr().to_string(), PORT.to_string());
    let frame = ask(bed.cp(), &[&pod, &to, "--protocol", "udp", "--port", &port]).wire();
    // As a router leaves it: another TTL and other MACs.
    let frame = valid(with(&with(&frame, 0, &[2; 12]), 22, &[60]));
    let answer = ask_with(bed.w1().overlay(&[]), &["--received", &hex(&frame)], "");
    answer.is("the right packet", "delivered");
    assert_eq!(answer.report["verdict"]["endpoint"], to);
    let router = bed.cluster.router();
    let mac = mac_of(bed.w1().namespace(), Node::DEVICE);
    let before = Counters::read(bed.w1());
    inject(router, "lan-a", &[with(&frame, 0, &mac)]);
    sockets.received("the right packet", bed.near.namespace(), bed.pod.addr());
    assert_eq!(before.since(bed.w1(), &answer.counted()), answer.counted());
}

/// The frame with the checksum of its first IPv4 header right.
fn valid(mut frame: Vec<u8>) -> Vec<u8> {
    let header = etherparse::Ipv4HeaderSlice::from_slice(&frame[14..]).unwrap().to_header();
    frame[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
    frame
}

#[test]
fn what_is_no_tunnel_packet_goes_to_the_stack() {
    let bed = Bed::new();
    let w1 = bed.w1();
    let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4(bed.cp().address().octets(), w1.address().octets(), 64)
        .udp(1, PORT);
    let mut frame = Vec::new();
    builder.write(&mut frame, b"plain").unwrap();
    let answer = ask_with(w1.overlay(&[]), &["--received", "-"], &hex(&frame));
    answer.is("plain", "stack");
    assert!(answer.counted().is_empty());
    let sockets = bed.sockets();
    let mac = mac_of(w1.namespace(), Node::DEVICE);
    inject(bed.cp().namespace(), Node::DEVICE, &[with(&frame, 0, &mac)]);
    sockets.received("plain", w1.namespace(), bed.cp().address());
}
