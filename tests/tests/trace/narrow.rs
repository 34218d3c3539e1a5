//! Packets that are too long, for the pod or for the path.

use overlay_tests::lab::Node;
use overlay_tests::traffic::capture::Capture;
use overlay_tests::traffic::ping::Probe;
use overlay_tests::traffic::pmtu;
use overlay_tests::traffic::vxlan::Tunnel;

use crate::ask::ask;
use crate::bed::{Bed, Counters, PORT};

#[test]
fn what_is_longer_than_the_pods_device_carries_is_refused_in_the_pod() {
    let bed = Bed::new();
    let (pod, to) = (bed.pod.addr().to_string(), bed.near.addr().to_string());
    let of = |size: &str| ask(bed.cp(), &[&pod, &to, "--protocol", "udp", "--size", size]);
    let really = |size| {
        pmtu::unfragmented(bed.pod.namespace(), bed.near.namespace(), (bed.near.addr(), 0).into(), size)
    };
    of("1450").is("as long as the MTU", "sent");
    assert!(matches!(really(1450).unwrap(), Probe::Reply(_)));
    let answer = of("1451");
    answer.is("one byte more", "refused");
    assert_eq!(answer.step("mtu")["facts"]["mtu"], 1450);
    assert_eq!(really(1451).unwrap(), Probe::TooLong { mtu: 1450 });
}

#[test]
fn what_is_too_long_for_the_path_is_answered_as_explained() {
    let bed = Bed::new();
    // Locked: a route's MTU counts for what is forwarded only then (ip_mtu_from_fib_result, net/ipv4/route.c).
    let w2 = bed.w2().address();
    bed.cp().namespace().ip(&format!("route add {w2}/32 via 192.0.2.1 mtu lock 1300"));
    let _sockets = bed.sockets();
    let (pod, to, port) = (bed.pod.addr().to_string(), bed.far.addr().to_string(), PORT.to_string());
    for (size, outcome) in [("1250", "sent"), ("1251", "dropped")] {
        let answer = ask(bed.cp(), &[&pod, &to, "--protocol", "udp", "--port", &port, "--size", size]);
        answer.is(size, outcome);
        let fib = &answer.step("fib")["facts"];
        assert_eq!(fib["mtu"], 1300, "{fib}");
        if outcome == "dropped" {
            assert_eq!(answer.report["verdict"]["reason"], "path_mtu");
            assert_eq!(answer.step("told")["facts"]["mtu"], 1250);
        }
        let before = Counters::read(bed.cp());
        let wire = Capture::start(bed.cp().namespace(), Node::DEVICE);
        bed.send(answer.frame());
        assert_eq!(before.since(bed.cp(), &answer.counted()), answer.counted(), "{size}");
        let frames = wire.stop();
        let tunnels = frames.iter().filter_map(|frame| Tunnel::decode(&frame.bytes));
        let sent = tunnels.filter(|tunnel| tunnel.destination.ip() == w2).count();
        assert_eq!(sent, usize::from(outcome == "sent"), "{size}");
    }
}

#[test]
fn without_a_route_to_the_peer_the_anchor_device_is_asked_in_vain() {
    let bed = Bed::new();
    bed.cp().namespace().ip(&format!("route add unreachable {}/32", bed.w2().address()));
    let answer = ask(bed.cp(), &[&bed.pod.addr().to_string(), &bed.far.addr().to_string()]);
    answer.is("no route", "refused");
    let before = Counters::read(bed.cp());
    bed.send(answer.frame());
    assert_eq!(before.since(bed.cp(), &answer.counted()), answer.counted());
}
