//! `from_pod`: tc ingress of a pod's host side device. Everything a pod sends comes through here first.
//!
//! A pod may send only with the address and the MAC that its endpoint entry holds. What it sends to another pod goes
//! there directly or into the tunnel; what it sends to a remote node goes into the tunnel too, so that its address
//! stays; everything else is the stack's, and so is what belongs to a flow that came through the stack. In IPv6 it may also
//! speak to its link (neighbour discovery, listener reports) with an address that only the link knows, but not as a router.

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_redirect, macros::classifier, programs::TcContext};
use network_types::{
    arp::ArpHdr,
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    udp::UdpHdr,
};
use overlay_common::{
    counter::Path,
    maps::{Endpoint, Node},
    reason::{Hook, Reason},
    wire::{
        ETH_LEN, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTO_ICMPV6, PROTO_UDP,
        ip::IpHeader as _,
        ipv4,
        ipv6::{self, Chain, Fragment, NotFound},
    },
};

use crate::{
    config::{self, Family as _, Place},
    decap,
    drop::{Describe, drop},
    encap::{self, Inner, Outcome},
    flows::{self, Flows},
    maps,
    packet::{self, PASS, Packet},
    too_big::{self, Told},
    trace,
    transport::Transport as _,
};

const HOOK: Hook = Hook::FromPod;

#[classifier]
pub(crate) fn from_pod(ctx: TcContext) -> i32 {
    let verdict = match packet::ether_type(&ctx) {
        ETHERTYPE_IPV4 if Ipv4Hdr::pods() => ip::<Ipv4Hdr>(&ctx),
        ETHERTYPE_IPV6 if Ipv6Hdr::pods() => ip::<Ipv6Hdr>(&ctx),
        ETHERTYPE_ARP if Ipv4Hdr::pods() => arp(&ctx),
        _ => Err(Reason::PodProtocol),
    };
    verdict.unwrap_or_else(|reason| drop(&ctx, reason, HOOK, Describe::Packet))
}

/// The endpoint of the device that the packet came from, if `src` is its address.
#[inline(always)]
fn sender(ctx: &TcContext, src: impl Place) -> Result<&'static Endpoint, Reason> {
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

/// What is asked of a pod's packet in one family.
trait Sent: Flows + Told {
    /// From and to the link alone, with a source that is nobody's endpoint: `None` where it is not.
    fn of_link(&self) -> Option<Result<(), Reason>>;
    /// Does it say what a pod may say?
    fn check_message(&self, skb: *mut __sk_buff) -> Result<(), Reason>;
    /// A pod must not speak to a VTEP, be it one that this node does not know as such (another address of a node, or one
    /// behind the masquerade): nodes trust tunnel packets by their outer source. Only pods may be asked on that port.
    fn check_tunnel_port(&self, ctx: &TcContext) -> Result<(), Reason>;
}

impl Sent for Ipv4Hdr {
    #[inline(always)]
    fn of_link(&self) -> Option<Result<(), Reason>> {
        None
    }

    #[inline(always)]
    fn check_message(&self, _: *mut __sk_buff) -> Result<(), Reason> {
        Ok(())
    }

    #[inline(always)]
    fn check_tunnel_port(&self, ctx: &TcContext) -> Result<(), Reason> {
        // A later fragment has no port; without its first fragment nobody reassembles it.
        if self.proto != PROTO_UDP || ipv4::is_later_fragment(self) {
            return Ok(());
        }
        let offset = ETH_LEN + ipv4::header_len(self);
        let udp = packet::pulled::<UdpHdr>(ctx, offset).ok_or(Reason::Truncated)?;
        // SAFETY: `pulled` checked the bounds.
        not_tunnel_port(unsafe { (*udp).dst })
    }
}

impl Sent for Ipv6Hdr {
    #[inline(always)]
    fn of_link(&self) -> Option<Result<(), Reason>> {
        ipv6::is_of_link(self.src_addr)
            .then(|| if ipv6::is_on_link(self.dst_addr) { Ok(()) } else { Err(Reason::PodSourceAddress) })
    }

    #[inline(always)]
    fn check_message(&self, skb: *mut __sk_buff) -> Result<(), Reason> {
        if self.is_plain() && self.next_hdr != PROTO_ICMPV6 && self.next_hdr != ipv6::FRAGMENT {
            return Ok(());
        }
        let Chain { protocol, offset, fragment } = chain(self, skb)?;
        if protocol != PROTO_ICMPV6 || fragment == Fragment::Later {
            return Ok(());
        }
        let message_type = packet::load(skb, offset, 0_u8).ok_or(Reason::Truncated)?.0;
        if ipv6::is_routers(protocol, message_type) { Err(Reason::PodRouter) } else { Ok(()) }
    }

    #[inline(always)]
    fn check_tunnel_port(&self, ctx: &TcContext) -> Result<(), Reason> {
        let skb = packet::skb(ctx);
        let Chain { protocol, offset, fragment } = chain(self, skb)?;
        if protocol != PROTO_UDP || fragment == Fragment::Later {
            return Ok(());
        }
        let ports = packet::load(skb, offset, 0_u32).ok_or(Reason::Truncated)?.0;
        let [_, _, high, low] = ports.to_ne_bytes();
        not_tunnel_port([high, low])
    }
}

