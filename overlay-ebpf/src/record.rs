//! Writing records into the log of this CPU (`EVENTS`): the budget, the place, and what a packet looks like.
//!
//! Invariant: a record is complete before the log's counter names it, so that a reader that has seen the counter finds the
//! record, unless it was overwritten since. Nothing else writes the log of this CPU. Callers: [`crate::drop`],
//! [`crate::trace`].

use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::{
    bindings::{__sk_buff, xdp_md},
    helpers::{bpf_ktime_get_ns, bpf_skb_load_bytes, bpf_xdp_load_bytes},
};
use network_types::ip::Ipv4Hdr;
use overlay_common::{
    maps::{
        Addr, Budget, DROP_BUDGET, DROP_SLOTS, Event, EventKind, HEAD, REASON_BUDGET, TRACE_BUDGET,
        TRACE_SLOTS, Tuple,
    },
    reason::Reason,
    wire::{ETH_LEN, ETHERTYPE_IPV4, PROTO_SCTP, PROTO_TCP, PROTO_UDP, ipv4},
};

use crate::{
    frame, maps,
    packet::{self, Aligned},
};

/// What a record is about, as one number: subprograms take few arguments.
#[derive(Clone, Copy)]
pub(crate) struct Subject(pub(crate) u32);

impl Subject {
    /// `code` is a reason or a path. `tunnel`: the packet is still, or already, in its tunnel headers.
    #[inline(always)]
    pub(crate) const fn new(code: u32, hook: u32, tunnel: bool) -> Self {
        Self(code | hook << 8 | (tunnel as u32) << 16)
    }

    #[inline(always)]
    const fn code(self) -> u8 {
        self.0 as u8
    }

    #[inline(always)]
    const fn hook(self) -> u8 {
        (self.0 >> 8) as u8
    }

    #[inline(always)]
    const fn tunnel(self) -> bool {
        self.0 >> 16 != 0
    }
}

/// What a record is read from: a packet of tc, or a frame of XDP with its length.
pub(crate) trait Source {
    /// A copy of the `T` at `offset`, `None` where it does not fit.
    fn load<T: Copy>(&self, offset: usize, zero: T) -> Option<Aligned<T>>;
    /// Copies the first `len` bytes to `to`, which has room for them; the helper's return code.
    ///
    /// # Safety
    ///
    /// `to` has room for `len` bytes.
    unsafe fn head(&self, to: *mut u8, len: u32) -> i64;
    /// Bytes in all.
    fn len(&self) -> u32;
    /// The device.
    fn ifindex(&self) -> u32;
    /// `EtherType`, host order.
    fn ether_type(&self) -> u16;
}

impl Source for *mut __sk_buff {
    #[inline(always)]
    fn load<T: Copy>(&self, offset: usize, zero: T) -> Option<Aligned<T>> {
        packet::load(*self, offset, zero)
    }

    #[inline(always)]
    unsafe fn head(&self, to: *mut u8, len: u32) -> i64 {
        // SAFETY: the caller's promise.
        unsafe { bpf_skb_load_bytes(self.cast_const().cast(), 0, to.cast(), len) }
    }

    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: reading a field of the context.
        unsafe { (**self).len }
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (**self).ifindex }
    }

    #[inline(always)]
    fn ether_type(&self) -> u16 {
        // SAFETY: as above.
        u16::from_be(unsafe { (**self).protocol } as u16)
    }
}

impl Source for (*mut xdp_md, u32) {
    #[inline(always)]
    fn load<T: Copy>(&self, offset: usize, zero: T) -> Option<Aligned<T>> {
        frame::load(self.0, offset, zero)
    }

    #[inline(always)]
    unsafe fn head(&self, to: *mut u8, len: u32) -> i64 {
        // SAFETY: the caller's promise (Linux 5.18, which this program needs anyway).
        unsafe { bpf_xdp_load_bytes(self.0, 0, to.cast(), len) }
    }

    #[inline(always)]
    fn len(&self) -> u32 {
        self.1
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: reading a field of the context.
        unsafe { (*self.0).ingress_ifindex }
    }

    /// This program drops nothing else.
    #[inline(always)]
    fn ether_type(&self) -> u16 {
        ETHERTYPE_IPV4
    }
}

/// A place in the log that is being written.
pub(crate) struct Open {
    event: *mut Event,
    next: *mut u64,
    number: u64,
    now: u64,
}

/// The clock of the records, `CLOCK_MONOTONIC` in nanoseconds.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// A place for a drop; `None` where this window's budget is used up, which is counted.
#[inline(always)]
pub(crate) fn open_drop(reason: u32) -> Option<Open> {
    let now = now();
    let window = Budget::window(now);
    let log = maps::event_log()?;
    // SAFETY: a map value, valid until the program ends; the index is masked to the length of the array. No reference to
    // the whole is made: readers look at it all the time.
    unsafe {
        let own =
            (&raw mut (*log).reason_budgets).cast::<Budget>().add(reason as usize & (Reason::SLOTS - 1));
        let all = &raw mut (*log).drop_budget;
        if !(*own).has_room(window, REASON_BUDGET) || !(*all).has_room(window, DROP_BUDGET) {
            (*own).suppress();
            return None;
        }
        (*own).take(window);
        (*all).take(window);
        let next = &raw mut (*log).next_drop;
        let number = *next;
        let event = (&raw mut (*log).drops).cast::<Event>().add(number as usize & (DROP_SLOTS - 1));
        Some(Open { event, next, number, now })
    }
}

