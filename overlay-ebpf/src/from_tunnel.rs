//! `from_tunnel`: tc ingress of the anchor device. What the kernel decapsulated: GSO packets that a program cannot take
//! apart rightly, packets for the node itself, packets that came in by a device without `from_wire`, odd ones. The
//! checks are those of the native path.

use aya_ebpf::{
    bindings::{
        bpf_tunnel_key, bpf_tunnel_key__bindgen_ty_1, bpf_tunnel_key__bindgen_ty_2,
        bpf_tunnel_key__bindgen_ty_3,
    },
    helpers::bpf_skb_get_tunnel_key,
    macros::classifier,
    programs::TcContext,
};
use overlay_common::{
    counter::Path,
    maps::NODE_SELF,
    reason::{Hook, Reason},
    wire::{ETH_LEN, ETHERTYPE_IPV4, ipv4},
};

use crate::{
    config,
    decap::{self, Delivery},
    drop::{Describe, drop},
    flows, maps,
    packet::{self, PACKET_HOST, PASS},
    trace,
};

const HOOK: Hook = Hook::FromTunnel;

#[classifier]
pub(crate) fn from_tunnel(ctx: TcContext) -> i32 {
    let mut key = bpf_tunnel_key {
        tunnel_id: 0,
        __bindgen_anon_1: bpf_tunnel_key__bindgen_ty_1 { remote_ipv6: [0; 4] },
        tunnel_tos: 0,
        tunnel_ttl: 0,
        __bindgen_anon_2: bpf_tunnel_key__bindgen_ty_2 { tunnel_ext: 0 },
        tunnel_label: 0,
        __bindgen_anon_3: bpf_tunnel_key__bindgen_ty_3 { local_ipv6: [0; 4] },
    };
    // SAFETY: the helper writes at most the given number of bytes of `key`.
    let rc = unsafe {
        bpf_skb_get_tunnel_key(
            packet::skb(&ctx),
            core::ptr::from_mut(&mut key),
            size_of::<bpf_tunnel_key>() as u32,
            0,
        )
    };
    if rc != 0 {
        return drop(&ctx, Reason::TunnelKey, HOOK, Describe::Packet);
    }
    // SAFETY: both variants are plain integers. Host order (bpf-helpers(7)).
    let outer_src = u32::to_be(unsafe { key.__bindgen_anon_1.remote_ipv4 });
    let verdict = if key.tunnel_id != config::vni() {
        Err(Reason::Vni)
    } else if packet::ether_type(&ctx) != ETHERTYPE_IPV4 {
        Err(Reason::InnerProtocol)
    } else {
        ipv4(&ctx, outer_src)
    };
    verdict.unwrap_or_else(|reason| drop(&ctx, reason, HOOK, Describe::Decapsulated(outer_src)))
}

#[inline(always)]
fn ipv4(ctx: &TcContext, outer_src: u32) -> Result<i32, Reason> {
    let packet = packet::pulled::<Delivery>(ctx, 0).ok_or(Reason::Truncated)?;
    // SAFETY: `pulled` checked the bounds; nothing below moves the packet.
    let packet = unsafe { &mut *packet };
    decap::check_source(outer_src, u32::from_ne_bytes(packet.ip.src_addr))?;

    let dst = u32::from_ne_bytes(packet.ip.dst_addr);
    if let Some(endpoint) = maps::endpoint(dst)
        && ipv4::is_plain(&packet.ip)
        && packet.ip.ttl > 1
        && !flows::returns_to_stack(ctx, &packet.ip, ETH_LEN)
    {
        ipv4::decrement_ttl(&mut packet.ip);
        maps::count(Path::DecapAnchor, ctx.len());
        trace::step(ctx, Path::DecapAnchor, HOOK, Describe::Decapsulated(outer_src));
        return Ok(decap::deliver(packet, endpoint));
    }
    // Only what is this node's own goes further: a node is no gateway for whoever can send to its tunnel port.
    // SAFETY: a map value, valid until the program ends.
    if maps::node(dst).is_none_or(|node| unsafe { (*node).flags } & NODE_SELF == 0) {
        return Err(Reason::InnerDestination);
    }
    // A peer may have an old idea of this node's MAC; the address decides.
    if packet::pkt_type(ctx) != PACKET_HOST {
        let _ = ctx.change_type(PACKET_HOST);
    }
    maps::count(Path::TunnelToStack, ctx.len());
    trace::step(ctx, Path::TunnelToStack, HOOK, Describe::Decapsulated(outer_src));
    Ok(PASS)
}