#[inline(always)]
fn not_tunnel_port(port: [u8; 2]) -> Result<(), Reason> {
    if u16::from_be_bytes(port) == config::tunnel_port() { Err(Reason::PodTunnelPort) } else { Ok(()) }
}

/// Where the transport header of a pod's packet is. One that does not say is not let through: it might be anything.
#[inline(always)]
fn chain(ip: &Ipv6Hdr, skb: *mut __sk_buff) -> Result<Chain, Reason> {
    ip.transport(skb, ETH_LEN).map_err(|why| match why {
        NotFound::Truncated => Reason::Truncated,
        NotFound::TooLong => Reason::PodExtensions,
    })
}

#[inline(always)]
fn ip<H: Sent>(ctx: &TcContext) -> Result<i32, Reason> {
    let packet = packet::pulled::<Packet<H>>(ctx, 0).ok_or(Reason::Truncated)?;
    // SAFETY: `pulled` checked the bounds; nothing below moves the packet before `packet` is last used.
    let packet = unsafe { &mut *packet };
    if let Some(allowed) = packet.ip.of_link() {
        allowed?;
        packet.ip.check_message(packet::skb(ctx))?;
        return past_tunnel_port(ctx, &packet.ip);
    }
    let endpoint = sender(ctx, packet.ip.src())?;
    if !packet::same_mac(&packet.eth.src_addr, &endpoint.mac) {
        return Err(Reason::PodSourceMac);
    }
    packet.ip.check_message(packet::skb(ctx))?;

    // Once for all destinations: what is the stack's in any case pays for a look that it does not need.
    if packet.ip.is_plain() && flows::returns_to_stack(ctx, &packet.ip, ETH_LEN) {
        return past_tunnel_port(ctx, &packet.ip);
    }

    let dst = packet.ip.dst();
    if dst.in_own_subnet() {
        let Some(local) = maps::endpoint(dst) else {
            return past_tunnel_port(ctx, &packet.ip);
        };
        if needs_stack(&packet.ip) {
            return Ok(to_stack(ctx));
        }
        packet.ip.take_hop();
        maps::count(Path::Local, ctx.len());
        trace::step(ctx, Path::Local, HOOK, Describe::Packet);
        return Ok(decap::deliver(packet, local));
    }

    let Some(node) = maps::node(dst) else {
        if dst.in_cluster() {
            return Err(Reason::NoNode);
        }
        return past_tunnel_port(ctx, &packet.ip);
    };
    if !maps::is_remote(node) {
        return past_tunnel_port(ctx, &packet.ip);
    }
    if !dst.in_cluster() {
        packet.ip.check_tunnel_port(ctx)?;
        if config::nodes_masqueraded() {
            return Ok(to_stack(ctx));
        }
    }
    let packet = packet::at::<Packet<H>>(ctx, 0).ok_or(Reason::Truncated)?;
    // SAFETY: `at` checked the bounds.
    let packet = unsafe { &mut *packet };
    // The stack has a route of ours to pods alone. What it sends to a node would leave outside of the tunnel, with the
    // pod's address, which nobody on the underlay needs to carry.
    if packet.ip.hops() <= 1 || dst.in_cluster() && needs_stack(&packet.ip) {
        return Ok(to_stack(ctx));
    }
    Ok(tunnel(ctx, packet, node, endpoint))
}

/// Options, and packets that expire here: the stack knows the answer.
#[inline(always)]
fn needs_stack(ip: &impl Sent) -> bool {
    !ip.is_plain() || ip.hops() <= 1
}

#[inline(always)]
fn tunnel<H: Sent>(ctx: &TcContext, packet: &mut Packet<H>, node: *mut Node, sender: &Endpoint) -> i32 {
    packet.ip.take_hop();
    if packet.ip.is_plain() {
        match encap::encap::<H>(ctx, HOOK, node, Inner::of(&packet.ip)) {
            Outcome::Verdict(verdict) => return verdict,
            Outcome::TooBig(mtu) => {
                // Nothing has moved it; the verifier does not know.
                if let Some(packet) = packet::at::<Packet<H>>(ctx, 0)
                    // SAFETY: `at` checked the bounds.
                    && too_big::can_tell(ctx, unsafe { &(*packet).ip }, mtu, node)
                {
                    return too_big::tell_pod::<H>(ctx, sender, mtu, HOOK);
                }
            }
            Outcome::Anchor => {}
        }
    }
    packet::mark_own(ctx);
    // SAFETY: a helper on numbers. `from_host` sees the packet on its way out of the anchor device.
    unsafe { bpf_redirect(config::anchor_ifindex(), 0) as i32 }
}

#[inline(always)]
fn past_tunnel_port(ctx: &TcContext, ip: &impl Sent) -> Result<i32, Reason> {
    ip.check_tunnel_port(ctx)?;
    Ok(to_stack(ctx))
}

#[inline(always)]
fn to_stack(ctx: &TcContext) -> i32 {
    maps::count(Path::PodToStack, ctx.len());
    trace::step(ctx, Path::PodToStack, HOOK, Describe::Packet);
    PASS
}
