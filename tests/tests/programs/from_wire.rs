//! `from_wire`: what is decapsulated natively, what is dropped, what is the kernel's.

use etherparse::{EtherType, IpNumber};
use overlay_common::{
    counter::Path,
    reason::{Hook, Reason},
};
use overlay_userspace::datapath::run::Verdict;

use crate::bed::{
    ANCHOR_MAC, Bed, Case, Counted, GATEWAY, Ip, NEXT_HOP_MAC, Out, PEER, POD, POD_MAC, REMOTE_POD, STRANGER,
    Tunnel, UNREADY_POD, VTEP, WIRE_MAC, WORLD, frame, ipv4_frame,
};

fn inner() -> Ip {
    Ip::udp(REMOTE_POD, POD, 53)
}

/// The kernel's business, untouched and uncounted here.
fn passed(bed: &Bed, name: &'static str, packet: Vec<u8>) -> Case {
    Case {
        name,
        hook: Hook::FromWire,
        device: bed.devices.wire,
        packet,
        gso: None,
        verdict: Verdict::Pass,
        out: Out::Unchanged,
        counted: Counted::Nowhere,
    }
}

fn dropped(bed: &Bed, name: &'static str, tunnel: &Tunnel, reason: Reason) -> Case {
    Case { verdict: Verdict::Drop, counted: Counted::Dropped(reason), ..passed(bed, name, tunnel.bytes()) }
}

fn delivered(bed: &Bed, name: &'static str, tunnel: &Tunnel, ip: &Ip) -> Case {
    Case {
        verdict: Verdict::Redirect,
        out: Out::Packet(ipv4_frame(POD_MAC, ANCHOR_MAC, ip)),
        counted: Counted::As(Path::DecapNative),
        ..passed(bed, name, tunnel.bytes())
    }
}

fn from(outer: std::net::Ipv4Addr, inner: &Ip) -> Tunnel {
    let tunnel = Tunnel::arriving(inner);
    Tunnel { outer: Ip { src: outer, ..tunnel.outer.clone() }, ..tunnel }
}

#[test]
fn a_tunnel_packet_for_a_pod_is_decapsulated_and_delivered() {
    Bed::with(|bed| {
        let plain = |name, ip: &Ip| delivered(bed, name, &Tunnel::arriving(ip), &ip.hop());
        bed.check(vec![
            plain("UDP", &inner()),
            plain("TCP of full size", &Ip::tcp(REMOTE_POD, POD, 1410)),
            plain("TTL 2", &Ip { ttl: 2, ..inner() }),
            plain("a first fragment", &Ip { fragment: (0, true), dont_fragment: false, ..inner() }),
            plain("a later fragment", &Ip { fragment: (185, false), dont_fragment: false, ..inner() }),
            plain("from a remote node itself", &Ip { src: PEER, ..inner() }),
            delivered(
                bed,
                "whatever the inner MACs are",
                &Tunnel { inner_dst: [6; 6], inner_src: [8; 6], ..Tunnel::arriving(&inner()) },
                &inner().hop(),
            ),
            delivered(
                bed,
                "with another outer source port",
                &Tunnel { src_port: 1, ..Tunnel::arriving(&inner()) },
                &inner().hop(),
            ),
        ]);
    });
}

#[test]
fn ecn_follows_rfc_6040() {
    Bed::with(|bed| {
        let dscp = 46 << 2;
        let mixed = |outer: u8, inner_tos: u8| {
            let tunnel = Tunnel::arriving(&Ip { tos: dscp | inner_tos, ..inner() });
            Tunnel { outer: Ip { tos: outer, ..tunnel.outer.clone() }, ..tunnel }
        };
        let result = |tos: u8| Ip { tos: dscp | tos, ..inner().hop() };
        bed.check(vec![
            delivered(bed, "CE on ECT(0)", &mixed(0b11, 0b10), &result(0b11)),
            delivered(bed, "CE on ECT(1)", &mixed(0b11, 0b01), &result(0b11)),
            delivered(bed, "ECT(1) on ECT(0)", &mixed(0b01, 0b10), &result(0b01)),
            delivered(bed, "ECT(0) on Not-ECT", &mixed(0b10, 0b00), &result(0b00)),
            delivered(bed, "Not-ECT on CE", &mixed(0b00, 0b11), &result(0b11)),
            delivered(bed, "outer DSCP does not come in", &mixed(10 << 2, 0b10), &result(0b10)),
            dropped(bed, "CE on Not-ECT", &mixed(0b11, 0b00), Reason::Ecn),
        ]);
    });
}

#[test]
fn forged_tunnel_packets_are_dropped_under_their_reason() {
    Bed::with(|bed| {
        let src = |src: std::net::Ipv4Addr| Ip { src, ..inner() };
        bed.check(vec![
            dropped(bed, "from no node", &from(STRANGER, &inner()), Reason::UnknownVtep),
            dropped(
                bed,
                "from no node, as a local pod",
                &from(STRANGER, &src([10, 244, 1, 6].into())),
                Reason::UnknownVtep,
            ),
            dropped(
                bed,
                "a pod of a third node",
                &Tunnel::arriving(&src([10, 244, 3, 9].into())),
                Reason::InnerSource,
            ),
            dropped(bed, "a third node", &Tunnel::arriving(&src([192, 0, 2, 3].into())), Reason::InnerSource),
            dropped(bed, "an address of the world", &Tunnel::arriving(&src(WORLD)), Reason::InnerSource),
            dropped(
                bed,
                "a subnet that no node has",
                &Tunnel::arriving(&src([10, 244, 77, 1].into())),
                Reason::InnerSource,
            ),
            dropped(
                bed,
                "a pod of this node",
                &Tunnel::arriving(&src([10, 244, 1, 6].into())),
                Reason::InnerSource,
            ),
            dropped(bed, "this node itself", &Tunnel::arriving(&src(VTEP)), Reason::InnerSource),
            dropped(
                bed,
                "this node's address as outer source too",
                &from(VTEP, &src([10, 244, 1, 6].into())),
                Reason::InnerSource,
            ),
        ]);
    });
}

