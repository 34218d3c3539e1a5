//! Flows of the stack in IPv6: recorded where the stack hands a packet over, and found where its answer would be redirected.

use std::net::{IpAddr, Ipv6Addr};

use etherparse::IpNumber;
use overlay_common::{
    counter::Path,
    maps::{FlowKey, FlowKind},
    reason::Hook,
};
use overlay_userspace::datapath::run::Verdict;

use super::bed::{
    FAR_POD6, GATEWAY6, Inner as _, Ip6, OTHER_POD6, OVER, PEER6, POD6, REMOTE_POD6, Tunnel, WORLD6, with,
};
use crate::bed::{ANCHOR_MAC, Bed, Case, Counted, OTHER_POD_MAC, Out, POD_MAC};

/// The stack hands a packet to the pod; `recorded` says whether an answer would have to come back this way.
fn handed(bed: &Bed, name: &'static str, ip: &Ip6, recorded: bool) -> Case {
    Case {
        name,
        hook: Hook::ToPod,
        device: bed.devices.pod,
        packet: ip.framed(POD_MAC, ANCHOR_MAC),
        gso: None,
        verdict: Verdict::Pass,
        out: Out::Unchanged,
        counted: if recorded {
            Counted::Both(Path::StackToPod, Path::FlowRecorded)
        } else {
            Counted::As(Path::StackToPod)
        },
    }
}

/// The pod answers, and the stack gets it.
fn returned(bed: &Bed, name: &'static str, ip: &Ip6) -> Case {
    Case {
        hook: Hook::FromPod,
        packet: ip.of_pod(),
        counted: Counted::Both(Path::PodToStack, Path::ReturnsToStack),
        ..handed(bed, name, ip, false)
    }
}

/// The pod sends to the other one, directly.
fn direct(bed: &Bed, name: &'static str, ip: &Ip6) -> Case {
    let out = Out::Packet(ip.hop().framed(OTHER_POD_MAC, ANCHOR_MAC));
    Case { verdict: Verdict::Redirect, out, counted: Counted::As(Path::Local), ..returned(bed, name, ip) }
}

/// A tunnel packet for the pod: left to the kernel and so to the stack.
fn arriving(bed: &Bed, name: &'static str, peer: IpAddr, ip: &Ip6) -> Case {
    Case {
        hook: Hook::FromWire,
        device: bed.devices.wire,
        packet: Tunnel::arriving(peer, ip).bytes(),
        counted: Counted::As(Path::ReturnsToStack),
        ..handed(bed, name, ip, false)
    }
}

/// The same ports, the other way round.
fn answer(ip: &Ip6) -> Ip6 {
    let mut payload = ip.payload.clone();
    payload[..4].rotate_left(2);
    Ip6 { src: ip.dst, dst: ip.src, payload, ..ip.clone() }
}

fn echo(src: Ipv6Addr, dst: Ipv6Addr, request: bool, id: u16) -> Ip6 {
    let [high, low] = id.to_be_bytes();
    Ip6::icmp(src, dst, if request { 128 } else { 129 }, [high, low, 0, 1], b"ping")
}

/// What a receiver says about a packet that it got.
fn unreachable(from: Ipv6Addr, about: &Ip6) -> Ip6 {
    Ip6::icmp(from, about.src, 1, [0; 4], &about.bytes())
}

#[test]
fn what_comes_by_the_stack_returns_by_it() {
    with(|bed| {
        for (peer, _, far) in OVER {
            let request = Ip6::udp(far, POD6, 53);
            bed.check(vec![
                handed(bed, "a remote pod, by a Service", &request, true),
                handed(bed, "the second packet", &request, false),
                returned(bed, "the answer", &answer(&request)),
                returned(bed, "an error about it", &unreachable(POD6, &request)),
            ]);
            // The answers to what a local pod sends through the stack come out of the tunnel.
            let sent = Ip6::tcp(POD6, far, 100);
            bed.check(vec![Case {
                hook: Hook::FromHost,
                device: bed.devices.anchor,
                packet: sent.framed(ANCHOR_MAC, ANCHOR_MAC),
                verdict: Verdict::Redirect,
                out: Out::Tunnel(Tunnel::leaving(peer, &sent).bytes()),
                counted: Counted::Both(Path::EncapNative, Path::FlowRecorded),
                ..handed(bed, "a local pod, by a Service", &sent, true)
            }]);
            bed.check(vec![
                arriving(bed, "the answer", peer, &answer(&sent)),
                arriving(bed, "a fragment", peer, &Ip6::udp(far, POD6, 53).fragment(185, true)),
                arriving(bed, "an error about it", peer, &unreachable(far, &sent)),
                arriving(
                    bed,
                    "an error about a packet of it with options",
                    peer,
                    &unreachable(far, &sent.extended(60, 1)),
                ),
                arriving(
                    bed,
                    "an error about a fragment of it",
                    peer,
                    &unreachable(far, &Ip6::udp(POD6, far, 7).fragment(185, false)),
                ),
            ]);
        }
        let key = FlowKey {
            src: POD6.into(),
            dst: FAR_POD6.into(),
            src_port: 53,
            dst_port: 40_000,
            protocol: 17,
            kind: FlowKind::Flow as u8,
            reserved: [0; 2],
        };
        assert!(bed.flows().get(&key).unwrap().is_some(), "the key is what the answer looks like");
    });
}

#[test]
fn only_what_would_be_redirected_is_recorded() {
    with(|bed| {
        let from = |src| Ip6::udp(src, POD6, 53);
        bed.check(vec![
            handed(bed, "the world", &from(WORLD6), false),
            handed(bed, "the gateway", &from(GATEWAY6), false),
            handed(bed, "the link", &from("fe80::1".parse().unwrap()), false),
            handed(bed, "an error", &unreachable(OTHER_POD6, &Ip6::udp(POD6, OTHER_POD6, 53)), false),
            handed(bed, "a later fragment", &from(OTHER_POD6).fragment(185, false), false),
            handed(bed, "a remote node", &from(PEER6), true),
            handed(bed, "a local pod", &from(OTHER_POD6), true),
            handed(bed, "one with options", &from(REMOTE_POD6).extended(60, 0), true),
            handed(bed, "the same without", &from(REMOTE_POD6), false),
        ]);
    });
}

#[test]
fn other_flows_of_the_same_pods_stay_direct() {
    with(|bed| {
        let request = Ip6::tcp(OTHER_POD6, POD6, 100);
        bed.check(vec![handed(bed, "recorded", &request, true), returned(bed, "it", &answer(&request))]);
        let other_port = Ip6::udp(POD6, OTHER_POD6, 54);
        let other_protocol = Ip6 { next_header: IpNumber(132), ..answer(&request) };
        bed.check(vec![
            direct(bed, "another port", &other_port),
            direct(bed, "another protocol", &other_protocol),
            direct(bed, "an echo", &echo(POD6, OTHER_POD6, true, 7)),
            direct(bed, "an error about another flow", &unreachable(POD6, &answer(&other_port))),
            // Of all flows between the two, because a fragment does not say of which it is.
            returned(bed, "a later fragment", &other_port.fragment(185, false)),
            returned(bed, "a first fragment", &other_port.fragment(0, true)),
        ]);
    });
}

#[test]
fn an_echo_is_told_by_its_identifier() {
    with(|bed| {
        bed.check(vec![
            handed(bed, "a request", &echo(OTHER_POD6, POD6, true, 7), true),
            returned(bed, "its reply", &echo(POD6, OTHER_POD6, false, 7)),
            direct(bed, "another's reply", &echo(POD6, OTHER_POD6, false, 8)),
        ]);
    });
}
