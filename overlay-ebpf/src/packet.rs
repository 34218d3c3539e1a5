//! Access to a packet: direct, bounds-checked pointers into its linear part, and the few metadata fields used.
//!
//! Invariant: a pointer is used only until the next helper call that may move the packet (`adjust_room`,
//! `pull_data`); the functions that call those return no pointers of before.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, TC_ACT_UNSPEC},
    helpers::bpf_skb_load_bytes,
    programs::TcContext,
};
use network_types::eth::EthHdr;
use overlay_common::wire::ETHERTYPE_VLAN;

/// On to the next program of the hook, and then the kernel's own path (`TCX_NEXT`, `TC_ACT_UNSPEC`).
pub(crate) const PASS: i32 = TC_ACT_UNSPEC;

/// `skb->pkt_type` of a packet that is addressed to this host (include/uapi/linux/if_packet.h).
pub(crate) const PACKET_HOST: u32 = 0;

#[inline(always)]
pub(crate) fn skb(ctx: &TcContext) -> *mut __sk_buff {
    ctx.as_ptr().cast()
}

/// A pointer to a `T` at `offset` of the linear part, `None` where it does not fit.
#[inline(always)]
pub(crate) fn at<T>(ctx: &TcContext, offset: usize) -> Option<*mut T> {
    let start = ctx.data() + offset;
    (start + size_of::<T>() <= ctx.data_end()).then_some(start as *mut T)
}

/// As [`at`], after making the first `offset + size` bytes linear where they are not.
#[inline(always)]
pub(crate) fn pulled<T>(ctx: &TcContext, offset: usize) -> Option<*mut T> {
    if let Some(pointer) = at(ctx, offset) {
        return Some(pointer);
    }
    let wanted = (offset + size_of::<T>()) as u32;
    if ctx.len() < wanted || ctx.pull_data(wanted).is_err() {
        return None;
    }
    at(ctx, offset)
}

/// For word access to the stack, which the verifier wants aligned whatever the compiler may do to packets.
#[repr(C, align(8))]
pub(crate) struct Aligned<T>(pub(crate) T);

/// A copy of the `T` at `offset`, wherever in the packet that is; `None` where it does not fit. Moves nothing.
#[inline(always)]
pub(crate) fn load<T: Copy>(skb: *mut __sk_buff, offset: usize, zero: T) -> Option<Aligned<T>> {
    let mut value = Aligned(zero);
    // SAFETY: `value` is a plain struct of `size_of::<T>()` writable bytes.
    let rc = unsafe {
        bpf_skb_load_bytes(
            skb.cast(),
            offset as u32,
            core::ptr::from_mut(&mut value.0).cast(),
            size_of::<T>() as u32,
        )
    };
    (rc == 0).then_some(value)
}

/// The Ethernet header and an IP header without what may follow it.
#[repr(C)]
pub(crate) struct Packet<H> {
    pub(crate) eth: EthHdr,
    pub(crate) ip: H,
}

/// An IPv6 address in the words that the kernel's helpers have it in, as it lies in a packet.
#[inline(always)]
pub(crate) const fn words_of_bytes(bytes: [u8; 16]) -> [u32; 4] {
    // SAFETY: as many bytes, any of which are valid.
    unsafe { core::mem::transmute::<[u8; 16], [u32; 4]>(bytes) }
}

/// What the packet carries, from its `EtherType` (host order); [`ETHERTYPE_VLAN`] where it has a VLAN tag.
///
/// The kernel takes a tag off before a program sees the packet and keeps it beside. There it would stay: on a packet that
/// is redirected it comes out again, on the outer header after encapsulation.
#[inline(always)]
pub(crate) fn ether_type(ctx: &TcContext) -> u16 {
    let skb = skb(ctx);
    // Volatile: the two are neighbours, which the compiler may read as one word; the verifier knows no such field.
    // SAFETY: reading fields of the context, rewritten by the verifier to those of the skb.
    let (protocol, tagged) = unsafe {
        ((&raw const (*skb).protocol).read_volatile(), (&raw const (*skb).vlan_present).read_volatile())
    };
    if tagged != 0 { ETHERTYPE_VLAN } else { u16::from_be(protocol as u16) }
}

/// The segment size of a GSO packet, 0 for others.
#[inline(always)]
pub(crate) fn gso_size(ctx: &TcContext) -> u32 {
    // SAFETY: reading a field of the context (Linux 5.7, cf62089b0edd).
    unsafe { (*skb(ctx)).gso_size }
}

/// The device whose hook runs.
#[inline(always)]
pub(crate) fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: reading a field of the context.
    unsafe { (*skb(ctx)).ifindex }
}

#[inline(always)]
pub(crate) fn pkt_type(ctx: &TcContext) -> u32 {
    // SAFETY: reading a field of the context.
    unsafe { (*skb(ctx)).pkt_type }
}

/// `skb->mark` between two programs that pass a packet on by way of the anchor device. From `from_pod` to `from_host`: the
/// stack has not seen this packet, it could not be encapsulated at once. From `from_host` to `from_tunnel`: it came by no
/// tunnel, it is an answer of ours. Nothing runs between the two; other marks are none of ours.
const OWN: u32 = 0x6f76_6c79;

/// Marks a packet for the next program. The mark of a packet from a pod is 0: it has changed its namespace.
#[inline(always)]
pub(crate) fn mark_own(ctx: &TcContext) {
    ctx.set_mark(OWN);
}

/// Takes the mark off; was it there?
#[inline(always)]
pub(crate) fn take_own_mark(ctx: &TcContext) -> bool {
    // SAFETY: reading a field of the context.
    if unsafe { (*skb(ctx)).mark } != OWN {
        return false;
    }
    ctx.set_mark(0);
    true
}

/// A MAC address as it lies in a header.
pub(crate) type Mac = [u8; 6];

/// Compares as two words instead of six bytes.
#[inline(always)]
pub(crate) fn same_mac(a: &Mac, b: &Mac) -> bool {
    let [a0, a1, a2, a3, a4, a5] = *a;
    let [b0, b1, b2, b3, b4, b5] = *b;
    u32::from_ne_bytes([a0, a1, a2, a3]) == u32::from_ne_bytes([b0, b1, b2, b3])
        && u16::from_ne_bytes([a4, a5]) == u16::from_ne_bytes([b4, b5])
}
