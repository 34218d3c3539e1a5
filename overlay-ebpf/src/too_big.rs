//! A packet that does not fit the path to the node that it is for: its sender is told, as a router would tell it.
//!
//! The kernel knows the path's MTU from ICMP messages of the underlay, which the anchor's socket hears
//! (`vxlan_err_lookup`, Linux 4.20), and `bpf_fib_lookup` says when a packet is longer. Nobody else would tell: `from_pod`
//! redirects past the stack, and the tunnel key that `from_host` sets takes the place of the route by which the vxlan device
//! would tell the stack (`skb_tunnel_check_pmtu`).
//!
//! The answer is made of the packet itself: cut off behind what is quoted, headers put in front. Pods get it from their
//! gateway, by their device; the stack gets it from where the packet was to go, by the anchor device.

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET, BPF_F_INGRESS,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    helpers::{
        bpf_csum_diff, bpf_redirect, bpf_redirect_peer, bpf_skb_adjust_room, bpf_skb_change_tail,
        bpf_skb_pull_data,
    },
    programs::TcContext,
};
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
};
use overlay_common::{
    maps::{Endpoint, Node},
    reason::{Hook, Reason},
    wire::{
        ETH_LEN, ipv4,
        too_big::{Answer4, Answer6, MIN_MTU6, QUOTE4, QUOTE6, answer4, answer6},
    },
};

use crate::{
    config::{self, Family},
    drop::{self, Describe},
    packet,
};

/// A family whose senders can be told.
pub(crate) trait Told: Family {
    /// Bytes of the packet that the answer quotes.
    const QUOTE: usize;
    /// Bytes of the headers in front of them.
    const ROOM: usize;
    /// Does the sender have to be told that no more than `mtu` bytes fit, and will it believe that? What may be fragmented
    /// is, by the anchor device, but not over IPv6: the kernel cuts up no tunnel packet of that (`ip6_fragment`).
    fn is_to_be_told(&self, mtu: u32, over_ipv6: bool) -> bool;
    /// Writes the headers in front of the quoted packet, the first of whose bytes are its header; `false` where it does not
    /// fit. `to_pod`: from the gateway, otherwise from the destination of the packet.
    fn answer(ctx: &TcContext, mtu: u32, to_pod: bool) -> bool;
}

impl Told for Ipv4Hdr {
    const QUOTE: usize = QUOTE4;
    const ROOM: usize = size_of::<Answer4>();

    #[inline(always)]
    fn is_to_be_told(&self, _: u32, over_ipv6: bool) -> bool {
        over_ipv6 || ipv4::must_not_be_fragmented(self)
    }

    #[inline(always)]
    fn answer(ctx: &TcContext, mtu: u32, to_pod: bool) -> bool {
        let quote = ETH_LEN + Self::ROOM;
        let Some(quoted) = sum::<QUOTE4>(ctx, quote, 0) else { return false };
        let (Some(packet), Some(to)) = (packet::at::<Self>(ctx, quote), packet::at::<Answer4>(ctx, ETH_LEN))
        else {
            return false;
        };
        // SAFETY: `at` checked the bounds; they do not overlap.
        unsafe {
            let from = if to_pod { Self::gateway() } else { (*packet).dst_addr };
            answer4(&mut *to, from, (*packet).src_addr, mtu as u16, quoted);
        }
        true
    }
}

impl Told for Ipv6Hdr {
    const QUOTE: usize = QUOTE6;
    const ROOM: usize = size_of::<Answer6>();

    #[inline(always)]
    fn is_to_be_told(&self, mtu: u32, _: bool) -> bool {
        mtu >= MIN_MTU6
    }

    #[inline(always)]
    fn answer(ctx: &TcContext, mtu: u32, to_pod: bool) -> bool {
        // No more than the kernel's helper takes at once (MAX_BPF_STACK).
        const PART: usize = 512;
        const REST: usize = QUOTE6 - 2 * PART;
        let quote = ETH_LEN + Self::ROOM;
        let quoted = sum::<PART>(ctx, quote, 0)
            .and_then(|seed| sum::<PART>(ctx, quote + PART, seed))
            .and_then(|seed| sum::<REST>(ctx, quote + 2 * PART, seed));
        let Some(quoted) = quoted else { return false };
        let (Some(packet), Some(to)) = (packet::at::<Self>(ctx, quote), packet::at::<Answer6>(ctx, ETH_LEN))
        else {
            return false;
        };
        // SAFETY: as above.
        unsafe {
            let from = if to_pod { Self::gateway() } else { (*packet).dst_addr };
            answer6(&mut *to, from, (*packet).src_addr, mtu, quoted);
        }
        true
    }
}

