//! `xdp_wire` in both families: it drops what the programs of tc would, under the same reasons.

use etherparse::EtherType;
use overlay_common::reason::{Hook, Reason};
use overlay_userspace::datapath::run::Verdict;

use super::bed::{
    FAR_POD, FAR_POD6, GATEWAY6, Inner as _, Ip6, LINK_LOCAL, OTHER_POD6, OVER, PEER6, POD6, REMOTE_POD6,
    STRANGER6, Tunnel, VTEP6, WORLD6, with,
};
use crate::bed::{Bed, Case, Counted, Ip, NEXT_HOP_MAC, Out, PEER, POD, STRANGER, WIRE_MAC};

fn passed(bed: &Bed, name: &'static str, packet: Vec<u8>) -> Case {
    Case {
        name,
        hook: Hook::XdpWire,
        device: bed.devices.wire,
        packet,
        gso: None,
        verdict: Verdict::Pass,
        out: Out::Unchanged,
        counted: Counted::Nowhere,
    }
}

fn dropped(bed: &Bed, name: &'static str, packet: Vec<u8>, reason: Reason) -> Case {
    Case { verdict: Verdict::Drop, counted: Counted::Dropped(reason), ..passed(bed, name, packet) }
}

#[test]
fn good_packets_of_all_four_kinds_pass() {
    with(|bed| {
        for (peer, far4, far6) in OVER {
            let v6 = Ip6::udp(far6, POD6, 53);
            bed.check(vec![
                passed(bed, "IPv4", Tunnel::arriving(peer, &Ip::udp(far4, POD, 53)).bytes()),
                passed(bed, "IPv6", Tunnel::arriving(peer, &v6).bytes()),
                passed(bed, "inner options", Tunnel::arriving(peer, &v6.extended(60, 0)).bytes()),
                passed(
                    bed,
                    "for the node",
                    Tunnel::arriving(peer, &Ip6 { dst: VTEP6, ..v6.clone() }).bytes(),
                ),
                passed(
                    bed,
                    "for the gateway",
                    Tunnel::arriving(peer, &Ip6 { dst: GATEWAY6, ..v6.clone() }).bytes(),
                ),
            ]);
        }
    });
}

#[test]
fn forged_packets_are_dropped_under_the_reasons_of_tc() {
    with(|bed| {
        let of = |src| Ip6::udp(src, POD6, 53);
        let over6 = |inner: &Ip6| Tunnel::arriving(PEER6.into(), inner);
        let over4 = |inner: &Ip6| Tunnel::arriving(PEER.into(), inner);
        let far = of(FAR_POD6);
        let cases = [
            ("from no node", over6(&far).from(STRANGER6), Reason::UnknownVtep),
            ("from no node over IPv4", over4(&of(REMOTE_POD6)).from(STRANGER), Reason::UnknownVtep),
            ("over the other family", over6(&of(REMOTE_POD6)), Reason::InnerSource),
            ("the world", over6(&of(WORLD6)), Reason::InnerSource),
            ("a link-local address", over6(&of(LINK_LOCAL)), Reason::InnerSource),
            ("a pod of this node", over6(&of(OTHER_POD6)), Reason::InnerSource),
            ("mapped", over6(&of(FAR_POD.to_ipv6_mapped())), Reason::InnerSource),
            ("with inner options", over6(&of(REMOTE_POD6).extended(60, 0)), Reason::InnerSource),
            ("to the world", over6(&Ip6 { dst: WORLD6, ..far.clone() }), Reason::InnerDestination),
            (
                "to another node's pod",
                over6(&Ip6 { dst: REMOTE_POD6, ..far.clone() }),
                Reason::InnerDestination,
            ),
            ("to the link", over6(&Ip6 { dst: LINK_LOCAL, ..far.clone() }), Reason::InnerDestination),
            ("another VNI", Tunnel { vni: 2, ..over6(&far) }, Reason::Vni),
            ("ARP inside", Tunnel { inner_type: EtherType::ARP, ..over6(&far) }, Reason::InnerProtocol),
        ];
        for (name, tunnel, reason) in cases {
            bed.check(vec![dropped(bed, name, tunnel.bytes(), reason)]);
        }
        bed.check(vec![dropped(
            bed,
            "a pod's address outside of the tunnel",
            Ip6::udp(REMOTE_POD6, VTEP6, 53).framed(WIRE_MAC, NEXT_HOP_MAC),
            Reason::PodAddressOnWire,
        )]);
    });
}

#[test]
fn what_is_not_understood_passes() {
    with(|bed| {
        let good = Tunnel::arriving(PEER6.into(), &Ip6::udp(WORLD6, POD6, 53));
        bed.check(vec![
            passed(bed, "outer options", good.outer6().extended(60, 0).framed(WIRE_MAC, NEXT_HOP_MAC)),
            passed(bed, "an outer fragment", good.outer6().fragment(0, true).framed(WIRE_MAC, NEXT_HOP_MAC)),
            passed(bed, "for another host", good.outer6().framed([2; 6], NEXT_HOP_MAC)),
            passed(bed, "cut off in the inner header", good.bytes()[..110].to_vec()),
            passed(
                bed,
                "a neighbour's question",
                Ip6::icmp("fe80::2".parse().unwrap(), VTEP6, 135, [0; 4], &VTEP6.octets())
                    .framed(WIRE_MAC, NEXT_HOP_MAC),
            ),
        ]);
        bed.reload(|_| {});
        bed.check(vec![
            passed(
                bed,
                "IPv6 is not in use: a pod's address",
                Ip6::udp(REMOTE_POD6, VTEP6, 53).framed(WIRE_MAC, NEXT_HOP_MAC),
            ),
            passed(bed, "the same: over IPv6", good.bytes()),
            dropped(
                bed,
                "the same: IPv6 inside",
                Tunnel::arriving(PEER.into(), &Ip6::udp(REMOTE_POD6, POD6, 53)).bytes(),
                Reason::InnerProtocol,
            ),
        ]);
    });
}
