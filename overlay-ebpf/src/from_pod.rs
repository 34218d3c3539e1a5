//! `from_pod`: tc ingress of a pod's host side device. Everything a pod sends comes through here first.
//!
//! A pod may send only with the address and the MAC that its endpoint entry holds. What it sends to another pod goes
//! there directly or into the tunnel; what it sends to a remote node goes into the tunnel too, so that its address
//! stays; everything else is the stack's, and so is what belongs to a flow that came through the stack.

use aya_ebpf::{helpers::bpf_redirect, macros::classifier, programs::TcContext};
use network_types::{arp::ArpHdr, eth::EthHdr, udp::UdpHdr};
use overlay_common::{
    counter::Path,
    maps::{Endpoint, NODE_SELF, Node},
    reason::{Hook, Reason},
    wire::{ETH_LEN, ETHERTYPE_ARP, ETHERTYPE_IPV4, PROTO_UDP, ipv4},
};

use crate::{
    config, decap,
    drop::{Describe, drop},
    encap::{self, Inner, Outcome},
    flows, maps,
    packet::{self, Ipv4Packet, PASS},
    too_big, trace,
};

const HOOK: Hook = Hook::FromPod;

#[classifier]
pub(crate) fn from_pod(ctx: TcContext) -> i32 {
    let verdict = match packet::ether_type(&ctx) {
        ETHERTYPE_IPV4 => ipv4(&ctx),
        ETHERTYPE_ARP => arp(&ctx),
        _ => Err(Reason::PodProtocol),
    };
    verdict.unwrap_or_else(|reason| drop(&ctx, reason, HOOK, Describe::Packet))
}

/// The endpoint of the device that the packet came from, if `src` is its address.
#[inline(always)]
fn sender(ctx: &TcContext, src: u32) -> Result<&'static Endpoint, Reason> {
    maps::endpoint(src)
        .filter(|endpoint| endpoint.ifindex == packet::ifindex(ctx))
        .ok_or(Reason::PodSourceAddress)
}

/// An Ethernet header and an ARP packet.
#[repr(C)]
struct ArpPacket {
    eth: EthHdr,
    arp: ArpHdr,
}

/// ARP is answered by the stack, to pods that lost their permanent neighbour entry.
#[inline(always)]
fn arp(ctx: &TcContext) -> Result<i32, Reason> {
    let packet = packet::pulled::<ArpPacket>(ctx, 0).ok_or(Reason::Truncated)?;
    // SAFETY: `pulled` checked the bounds.
    let ArpPacket { eth, arp } = unsafe { &*packet };
    let endpoint = sender(ctx, u32::from_ne_bytes(arp.spa))?;
    if !packet::same_mac(&eth.src_addr, &endpoint.mac) || !packet::same_mac(&arp.sha, &endpoint.mac) {
        return Err(Reason::PodSourceMac);
    }
    Ok(to_stack(ctx))
}

