//! Into the tunnel: finds the next hop, builds the outer headers and sends the packet to the underlay device.
//!
//! The next hop comes from the kernel's own FIB and neighbour table on each packet (`bpf_fib_lookup`), so that a
//! change of route, gateway or MAC needs nobody to notice it. A packet that takes a neighbour's MAC from the table does
//! not count as use of the neighbour, and its entry would never be verified again; therefore once per
//! [`NEIGH_EPOCH_SHIFT`] period and node one packet goes through `bpf_redirect_neigh`, which drives the kernel's
//! reachability state machine (RFC 4861, 7.3; net/core/neighbour.c).
//!
//! Called by `from_pod` and `from_host`. What cannot be encapsulated here is reported as [`Outcome::Anchor`], untouched.

use core::mem::{MaybeUninit, offset_of};

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
        BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET,
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_fib_lookup as FibLookup,
    },
    helpers::{bpf_fib_lookup, bpf_get_hash_recalc, bpf_jiffies64, bpf_redirect, bpf_redirect_neigh},
    programs::TcContext,
};
use aya_log_ebpf::debug;
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
};
use overlay_common::{
    counter::Path,
    maps::{NODE_CHECKSUM, Node},
    reason::{Hook, Reason},
    wire::{
        ETH_LEN, PROTO_TCP, PROTO_UDP, ecn,
        ip::IpHeader,
        ipv6, source_port,
        vxlan::{Encap, Outer},
        write_eth,
    },
};

use crate::{
    config::{self, Family},
    drop::{Describe, drop},
    maps, packet, trace,
};

/// 256 jiffies: between a quarter of a second (1000 Hz) and two and a half (100 Hz), well below the kernel's
/// `base_reachable_time` of 30 s.
const NEIGH_EPOCH_SHIFT: u64 = 8;

/// Flags of `bpf_skb_adjust_room` beside that of the outer IP header.
const ENCAP_FLAGS: u64 = (BPF_F_ADJ_ROOM_FIXED_GSO
    | BPF_F_ADJ_ROOM_NO_CSUM_RESET
    | BPF_F_ADJ_ROOM_ENCAP_L4_UDP
    | BPF_F_ADJ_ROOM_ENCAP_L2_ETH) as u64
    // BPF_F_ADJ_ROOM_ENCAP_L2(len): bits 56 and up.
    | (ETH_LEN as u64) << 56;

/// A family that the tunnel goes over, as the kernel's helpers have it.
trait Underlay: Family {
    /// `AF_INET`, `AF_INET6` (include/linux/socket.h).
    const AF: u8;
    /// The flag of `bpf_skb_adjust_room` for its header.
    const ENCAP_L3: u32;
    /// The address of a node.
    fn vtep_of(node: *mut Node) -> Self::Bytes;
    /// Whose forwarding the lookup asks about. Over IPv6 that is the anchor device: pods' devices need not have the family.
    fn forwarder(skb: *mut __sk_buff) -> u32;
    /// Sets addresses and flow label.
    fn set_addresses(fib: &mut FibLookup, src: Self::Bytes, dst: Self::Bytes, flow: u16);
}

impl Underlay for Ipv4Hdr {
    const AF: u8 = 2;
    const ENCAP_L3: u32 = BPF_F_ADJ_ROOM_ENCAP_L3_IPV4;

    #[inline(always)]
    fn vtep_of(node: *mut Node) -> [u8; 4] {
        // SAFETY: a map value, valid until the program ends; the agent replaces whole values.
        unsafe { (*node).vtep.v4_bytes() }
    }

    #[inline(always)]
    fn forwarder(skb: *mut __sk_buff) -> u32 {
        // SAFETY: reading a field of the context.
        unsafe { (*skb).ifindex }
    }

    #[inline(always)]
    fn set_addresses(fib: &mut FibLookup, src: [u8; 4], dst: [u8; 4], _: u16) {
        fib.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(src);
        fib.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(dst);
    }
}

impl Underlay for Ipv6Hdr {
    const AF: u8 = 10;
    const ENCAP_L3: u32 = BPF_F_ADJ_ROOM_ENCAP_L3_IPV6;

