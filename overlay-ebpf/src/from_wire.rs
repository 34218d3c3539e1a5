//! `from_wire`: tc ingress of an underlay device. Decapsulates natively what it fully understands and can take apart
//! rightly; everything else, tunnel packet or not, goes on to the kernel, whose tunnel packets come out at
//! `from_tunnel`.
//!
//! GSO: on kernels without the flag to clear a super-packet's tunnel state, only TCP is decapsulated here. A TCP
//! socket does not look at that state; a UDP socket would segment the packet once more, as a tunnel packet.

use aya_ebpf::{macros::classifier, programs::TcContext};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use overlay_common::{
    counter::Path,
    reason::{Hook, Reason},
    wire::{
        ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTO_TCP, ecn,
        ip::{Address as _, IpHeader as _},
        vxlan::{Outer, Tunnel},
    },
};

use crate::{
    config::{self, Family, Place as _},
    decap,
    drop::{Describe, drop},
    flows::{self, Flows},
    maps,
    packet::{self, PACKET_HOST, PASS, Packet},
    trace,
};

const HOOK: Hook = Hook::FromWire;

#[classifier]
pub(crate) fn from_wire(ctx: TcContext) -> i32 {
    let ether_type = packet::ether_type(&ctx);
    if packet::pkt_type(&ctx) != PACKET_HOST {
        return PASS;
    }
    match ether_type {
        ETHERTYPE_IPV4 if Ipv4Hdr::underlay() || Ipv4Hdr::cluster() => over::<Ipv4Hdr>(&ctx),
        ETHERTYPE_IPV6 if Ipv6Hdr::underlay() || Ipv6Hdr::cluster() => over::<Ipv6Hdr>(&ctx),
        _ => PASS,
    }
}

/// A packet of the family `O`, which may be a tunnel packet over it.
#[inline(always)]
fn over<O: Family>(ctx: &TcContext) -> i32 {
    let vtep = O::vtep();
    // The shorter inner header: with the other one the packet is still longer.
    if O::underlay()
        && let Some(packet) = packet::pulled::<Tunnel<O, Ipv4Hdr>>(ctx, 0)
    {
        // SAFETY: `pulled` checked the bounds; not used after `strip`, nor after the next `pulled`.
        let packet = unsafe { &*packet };
        if packet.is_for(&vtep) && packet.has_vni(vtep.vni) {
            if Ipv4Hdr::cluster() && packet.carries_plain() {
                return tunnel(ctx, packet);
            }
            if Ipv6Hdr::cluster()
                && packet.outer.eth.ether_type == Ipv6Hdr::ETHERTYPE.to_be()
                && let Some(packet) = packet::pulled::<Tunnel<O, Ipv6Hdr>>(ctx, 0)
            {
                // SAFETY: as above.
                let packet = unsafe { &*packet };
                if packet.carries_plain() {
                    return tunnel(ctx, packet);
                }
            }
        }
    }
    no_tunnel::<O>(ctx)
}

/// A pod's address is believed only out of the tunnel, where its node vouches for it.
#[inline(always)]
fn no_tunnel<O: Family>(ctx: &TcContext) -> i32 {
    let Some(packet) = packet::pulled::<Packet<O>>(ctx, 0) else { return PASS };
    // SAFETY: `pulled` checked the bounds.
    let src = unsafe { (*packet).ip.src() };
    if src.in_cluster() && !config::plain_pods() {
        return drop(ctx, Reason::PodAddressOnWire, HOOK, Describe::Packet);
    }
    PASS
}

#[inline(always)]
fn tunnel<O: Family, I: Flows>(ctx: &TcContext, tunnel: &Tunnel<O, I>) -> i32 {
    let outer_tos = tunnel.outer.ip.traffic_class();
    let inner = &tunnel.inner;
    if let Err(reason) = decap::check_source(tunnel.outer.ip.src().to_addr(), inner.src()) {
        return drop(ctx, reason, HOOK, Describe::Tunnel);
    }
    let Some(endpoint) = maps::endpoint(inner.dst()) else { return PASS };
    if inner.hops() <= 1 || flows::returns_to_stack(ctx, inner, ETH_LEN + Outer::<O>::LEN) {
        return PASS;
    }
    if packet::gso_size(ctx) == 0 {
        if !tunnel.lengths_agree(ctx.len()) {
            return PASS;
        }
    } else if inner.protocol() != PROTO_TCP && !config::decap_any_gso() {
        return PASS;
    }
    let traffic_class = match ecn::decap(outer_tos, inner.traffic_class()) {
        ecn::Decap::Keep => None,
        ecn::Decap::Set(value) => Some(value),
        ecn::Decap::Drop => return drop(ctx, Reason::Ecn, HOOK, Describe::Tunnel),
    };

    if !decap::strip::<O, I>(ctx) {
        return PASS;
    }
    let Some(packet) = packet::at::<Packet<I>>(ctx, 0) else {
        return drop(ctx, Reason::HeaderRoom, HOOK, Describe::Packet);
    };
    // SAFETY: `at` checked the bounds; nothing below moves the packet.
    let packet = unsafe { &mut *packet };
    decap::hop(ctx, &mut packet.ip, traffic_class);
    maps::count(Path::DecapNative, ctx.len());
    trace::step(ctx, Path::DecapNative, HOOK, Describe::Packet);
    decap::deliver(packet, endpoint)
}
