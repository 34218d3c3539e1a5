//! `xdp_wire`: XDP of an underlay device, native mode alone. Drops what `from_wire` or `from_tunnel` would drop because
//! of its sender, its VNI, its payload or its destination, before there is an skb for it.
//!
//! Invariants: never stricter than those two, and with the same reasons; what is not fully understood passes, for them to
//! judge. No packet is changed: decapsulating here does not pay (ARCHITECTURE.md).
//!
//! The device may have taken a VLAN tag off before this program runs, which then cannot see that the packet is not for
//! this network: the agent does not attach it to a device that carries VLANs.

use aya_ebpf::{macros::xdp, programs::XdpContext};
use overlay_common::{
    maps::NODE_SELF,
    reason::Reason,
    wire::{ETHERTYPE_IPV4, guard, vxlan::Tunnel},
};

use crate::{
    config,
    decap::check_source,
    drop::drop_frame,
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
    // SAFETY: `at` checked the bounds; nothing below moves the packet.
    let tunnel = frame::at::<Tunnel>(&ctx, 0).map(|tunnel| unsafe { &*tunnel });
    if let Some(tunnel) = tunnel
        && tunnel.is_plain(&vtep)
    {
        return judge(&ctx, check(tunnel));
    }
    if config::in_cluster(u32::from_ne_bytes(packet.ip.src_addr)) && !config::plain_pods() {
        return drop_frame(&ctx, Reason::PodAddressOnWire, false);
    }
    let Some(tunnel) = tunnel.filter(|tunnel| guard::reaches_anchor(tunnel, &vtep)) else { return PASS };
    judge(&ctx, guard::refused(tunnel, &vtep).map_or_else(|| check(tunnel), Err))
}

#[inline(always)]
fn judge(ctx: &XdpContext, verdict: Result<(), Reason>) -> u32 {
    verdict.map_or_else(|reason| drop_frame(ctx, reason, true), |()| PASS)
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