    #[inline(always)]
    fn vtep_of(node: *mut Node) -> [u8; 16] {
        // SAFETY: as above.
        unsafe { (*node).vtep.bytes }
    }

    #[inline(always)]
    fn forwarder(_: *mut __sk_buff) -> u32 {
        config::anchor_ifindex()
    }

    #[inline(always)]
    fn set_addresses(fib: &mut FibLookup, src: [u8; 16], dst: [u8; 16], flow: u16) {
        // Version bits are no part of it.
        fib.__bindgen_anon_2.flowinfo =
            u32::from_ne_bytes(ipv6::first_word(0, flow)) & 0x0fff_ffff_u32.to_be();
        fib.__bindgen_anon_3.ipv6_src = packet::words_of_bytes(src);
        fib.__bindgen_anon_4.ipv6_dst = packet::words_of_bytes(dst);
    }
}

/// What became of a packet.
pub(crate) enum Outcome {
    /// Sent or dropped: the program's return value.
    Verdict(i32),
    /// Unchanged; the anchor device has to encapsulate it.
    Anchor,
    /// Unchanged; it is longer than the path to the node, which has room for so many bytes of it.
    TooBig(u32),
}

/// The facts of a packet that the outer header depends on.
#[derive(Clone, Copy)]
pub(crate) struct Inner {
    /// TOS byte or traffic class.
    pub(crate) traffic_class: u8,
    /// IP protocol.
    protocol: u8,
}

impl Inner {
    #[inline(always)]
    pub(crate) fn of(ip: &impl IpHeader) -> Self {
        Self { traffic_class: ip.traffic_class(), protocol: ip.protocol() }
    }
}

/// The longest packet this one makes, from its own IP header on; `None` where that is not known.
#[inline(always)]
fn segment_len<I: IpHeader>(ctx: &TcContext, inner: Inner) -> Option<u32> {
    let gso_size = packet::gso_size(ctx);
    if gso_size == 0 {
        return Some(ctx.len().wrapping_sub(ETH_LEN as u32));
    }
    let tcp_data_offset = if inner.protocol == PROTO_TCP {
        let byte = packet::at::<u8>(ctx, ETH_LEN + I::LEN + 12)?;
        // SAFETY: `at` checked the bounds.
        unsafe { *byte }
    } else {
        // Not to be read: of a UDP super-packet nothing but the headers may be linear.
        0
    };
    I::segment_len(inner.protocol, tcp_data_offset, gso_size)
}

/// Encapsulates the packet, which has an Ethernet header and a plain `I`, and sends it to `node`.
#[inline(always)]
pub(crate) fn encap<I: Family>(ctx: &TcContext, hook: Hook, node: *mut Node, inner: Inner) -> Outcome {
    let Some(segment_len) = segment_len::<I>(ctx, inner) else { return Outcome::Anchor };
    let class = inner.traffic_class;
    // SAFETY: a map value, valid until the program ends.
    let sent = if unsafe { (*node).vtep.is_v6() } {
        if !Ipv6Hdr::underlay() {
            return Outcome::Anchor;
        }
        let packed = u32::from(class) << 16 | u32::from(I::ETHERTYPE);
        Sent::unpack(over_ipv6(packet::skb(ctx), node, segment_len, packed))
    } else {
        over::<Ipv4Hdr>(ctx, node, segment_len, class, I::ETHERTYPE)
    };
    match sent {
        Sent::Redirected(verdict) => {
            maps::count(Path::EncapNative, ctx.len());
            trace::step(ctx, Path::EncapNative, hook, Describe::Tunnel);
            Outcome::Verdict(verdict)
        }
        Sent::NoRoom => Outcome::Verdict(drop(ctx, Reason::HeaderRoom, hook, Describe::Packet)),
        Sent::TooBig(mtu) => Outcome::TooBig(mtu),
        Sent::NoWay(rc) => {
            report(packet::skb(ctx), node, rc);
            Outcome::Anchor
        }
        Sent::Not => Outcome::Anchor,
    }
}