#[test]
fn a_pods_address_is_believed_only_out_of_the_tunnel() {
    Bed::with(|bed| {
        let plain = |name, src: std::net::Ipv4Addr, dst| Case {
            verdict: Verdict::Drop,
            counted: Counted::Dropped(Reason::PodAddressOnWire),
            ..passed(bed, name, ipv4_frame(WIRE_MAC, NEXT_HOP_MAC, &Ip::udp(src, dst, 53)))
        };
        let from = |name, src| passed(bed, name, ipv4_frame(WIRE_MAC, NEXT_HOP_MAC, &Ip::udp(src, POD, 53)));
        bed.check(vec![
            plain("a remote pod's, to a pod", REMOTE_POD, POD),
            plain("a remote pod's, to the node", REMOTE_POD, VTEP),
            plain("a local pod's, to a remote one: this node is no relay", POD, REMOTE_POD),
            from("a node's own address is the stack's to judge", PEER),
            from("the world's too", WORLD),
        ]);
    });
}

#[test]
fn what_is_not_plainly_ours_goes_to_the_kernel() {
    Bed::with(|bed| {
        let good = Tunnel::arriving(&inner());
        let outer = |change: fn(&mut Ip)| {
            let mut tunnel = good.clone();
            change(&mut tunnel.outer);
            tunnel.bytes()
        };
        let mut lying = good.bytes();
        // Inner total length larger than the packet.
        lying[66..68].copy_from_slice(&9000_u16.to_be_bytes());
        bed.check(vec![
            passed(bed, "ARP", frame([0xff; 6], NEXT_HOP_MAC, EtherType::ARP, &[0; 28])),
            passed(bed, "IPv6", frame(WIRE_MAC, NEXT_HOP_MAC, EtherType::IPV6, &[0x60; 100])),
            passed(bed, "other UDP", Tunnel { port: 53, ..good.clone() }.bytes()),
            passed(bed, "for another host", Tunnel { eth_dst: [2; 6], ..good.clone() }.bytes()),
            passed(bed, "another destination address", outer(|ip| ip.dst = STRANGER)),
            passed(bed, "another VNI", Tunnel { vni: 2, ..good.clone() }.bytes()),
            passed(
                bed,
                "a VNI that differs in its first byte",
                Tunnel { vni: 0x0001_0001, ..good.clone() }.bytes(),
            ),
            passed(bed, "no VNI flag", Tunnel { flags: 0, ..good.clone() }.bytes()),
            passed(bed, "an extension flag", Tunnel { flags: 0x88, ..good.clone() }.bytes()),
            passed(bed, "outer options", outer(|ip| ip.options = vec![1, 1, 1, 0])),
            passed(bed, "an outer first fragment", outer(|ip| ip.fragment = (0, true))),
            passed(bed, "an outer later fragment", outer(|ip| ip.fragment = (1, false))),
            passed(bed, "TCP on the tunnel's port", outer(|ip| ip.protocol = IpNumber::TCP)),
            passed(bed, "inner ARP", Tunnel { inner_type: EtherType::ARP, ..good.clone() }.bytes()),
            passed(
                bed,
                "inner options",
                Tunnel::arriving(&Ip { options: vec![1, 1, 1, 0], ..inner() }).bytes(),
            ),
            passed(bed, "one that expires here", Tunnel::arriving(&Ip { ttl: 1, ..inner() }).bytes()),
            passed(bed, "for the node itself", Tunnel::arriving(&Ip { dst: VTEP, ..inner() }).bytes()),
            passed(bed, "for the gateway", Tunnel::arriving(&Ip { dst: GATEWAY, ..inner() }).bytes()),
            passed(
                bed,
                "for an address that nobody has",
                Tunnel::arriving(&Ip { dst: [10, 244, 1, 99].into(), ..inner() }).bytes(),
            ),
            passed(
                bed,
                "for a pod that is not complete",
                Tunnel::arriving(&Ip { dst: UNREADY_POD, ..inner() }).bytes(),
            ),
            passed(bed, "cut off", good.bytes()[..80].to_vec()),
            passed(bed, "cut off in the inner packet", good.bytes()[..good.bytes().len() - 1].to_vec()),
            passed(bed, "a length that lies", lying),
        ]);
    });
}

/// A run without a wire cannot say of which kind the GSO is, and `bpf_skb_adjust_room` refuses such packets. TCP and UDP
/// GSO as real senders make it is in the lab's tests.
#[test]
fn gso_that_cannot_be_taken_apart_goes_to_the_kernel() {
    Bed::with(|bed| {
        let tcp = Ip::tcp(REMOTE_POD, POD, 3000);
        let udp = Ip { payload: vec![7; 3000], ..inner() };
        let gso = Some((1398, 3));
        bed.check(vec![
            Case { gso, ..passed(bed, "TCP of an unknown kind", Tunnel::arriving(&tcp).bytes()) },
            Case { gso, ..passed(bed, "UDP", Tunnel::arriving(&udp).bytes()) },
        ]);
    });
}
