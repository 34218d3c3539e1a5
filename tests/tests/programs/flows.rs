//! Flows of the stack: what is recorded where the stack hands a packet over, and what then returns to it.

use std::net::Ipv4Addr;

use etherparse::{Icmpv4Header, Icmpv4Type, IpNumber, icmpv4::DestUnreachableHeader};
use overlay_common::{
    counter::Path,
    maps::{FlowKey, FlowKind},
    reason::Hook,
};
use overlay_userspace::datapath::run::Verdict;

use crate::bed::{
    ANCHOR_MAC, Bed, Case, Counted, GATEWAY, Ip, OTHER_POD, OTHER_POD_MAC, Out, PEER, POD, POD_MAC,
    REMOTE_POD, Tunnel, VTEP, WORLD, from_pod, ipv4_frame,
};

/// The stack hands a packet to the pod; `recorded` says whether an answer would have to come back this way.
fn handed(bed: &Bed, name: &'static str, ip: &Ip, recorded: bool) -> Case {
    Case {
        name,
        hook: Hook::ToPod,
        device: bed.devices.pod,
        packet: ipv4_frame(POD_MAC, ANCHOR_MAC, ip),
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
fn returned(bed: &Bed, name: &'static str, ip: &Ip) -> Case {
    Case {
        hook: Hook::FromPod,
        packet: from_pod(ip),
        counted: Counted::Both(Path::PodToStack, Path::ReturnsToStack),
        ..handed(bed, name, ip, false)
    }
}

/// The pod sends, and the packet goes the direct way.
fn direct(bed: &Bed, name: &'static str, ip: &Ip) -> Case {
    let (out, path) = if ip.dst == OTHER_POD {
        (Out::Packet(ipv4_frame(OTHER_POD_MAC, ANCHOR_MAC, &ip.hop())), Path::Local)
    } else {
        (Out::Tunnel(Tunnel::leaving(&ip.hop()).bytes()), Path::EncapNative)
    };
    Case { verdict: Verdict::Redirect, out, counted: Counted::As(path), ..returned(bed, name, ip) }
}

/// A tunnel packet for the pod: decapsulated here, or left to the kernel and so to the stack.
fn arriving(bed: &Bed, name: &'static str, ip: &Ip, to_stack: bool) -> Case {
    let packet = Tunnel::arriving(ip).bytes();
    let base =
        Case { hook: Hook::FromWire, device: bed.devices.wire, packet, ..handed(bed, name, ip, false) };
    if to_stack {
        Case { counted: Counted::As(Path::ReturnsToStack), ..base }
    } else {
        Case {
            verdict: Verdict::Redirect,
            out: Out::Packet(ipv4_frame(POD_MAC, ANCHOR_MAC, &ip.hop())),
            counted: Counted::As(Path::DecapNative),
            ..base
        }
    }
}

/// The stack sends to a remote pod.
fn leaving(bed: &Bed, name: &'static str, ip: &Ip, recorded: bool) -> Case {
    Case {
        name,
        hook: Hook::FromHost,
        device: bed.devices.anchor,
        packet: ipv4_frame(ANCHOR_MAC, ANCHOR_MAC, ip),
        gso: None,
        verdict: Verdict::Redirect,
        out: Out::Tunnel(Tunnel::leaving(ip).bytes()),
        counted: if recorded {
            Counted::Both(Path::EncapNative, Path::FlowRecorded)
        } else {
            Counted::As(Path::EncapNative)
        },
    }
}

/// The same ports, the other way round.
fn answer(ip: &Ip) -> Ip {
    let mut payload = ip.payload.clone();
    payload[..4].rotate_left(2);
    Ip { src: ip.dst, dst: ip.src, payload, ..ip.clone() }
}

fn with_protocol(ip: &Ip, protocol: u8) -> Ip {
    Ip { protocol: IpNumber(protocol), ..ip.clone() }
}

/// An echo request or reply with this identifier.
fn echo(src: Ipv4Addr, dst: Ipv4Addr, request: bool, id: u16) -> Ip {
    let echo = etherparse::IcmpEchoHeader { id, seq: 1 };
    let kind = if request { Icmpv4Type::EchoRequest(echo) } else { Icmpv4Type::EchoReply(echo) };
    let payload = Icmpv4Header::with_checksum(kind, &[]).to_bytes().to_vec();
    Ip { protocol: IpNumber::ICMP, payload, ..Ip::udp(src, dst, 0) }
}

/// What a receiver says about a packet that it got.
fn unreachable(from: Ipv4Addr, about: &Ip) -> Ip {
    let quoted: Vec<u8> = about.bytes().into_iter().take(20 + about.options.len() + 8).collect();
    let kind = Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port);
    let header = Icmpv4Header::with_checksum(kind, &quoted).to_bytes().to_vec();
    Ip { protocol: IpNumber::ICMP, payload: [header, quoted].concat(), ..Ip::udp(from, about.src, 0) }
}

fn fragment(ip: &Ip, offset: u16, more: bool) -> Ip {
    Ip { fragment: (offset, more), dont_fragment: false, ..ip.clone() }
}

#[test]
fn what_the_stack_sends_from_pod_to_pod_comes_back_to_the_stack() {
    Bed::with(|bed| {
        let local = Ip::udp(OTHER_POD, POD, 53);
        let remote = Ip::udp(REMOTE_POD, POD, 53);
        let node = Ip::udp(PEER, POD, 53);
        bed.check(vec![
            direct(bed, "before: to a local pod", &answer(&local)),
            direct(bed, "before: to a remote pod", &answer(&remote)),
            direct(bed, "before: to another node", &answer(&node)),
            handed(bed, "of a local pod", &local, true),
            handed(bed, "of a remote pod", &remote, true),
            handed(bed, "of another node", &node, true),
            handed(bed, "again: recorded once", &local, false),
            returned(bed, "to a local pod", &answer(&local)),
            returned(bed, "to a remote pod", &answer(&remote)),
            returned(bed, "to another node", &answer(&node)),
            direct(bed, "another port is another flow", &Ip::udp(POD, OTHER_POD, 53)),
            direct(bed, "another protocol too", &with_protocol(&answer(&local), 6)),
        ]);
    });
}

#[test]
fn what_the_stack_sends_to_a_remote_pod_comes_back_to_the_stack() {
    Bed::with(|bed| {
        let udp = Ip::udp(POD, REMOTE_POD, 53);
        let tcp = Ip::tcp(POD, REMOTE_POD, 100);
        bed.check(vec![
            arriving(bed, "before", &answer(&udp), false),
            leaving(bed, "UDP", &udp, true),
            leaving(bed, "TCP", &tcp, true),
            leaving(bed, "again", &udp, false),
            leaving(bed, "SCTP", &with_protocol(&udp, 132), true),
            leaving(bed, "a protocol without ports", &with_protocol(&udp, 47), true),
            arriving(bed, "UDP comes back", &answer(&udp), true),
            arriving(bed, "TCP comes back", &answer(&tcp), true),
            arriving(bed, "SCTP comes back", &answer(&with_protocol(&udp, 132)), true),
            arriving(bed, "the protocol without ports too", &answer(&with_protocol(&udp, 47)), true),
            arriving(bed, "another flow does not", &Ip::udp(REMOTE_POD, POD, 53), false),
            arriving(bed, "nor does that of UDP-Lite", &answer(&with_protocol(&udp, 136)), false),
        ]);
    });
}

#[test]
fn what_is_answered_to_the_stack_in_any_case_is_not_recorded() {
    Bed::with(|bed| {
        bed.check(vec![
            handed(bed, "from the world", &Ip::udp(WORLD, POD, 53), false),
            handed(bed, "from the gateway", &Ip::udp(GATEWAY, POD, 53), false),
            handed(bed, "from this node", &Ip::udp(VTEP, POD, 53), false),
            handed(
                bed,
                "from an address that nobody has",
                &Ip::udp(Ipv4Addr::new(10, 244, 9, 9), POD, 53),
                false,
            ),
            leaving(bed, "of the gateway", &Ip::udp(GATEWAY, REMOTE_POD, 53), false),
            leaving(bed, "of this node", &Ip::udp(VTEP, REMOTE_POD, 53), false),
            arriving(bed, "so nothing is looked up", &Ip::udp(REMOTE_POD, POD, 53), false),
        ]);
        assert_eq!(bed.flows().keys().unwrap(), []);
    });
}

#[test]
fn an_error_goes_the_way_of_the_flow_that_it_is_about() {
    Bed::with(|bed| {
        let flow = Ip::udp(POD, REMOTE_POD, 53);
        let other = Ip::udp(POD, REMOTE_POD, 54);
        let with_options = Ip { options: vec![1; 8], ..flow.clone() };
        let local = Ip::udp(OTHER_POD, POD, 53);
        bed.check(vec![
            leaving(bed, "a flow", &flow, true),
            arriving(bed, "about it, from its destination", &unreachable(REMOTE_POD, &flow), true),
            arriving(bed, "about it, from a node", &unreachable(PEER, &flow), true),
            arriving(bed, "about it, options quoted", &unreachable(PEER, &with_options), true),
            arriving(bed, "about another one", &unreachable(REMOTE_POD, &other), false),
            leaving(bed, "an error is not recorded", &unreachable(POD, &answer(&other)), false),
            handed(bed, "a local flow", &local, true),
            returned(bed, "about it", &unreachable(POD, &local)),
        ]);
    });
}

#[test]
fn echoes_are_told_apart_by_their_identifier() {
    Bed::with(|bed| {
        bed.check(vec![
            leaving(bed, "request", &echo(POD, REMOTE_POD, true, 7), true),
            arriving(bed, "its reply", &echo(REMOTE_POD, POD, false, 7), true),
            arriving(bed, "another reply", &echo(REMOTE_POD, POD, false, 8), false),
        ]);
    });
}

#[test]
fn all_fragments_of_a_datagram_go_the_way_of_the_flow() {
    Bed::with(|bed| {
        let udp = Ip::udp(POD, REMOTE_POD, 53);
        bed.check(vec![
            arriving(bed, "before", &fragment(&answer(&udp), 0, true), false),
            leaving(bed, "a flow", &udp, true),
            arriving(bed, "a first fragment", &fragment(&answer(&udp), 0, true), true),
            arriving(bed, "a later one", &fragment(&answer(&udp), 185, true), true),
            arriving(bed, "the last one", &fragment(&answer(&udp), 370, false), true),
            leaving(
                bed,
                "later fragments are not recorded",
                &fragment(&Ip::udp(POD, REMOTE_POD, 54), 185, false),
                false,
            ),
            leaving(bed, "first ones are", &fragment(&Ip::udp(POD, REMOTE_POD, 55), 0, true), true),
        ]);
    });
}

#[test]
fn a_packet_without_a_transport_header_is_of_no_flow() {
    Bed::with(|bed| {
        let short = |ip: Ip, len: usize| Ip { payload: ip.payload[..len].to_vec(), ..ip };
        bed.check(vec![
            leaving(bed, "a flow", &Ip::udp(POD, REMOTE_POD, 53), true),
            arriving(bed, "two bytes", &short(Ip::udp(REMOTE_POD, POD, 53), 2), false),
            arriving(bed, "half an ICMP message", &short(echo(REMOTE_POD, POD, false, 7), 4), false),
            arriving(
                bed,
                "an error that quotes nothing",
                &short(unreachable(REMOTE_POD, &Ip::udp(POD, REMOTE_POD, 53)), 8),
                false,
            ),
        ]);
    });
}

#[test]
fn the_table_shows_what_answers_look_like() {
    Bed::with(|bed| {
        bed.check(vec![leaving(bed, "a flow", &Ip::udp(POD, REMOTE_POD, 53), true)]);
        let mut keys = bed.flows().keys().unwrap();
        keys.sort();
        let pair = FlowKey {
            src: REMOTE_POD.into(),
            dst: POD.into(),
            kind: FlowKind::Pair as u8,
            ..FlowKey::default()
        };
        let flow =
            FlowKey { src_port: 53, dst_port: 40_000, protocol: 17, kind: FlowKind::Flow as u8, ..pair };
        assert_eq!(keys, [pair, flow]);
        let mut flows = bed.flows();
        assert!(flows.get(&flow).unwrap().unwrap().recorded_ns > 0);
        flows.remove(&flow).unwrap();
        bed.check(vec![arriving(bed, "forgotten", &answer(&Ip::udp(POD, REMOTE_POD, 53)), false)]);
    });
}
