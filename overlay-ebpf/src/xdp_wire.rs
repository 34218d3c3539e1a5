//! `xdp_wire`: XDP of an underlay device, native mode alone. Drops what `from_wire` or `from_tunnel` would drop because
//! of its sender, its VNI, its payload or its destination, before there is an skb for it. Where that is asked for, takes
//! the outer headers off TCP for local pods, so that GRO sees plain TCP.
//!
//! Invariants: never stricter than those two, and with the same reasons; what is not fully understood passes, for them to
//! judge. What is decapsulated has passed every check of `from_wire`, and says so in its metadata
//! ([`overlay_common::wire::guard::DECAPSULATED`]), or that would drop a pod's address outside of the tunnel.
//!
//! The device may have taken a VLAN tag off before this program runs, which then cannot see that the packet is not for
//! this network: the agent does not attach it to a device that carries VLANs.

use aya_ebpf::{
    helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_meta},
    macros::xdp,
    programs::XdpContext,
};
use network_types::eth::EthHdr;
use overlay_common::{
    maps::NODE_SELF,
    reason::Reason,
    wire::{
        ETHERTYPE_IPV4, ecn,
        guard::{self, DECAPSULATED, DECAPSULATED_LEN},
        ipv4,
        vxlan::{OVERHEAD_I32, TUNNEL_LEN, Tunnel},
    },
};

use crate::{
    config,
    decap::{Delivery, check_source},
    drop::drop_frame,
    flows,
    frame::{self, PASS},
    maps,
    packet::{Ipv4Packet, same_mac},
};

#[xdp(frags)]
pub(crate) fn xdp_wire(ctx: XdpContext) -> u32 {
    let Some(packet) = frame::at::<Ipv4Packet>(&ctx, 0) else { return PASS };
    // SAFETY: `at` checked the bounds; nothing below moves the packet.
    let packet = unsafe { &*packet };
    if packet.eth.ether_type != ETHERTYPE_IPV4.to_be() || !same_mac(&packet.eth.dst_addr, &config::wire_mac())
    {
        return PASS;
    }
    let vtep = config::vtep();
    // SAFETY: `at` checked the bounds; not used after `decapsulate`.
    let tunnel = frame::at::<Tunnel>(&ctx, 0).map(|tunnel| unsafe { &*tunnel });
    if let Some(tunnel) = tunnel
        && tunnel.is_plain(&vtep)
    {
        return match check(tunnel) {
            Err(reason) => drop_frame(&ctx, reason, true),
            Ok(()) if config::xdp_decap() && is_decapsulated_here(&ctx, tunnel) => decapsulate(&ctx, tunnel),
            Ok(()) => PASS,
        };
    }
    if config::in_cluster(u32::from_ne_bytes(packet.ip.src_addr)) && !config::plain_pods() {
        return drop_frame(&ctx, Reason::PodAddressOnWire, false);
    }
    let Some(tunnel) = tunnel.filter(|tunnel| guard::reaches_anchor(tunnel, &vtep)) else { return PASS };
    if let Some(reason) = guard::refused(tunnel, &vtep) {
        return drop_frame(&ctx, reason, true);
    }
    match check(tunnel) {
        Err(reason) => drop_frame(&ctx, reason, true),
        Ok(()) => PASS,
    }
}

/// Sender and destination, as `from_wire` and `from_tunnel` check them.
#[inline(always)]
fn check(tunnel: &Tunnel) -> Result<(), Reason> {
    check_source(u32::from_ne_bytes(tunnel.outer.ip.src_addr), u32::from_ne_bytes(tunnel.inner.src_addr))?;
    let dst = u32::from_ne_bytes(tunnel.inner.dst_addr);
    // Own pods first: that takes no lookup. Such as no pod has are the stack's to answer.
    let accepted = config::in_own_subnet(dst)
        || maps::endpoint(dst).is_some()
        // SAFETY: a map value, valid until the program ends.
        || maps::node(dst).is_some_and(|node| unsafe { (*node).flags } & NODE_SELF != 0);
    if accepted { Ok(()) } else { Err(Reason::InnerDestination) }
}

/// Would `from_wire` decapsulate this packet, and is it one that is worth while here?
#[inline(always)]
fn is_decapsulated_here(ctx: &XdpContext, tunnel: &Tunnel) -> bool {
    if !guard::may_decapsulate(tunnel, frame::len(ctx))
        || maps::endpoint(u32::from_ne_bytes(tunnel.inner.dst_addr)).is_none()
    {
        return false;
    }
    if !config::stack_flows() || !maps::any_flow() {
        return true;
    }
    let Some(ports) = frame::at::<[u8; 4]>(ctx, TUNNEL_LEN) else { return false };
    // SAFETY: `at` checked the bounds.
    !flows::is_recorded(&tunnel.inner, unsafe { *ports })
}

/// Takes the outer headers off, and says so to `from_wire`. Drivers without metadata get the packet as it came.
#[inline(always)]
fn decapsulate(ctx: &XdpContext, tunnel: &Tunnel) -> u32 {
    let tos = match ecn::decap(tunnel.outer.ip.tos, tunnel.inner.tos) {
        ecn::Decap::Set(tos) => tos,
        ecn::Decap::Keep | ecn::Decap::Drop => tunnel.inner.tos,
    };
    // SAFETY: a helper on the context (Linux 4.15, de8f3a83b0a0).
    if unsafe { bpf_xdp_adjust_meta(ctx.ctx, -DECAPSULATED_LEN) } != 0 {
        return PASS;
    }
    // SAFETY: a helper on the context. The metadata move along.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, OVERHEAD_I32) } != 0 {
        // SAFETY: as above: without metadata again, as it came.
        unsafe { bpf_xdp_adjust_meta(ctx.ctx, DECAPSULATED_LEN) };
        return PASS;
    }
    let meta = ctx.metadata();
    let Some(packet) = frame::at::<Delivery>(ctx, 0).filter(|_| meta + size_of::<u64>() <= ctx.data()) else {
        return drop_frame(ctx, Reason::HeaderRoom, false);
    };
    // SAFETY: the line above checked the bounds of both.
    let packet = unsafe {
        (meta as *mut u64).write_unaligned(DECAPSULATED);
        &mut *packet
    };
    // To this host: the inner header has the MAC of the anchor device.
    packet.eth = EthHdr { dst_addr: config::wire_mac(), ..packet.eth };
    if tos != packet.ip.tos {
        ipv4::set_tos(&mut packet.ip, tos);
    }
    PASS
}
