//! Out of the tunnel, by `from_wire`, in all four ways.

use etherparse::{EtherType, IpNumber};
use overlay_common::{
    counter::Path,
    reason::{Hook, Reason},
};
use overlay_userspace::datapath::{kernel, run::Verdict};

use super::bed::{
    FAR_POD, FAR_POD6, GATEWAY6, Inner, Ip6, LINK_LOCAL, OTHER_POD6, OVER, PEER6, POD6, REMOTE_POD6,
    STRANGER6, Tunnel, UNREADY_POD6, VTEP6, WORLD6, only_ipv6, with,
};
use crate::bed::{
    ANCHOR_MAC, Bed, Case, Counted, Ip, NEXT_HOP_MAC, Out, PEER, POD, POD_MAC, REMOTE_POD, STRANGER, VTEP,
    WIRE_MAC,
};

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

/// The pod's, or the kernel's where that does not let programs take one family out of the other.
fn delivered(bed: &Bed, name: &'static str, tunnel: &Tunnel, inner: &impl Inner) -> Case {
    let packet = tunnel.bytes();
    if packet[12..14] != tunnel.inner_type.0.to_be_bytes() && !kernel::has_decap_across_families() {
        return passed(bed, name, packet);
    }
    Case {
        verdict: Verdict::Redirect,
        out: Out::Packet(inner.framed(POD_MAC, ANCHOR_MAC)),
        counted: Counted::As(Path::DecapNative),
        ..passed(bed, name, tunnel.bytes())
    }
}

#[test]
fn packets_of_either_family_are_decapsulated_over_either() {
    with(|bed| {
        for (peer, far4, far6) in OVER {
            let v4 = |name, ip: &Ip| delivered(bed, name, &Tunnel::arriving(peer, ip), &ip.hop());
            let v6 = |name, ip: &Ip6| delivered(bed, name, &Tunnel::arriving(peer, ip), &ip.hop());
            let udp = Ip6::udp(far6, POD6, 53);
            bed.check(vec![
                v4("IPv4", &Ip::udp(far4, POD, 53)),
                v4("IPv4 TCP of full size", &Ip::tcp(far4, POD, 1390)),
                v6("IPv6", &udp),
                v6("IPv6 TCP of full size", &Ip6::tcp(far6, POD6, 1370)),
                v6("hop limit 2", &Ip6 { hop_limit: 2, ..udp.clone() }),
                v6("a first fragment", &udp.fragment(0, true)),
                v6("a later fragment", &udp.fragment(185, false)),
                v6("no payload", &Ip6 { next_header: IpNumber(59), payload: vec![], ..udp.clone() }),
                v6("an echo", &Ip6::icmp(far6, POD6, 128, [0, 7, 0, 1], b"ping")),
                v6("an error", &Ip6::icmp(far6, POD6, 1, [0; 4], &Ip6::udp(POD6, far6, 53).bytes())),
            ]);
        }
        let of_node = Ip6::udp(PEER6, POD6, 53);
        bed.check(vec![delivered(
            bed,
            "from a remote node itself",
            &Tunnel::arriving(PEER6.into(), &of_node),
            &of_node.hop(),
        )]);
    });
}

#[test]
fn ecn_follows_rfc_6040_across_families() {
    with(|bed| {
        let dscp = 46 << 2;
        for (peer, far4, far6) in OVER {
            for (outer, inner, wanted) in [
                (0b11, 0b10, Some(0b11)),
                (0b11, 0b01, Some(0b11)),
                (0b01, 0b10, Some(0b01)),
                (0b10, 0b00, Some(0b00)),
                (0b00, 0b11, Some(0b11)),
                // And a DSCP outside, which does not come in.
                (10 << 2, 0b10, Some(0b10)),
                (0b11, 0b00, None),
            ] {
                let (v4, v6) = (
                    Ip::udp(far4, POD, 53).class(dscp | inner),
                    Ip6::udp(far6, POD6, 53).class(dscp | inner),
                );
                let marked = |tunnel: Tunnel| Tunnel { class: outer, ..tunnel };
                let (tunnel4, tunnel6) =
                    (marked(Tunnel::arriving(peer, &v4)), marked(Tunnel::arriving(peer, &v6)));
                bed.check(match wanted {
                    Some(ecn) => vec![
                        delivered(bed, "IPv4", &tunnel4, &v4.hop().class(dscp | ecn)),
                        delivered(bed, "IPv6", &tunnel6, &v6.hop().class(dscp | ecn)),
                    ],
                    None => vec![
                        dropped(bed, "IPv4", &tunnel4, Reason::Ecn),
                        dropped(bed, "IPv6", &tunnel6, Reason::Ecn),
                    ],
                });
            }
        }
    });
}

