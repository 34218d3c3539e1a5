//! Out of the tunnel, to a pod: checks the sender, takes the outer headers off and delivers.
//!
//! Called by `from_wire` (natively) and `from_tunnel` (after the kernel's own decapsulation).

use aya_ebpf::{
    bindings::{
        BPF_CSUM_LEVEL_DEC, BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
        BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    helpers::{bpf_csum_level, bpf_csum_update, bpf_redirect_peer},
    programs::TcContext,
};
use network_types::eth::EthHdr;
use overlay_common::{
    maps::{Addr, Endpoint},
    reason::Reason,
    wire::{ETHERTYPE_IPV4, vxlan::Outer},
};

use crate::{
    config::{Family, Place},
    maps, packet,
    packet::Packet,
};

/// May a tunnel packet from `outer_src` carry a packet from `inner_src`? Only a known node, and only with what is its
/// own: its subnet's addresses or its own ones.
#[inline(always)]
pub(crate) fn check_source(outer_src: Addr, inner_src: impl Place) -> Result<(), Reason> {
    if let Some(node) = maps::node(inner_src) {
        // SAFETY: a map value, valid until the program ends.
        let vtep = unsafe { &(*node).vtep };
        // This node's own addresses never come in by the tunnel, whatever the outer source says.
        if vtep.is(&outer_src) && maps::is_remote(node) {
            return Ok(());
        }
    }
    Err(if maps::is_node_address(outer_src) { Reason::InnerSource } else { Reason::UnknownVtep })
}

/// Takes Ethernet, the IP header `O`, UDP and VXLAN off, so that an `I` follows the outer Ethernet header. `false`: the
/// kernel cannot, and has changed nothing; kernels before Linux 6.3 (d219df60a70e) cannot where the families differ.
#[inline(always)]
pub(crate) fn strip<O: Family, I: Family>(ctx: &TcContext) -> bool {
    // FIXED_GSO: segments keep their size, which the pods' MTU already accounts for. NO_CSUM_RESET and the level:
    // a checksum that the device or GRO has verified stays verified, one header further in.
    let mut flags =
        u64::from(BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET) | crate::config::decap_flags();
    if O::ETHERTYPE != I::ETHERTYPE {
        // The packet is to be one of the other protocol.
        flags |= u64::from(if I::ETHERTYPE == ETHERTYPE_IPV4 {
            BPF_F_ADJ_ROOM_DECAP_L3_IPV4
        } else {
            BPF_F_ADJ_ROOM_DECAP_L3_IPV6
        });
    }
    if ctx.adjust_room(-Outer::<O>::LEN_I32, BPF_ADJ_ROOM_MAC, flags).is_err() {
        return false;
    }
    // SAFETY: a helper on the context. It fails only where no checksum was verified, which needs nothing.
    unsafe { bpf_csum_level(packet::skb(ctx), u64::from(BPF_CSUM_LEVEL_DEC)) };
    true
}

/// One hop of a packet that came by the underlay, with what else changes of its header; a sum that the device has made over
/// the whole packet (`CHECKSUM_COMPLETE`) stays right.
#[inline(always)]
pub(crate) fn hop<H: Family>(ctx: &TcContext, ip: &mut H, traffic_class: Option<u8>) {
    let mut added = traffic_class.map_or(0, |value| ip.set_traffic_class(value));
    added = added.wrapping_add(ip.take_hop());
    if H::ETHERTYPE != ETHERTYPE_IPV4 {
        // SAFETY: a helper on the context. It fails only where there is no such sum.
        unsafe { bpf_csum_update(packet::skb(ctx), added) };
    }
}

/// Writes the MACs of the last hop and moves the packet into the pod's namespace.
#[inline(always)]
pub(crate) fn deliver<H: Family>(packet: &mut Packet<H>, endpoint: &Endpoint) -> i32 {
    packet.eth =
        EthHdr { dst_addr: endpoint.mac, src_addr: endpoint.gateway_mac, ether_type: H::ETHERTYPE.to_be() };
    // SAFETY: a helper on numbers (Linux 5.10, 9aa1206e8f48).
    unsafe { bpf_redirect_peer(endpoint.ifindex, 0) as i32 }
}
