//! `xdp_wire`: XDP of an underlay device, native mode alone. Drops what `from_wire` or `from_tunnel` would drop because
//! of its sender, its VNI, its payload or its destination, before there is an skb for it.
//!
//! Invariants: never stricter than those two, and with the same reasons; what is not fully understood passes, for them to
//! judge. No packet is changed: decapsulating here does not pay (ARCHITECTURE.md).
//!
//! The device may have taken a VLAN tag off before this program runs, which then cannot see that the packet is not for
//! this network: the agent does not attach it to a device that carries VLANs.

use aya_ebpf::{macros::xdp, programs::XdpContext};
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
};
use overlay_common::{
    reason::Reason,
    wire::{
        ETHERTYPE_IPV4, ETHERTYPE_IPV6, guard,
        ip::{Address as _, IpHeader as _},
        vxlan::Tunnel,
    },
};

use crate::{
    config::{self, Family, Place as _},
    decap::check_source,
    drop::drop_frame,
    frame::{self, PASS},
    maps,
    packet::{Packet, same_mac},
};

#[xdp(frags)]
pub(crate) fn xdp_wire(ctx: XdpContext) -> u32 {
    let Some(eth) = frame::at::<EthHdr>(&ctx, 0) else { return PASS };
    // SAFETY: `at` checked the bounds; nothing below moves the packet.
    let eth = unsafe { &*eth };
    if !same_mac(&eth.dst_addr, &config::wire_mac()) {
        return PASS;
    }
    match u16::from_be(eth.ether_type) {
        ETHERTYPE_IPV4 if Ipv4Hdr::underlay() || Ipv4Hdr::cluster() => over::<Ipv4Hdr>(&ctx),
        ETHERTYPE_IPV6 if Ipv6Hdr::underlay() || Ipv6Hdr::cluster() => over::<Ipv6Hdr>(&ctx),
        _ => PASS,
    }
}

/// A packet of the family `O`, which may be a tunnel packet over it.
#[inline(always)]
fn over<O: Family>(ctx: &XdpContext) -> u32 {
    let Some(packet) = frame::at::<Packet<O>>(ctx, 0) else { return PASS };
    // SAFETY: `at` checked the bounds; nothing below moves the packet.
    let packet = unsafe { &*packet };
    let vtep = O::vtep();
    let tunnel = frame::at::<Tunnel<O, Ipv4Hdr>>(ctx, 0)
        // SAFETY: as above.
        .map(|tunnel| unsafe { &*tunnel })
        .filter(|tunnel| O::underlay() && guard::reaches_anchor(tunnel, &vtep));
    // A plain one is a tunnel packet and nothing else, whatever its outer source is.
    if let Some(tunnel) = tunnel
        && tunnel.has_vni(vtep.vni)
    {
        if Ipv4Hdr::cluster() && tunnel.carries_plain() {
            return judge(ctx, check(tunnel));
        }
        if let Some(tunnel) = of_ipv6::<O>(ctx, tunnel)
            && tunnel.carries_plain()
        {
            return judge(ctx, check(tunnel));
        }
    }
    if packet.ip.src().in_cluster() && !config::plain_pods() {
        return drop_frame(ctx, Reason::PodAddressOnWire, false);
    }
    let Some(tunnel) = tunnel else { return PASS };
    if let Some(reason) = guard::refused(tunnel, vtep.vni, config::carries) {
        return judge(ctx, Err(reason));
    }
    if tunnel.outer.eth.ether_type == Ipv4Hdr::ETHERTYPE.to_be() {
        return judge(ctx, check(tunnel));
    }
    of_ipv6::<O>(ctx, tunnel).map_or(PASS, |tunnel| judge(ctx, check(tunnel)))
}

/// The packet as one that carries IPv6, if it does.
#[inline(always)]
fn of_ipv6<'a, O: Family>(
    ctx: &'a XdpContext,
    tunnel: &Tunnel<O, Ipv4Hdr>,
) -> Option<&'a Tunnel<O, Ipv6Hdr>> {
    if !Ipv6Hdr::cluster() || tunnel.outer.eth.ether_type != Ipv6Hdr::ETHERTYPE.to_be() {
        return None;
    }
    // SAFETY: as above.
    frame::at::<Tunnel<O, Ipv6Hdr>>(ctx, 0).map(|tunnel| unsafe { &*tunnel })
}

#[inline(always)]
fn judge(ctx: &XdpContext, verdict: Result<(), Reason>) -> u32 {
    verdict.map_or_else(|reason| drop_frame(ctx, reason, true), |()| PASS)
}

/// Sender and destination, as `from_wire` and `from_tunnel` check them.
#[inline(always)]
fn check<O: Family, I: Family>(tunnel: &Tunnel<O, I>) -> Result<(), Reason> {
    check_source(tunnel.outer.ip.src().to_addr(), tunnel.inner.src())?;
    let dst = tunnel.inner.dst();
    // Own pods first: that takes no lookup. Such as no pod has are the stack's to answer.
    let accepted = dst.in_own_subnet()
        || maps::endpoint(dst).is_some()
        || maps::node(dst).is_some_and(|node| !maps::is_remote(node));
    if accepted { Ok(()) } else { Err(Reason::InnerDestination) }
}
