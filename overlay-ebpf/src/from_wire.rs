//! `from_wire`: tc ingress of an underlay device. Decapsulates natively what it fully understands and can take apart
//! rightly; everything else, tunnel packet or not, goes on to the kernel, whose tunnel packets come out at
//! `from_tunnel`.
//!
//! GSO: on kernels without the flag to clear a super-packet's tunnel state, only TCP is decapsulated here. A TCP
//! socket does not look at that state; a UDP socket would segment the packet once more, as a tunnel packet.

use aya_ebpf::{macros::classifier, programs::TcContext};
use overlay_common::{
    counter::Path,
    reason::{Hook, Reason},
    wire::{ETHERTYPE_IPV4, PROTO_TCP, ecn, ipv4, vxlan::Tunnel},
};

use crate::{
    config,
    decap::{self, Delivery},
    drop::{Describe, drop},
    flows, maps,
    packet::{self, INNER_OFFSET, Ipv4Packet, PACKET_HOST, PASS},
    trace,
};

const HOOK: Hook = Hook::FromWire;

#[classifier]
pub(crate) fn from_wire(ctx: TcContext) -> i32 {
    if packet::ether_type(&ctx) != ETHERTYPE_IPV4 || packet::pkt_type(&ctx) != PACKET_HOST {
        return PASS;
    }
    if let Some(packet) = packet::pulled::<Tunnel>(&ctx, 0) {
        // SAFETY: `pulled` checked the bounds; not used after `strip`.
        let packet = unsafe { &*packet };
        if packet.is_plain(&config::vtep()) {
            return tunnel(&ctx, packet);
        }
    }
    no_tunnel(&ctx)
}

/// A pod's address is believed only out of the tunnel, where its node vouches for it.
#[inline(always)]
fn no_tunnel(ctx: &TcContext) -> i32 {
    let Some(packet) = packet::pulled::<Ipv4Packet>(ctx, 0) else { return PASS };
    // SAFETY: `pulled` checked the bounds.
    let src = unsafe { (*packet).ip.src_addr };
    if config::in_cluster(u32::from_ne_bytes(src)) && !config::plain_pods() {
        return drop(ctx, Reason::PodAddressOnWire, HOOK, Describe::Packet);
    }
    PASS
}

#[inline(always)]
fn tunnel(ctx: &TcContext, tunnel: &Tunnel) -> i32 {
    let outer_tos = tunnel.outer.ip.tos;
    let inner = &tunnel.inner;
    if let Err(reason) =
        decap::check_source(u32::from_ne_bytes(tunnel.outer.ip.src_addr), u32::from_ne_bytes(inner.src_addr))
    {
        return drop(ctx, reason, HOOK, Describe::Tunnel);
    }
    let Some(endpoint) = maps::endpoint(u32::from_ne_bytes(inner.dst_addr)) else { return PASS };
    if inner.ttl <= 1 || flows::returns_to_stack(ctx, inner, INNER_OFFSET) {
        return PASS;
    }
    if packet::gso_size(ctx) == 0 {
        if !tunnel.lengths_agree(ctx.len()) {
            return PASS;
        }
    } else if inner.proto != PROTO_TCP && !config::decap_any_gso() {
        return PASS;
    }
    let tos = match ecn::decap(outer_tos, inner.tos) {
        ecn::Decap::Keep => inner.tos,
        ecn::Decap::Set(tos) => tos,
        ecn::Decap::Drop => return drop(ctx, Reason::Ecn, HOOK, Describe::Tunnel),
    };

    if !decap::strip(ctx) {
        return PASS;
    }
    let Some(packet) = packet::at::<Delivery>(ctx, 0) else {
        return drop(ctx, Reason::HeaderRoom, HOOK, Describe::Packet);
    };
    // SAFETY: `at` checked the bounds; nothing below moves the packet.
    let packet = unsafe { &mut *packet };
    if tos != packet.ip.tos {
        ipv4::set_tos(&mut packet.ip, tos);
    }
    ipv4::decrement_ttl(&mut packet.ip);
    maps::count(Path::DecapNative, ctx.len());
    trace::step(ctx, Path::DecapNative, HOOK, Describe::Packet);
    decap::deliver(packet, endpoint)
}
