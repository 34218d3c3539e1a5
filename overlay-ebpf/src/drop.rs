//! Dropping on purpose: every drop is counted under its reason and described in a record of the ring buffer.
//!
//! Not inlined: a drop is rare, and the record's code would otherwise stand in every program many times.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, xdp_action, xdp_md},
    helpers::bpf_ktime_get_ns,
    programs::{TcContext, XdpContext},
};
use overlay_common::{
    maps::{Addr, DropEvent},
    reason::{Hook, Reason},
    wire::{ETH_LEN, ETHERTYPE_IPV4, PROTO_TCP, PROTO_UDP, ipv4},
};

use crate::{
    frame, maps,
    packet::{self, Aligned},
};

/// Where the header that the record describes begins.
#[derive(Clone, Copy)]
pub(crate) enum Describe {
    /// The packet is what a pod or the host sent.
    Packet,
    /// The packet is still in its tunnel headers.
    Tunnel,
    /// The anchor device has taken the tunnel headers off; the outer source, network order, is this.
    Decapsulated(u32),
}

/// Counts, records and returns the verdict.
#[inline(always)]
pub(crate) fn drop(ctx: &TcContext, reason: Reason, hook: Hook, what: Describe) -> i32 {
    let (tunnel, outer_src) = match what {
        Describe::Packet => (0, 0),
        Describe::Tunnel => (1, 0),
        Describe::Decapsulated(outer_src) => (0, outer_src),
    };
    record(packet::skb(ctx), reason as u32, hook as u32 | tunnel << 8, outer_src);
    maps::count_drop(reason, ctx.len());
    TC_ACT_SHOT
}

/// As [`drop`], before there is an skb.
#[inline(always)]
pub(crate) fn drop_frame(ctx: &XdpContext, reason: Reason, in_tunnel: bool) -> u32 {
    let len = frame::len(ctx);
    record_frame(ctx.ctx, reason as u32, u32::from(in_tunnel), len);
    maps::count_drop(reason, len);
    xdp_action::XDP_DROP
}

/// What a record's addresses and ports are read from: a copy of the `T` at `offset`, `None` where it does not fit.
trait Load {
    fn load<T: Copy>(&self, offset: usize, zero: T) -> Option<Aligned<T>>;
}

impl Load for *mut __sk_buff {
    #[inline(always)]
    fn load<T: Copy>(&self, offset: usize, zero: T) -> Option<Aligned<T>> {
        packet::load(*self, offset, zero)
    }
}

impl Load for *mut xdp_md {
    #[inline(always)]
    fn load<T: Copy>(&self, offset: usize, zero: T) -> Option<Aligned<T>> {
        frame::load(*self, offset, zero)
    }
}

/// Writes the record. A full ring loses it; the counter does not.
#[inline(never)]
fn record(skb: *mut __sk_buff, reason: u32, hook_and_tunnel: u32, outer_src: u32) {
    let Some(mut entry) = maps::EVENTS.reserve(0) else { return };
    // Written in place: on the stack it would be a sixth of what a call chain may use.
    // SAFETY: reserved for one `DropEvent`; every field is written below, before the record is handed over.
    let event = unsafe { &mut *entry.as_mut_ptr() };
    // SAFETY: reading fields of the context.
    let (len, ifindex, protocol) = unsafe { ((*skb).len, (*skb).ifindex, (*skb).protocol) };
    let ether_type = u16::from_be(protocol as u16);
    // SAFETY: a helper without arguments.
    event.time_ns = unsafe { bpf_ktime_get_ns() };
    event.reason = reason;
    event.ifindex = ifindex;
    event.len = len;
    event.hook = hook_and_tunnel as u8;
    event.ether_type = ether_type;
    event.reserved = 0;
    event.outer_src = if outer_src == 0 { Addr::UNSPECIFIED } else { Addr::v4(outer_src.to_ne_bytes()) };
    describe(event, &skb, hook_and_tunnel >> 8 != 0);
    entry.submit(0);
}

/// As [`record`], of an IPv4 packet.
#[inline(never)]
fn record_frame(ctx: *mut xdp_md, reason: u32, in_tunnel: u32, len: u32) {
    let Some(mut entry) = maps::EVENTS.reserve(0) else { return };
    // SAFETY: as above.
    let event = unsafe { &mut *entry.as_mut_ptr() };
    // SAFETY: a helper without arguments.
    event.time_ns = unsafe { bpf_ktime_get_ns() };
    event.reason = reason;
    // SAFETY: reading a field of the context.
    event.ifindex = unsafe { (*ctx).ingress_ifindex };
    event.len = len;
    event.hook = Hook::XdpWire as u8;
    event.ether_type = ETHERTYPE_IPV4;
    event.reserved = 0;
    event.outer_src = Addr::UNSPECIFIED;
    describe(event, &ctx, in_tunnel != 0);
    entry.submit(0);
}

/// Addresses, protocol and ports; those of the inner packet where it is in its tunnel headers.
#[inline(always)]
fn describe(event: &mut DropEvent, packet: &impl Load, in_tunnel: bool) {
    let mut ip = Aligned(packet::EMPTY);
    let mut ports = 0_u32;
    let mut known = false;
    if event.ether_type == ETHERTYPE_IPV4 {
        let mut offset = ETH_LEN;
        if in_tunnel {
            offset = packet::INNER_OFFSET;
            if let Some(outer) = packet.load(ETH_LEN, packet::EMPTY) {
                event.outer_src = Addr::v4(outer.0.src_addr);
            }
        }
        if let Some(header) = packet.load(offset, packet::EMPTY) {
            known = true;
            ip = header;
            let ip = &ip.0;
            if matches!(ip.proto, PROTO_TCP | PROTO_UDP)
                && !ipv4::is_later_fragment(ip)
                && let Some(loaded) = packet.load(offset + ipv4::header_len(ip), 0)
            {
                ports = loaded.0;
            }
        }
    }
    let address = |addr| if known { Addr::v4(addr) } else { Addr::UNSPECIFIED };
    event.src = address(ip.0.src_addr);
    event.dst = address(ip.0.dst_addr);
    event.protocol = ip.0.proto;
    let [s0, s1, d0, d1] = ports.to_ne_bytes();
    event.src_port = u16::from_be_bytes([s0, s1]);
    event.dst_port = u16::from_be_bytes([d0, d1]);
}