/// Whether a packet was sent.
enum Sent {
    /// With this return value.
    Redirected(i32),
    /// It has outer headers that cannot be written.
    NoRoom,
    /// It is unchanged.
    Not,
    /// It is unchanged, and longer than this, at most 16 bits.
    TooBig(u32),
    /// It is unchanged: `bpf_fib_lookup` has this answer, of few bits, which is not a way to go here.
    NoWay(u32),
}

impl Sent {
    const NO_ROOM: i32 = i32::MIN;
    const NOT: i32 = i32::MIN + 1;
    const TOO_BIG: i32 = i32::MIN + 2;
    const NO_WAY: i32 = Self::TOO_BIG + (1 << 16);

    /// As a subprogram returns it; redirects return small numbers.
    #[inline(always)]
    fn pack(self) -> i32 {
        match self {
            Self::Redirected(verdict) => verdict,
            Self::NoRoom => Self::NO_ROOM,
            Self::Not => Self::NOT,
            Self::TooBig(mtu) => Self::TOO_BIG + mtu as i32,
            Self::NoWay(rc) => Self::NO_WAY + rc as i32,
        }
    }

    #[inline(always)]
    fn unpack(packed: i32) -> Self {
        match packed {
            Self::NO_ROOM => Self::NoRoom,
            Self::NOT => Self::Not,
            too_big if too_big < Self::NO_WAY => Self::TooBig((too_big - Self::TOO_BIG) as u32),
            no_way if no_way < 0 => Self::NoWay((no_way - Self::NO_WAY) as u32),
            verdict => Self::Redirected(verdict),
        }
    }
}

/// Not inlined, so that what goes over IPv4 does not pay with larger programs. `packed`: traffic class and `EtherType`.
#[inline(never)]
fn over_ipv6(skb: *mut __sk_buff, node: *mut Node, segment_len: u32, packed: u32) -> i32 {
    let ctx = TcContext::new(skb);
    over::<Ipv6Hdr>(&ctx, node, segment_len, (packed >> 16) as u8, packed as u16).pack()
}

/// Says that there is no way. Not inlined, so that its stack does not add to that of what comes after.
#[inline(never)]
fn report(skb: *mut __sk_buff, node: *mut Node, rc: u32) {
    // SAFETY: a map value, valid until the program ends.
    let vtep = unsafe { (*node).vtep.bytes };
    debug!(TcContext::new(skb), "no native next hop to {:i}: bpf_fib_lookup says {}", vtep, rc);
}

