//! `to_pod`: tc egress of a pod's host side device. What the node's stack sends to a pod: answers of the host and of
//! the world, Services, and packets that the fast path left alone. Pod-to-pod packets of the fast path do not pass
//! here: `bpf_redirect_peer` goes straight into the pod's namespace.
//!
//! A packet from another pod, or from another node, has passed the stack for a reason, most likely because a Service was
//! addressed. The pod's answer would be redirected past the stack by `from_pod`; so its flow is recorded.

use aya_ebpf::{macros::classifier, programs::TcContext};
use overlay_common::{
    counter::Path,
    maps::NODE_SELF,
    reason::Hook,
    wire::{ETH_LEN, ETHERTYPE_IPV4},
};

use crate::{
    config,
    drop::Describe,
    flows, maps,
    packet::{self, Ipv4Packet, PASS},
    trace,
};

const HOOK: Hook = Hook::ToPod;

#[classifier]
pub(crate) fn to_pod(ctx: TcContext) -> i32 {
    maps::count(Path::StackToPod, ctx.len());
    trace::step(&ctx, Path::StackToPod, HOOK, Describe::Packet);
    if config::stack_flows()
        && packet::ether_type(&ctx) == ETHERTYPE_IPV4
        && let Some(packet) = packet::pulled::<Ipv4Packet>(&ctx, 0)
    {
        // SAFETY: `pulled` checked the bounds.
        let src = u32::from_ne_bytes(unsafe { (*packet).ip.src_addr });
        if is_redirected_to(src) {
            flows::record(packet::skb(&ctx), ETH_LEN as u32);
        }
    }
    PASS
}

/// Would `from_pod` redirect what a pod sends to this address?
#[inline(always)]
fn is_redirected_to(addr: u32) -> bool {
    if config::in_own_subnet(addr) {
        return maps::endpoint(addr).is_some();
    }
    if config::nodes_masqueraded() && !config::in_cluster(addr) {
        return false;
    }
    // SAFETY: a map value, valid until the program ends.
    maps::node(addr).is_some_and(|node| unsafe { (*node).flags } & NODE_SELF == 0)
}
