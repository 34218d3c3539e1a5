//! Into the tunnel: finds the next hop, builds the outer headers and sends the packet to the underlay device.
//!
//! The next hop comes from the kernel's own FIB and neighbour table on each packet (`bpf_fib_lookup`), so that a
//! change of route, gateway or MAC needs nobody to notice it. A packet that takes a neighbour's MAC from the table does
//! not count as use of the neighbour, and its entry would never be verified again; therefore once per
//! [`NEIGH_EPOCH_SHIFT`] period and node one packet goes through `bpf_redirect_neigh`, which drives the kernel's
//! reachability state machine (RFC 4861, 7.3; net/core/neighbour.c).
//!
//! Called by `from_pod` and `from_host`. What cannot be encapsulated here is reported as [`Outcome::Anchor`], untouched.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{
        BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
        BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET, BPF_FIB_LKUP_RET_FRAG_NEEDED,
        BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_fib_lookup as FibLookup,
    },
    helpers::{bpf_fib_lookup, bpf_get_hash_recalc, bpf_jiffies64, bpf_redirect, bpf_redirect_neigh},
    programs::TcContext,
};
use aya_log_ebpf::debug;
use network_types::eth::EthHdr;
use overlay_common::{
    counter::Path,
    maps::Node,
    reason::{Hook, Reason},
    wire::{
        ETH_LEN, ETHERTYPE_IPV4, PROTO_TCP, PROTO_UDP, ecn, ipv4, source_port,
        vxlan::{Encap, MAX_INNER_LEN, OVERHEAD, OVERHEAD_I32, Outer},
    },
};

use crate::{
    config,
    drop::{Describe, drop},
    maps, packet, trace,
};

/// `AF_INET` (include/linux/socket.h).
const AF_INET: u8 = 2;

/// 256 jiffies: between a quarter of a second (1000 Hz) and two and a half (100 Hz), well below the kernel's
/// `base_reachable_time` of 30 s.
const NEIGH_EPOCH_SHIFT: u64 = 8;

const ENCAP_FLAGS: u64 = (BPF_F_ADJ_ROOM_FIXED_GSO
    | BPF_F_ADJ_ROOM_NO_CSUM_RESET
    | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4
    | BPF_F_ADJ_ROOM_ENCAP_L4_UDP
    | BPF_F_ADJ_ROOM_ENCAP_L2_ETH) as u64
    // BPF_F_ADJ_ROOM_ENCAP_L2(len): bits 56 and up.
    | (ETH_LEN as u64) << 56;

/// What became of a packet.
pub(crate) enum Outcome {
    /// Sent or dropped: the program's return value.
    Verdict(i32),
    /// Unchanged; the anchor device has to encapsulate it.
    Anchor,
    /// Unchanged; it is longer than the path to the node, which carries so many bytes from the outer IP header on.
    TooBig(u32),
}

/// The facts of a packet that the outer header depends on.
#[derive(Clone, Copy)]
pub(crate) struct Inner {
    /// TOS byte.
    pub(crate) tos: u8,
    /// IP protocol.
    pub(crate) protocol: u8,
}

/// The longest packet this one makes on the wire, from the outer IP header on; `None` where that is not known.
#[inline(always)]
fn wire_len(ctx: &TcContext, inner: Inner) -> Option<u32> {
    let gso_size = packet::gso_size(ctx);
    let inner_len = if gso_size == 0 {
        ctx.len().wrapping_sub(ETH_LEN as u32)
    } else {
        let tcp_data_offset = if inner.protocol == PROTO_TCP {
            let byte = packet::at::<u8>(ctx, ETH_LEN + 20 + 12)?;
            // SAFETY: `at` checked the bounds.
            unsafe { *byte }
        } else {
            // Not to be read: of a UDP super-packet nothing but the headers may be linear.
            0
        };
        ipv4::segment_len(inner.protocol, tcp_data_offset, gso_size)?
    };
    Some(inner_len.wrapping_add(OVERHEAD as u32))
}