#[test]
fn forged_tunnel_packets_are_dropped_under_their_reason() {
    with(|bed| {
        let of = |src| Ip6::udp(src, POD6, 53);
        let over6 = |inner: &Ip6| Tunnel::arriving(PEER6.into(), inner);
        let over4 = |inner: &Ip6| Tunnel::arriving(PEER.into(), inner);
        let far = of(FAR_POD6);
        bed.check(vec![
            dropped(bed, "from no node", &over6(&far).from(STRANGER6), Reason::UnknownVtep),
            dropped(
                bed,
                "from no node over IPv4",
                &over4(&of(REMOTE_POD6)).from(STRANGER),
                Reason::UnknownVtep,
            ),
            dropped(
                bed,
                "a pod of a node over the other family",
                &over6(&of(REMOTE_POD6)),
                Reason::InnerSource,
            ),
            dropped(bed, "the other way round", &over4(&far), Reason::InnerSource),
            dropped(
                bed,
                "an IPv4 pod of a node over the other family",
                &Tunnel::arriving(PEER6.into(), &Ip::udp(REMOTE_POD, POD, 53)),
                Reason::InnerSource,
            ),
            dropped(
                bed,
                "a pod over IPv6 with IPv4 inside, from the wrong node",
                &Tunnel::arriving(PEER.into(), &Ip::udp(FAR_POD, POD, 53)),
                Reason::InnerSource,
            ),
            dropped(bed, "the world", &over6(&of(WORLD6)), Reason::InnerSource),
            dropped(bed, "a pod of this node", &over6(&of(OTHER_POD6)), Reason::InnerSource),
            dropped(bed, "this node itself", &over6(&of(VTEP6)), Reason::InnerSource),
            dropped(bed, "this node outside too", &over6(&of(OTHER_POD6)).from(VTEP6), Reason::InnerSource),
            dropped(bed, "a link-local address", &over6(&of(LINK_LOCAL)), Reason::InnerSource),
            dropped(bed, "no address", &over6(&of(std::net::Ipv6Addr::UNSPECIFIED)), Reason::InnerSource),
            // To the maps that is the IPv4 pod, which belongs to this very node.
            dropped(bed, "an IPv4 pod's, mapped", &over6(&of(FAR_POD.to_ipv6_mapped())), Reason::InnerSource),
            dropped(bed, "the same over IPv4", &over4(&of(REMOTE_POD.to_ipv6_mapped())), Reason::InnerSource),
        ]);
    });
}

#[test]
fn a_pods_address_is_believed_only_out_of_the_tunnel() {
    with(|bed| {
        let on_wire = |name, ip: &Ip6| passed(bed, name, ip.framed(WIRE_MAC, NEXT_HOP_MAC));
        let plain = |name, src, dst| Case {
            verdict: Verdict::Drop,
            counted: Counted::Dropped(Reason::PodAddressOnWire),
            ..on_wire(name, &Ip6::udp(src, dst, 53))
        };
        bed.check(vec![
            plain("a remote pod's, to a pod", REMOTE_POD6, POD6),
            plain("a remote pod's, to the node", FAR_POD6, VTEP6),
            plain("a local pod's: this node is no relay", POD6, REMOTE_POD6),
            on_wire("a node's own address is the stack's to judge", &Ip6::udp(PEER6, POD6, 53)),
            on_wire("the world's too", &Ip6::udp(WORLD6, POD6, 53)),
            on_wire(
                "a neighbour's question",
                &Ip6::icmp("fe80::2".parse().unwrap(), VTEP6, 135, [0; 4], &VTEP6.octets()),
            ),
        ]);
        bed.reload(|constants| {
            super::bed::dual(constants);
            constants.plain_pods = true;
        });
        let packet = Ip6::udp(REMOTE_POD6, VTEP6, 53).framed(WIRE_MAC, NEXT_HOP_MAC);
        bed.check(vec![passed(bed, "where nodes send plainly", packet)]);
    });
}

