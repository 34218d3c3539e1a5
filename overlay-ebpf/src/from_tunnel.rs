//! `from_tunnel`: tc ingress of the anchor device. What the kernel decapsulated: GSO packets that a program cannot take
//! apart rightly, packets for the node itself, packets that came in by a device without `from_wire`, odd ones. The
//! checks are those of the native path.

use aya_ebpf::{macros::classifier, programs::TcContext};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use overlay_common::{
    counter::Path,
    maps::Addr,
    reason::{Hook, Reason},
    wire::{ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6},
};

use crate::{
    config::{self, Family as _},
    decap,
    drop::{Describe, drop},
    flows::{self, Flows},
    maps,
    packet::{self, PACKET_HOST, PASS, Packet},
    trace,
    tunnel_key::{Sender, sender},
};

const HOOK: Hook = Hook::FromTunnel;

#[classifier]
pub(crate) fn from_tunnel(ctx: TcContext) -> i32 {
    let skb = packet::skb(&ctx);
    let sender = match sender::<Ipv4Hdr>(skb) {
        None if Ipv6Hdr::underlay() => sender::<Ipv6Hdr>(skb),
        sender => sender,
    };
    let Some(Sender { vni, src }) = sender else {
        // What `from_host` tells the stack.
        if packet::take_own_mark(&ctx) {
            return PASS;
        }
        return drop(&ctx, Reason::TunnelKey, HOOK, Describe::Packet);
    };
    let verdict = if vni == config::vni() {
        match packet::ether_type(&ctx) {
            ETHERTYPE_IPV4 if Ipv4Hdr::cluster() => ip::<Ipv4Hdr>(&ctx, src),
            ETHERTYPE_IPV6 if Ipv6Hdr::cluster() => ip::<Ipv6Hdr>(&ctx, src),
            _ => Err(Reason::InnerProtocol),
        }
    } else {
        Err(Reason::Vni)
    };
    verdict.unwrap_or_else(|reason| drop(&ctx, reason, HOOK, Describe::Decapsulated(src)))
}

#[inline(always)]
fn ip<H: Flows>(ctx: &TcContext, outer_src: Addr) -> Result<i32, Reason> {
    let packet = packet::pulled::<Packet<H>>(ctx, 0).ok_or(Reason::Truncated)?;
    // SAFETY: `pulled` checked the bounds; nothing below moves the packet.
    let packet = unsafe { &mut *packet };
    decap::check_source(outer_src, packet.ip.src())?;

    let dst = packet.ip.dst();
    if let Some(endpoint) = maps::endpoint(dst)
        && packet.ip.is_plain()
        && packet.ip.hops() > 1
        && !flows::returns_to_stack(ctx, &packet.ip, ETH_LEN)
    {
        decap::hop(ctx, &mut packet.ip, None);
        maps::count(Path::DecapAnchor, ctx.len());
        trace::step(ctx, Path::DecapAnchor, HOOK, Describe::Decapsulated(outer_src));
        return Ok(decap::deliver(packet, endpoint));
    }
    // Only what is this node's own goes further: a node is no gateway for whoever can send to its tunnel port.
    if maps::node(dst).is_none_or(maps::is_remote) {
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
