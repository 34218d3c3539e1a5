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
    if !packet::take_direct_mark(ctx)
        && config::stack_flows()
        && config::in_own_subnet(src)
        && maps::endpoint(src).is_some()
    {
        flows::record(packet::skb(ctx), ETH_LEN as u32);
    }
    let inner = Inner { tos: packet.ip.tos, protocol: packet.ip.proto };
    if ipv4::is_plain(&packet.ip)
        && let Outcome::Verdict(verdict) = encap::encap(ctx, HOOK, node, inner)
    {
        return Ok(verdict);
    }
    through_anchor(ctx, node, inner.tos)
}

/// Leaves the encapsulation to the kernel: the anchor device is in external mode and wants a tunnel key.
#[inline(always)]
fn through_anchor(ctx: &TcContext, node: *mut Node, tos: u8) -> Result<i32, Reason> {
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
            u64::from(BPF_F_ZERO_CSUM_TX | BPF_F_DONT_FRAGMENT),
        )
    };
    if rc != 0 {
        return Err(Reason::TunnelKey);
    }
    maps::count(Path::EncapAnchor, ctx.len());
    trace::step(ctx, Path::EncapAnchor, HOOK, Describe::Packet);
    Ok(PASS)
}
