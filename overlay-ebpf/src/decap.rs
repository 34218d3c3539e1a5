//! Out of the tunnel, to a pod: checks the sender, takes the outer headers off and delivers.
//!
//! Called by `from_wire` (natively) and `from_tunnel` (after the kernel's own decapsulation).

use aya_ebpf::{
    bindings::{
        BPF_CSUM_LEVEL_DEC, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    helpers::{bpf_csum_level, bpf_redirect_peer},
    programs::TcContext,
};
use network_types::{eth::EthHdr, ip::Ipv4Hdr};
use overlay_common::{
    maps::{Endpoint, NODE_SELF},
    reason::Reason,
    wire::{ETHERTYPE_IPV4, vxlan::OVERHEAD_I32},
};

use crate::{config, maps, packet};

/// May a tunnel packet from `outer_src` carry a packet from `inner_src`? Only a known node, and only with what is its
/// own: its subnet's addresses or its own ones.
#[inline(always)]
pub(crate) fn check_source(outer_src: u32, inner_src: u32) -> Result<(), Reason> {
    if let Some(node) = maps::node(inner_src) {
        // SAFETY: a map value, valid until the program ends.
        let (vtep, flags) = unsafe { ((*node).vtep.v4_bytes(), (*node).flags) };
        // This node's own addresses never come in by the tunnel, whatever the outer source says.
        if u32::from_ne_bytes(vtep) == outer_src && flags & NODE_SELF == 0 {
            return Ok(());
        }
    }
    Err(if maps::is_node_address(outer_src) { Reason::InnerSource } else { Reason::UnknownVtep })
}

/// Takes Ethernet, IP, UDP and VXLAN off; the outer Ethernet header stays and becomes the inner one. `false`: the kernel
/// cannot, and has changed nothing.
#[inline(always)]
pub(crate) fn strip(ctx: &TcContext) -> bool {
    // FIXED_GSO: segments keep their size, which the pods' MTU already accounts for. NO_CSUM_RESET and the level:
    // a checksum that the device or GRO has verified stays verified, one header further in.
    let flags = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET) | config::decap_flags();
    if ctx.adjust_room(-OVERHEAD_I32, BPF_ADJ_ROOM_MAC, flags).is_err() {
        return false;
    }
    // SAFETY: a helper on the context. It fails only where no checksum was verified, which needs nothing.
    unsafe { bpf_csum_level(packet::skb(ctx), u64::from(BPF_CSUM_LEVEL_DEC)) };
    true
}

/// An inner packet at the beginning of the buffer.
#[repr(C)]
pub(crate) struct Delivery {
    eth: EthHdr,
    pub(crate) ip: Ipv4Hdr,
}

/// Writes the MACs of the last hop and moves the packet into the pod's namespace.
#[inline(always)]
pub(crate) fn deliver(packet: &mut Delivery, endpoint: &Endpoint) -> i32 {
    packet.eth =
        EthHdr { dst_addr: endpoint.mac, src_addr: endpoint.gateway_mac, ether_type: ETHERTYPE_IPV4.to_be() };
    // SAFETY: a helper on numbers (Linux 5.10, 9aa1206e8f48).
    unsafe { bpf_redirect_peer(endpoint.ifindex, 0) as i32 }
}