/// Encapsulates and sends over the family `O`.
#[inline(always)]
fn over<O: Underlay>(ctx: &TcContext, node: *mut Node, segment_len: u32, class: u8, inner_type: u16) -> Sent {
    let inner_len = ctx.len().wrapping_sub(ETH_LEN as u32);
    if inner_len > Outer::<O>::MAX_INNER_LEN {
        return Sent::Not;
    }
    let skb = packet::skb(ctx);
    // SAFETY: as above.
    let (vtep_mac, epoch) = unsafe { ((*node).vtep_mac, (*node).neigh_epoch) };
    let (vtep, own) = (O::vtep_of(node), O::vtep());
    // SAFETY: a helper on the context.
    let src_port = source_port(unsafe { bpf_get_hash_recalc(skb) });

    let mut parameters = Fib::new();
    let fib = parameters.zeroed();
    fib.family = O::AF;
    // The ports take part in multipath selection, as they do for a packet of the anchor device.
    fib.l4_protocol = PROTO_UDP;
    fib.sport = src_port.to_be();
    fib.dport = own.port.to_be();
    fib.__bindgen_anon_1.tot_len = segment_len.wrapping_add(Outer::<O>::LEN as u32) as u16;
    let forwarder = O::forwarder(skb);
    fib.ifindex = forwarder;
    O::set_addresses(fib, own.addr, vtep, src_port);
    // SAFETY: the helper reads and writes exactly `size_of::<FibLookup>()` bytes of `fib`.
    let rc = unsafe {
        bpf_fib_lookup(
            skb.cast(),
            core::ptr::from_mut(fib).cast(),
            size_of::<FibLookup>() as i32,
            config::fib_flags(),
        )
    } as u32;
    if rc == BPF_FIB_LKUP_RET_FRAG_NEEDED {
        // SAFETY: a number of 16 bits, whatever it means; the path's MTU from Linux 5.12 on (e1850ea9bd9e), before that still the
        // packet's length.
        let path = u32::from(unsafe { fib.__bindgen_anon_1.mtu_result });
        return Sent::TooBig(path.saturating_sub(Outer::<O>::LEN as u32));
    }
    if rc != BPF_FIB_LKUP_RET_SUCCESS && rc != BPF_FIB_LKUP_RET_NO_NEIGH || fib.ifindex == forwarder {
        // No route, forwarding off, …: the kernel's path has the right answer to each.
        return Sent::NoWay(rc);
    }
    // SAFETY: as above. Only such a node has the flag as is reached over IPv6.
    if O::AF == Ipv6Hdr::AF && unsafe { (*node).flags } & NODE_CHECKSUM != 0 {
        return Sent::Not;
    }

    let flags = ENCAP_FLAGS | u64::from(O::ENCAP_L3);
    if ctx.adjust_room(Outer::<O>::LEN_I32, BPF_ADJ_ROOM_MAC, flags).is_err() {
        // Already encapsulated, or GSO of a kind that adjust_room does not know. It has changed nothing.
        return Sent::Not;
    }
    let Some(headers) = packet::at::<Headers<O>>(ctx, 0) else { return Sent::NoRoom };
    // SAFETY: `at` checked the bounds.
    let headers = unsafe { &mut *headers };
    let next_hop = fib.ifindex;
    let (dst, src) = parameters.macs();
    write_eth(&mut headers.eth, dst, src, O::ETHERTYPE);
    Encap {
        src: own.addr,
        dst: vtep,
        src_port,
        port: own.port,
        vni: own.vni,
        inner_len: inner_len as u16,
        tos: ecn::outer_tos(class),
        inner_type,
        inner_src: config::anchor_mac(),
        inner_dst: vtep_mac,
    }
    .write(&mut headers.outer);

    // SAFETY: a helper without arguments.
    let now = (unsafe { bpf_jiffies64() } >> NEIGH_EPOCH_SHIFT) as u32;
    let verdict = if rc == BPF_FIB_LKUP_RET_SUCCESS && epoch == now {
        // SAFETY: a helper on numbers.
        unsafe { bpf_redirect(next_hop, 0) }
    } else {
        // SAFETY: as above; a lost race between CPUs costs one more packet on the longer path.
        unsafe { (*node).neigh_epoch = now };
        // Without a next hop of ours the helper looks up the route of the outer header, and gives it to the packet. One
        // from the host still carries the route to the anchor; a packet that waits for ARP would be sent by that.
        // SAFETY: a null pointer with length 0 is allowed (bpf-helpers(7)).
        unsafe { bpf_redirect_neigh(next_hop, core::ptr::null_mut(), 0, 0) }
    };
    Sent::Redirected(verdict as i32)
}

/// An encapsulated packet up to the inner IP header.
#[repr(C)]
struct Headers<O> {
    eth: EthHdr,
    outer: Outer<O>,
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

    /// The next hop's MAC address and the device's own, as `mac_word` makes them.
    #[inline(always)]
    fn macs(&self) -> (u64, u64) {
        let words = self.0.as_ptr().cast::<u64>();
        // SAFETY: inside of the array, which is initialised. Volatile: narrower loads would be misaligned.
        let (last_but_one, last) =
            unsafe { (words.add(6).read_volatile().to_le(), words.add(7).read_volatile().to_le()) };
        (last >> 16, last_but_one >> 32 | (last & 0xffff) << 32)
    }
}

const _: () = assert!(size_of::<FibLookup>().is_multiple_of(8));
const _: () = assert!(offset_of!(FibLookup, smac) == 52 && offset_of!(FibLookup, dmac) == 58);
