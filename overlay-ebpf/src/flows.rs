//! Flows of the stack: what left through the node's stack returns through it, because its conntrack may have translated it.
//!
//! [`Flows::record`] is called where the stack hands over a packet whose answer a program would redirect past the stack (`to_pod`,
//! `from_host`); [`returns_to_stack`] where such a redirect is about to happen (`from_pod`, `from_wire`, `from_tunnel`). A
//! node on which no flow was ever recorded pays for the reading of one word.
//!
//! The common case is inlined; what takes more than a look at two ports is not, since it is rare and its code would stand in
//! every program.

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_ktime_get_ns, programs::TcContext};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use overlay_common::{
    counter::Path,
    flow::{self, Icmp},
    maps::{Flow, FlowKey},
    wire::{
        ip::Address as _,
        ipv6::{Chain, Fragment},
    },
};

use crate::{config, maps, packet, transport::Transport};

/// Bytes of an ICMP header.
const ICMP_LEN: usize = 8;

/// A key on the stack, aligned for word stores (see `encap::Fib`).
#[repr(C, align(8))]
struct Key(FlowKey);

/// Must this packet, whose plain IP header is at `offset`, go to the stack instead of being redirected?
#[inline(always)]
pub(crate) fn returns_to_stack<H: Flows>(ctx: &TcContext, ip: &H, offset: usize) -> bool {
    if !config::stack_flows() || !maps::any_flow() {
        return false;
    }
    let found = if ip.protocol() == H::ICMP || ip.is_fragment() {
        H::is_odd_recorded(packet::skb(ctx), offset as u32)
    } else if let Some(ports) = ports(ctx, offset + H::LEN) {
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
fn transport_header(skb: *mut __sk_buff, offset: usize) -> Option<flow::Transport> {
    packet::load(skb, offset, 0_u64).map(|transport| transport.0.to_ne_bytes())
}

/// ICMP and fragments.
#[inline(always)]
fn odd<H: Transport>(skb: *mut __sk_buff, offset: u32) -> bool {
    let offset = offset as usize;
    let Some(ip) = packet::load(skb, offset, H::EMPTY) else { return false };
    let ip = &ip.0;
    if ip.is_fragment() {
        // All fragments of a datagram have to go the same way, and only the first one has ports.
        return maps::is_recorded(&pair(ip).0);
    }
    let Some(transport) = transport_header(skb, offset + H::LEN) else { return false };
    if flow::icmp(H::ICMP, transport[0]) == Icmp::Own {
        return maps::is_recorded(&Key(flow::of_packet(ip, transport)).0);
    }
    let quoted = offset + H::LEN + ICMP_LEN;
    let Some(ip) = packet::load(skb, quoted, H::EMPTY) else { return false };
    let ip = &ip.0;
    let Ok(Chain { protocol, offset, fragment }) = ip.transport(skb, quoted) else { return false };
    let key = if fragment == Fragment::Later {
        pair(ip)
    } else {
        // RFC 792 promises eight bytes of the quoted packet's payload, RFC 4443 all that fits.
        let Some(transport) = transport_header(skb, offset) else { return false };
        Key(flow::of_transport(ip, protocol, transport))
    };
    maps::is_recorded(&Key(flow::reversed(key.0)).0)
}

/// The key for fragments between the addresses of this header.
#[inline(always)]
fn pair<H: Transport>(ip: &H) -> Key {
    Key(flow::of_fragment(ip.src().to_addr(), ip.dst().to_addr()))
}

/// A family, and its own of what is rare: global functions, as `drop::record_drop`.
pub(crate) trait Flows: Transport {
    /// See [`odd`].
    fn is_odd_recorded(skb: *mut __sk_buff, offset: u32) -> bool;
    /// See [`record_of`].
    fn record(skb: *mut __sk_buff, offset: u32);
}

impl Flows for Ipv4Hdr {
    #[inline(always)]
    fn is_odd_recorded(skb: *mut __sk_buff, offset: u32) -> bool {
        odd_flow_v4(skb, offset) != 0
    }

    #[inline(always)]
    fn record(skb: *mut __sk_buff, offset: u32) {
        record_flow_v4(skb, offset);
    }
}

impl Flows for Ipv6Hdr {
    #[inline(always)]
    fn is_odd_recorded(skb: *mut __sk_buff, offset: u32) -> bool {
        odd_flow_v6(skb, offset) != 0
    }

    #[inline(always)]
    fn record(skb: *mut __sk_buff, offset: u32) {
        record_flow_v6(skb, offset);
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn odd_flow_v4(skb: *mut __sk_buff, offset: u32) -> u32 {
    odd::<Ipv4Hdr>(skb, offset).into()
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn odd_flow_v6(skb: *mut __sk_buff, offset: u32) -> u32 {
    odd::<Ipv6Hdr>(skb, offset).into()
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn record_flow_v4(skb: *mut __sk_buff, offset: u32) -> u32 {
    record_of::<Ipv4Hdr>(skb, offset);
    0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn record_flow_v6(skb: *mut __sk_buff, offset: u32) -> u32 {
    record_of::<Ipv6Hdr>(skb, offset);
    0
}

/// Records what answers to this packet, whose IP header is at `offset`, will look like.
///
/// Each packet looks its flow up, which is what keeps the entry young in an LRU table.
#[inline(always)]
fn record_of<H: Transport>(skb: *mut __sk_buff, offset: u32) {
    let offset = offset as usize;
    let Some(ip) = packet::load(skb, offset, H::EMPTY) else { return };
    let ip = &ip.0;
    let Ok(Chain { protocol, offset, fragment }) = ip.transport(skb, offset) else { return };
    if fragment == Fragment::Later {
        // The first one has made the entry.
        maps::is_recorded(&Key(flow::reversed(pair(ip).0)).0);
        return;
    }
    let transport = if protocol == H::ICMP {
        match transport_header(skb, offset) {
            // An error has no answer.
            Some(header) if flow::icmp(protocol, header[0]) == Icmp::Own => header,
            _ => return,
        }
    } else {
        packet::load(skb, offset, 0_u32).map_or([0; 8], |ports| {
            let [a, b, c, d] = ports.0.to_ne_bytes();
            [a, b, c, d, 0, 0, 0, 0]
        })
    };
    let key = Key(flow::reversed(flow::of_transport(ip, protocol, transport)));
    let pair = Key(flow::reversed(pair(ip).0));
    if maps::is_recorded(&key.0) {
        if fragment == Fragment::First {
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
