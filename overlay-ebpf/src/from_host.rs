//! `from_host`: tc egress of the anchor device. The route of the cluster's range brings here what the node itself, or a
//! Service on it, sends to remote pods; `from_pod` sends here what it could not encapsulate.

use aya_ebpf::{
    bindings::{
        BPF_F_DONT_FRAGMENT, BPF_F_ZERO_CSUM_TX, bpf_tunnel_key, bpf_tunnel_key__bindgen_ty_1,
        bpf_tunnel_key__bindgen_ty_2, bpf_tunnel_key__bindgen_ty_3,
    },
    helpers::bpf_skb_set_tunnel_key,
    macros::classifier,
    programs::TcContext,
};
use network_types::eth::EthHdr;
use overlay_common::{
    counter::Path,
    maps::{NODE_SELF, Node},
    reason::{Hook, Reason},
    wire::{ETH_LEN, ETHERTYPE_IPV4, ecn, ipv4, vxlan::OUTER_TTL},
};

use crate::{
    config,
    drop::{Describe, drop},
    encap::{self, Inner, Outcome},
    flows, maps,
    packet::{self, Ipv4Packet, PASS},
    trace,
};

const HOOK: Hook = Hook::FromHost;

#[classifier]
pub(crate) fn from_host(ctx: TcContext) -> i32 {
    let verdict =
        if packet::ether_type(&ctx) == ETHERTYPE_IPV4 { ipv4(&ctx) } else { Err(Reason::HostProtocol) };
    verdict.unwrap_or_else(|reason| drop(&ctx, reason, HOOK, Describe::Packet))
}

#[inline(always)]
fn ipv4(ctx: &TcContext) -> Result<i32, Reason> {
    let packet = packet::pulled::<Ipv4Packet>(ctx, 0).ok_or(Reason::Truncated)?;
    // SAFETY: `pulled` checked the bounds; `packet` is not used after a helper that moves the packet.
    let packet = unsafe { &mut *packet };
    let dst = packet.ip.dst_addr;
    let Some(node) = maps::node(u32::from_ne_bytes(dst)) else {
        return Err(if ipv4::is_multicast_or_broadcast(dst) { Reason::Multicast } else { Reason::NoNode });
    };
    // SAFETY: a map value, valid until the program ends.
    if unsafe { (*node).flags } & NODE_SELF != 0 {
        return Err(Reason::NoEndpoint);
    }
    let src = u32::from_ne_bytes(packet.ip.src_addr);
    // What is the node's own, its gateway address included, is answered to the stack in any case.
    let direct = packet::take_direct_mark(ctx);
    if !direct
        && config::stack_flows()
        && config::in_own_subnet(src)
        && maps::endpoint(src).is_some()
    {
        flows::record(packet::skb(ctx), ETH_LEN as u32);
    }
    let inner = Inner { tos: packet.ip.tos, protocol: packet.ip.proto };
    // What the stack sends is the stack's to shorten: the anchor device tells it the path's MTU (`skb_tunnel_check_pmtu`).
    // What `from_pod` sends has no such way back; it may be fragmented, or it would not have come here.
    let mut fragment = false;
    if ipv4::is_plain(&packet.ip) {
        match encap::encap(ctx, HOOK, node, inner) {
            Outcome::Verdict(verdict) => return Ok(verdict),
            Outcome::TooBig(_) => fragment = direct,
            Outcome::Anchor => {}
        }
    }
    through_anchor(ctx, node, inner.tos, fragment)
}

/// Leaves the encapsulation to the kernel: the anchor device is in external mode and wants a tunnel key. `fragment`: the
/// tunnel packet may be.
#[inline(always)]
fn through_anchor(ctx: &TcContext, node: *mut Node, tos: u8, fragment: bool) -> Result<i32, Reason> {
    // SAFETY: a map value, valid until the program ends.
    let (vtep, vtep_mac) = unsafe { ((*node).vtep.v4_bytes(), (*node).vtep_mac) };
    let eth = packet::at::<EthHdr>(ctx, 0).ok_or(Reason::Truncated)?;
    // SAFETY: `at` checked the bounds.
    unsafe {
        (*eth).dst_addr = vtep_mac;
        (*eth).src_addr = config::anchor_mac();
    }
    let mut key = bpf_tunnel_key {
        tunnel_id: config::vni(),
        // Unlike all other addresses of the programs, this one is in host order (bpf-helpers(7)).
        __bindgen_anon_1: bpf_tunnel_key__bindgen_ty_1 { remote_ipv6: [u32::from_be_bytes(vtep), 0, 0, 0] },
        tunnel_tos: ecn::outer_tos(tos),
        tunnel_ttl: OUTER_TTL,
        __bindgen_anon_2: bpf_tunnel_key__bindgen_ty_2 { tunnel_ext: 0 },
        tunnel_label: 0,
        __bindgen_anon_3: bpf_tunnel_key__bindgen_ty_3 {
            local_ipv6: [u32::from_be_bytes(config::vtep().addr), 0, 0, 0],
        },
    };
    // SAFETY: the helper reads the given number of bytes of `key`.
    let rc = unsafe {
        bpf_skb_set_tunnel_key(
            packet::skb(ctx),
            core::ptr::from_mut(&mut key),
            size_of::<bpf_tunnel_key>() as u32,
            u64::from(if fragment { BPF_F_ZERO_CSUM_TX } else { BPF_F_ZERO_CSUM_TX | BPF_F_DONT_FRAGMENT }),
        )
    };
    if rc != 0 {
        return Err(Reason::TunnelKey);
    }
    maps::count(Path::EncapAnchor, ctx.len());
    trace::step(ctx, Path::EncapAnchor, HOOK, Describe::Packet);
    Ok(PASS)
}