/// The one's complement sum over `N` bytes, a multiple of four, at `offset`, added to `seed`.
#[inline(always)]
fn sum<const N: usize>(ctx: &TcContext, offset: usize, seed: u32) -> Option<u32> {
    let bytes = packet::at::<[u8; N]>(ctx, offset)?;
    // SAFETY: `at` checked the bounds; the helper reads as many bytes.
    let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, bytes.cast(), N as u32, seed) };
    u32::try_from(sum).ok()
}

/// Is the tunnel to `node` one over IPv6?
#[inline(always)]
pub(crate) fn over_ipv6(node: *mut Node) -> bool {
    // SAFETY: a map value, valid until the program ends.
    unsafe { (*node).vtep.is_v6() }
}

/// Can the sender of this packet to `node` be told that no more than `mtu` bytes of its own fit the path?
#[inline(always)]
pub(crate) fn can_tell<H: Told>(ctx: &TcContext, ip: &H, mtu: u32, node: *mut Node) -> bool {
    ctx.len() as usize >= ETH_LEN + H::QUOTE && ip.is_to_be_told(mtu, over_ipv6(node))
}

/// Counts the packet as dropped, and tells the pod behind `endpoint`.
#[inline(always)]
pub(crate) fn tell_pod<H: Told>(ctx: &TcContext, endpoint: &Endpoint, mtu: u32, hook: Hook) -> i32 {
    let dropped = drop::drop(ctx, Reason::PathMtu, hook, Describe::Packet);
    if !make_answer::<H, true>(packet::skb(ctx), mtu)
        || !address::<H>(ctx, endpoint.mac, endpoint.gateway_mac)
    {
        return dropped;
    }
    // SAFETY: a helper on numbers (Linux 5.10, 9aa1206e8f48).
    unsafe { bpf_redirect_peer(endpoint.ifindex, 0) as i32 }
}

/// Counts the packet, which leaves by the anchor device, as dropped, and tells the stack.
#[inline(always)]
pub(crate) fn tell_stack<H: Told>(ctx: &TcContext, mtu: u32, hook: Hook) -> i32 {
    let dropped = drop::drop(ctx, Reason::PathMtu, hook, Describe::Packet);
    if !make_answer::<H, false>(packet::skb(ctx), mtu)
        || !address::<H>(ctx, config::anchor_mac(), config::anchor_mac())
    {
        return dropped;
    }
    // `from_tunnel` sees it next.
    packet::mark_own(ctx);
    // SAFETY: a helper on numbers.
    unsafe { bpf_redirect(config::anchor_ifindex(), u64::from(BPF_F_INGRESS)) as i32 }
}

/// Writes the Ethernet header of an answer; `false` where there is no room.
#[inline(always)]
fn address<H: Family>(ctx: &TcContext, dst_addr: packet::Mac, src_addr: packet::Mac) -> bool {
    let Some(eth) = packet::at::<EthHdr>(ctx, 0) else { return false };
    // SAFETY: `at` checked the bounds.
    unsafe { *eth = EthHdr { dst_addr, src_addr, ether_type: H::ETHERTYPE.to_be() } };
    true
}

/// Makes the packet its own answer; `false` where the kernel has no memory for that. Not inlined: it is rare.
#[inline(never)]
fn make_answer<H: Told, const TO_POD: bool>(skb: *mut __sk_buff, mtu: u32) -> bool {
    // SAFETY: helpers on the context; no pointer into the packet is kept across them. Being cut off also ends its being a GSO
    // packet.
    let made = unsafe {
        bpf_skb_change_tail(skb, (ETH_LEN + H::QUOTE) as u32, 0) == 0
            && bpf_skb_adjust_room(
                skb,
                H::ROOM as i32,
                BPF_ADJ_ROOM_MAC,
                u64::from(BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET),
            ) == 0
            && bpf_skb_pull_data(skb, (ETH_LEN + H::ROOM + H::QUOTE) as u32) == 0
    };
    made && H::answer(&TcContext::new(skb), mtu, TO_POD)
}
