//! A pod's packet that does not fit the path to the node that it is for: the pod is told, as a router would tell it.
//!
//! The kernel knows the path's MTU from ICMP messages of the underlay, which the anchor's socket hears
//! (`vxlan_err_lookup`, Linux 4.20), and `bpf_fib_lookup` says when a packet is longer. A packet that came through the stack
//! is the stack's to answer; one that `from_pod` redirects past it would be lost without a word.
//!
//! The answer is made of the packet itself: cut off behind what is quoted, headers put in front.

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    helpers::{bpf_csum_diff, bpf_redirect_peer, bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_pull_data},
    programs::TcContext,
};
use network_types::eth::EthHdr;
use overlay_common::{
    maps::Endpoint,
    reason::{Hook, Reason},
    wire::{
        ETH_LEN, ETHERTYPE_IPV4,
        too_big::{Answer4, QUOTE4, answer4},
        vxlan::OVERHEAD,
    },
};

use crate::{
    config,
    drop::{self, Describe},
    packet,
};

/// What the answer to an IPv4 packet consists of.
#[repr(C)]
struct Whole4 {
    eth: EthHdr,
    answer: Answer4,
    quote: [u8; QUOTE4],
}

/// Can the sender of an IPv4 packet be told, which `ctx` begins with?
#[inline(always)]
pub(crate) fn can_tell(ctx: &TcContext, frags: [u8; 2]) -> bool {
    // A packet that may be fragmented is, by the anchor device.
    frags[0] & 0x40 != 0 && ctx.len() as usize >= ETH_LEN + QUOTE4
}

/// Counts the packet as dropped, and tells the pod behind `endpoint` that what it sends to that node has to fit `path_mtu`
/// bytes, tunnel headers included.
#[inline(always)]
pub(crate) fn tell(ctx: &TcContext, endpoint: &Endpoint, path_mtu: u32, hook: Hook) -> i32 {
    let dropped = drop::drop(ctx, Reason::PathMtu, hook, Describe::Packet);
    let mtu = path_mtu.wrapping_sub(OVERHEAD as u32);
    if answer(packet::skb(ctx), endpoint, mtu) {
        // SAFETY: a helper on numbers (Linux 5.10, 9aa1206e8f48).
        unsafe { bpf_redirect_peer(endpoint.ifindex, 0) as i32 }
    } else {
        dropped
    }
}

/// Makes the packet its own answer; `false` where the kernel has no memory for that.
#[inline(never)]
fn answer(skb: *mut __sk_buff, endpoint: &Endpoint, mtu: u32) -> bool {
    const ROOM: usize = size_of::<Answer4>();
    // SAFETY: helpers on the context; no pointer into the packet is kept across them. Cutting it off also ends its being
    // a GSO packet.
    let made = unsafe {
        bpf_skb_change_tail(skb, (ETH_LEN + QUOTE4) as u32, 0) == 0
            && bpf_skb_adjust_room(
                skb,
                ROOM as i32,
                BPF_ADJ_ROOM_MAC,
                u64::from(BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET),
            ) == 0
            && bpf_skb_pull_data(skb, size_of::<Whole4>() as u32) == 0
    };
    if !made {
        return false;
    }
    let ctx = TcContext::new(skb.cast());
    let Some(whole) = packet::at::<Whole4>(&ctx, 0) else { return false };
    // SAFETY: `at` checked the bounds; nothing below moves the packet.
    let whole = unsafe { &mut *whole };
    // The pod's own address is in the header that is quoted.
    let [.., p0, p1, p2, p3, _, _, _, _] = *(whole.quote.first_chunk::<20>().unwrap_or(&[0; 20]));
    // SAFETY: the helper reads QUOTE4 bytes, a multiple of four, of the packet.
    let quoted =
        unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, whole.quote.as_mut_ptr().cast(), QUOTE4 as u32, 0) };
    answer4(&mut whole.answer, config::gateway4(), [p0, p1, p2, p3], mtu as u16, quoted as u32);
    whole.eth =
        EthHdr { dst_addr: endpoint.mac, src_addr: endpoint.gateway_mac, ether_type: ETHERTYPE_IPV4.to_be() };
    true
}