#[inline(always)]
fn ipv4(ctx: &TcContext) -> Result<i32, Reason> {
    let packet = packet::pulled::<Ipv4Packet>(ctx, 0).ok_or(Reason::Truncated)?;
    // SAFETY: `pulled` checked the bounds; nothing below moves the packet before `packet` is last used.
    let packet = unsafe { &mut *packet };
    let endpoint = sender(ctx, u32::from_ne_bytes(packet.ip.src_addr))?;
    if !packet::same_mac(&packet.eth.src_addr, &endpoint.mac) {
        return Err(Reason::PodSourceMac);
    }

    // Once for all destinations: what is the stack's in any case pays for a look that it does not need.
    if ipv4::is_plain(&packet.ip) && flows::returns_to_stack(ctx, &packet.ip, ETH_LEN) {
        return past_tunnel_port(ctx, packet);
    }

    let dst = u32::from_ne_bytes(packet.ip.dst_addr);
    if config::in_own_subnet(dst) {
        let Some(local) = maps::endpoint(dst) else {
            return past_tunnel_port(ctx, packet);
        };
        if needs_stack(packet) {
            return Ok(to_stack(ctx));
        }
        ipv4::decrement_ttl(&mut packet.ip);
        maps::count(Path::Local, ctx.len());
        trace::step(ctx, Path::Local, HOOK, Describe::Packet);
        // SAFETY: `Delivery` is the same two headers.
        let delivery = unsafe { &mut *core::ptr::from_mut(packet).cast::<decap::Delivery>() };
        return Ok(decap::deliver(delivery, local));
    }

    let Some(node) = maps::node(dst) else {
        if config::in_cluster(dst) {
            return Err(Reason::NoNode);
        }
        return past_tunnel_port(ctx, packet);
    };
    // SAFETY: a map value, valid until the program ends.
    if unsafe { (*node).flags } & NODE_SELF != 0 {
        return past_tunnel_port(ctx, packet);
    }
    if !config::in_cluster(dst) {
        check_tunnel_port(ctx, packet)?;
        if config::nodes_masqueraded() {
            return Ok(to_stack(ctx));
        }
    }
    let packet = packet::at::<Ipv4Packet>(ctx, 0).ok_or(Reason::Truncated)?;
    // SAFETY: `at` checked the bounds.
    let packet = unsafe { &mut *packet };
    // The stack has a route of ours to pods alone. What it sends to a node would leave outside of the tunnel, with the
    // pod's address, which nobody on the underlay needs to carry.
    if packet.ip.ttl <= 1 || config::in_cluster(dst) && needs_stack(packet) {
        return Ok(to_stack(ctx));
    }
    Ok(tunnel(ctx, packet, node, endpoint))
}

/// Options, and packets that expire here: the stack knows the answer.
#[inline(always)]
fn needs_stack(packet: &Ipv4Packet) -> bool {
    !ipv4::is_plain(&packet.ip) || packet.ip.ttl <= 1
}

#[inline(always)]
fn tunnel(ctx: &TcContext, packet: &mut Ipv4Packet, node: *mut Node, sender: &Endpoint) -> i32 {
    ipv4::decrement_ttl(&mut packet.ip);
    let inner = Inner { tos: packet.ip.tos, protocol: packet.ip.proto };
    let frags = packet.ip.frags;
    if ipv4::is_plain(&packet.ip) {
        match encap::encap(ctx, HOOK, node, inner) {
            Outcome::Verdict(verdict) => return verdict,
            Outcome::TooBig(mtu) if too_big::can_tell(ctx, frags) => {
                return too_big::tell(ctx, sender, mtu, HOOK);
            }
            Outcome::TooBig(_) | Outcome::Anchor => {}
        }
    }
    packet::mark_direct(ctx);
    // SAFETY: a helper on numbers. `from_host` sees the packet on its way out of the anchor device.
    unsafe { bpf_redirect(config::anchor_ifindex(), 0) as i32 }
}

#[inline(always)]
fn past_tunnel_port(ctx: &TcContext, packet: &Ipv4Packet) -> Result<i32, Reason> {
    check_tunnel_port(ctx, packet)?;
    Ok(to_stack(ctx))
}

/// A pod must not speak to a VTEP, be it one that this node does not know as such (another address of a node, or one
/// behind the masquerade): nodes trust tunnel packets by their outer source. Only pods may be asked on that port.
#[inline(always)]
fn check_tunnel_port(ctx: &TcContext, packet: &Ipv4Packet) -> Result<(), Reason> {
    // A later fragment has no port; without its first fragment nobody reassembles it.
    if packet.ip.proto != PROTO_UDP || ipv4::is_later_fragment(&packet.ip) {
        return Ok(());
    }
    let offset = ETH_LEN + ipv4::header_len(&packet.ip);
    let udp = packet::pulled::<UdpHdr>(ctx, offset).ok_or(Reason::Truncated)?;
    // SAFETY: `pulled` checked the bounds.
    let port = unsafe { (*udp).dst };
    if u16::from_be_bytes(port) == config::tunnel_port() { Err(Reason::PodTunnelPort) } else { Ok(()) }
}

#[inline(always)]
fn to_stack(ctx: &TcContext) -> i32 {
    maps::count(Path::PodToStack, ctx.len());
    trace::step(ctx, Path::PodToStack, HOOK, Describe::Packet);
    PASS
}
