//! `to_pod`: tc egress of a pod's host side device. What the node's stack sends to a pod: answers of the host and of
//! the world, Services, and packets that the fast path left alone. Pod-to-pod packets of the fast path do not pass
//! here: `bpf_redirect_peer` goes straight into the pod's namespace.
//!
//! A packet from another pod, or from another node, has passed the stack for a reason, most likely because a Service was
//! addressed. The pod's answer would be redirected past the stack by `from_pod`; so its flow is recorded.

use aya_ebpf::{macros::classifier, programs::TcContext};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use overlay_common::{
    counter::Path,
    reason::Hook,
    wire::{ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6},
};

use crate::{
    config::{self, Family as _, Place},
    drop::Describe,
    flows::Flows,
    maps,
    packet::{self, PASS, Packet},
    trace,
};

const HOOK: Hook = Hook::ToPod;

#[classifier]
pub(crate) fn to_pod(ctx: TcContext) -> i32 {
    maps::count(Path::StackToPod, ctx.len());
    trace::step(&ctx, Path::StackToPod, HOOK, Describe::Packet);
    if config::stack_flows() {
        match packet::ether_type(&ctx) {
            ETHERTYPE_IPV4 if Ipv4Hdr::pods() => record::<Ipv4Hdr>(&ctx),
            ETHERTYPE_IPV6 if Ipv6Hdr::pods() => record::<Ipv6Hdr>(&ctx),
            _ => {}
        }
    }
    PASS
}

#[inline(always)]
fn record<H: Flows>(ctx: &TcContext) {
    if let Some(packet) = packet::pulled::<Packet<H>>(ctx, 0) {
        // SAFETY: `pulled` checked the bounds.
        let src = unsafe { (*packet).ip.src() };
        if is_redirected_to(src) {
            H::record(packet::skb(ctx), ETH_LEN as u32);
        }
    }
}

/// Would `from_pod` redirect what a pod sends to this address?
#[inline(always)]
fn is_redirected_to(addr: impl Place) -> bool {
    if addr.in_own_subnet() {
        return maps::endpoint(addr).is_some();
    }
    if config::nodes_masqueraded() && !addr.in_cluster() {
        return false;
    }
    maps::node(addr).is_some_and(maps::is_remote)
}