/// As [`open_drop`], for a packet that goes on.
#[inline(always)]
pub(crate) fn open_trace(now: u64) -> Option<Open> {
    let window = Budget::window(now);
    let log = maps::event_log()?;
    // SAFETY: as above.
    unsafe {
        let budget = &raw mut (*log).trace_budget;
        if !(*budget).has_room(window, TRACE_BUDGET) {
            (*budget).suppress();
            return None;
        }
        (*budget).take(window);
        let next = &raw mut (*log).next_trace;
        let number = *next;
        let event = (&raw mut (*log).traces).cast::<Event>().add(number as usize & (TRACE_SLOTS - 1));
        Some(Open { event, next, number, now })
    }
}

/// The addresses of a packet, and of the tunnel packet that it is in.
pub(crate) struct Facts {
    ip: Aligned<Ipv4Hdr>,
    ports: u32,
    /// Network order; 0 where there is none.
    outer_src: u32,
    ether_type: u16,
}

impl Facts {
    /// Reads the headers, wherever in the packet they are; moves nothing.
    #[inline(always)]
    pub(crate) fn read(packet: &impl Source, subject: Subject, mut outer_src: u32) -> Self {
        let ether_type = packet.ether_type();
        let mut ip = Aligned(packet::EMPTY);
        let mut ports = 0_u32;
        if ether_type == ETHERTYPE_IPV4 {
            let mut offset = ETH_LEN;
            if subject.tunnel() {
                offset = packet::INNER_OFFSET;
                if let Some(outer) = packet.load(ETH_LEN, packet::EMPTY) {
                    outer_src = u32::from_ne_bytes(outer.0.src_addr);
                }
            }
            if let Some(header) = packet.load(offset, packet::EMPTY) {
                ip = header;
                let ip = &ip.0;
                if matches!(ip.proto, PROTO_TCP | PROTO_UDP | PROTO_SCTP)
                    && !ipv4::is_later_fragment(ip)
                    && let Some(loaded) = packet.load(offset + ipv4::header_len(ip), 0)
                {
                    ports = loaded.0;
                }
            }
        }
        Self { ip, ports, outer_src, ether_type }
    }

    /// As filters look at them.
    #[inline(always)]
    pub(crate) fn tuple(&self) -> Tuple {
        let [s0, s1, d0, d1] = self.ports.to_ne_bytes();
        let ip = &self.ip.0;
        Tuple {
            src: ip.src_addr,
            dst: ip.dst_addr,
            src_port: u16::from_be_bytes([s0, s1]),
            dst_port: u16::from_be_bytes([d0, d1]),
            protocol: ip.proto,
        }
    }
}

impl Open {
    /// Writes the record in place (on the stack it would be half of what a call chain may use) and publishes it.
    #[inline(always)]
    pub(crate) fn write(self, packet: &impl Source, kind: EventKind, subject: Subject, facts: &Facts) {
        let Self { event, next, number, now } = self;
        // SAFETY: a place in the log of this CPU, which nothing else writes and no reference is made of elsewhere.
        let event = unsafe { &mut *event };
        let (len, ifindex) = (packet.len(), packet.ifindex());
        // No header, no address: a header that was read has a version.
        let known = facts.ip.0.vihl != 0;
        let address = |addr| if known { Addr::v4(addr) } else { Addr::UNSPECIFIED };
        let outer = facts.outer_src;
        let tuple = facts.tuple();
        event.number = number;
        event.time_ns = now;
        event.src = address(tuple.src);
        event.dst = address(tuple.dst);
        event.outer_src = if outer == 0 { Addr::UNSPECIFIED } else { Addr::v4(outer.to_ne_bytes()) };
        event.ifindex = ifindex;
        event.len = len;
        event.src_port = tuple.src_port;
        event.dst_port = tuple.dst_port;
        event.ether_type = facts.ether_type;
        event.kind = kind as u8;
        event.code = subject.code();
        event.hook = subject.hook();
        event.protocol = tuple.protocol;
        event.reserved = 0;
        event.head_len = head(packet, len, &mut event.head);
        // The reader's other half: `overlay_userspace::datapath::events`.
        compiler_fence(Ordering::Release);
        // SAFETY: the counter of the same log.
        unsafe { next.write_volatile(number.wrapping_add(1)) };
    }
}

/// Copies how the packet begins; how many bytes those are.
#[inline(always)]
fn head(packet: &impl Source, len: u32, to: &mut [u8; HEAD]) -> u16 {
    // The helper refuses a length of 0, and the verifier of older kernels (6.1) one that might be 0. It does not learn a least
    // value from a comparison with 0, but from a sum.
    let last = core::hint::black_box(if len > HEAD as u32 { HEAD as u32 } else { len }.wrapping_sub(1));
    if last >= HEAD as u32 {
        return 0;
    }
    let len = last + 1;
    // SAFETY: `to` has room for `len` bytes.
    let rc = unsafe { packet.head(to.as_mut_ptr(), len) };
    if rc == 0 { len as u16 } else { 0 }
}
