//! Flows of the stack: what left through the node's stack returns through it, because its conntrack may have translated it.
//!
//! [`record`] is called where the stack hands over a packet whose answer a program would redirect past the stack (`to_pod`,
//! `from_host`); [`returns_to_stack`] where such a redirect is about to happen (`from_pod`, `from_wire`, `from_tunnel`). A
//! node on which no flow was ever recorded pays for the reading of one word.
//!
//! The common case is inlined; what takes more than a look at two ports is not, since it is rare and its code would stand in
//! every program.

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_ktime_get_ns, programs::TcContext};
use network_types::ip::Ipv4Hdr;
use overlay_common::{
    counter::Path,
    flow::{self, Icmp, Transport},
    maps::{Flow, FlowKey},
    wire::{PROTO_ICMP, ipv4},
};

use crate::{config, maps, packet};

/// Bytes of an IPv4 header without options.
const IPV4_LEN: usize = 20;
/// Bytes of an ICMP header.
const ICMP_LEN: usize = 8;

/// A key on the stack, aligned for word stores (see `encap::Fib`).
#[repr(C, align(8))]
struct Key(FlowKey);

/// Must this packet, whose plain IPv4 header is at `offset`, go to the stack instead of being redirected?
#[inline(always)]
pub(crate) fn returns_to_stack(ctx: &TcContext, ip: &Ipv4Hdr, offset: usize) -> bool {
    if !config::stack_flows() || !maps::any_flow() {
        return false;
    }
    let found = if ip.proto == PROTO_ICMP || ipv4::is_fragment(ip) {
        odd(packet::skb(ctx), offset as u32)
    } else if let Some(ports) = ports(ctx, offset + IPV4_LEN) {
        let [a, b, c, d] = ports;
        maps::is_recorded(&Key(flow::of_packet(ip, [a, b, c, d, 0, 0, 0, 0])).0)
    } else {
        false
    };
    if found {
        maps::count(Path::ReturnsToStack, ctx.len());
    }
    found
}

/// The first four bytes of the transport header. Does not move the packet.
#[inline(always)]
fn ports(ctx: &TcContext, offset: usize) -> Option<[u8; 4]> {
    match packet::at::<[u8; 4]>(ctx, offset) {
        // SAFETY: `at` checked the bounds.
        Some(ports) => Some(unsafe { *ports }),
        None => packet::load(packet::skb(ctx), offset, 0_u32).map(|ports| ports.0.to_ne_bytes()),
    }
}

/// The first eight bytes of the transport header.
#[inline(always)]
fn transport_header(skb: *mut __sk_buff, offset: usize) -> Option<Transport> {
    packet::load(skb, offset, 0_u64).map(|transport| transport.0.to_ne_bytes())
}

/// ICMP and fragments.
#[inline(never)]
fn odd(skb: *mut __sk_buff, offset: u32) -> bool {
    let offset = offset as usize;
    let Some(ip) = packet::load(skb, offset, packet::EMPTY) else { return false };
    let ip = &ip.0;
    if ipv4::is_fragment(ip) {
        // All fragments of a datagram have to go the same way, and only the first one has ports.
        return maps::is_recorded(&Key(flow::of_fragment(ip.src_addr, ip.dst_addr)).0);
    }
    let Some(transport) = transport_header(skb, offset + IPV4_LEN) else { return false };
    if flow::icmp(transport[0]) == Icmp::Own {
        return maps::is_recorded(&Key(flow::of_packet(ip, transport)).0);
    }
    let quoted = offset + IPV4_LEN + ICMP_LEN;
    let Some(ip) = packet::load(skb, quoted, packet::EMPTY) else { return false };
    let ip = &ip.0;
    let key = if ipv4::is_later_fragment(ip) {
        flow::of_fragment(ip.src_addr, ip.dst_addr)
    } else {
        // RFC 792 promises eight bytes of the quoted packet's payload.
        let Some(transport) = transport_header(skb, quoted + ipv4::header_len(ip)) else { return false };
        flow::of_packet(ip, transport)
    };
    maps::is_recorded(&Key(flow::reversed(key)).0)
}

/// Records what answers to this packet, whose IPv4 header is at `offset`, will look like.
///
/// Each packet looks its flow up, which is what keeps the entry young in an LRU table.
#[inline(never)]
pub(crate) fn record(skb: *mut __sk_buff, offset: u32) {
    let offset = offset as usize;
    let Some(ip) = packet::load(skb, offset, packet::EMPTY) else { return };
    let ip = &ip.0;
    let pair = Key(flow::reversed(flow::of_fragment(ip.src_addr, ip.dst_addr)));
    if ipv4::is_later_fragment(ip) {
        // The first one has made the entry.
        maps::is_recorded(&pair.0);
        return;
    }
    let offset = offset + ipv4::header_len(ip);
    let transport = if ip.proto == PROTO_ICMP {
        match transport_header(skb, offset) {
            // An error has no answer.
            Some(header) if flow::icmp(header[0]) == Icmp::Own => header,
            _ => return,
        }
    } else {
        packet::load(skb, offset, 0_u32).map_or([0; 8], |ports| {
            let [a, b, c, d] = ports.0.to_ne_bytes();
            [a, b, c, d, 0, 0, 0, 0]
        })
    };
    let key = Key(flow::reversed(flow::of_packet(ip, transport)));
    if maps::is_recorded(&key.0) {
        if ipv4::is_fragment(ip) {
            maps::is_recorded(&pair.0);
        }
        return;
    }
    // SAFETY: a helper without arguments.
    let now = Flow::at(unsafe { bpf_ktime_get_ns() });
    // SAFETY: reading a field of the context.
    let len = unsafe { (*skb).len };
    let recorded = maps::record_flow(&key.0, &now) && maps::record_flow(&pair.0, &now);
    maps::count(if recorded { Path::FlowRecorded } else { Path::FlowNotRecorded }, len);
}