#[test]
fn what_is_not_plainly_ours_goes_to_the_kernel() {
    with(|bed| {
        let inner = Ip6::udp(FAR_POD6, POD6, 53);
        let good = Tunnel::arriving(PEER6.into(), &inner);
        let outer = |change: fn(&mut Ip6)| {
            let mut outer = good.outer6();
            change(&mut outer);
            outer.framed(WIRE_MAC, NEXT_HOP_MAC)
        };
        let arriving = |ip: &Ip6| Tunnel::arriving(PEER6.into(), ip).bytes();
        let whole = good.bytes();
        let mut lying = whole.clone();
        // Inner payload length larger than the packet.
        lying[88..90].copy_from_slice(&9000_u16.to_be_bytes());
        bed.check(vec![
            passed(bed, "another destination address", outer(|ip| ip.dst = STRANGER6)),
            passed(bed, "another VNI", Tunnel { vni: 2, ..good.clone() }.bytes()),
            passed(bed, "outer options", outer(|ip| *ip = ip.extended(60, 0))),
            passed(bed, "an outer first fragment", outer(|ip| *ip = ip.fragment(0, true))),
            passed(bed, "an outer later fragment", outer(|ip| *ip = ip.fragment(1, false))),
            passed(bed, "TCP on the tunnel's port", outer(|ip| ip.next_header = IpNumber::TCP)),
            passed(bed, "inner ARP", Tunnel { inner_type: EtherType::ARP, ..good.clone() }.bytes()),
            passed(bed, "IPv4 that says it is IPv6", {
                let ip = Ip::udp(FAR_POD, POD, 53);
                Tunnel { inner_type: EtherType::IPV6, ..Tunnel::arriving(PEER6.into(), &ip) }.bytes()
            }),
            passed(bed, "inner options", arriving(&inner.extended(60, 0))),
            passed(bed, "inner hop-by-hop options", arriving(&inner.extended(0, 0))),
            passed(bed, "one that expires here", arriving(&Ip6 { hop_limit: 1, ..inner.clone() })),
            passed(bed, "for the node itself", arriving(&Ip6 { dst: VTEP6, ..inner.clone() })),
            passed(bed, "for the gateway", arriving(&Ip6 { dst: GATEWAY6, ..inner.clone() })),
            passed(
                bed,
                "for a pod that is not complete",
                arriving(&Ip6 { dst: UNREADY_POD6, ..inner.clone() }),
            ),
            passed(
                bed,
                "for an IPv4 pod, mapped",
                arriving(&Ip6 { dst: POD.to_ipv6_mapped(), ..inner.clone() }),
            ),
            passed(bed, "cut off", whole[..120].to_vec()),
            passed(bed, "cut off in the inner packet", whole[..whole.len() - 1].to_vec()),
            passed(bed, "a length that lies", lying),
        ]);
    });
}

#[test]
fn a_family_that_is_not_in_use_is_the_kernels() {
    with(|bed| {
        let v4 = Ip::udp(FAR_POD, POD, 53);
        bed.reload(only_ipv6);
        bed.check(vec![
            passed(bed, "IPv4 inside", Tunnel::arriving(PEER6.into(), &v4).bytes()),
            passed(bed, "over IPv4", Tunnel::arriving(PEER.into(), &Ip6::udp(REMOTE_POD6, POD6, 53)).bytes()),
            passed(bed, "pods' IPv4 addresses", Ip::udp(REMOTE_POD, VTEP, 53).framed(WIRE_MAC, NEXT_HOP_MAC)),
        ]);
        // IPv4 pods alone, over IPv6.
        bed.reload(|constants| constants.vtep.v6 = Some(VTEP6.into()));
        let over6 = Tunnel::arriving(PEER6.into(), &v4);
        bed.check(vec![
            delivered(bed, "IPv4 over IPv6", &over6, &v4.hop()),
            passed(bed, "IPv6 inside", Tunnel::arriving(PEER6.into(), &Ip6::udp(FAR_POD6, POD6, 53)).bytes()),
        ]);
    });
}
