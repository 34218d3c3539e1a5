//! `from_host`: tc egress of the anchor device. The route of the cluster's range brings here what the node itself, or a
//! Service on it, sends to remote pods; `from_pod` sends here what it could not encapsulate.

use aya_ebpf::{
    bindings::{BPF_F_DONT_FRAGMENT, BPF_F_ZERO_CSUM_TX},
    macros::classifier,
    programs::TcContext,
};
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
};
use overlay_common::{
    counter::Path,
    maps::{NODE_CHECKSUM, Node},
    reason::{Hook, Reason},
    wire::{ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ecn, ipv4, ipv6, vxlan::OUTER_TTL},
};

use crate::{
    config::{self, Family as _, Place as _},
    drop::{Describe, drop},
    encap::{self, Inner, Outcome},
    flows::Flows,
    maps,
    packet::{self, PASS, Packet},
    too_big::{self, Told},
    trace,
    tunnel_key::{self, Wanted},
};

const HOOK: Hook = Hook::FromHost;

#[classifier]
pub(crate) fn from_host(ctx: TcContext) -> i32 {
    let verdict = match packet::ether_type(&ctx) {
        ETHERTYPE_IPV4 if Ipv4Hdr::cluster() => ip::<Ipv4Hdr>(&ctx),
        ETHERTYPE_IPV6 if Ipv6Hdr::cluster() => ip::<Ipv6Hdr>(&ctx),
        _ => Err(Reason::HostProtocol),
    };
    verdict.unwrap_or_else(|reason| drop(&ctx, reason, HOOK, Describe::Packet))
}

/// What the tunnel does not carry.
trait Cast {
    /// A destination that is not one machine's.
    fn is_to_many(&self) -> bool;
}

impl Cast for Ipv4Hdr {
    #[inline(always)]
    fn is_to_many(&self) -> bool {
        ipv4::is_multicast_or_broadcast(self.dst_addr)
    }
}

impl Cast for Ipv6Hdr {
    #[inline(always)]
    fn is_to_many(&self) -> bool {
        ipv6::is_multicast(self.dst_addr)
    }
}

#[inline(always)]
fn ip<H: Flows + Cast + Told>(ctx: &TcContext) -> Result<i32, Reason> {
    let packet = packet::pulled::<Packet<H>>(ctx, 0).ok_or(Reason::Truncated)?;
    // SAFETY: `pulled` checked the bounds; `packet` is not used after a helper that moves the packet.
    let packet = unsafe { &mut *packet };
    let Some(node) = maps::node(packet.ip.dst()) else {
        return Err(if packet.ip.is_to_many() { Reason::Multicast } else { Reason::NoNode });
    };
    if !maps::is_remote(node) {
        return Err(Reason::NoEndpoint);
    }
    let src = packet.ip.src();
    let direct = packet::take_own_mark(ctx);
    // What is the node's own, its gateway address included, is answered to the stack in any case.
    if !direct && config::stack_flows() && src.in_own_subnet() && maps::endpoint(src).is_some() {
        H::record(packet::skb(ctx), ETH_LEN as u32);
    }
    let inner = Inner::of(&packet.ip);
    let mut fragment = false;
    if packet.ip.is_plain() {
        match encap::encap::<H>(ctx, HOOK, node, inner) {
            Outcome::Verdict(verdict) => return Ok(verdict),
            Outcome::TooBig(mtu) => {
                // Nothing has moved it; the verifier does not know.
                let packet = packet::at::<Packet<H>>(ctx, 0).ok_or(Reason::Truncated)?;
                // SAFETY: `at` checked the bounds.
                if too_big::can_tell(ctx, unsafe { &(*packet).ip }, mtu, node) {
                    return Ok(too_big::tell_stack::<H>(ctx, mtu, HOOK));
                }
                if too_big::over_ipv6(node) {
                    return Err(Reason::PathMtu);
                }
                fragment = true;
            }
            Outcome::Anchor => {}
        }
    }
    through_anchor(ctx, node, inner.traffic_class, fragment)
}

/// Leaves the encapsulation to the kernel: the anchor device is in external mode and wants a tunnel key. `fragment`: the
/// tunnel packet may be.
#[inline(always)]
fn through_anchor(
    ctx: &TcContext,
    node: *mut Node,
    traffic_class: u8,
    fragment: bool,
) -> Result<i32, Reason> {
    // SAFETY: a map value, valid until the program ends.
    let (vtep, vtep_mac, flags) = unsafe { (&(*node).vtep, (*node).vtep_mac, (*node).flags) };
    let eth = packet::at::<EthHdr>(ctx, 0).ok_or(Reason::Truncated)?;
    // SAFETY: `at` checked the bounds.
    unsafe {
        (*eth).dst_addr = vtep_mac;
        (*eth).src_addr = config::anchor_mac();
    }
    // The kernel computes an outer checksum for those that will not do without.
    let checksum = if flags & NODE_CHECKSUM == 0 { BPF_F_ZERO_CSUM_TX } else { 0 };
    let flags = if fragment { checksum } else { checksum | BPF_F_DONT_FRAGMENT };
    let (skb, vni) = (packet::skb(ctx), config::vni());
    let (traffic_class, ttl) = (ecn::outer_tos(traffic_class), OUTER_TTL);
    let set = if vtep.is_v6() {
        let (local, remote) = (Ipv6Hdr::vtep().addr, vtep.bytes);
        tunnel_key::set::<Ipv6Hdr>(skb, &Wanted { vni, local, remote, traffic_class, ttl, flags })
    } else {
        let (local, remote) = (Ipv4Hdr::vtep().addr, vtep.v4_bytes());
        tunnel_key::set::<Ipv4Hdr>(skb, &Wanted { vni, local, remote, traffic_class, ttl, flags })
    };
    if !set {
        return Err(Reason::TunnelKey);
    }
    maps::count(Path::EncapAnchor, ctx.len());
    trace::step(ctx, Path::EncapAnchor, HOOK, Describe::Packet);
    Ok(PASS)
}