/// Encapsulates the packet, which has an Ethernet and an IPv4 header, and sends it to `node`.
#[inline(always)]
pub(crate) fn encap(ctx: &TcContext, hook: Hook, node: *mut Node, inner: Inner) -> Outcome {
    let inner_len = ctx.len().wrapping_sub(ETH_LEN as u32);
    if inner_len > MAX_INNER_LEN {
        return Outcome::Anchor;
    }
    let Some(wire_len) = wire_len(ctx, inner) else { return Outcome::Anchor };
    // SAFETY: `node` is a map value, valid until the program ends; the agent replaces whole values.
    let (vtep, vtep_mac, epoch) = unsafe { ((*node).vtep.v4_bytes(), (*node).vtep_mac, (*node).neigh_epoch) };
    let own = config::vtep();
    let tos = ecn::outer_tos(inner.tos);
    // SAFETY: a helper on the context.
    let src_port = source_port(unsafe { bpf_get_hash_recalc(packet::skb(ctx)) });

    let mut fib = Fib::new();
    let fib = fib.zeroed();
    fib.family = AF_INET;
    // The ports take part in multipath selection, as they do for a packet of the anchor device.
    fib.l4_protocol = PROTO_UDP;
    fib.sport = src_port.to_be();
    fib.dport = own.port.to_be();
    fib.__bindgen_anon_1.tot_len = wire_len as u16;
    fib.ifindex = packet::ifindex(ctx);
    fib.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(own.addr);
    fib.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(vtep);
    // SAFETY: the helper reads and writes exactly `size_of::<FibLookup>()` bytes of `fib`.
    let rc = unsafe {
        bpf_fib_lookup(
            packet::skb(ctx).cast(),
            core::ptr::from_mut(fib).cast(),
            size_of::<FibLookup>() as i32,
            config::fib_flags(),
        )
    } as u32;
    if rc == BPF_FIB_LKUP_RET_FRAG_NEEDED {
        // SAFETY: both variants are a number of 16 bits; the helper has written it (Linux 5.12, e1850ea9bd9e).
        return Outcome::TooBig(u32::from(unsafe { fib.__bindgen_anon_1.mtu_result }));
    }
    if rc != BPF_FIB_LKUP_RET_SUCCESS && rc != BPF_FIB_LKUP_RET_NO_NEIGH
        || fib.ifindex == packet::ifindex(ctx)
    {
        // No route, forwarding off, …: the kernel's path has the right answer to each.
        debug!(ctx, "no native next hop to {:i}: bpf_fib_lookup says {}", vtep, rc);
        return Outcome::Anchor;
    }

    if ctx.adjust_room(OVERHEAD_I32, BPF_ADJ_ROOM_MAC, ENCAP_FLAGS).is_err() {
        // Already encapsulated, or GSO of a kind that adjust_room does not know. It has changed nothing.
        return Outcome::Anchor;
    }
    let Some(headers) = packet::at::<Headers>(ctx, 0) else {
        return Outcome::Verdict(drop(ctx, Reason::HeaderRoom, hook, Describe::Packet));
    };
    // SAFETY: `at` checked the bounds.
    let headers = unsafe { &mut *headers };
    headers.eth = EthHdr { dst_addr: fib.dmac, src_addr: fib.smac, ether_type: ETHERTYPE_IPV4.to_be() };
    Encap {
        src: own.addr,
        dst: vtep,
        src_port,
        port: own.port,
        vni: own.vni,
        inner_len: inner_len as u16,
        tos,
        inner_src: config::anchor_mac(),
        inner_dst: vtep_mac,
    }
    .write(&mut headers.outer);
    maps::count(Path::EncapNative, ctx.len());
    trace::step(ctx, Path::EncapNative, hook, Describe::Tunnel);

    // SAFETY: a helper without arguments.
    let now = (unsafe { bpf_jiffies64() } >> NEIGH_EPOCH_SHIFT) as u32;
    let verdict = if rc == BPF_FIB_LKUP_RET_SUCCESS && epoch == now {
        // SAFETY: a helper on numbers.
        unsafe { bpf_redirect(fib.ifindex, 0) }
    } else {
        // SAFETY: as above; a lost race between CPUs costs one more packet on the longer path.
        unsafe { (*node).neigh_epoch = now };
        // Without a next hop of ours the helper looks up the route of the outer header, and gives it to the packet. One
        // from the host still carries the route to the anchor; a packet that waits for ARP would be sent by that.
        // SAFETY: a null pointer with length 0 is allowed (bpf-helpers(7)).
        unsafe { bpf_redirect_neigh(fib.ifindex, core::ptr::null_mut(), 0, 0) }
    };
    Outcome::Verdict(verdict as i32)
}

/// An encapsulated packet up to the inner IP header.
#[repr(C)]
struct Headers {
    eth: EthHdr,
    outer: Outer,
}

/// The parameters of a FIB lookup, aligned for word stores: the verifier wants aligned access to the stack whatever
/// the compiler may do to packets.
#[repr(C, align(8))]
struct Fib(MaybeUninit<[u64; size_of::<FibLookup>() / 8]>);

impl Fib {
    #[inline(always)]
    const fn new() -> Self {
        Self(MaybeUninit::uninit())
    }

    /// Clears all words.
    #[inline(always)]
    fn zeroed(&mut self) -> &mut FibLookup {
        let words = self.0.as_mut_ptr().cast::<u64>();
        for index in 0..size_of::<Self>() / 8 {
            // Volatile: plain stores become a call to a loop over bytes, or are merged with those of single fields and then misaligned.
            // SAFETY: inside of the array, and aligned.
            unsafe { words.add(index).write_volatile(0) };
        }
        // SAFETY: as many bytes, better aligned, all initialised, and every bit pattern is valid.
        unsafe { &mut *words.cast::<FibLookup>() }
    }
}

const _: () = assert!(size_of::<FibLookup>().is_multiple_of(8));
