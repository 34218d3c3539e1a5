//! `EVENTS` and `TRACE_SWITCH`: what the programs write down of packets, and who asks them to.
//!
//! `EVENTS` is a flight recorder: for each CPU a log of the last [`DROP_SLOTS`] dropped and the last [`TRACE_SLOTS`] traced
//! packets, the oldest overwritten. A program writes only the log of the CPU that it runs on; readers map the memory,
//! take nothing away, and each keeps its own place, so that any number of them read at once and one that is killed
//! leaves nothing behind. Drops are always recorded, traces while somebody asks.
//!
//! Both are bounded by a [`Budget`] per CPU and window of time: what a flood costs beyond it is the counting.

use bytemuck::{Pod, Zeroable};

use super::Addr;
use crate::reason::Reason;

/// Records of dropped packets that a CPU keeps; a power of two.
pub const DROP_SLOTS: usize = 256;
/// Records of traced packets that a CPU keeps; a power of two.
pub const TRACE_SLOTS: usize = 256;
/// Bytes of a packet that a record holds: Ethernet, the tunnel's headers, and TCP's with its usual options.
pub const HEAD: usize = 128;

/// A window is 2^27 ns, 134 ms, long.
pub const WINDOW_SHIFT: u32 = 27;
/// Drops that one CPU records in a window: half of what it keeps, so that a reader that looks once in a window misses none.
pub const DROP_BUDGET: u32 = 128;
/// Of these, drops for one and the same reason: a flood hides no drop for another reason.
pub const REASON_BUDGET: u32 = 96;
/// Traced packets that one CPU records in a window.
pub const TRACE_BUDGET: u32 = 128;

/// What may be recorded in a window of time, and how much was not.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Budget {
    /// The window in which `used` was counted: nanoseconds shifted by [`WINDOW_SHIFT`], cut to 32 bits.
    pub window: u32,
    /// Records of this window.
    pub used: u32,
    /// Packets that were not recorded, ever.
    pub suppressed: u64,
}

impl Budget {
    /// The window of a moment in nanoseconds.
    #[inline(always)]
    pub const fn window(now_ns: u64) -> u32 {
        (now_ns >> WINDOW_SHIFT) as u32
    }

    /// Is there still room in this window?
    #[inline(always)]
    pub const fn has_room(&self, window: u32, limit: u32) -> bool {
        self.window != window || self.used < limit
    }

    /// Uses one.
    #[inline(always)]
    pub const fn take(&mut self, window: u32) {
        if self.window != window {
            self.window = window;
            self.used = 0;
        }
        self.used = self.used.wrapping_add(1);
    }

    /// Counts one that is not recorded.
    #[inline(always)]
    pub const fn suppress(&mut self) {
        self.suppressed = self.suppressed.wrapping_add(1);
    }
}

/// What a record is about.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A packet that was dropped; the code is a [`Reason`].
    Drop = 0,
    /// A packet that goes on; the code is a [`crate::counter::Path`].
    Trace = 1,
}

/// One packet at one program.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Event {
    /// Which of its kind and CPU this is, from 0 on.
    pub number: u64,
    /// `CLOCK_MONOTONIC` in nanoseconds.
    pub time_ns: u64,
    /// Source of the innermost header that could be read, or unspecified.
    pub src: Addr,
    /// Destination of the innermost header that could be read, or unspecified.
    pub dst: Addr,
    /// Outer source of a tunnel packet, or unspecified.
    pub outer_src: Addr,
    /// The device whose hook it is.
    pub ifindex: u32,
    /// Length of the packet in bytes, Ethernet header included.
    pub len: u32,
    /// Source port, host order; 0 where the protocol has none or the packet is a later fragment.
    pub src_port: u16,
    /// Destination port, host order.
    pub dst_port: u16,
    /// `EtherType`, host order.
    pub ether_type: u16,
    /// How much of `head` is the packet's.
    pub head_len: u16,
    /// An [`EventKind`].
    pub kind: u8,
    /// A [`Reason`] or a [`crate::counter::Path`].
    pub code: u8,
    /// A [`crate::reason::Hook`].
    pub hook: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// Reserved, 0.
    pub reserved: u32,
    /// How the packet begins, from its Ethernet header on, as it lies in the kernel.
    pub head: [u8; HEAD],
}

/// The log of one CPU: the value of `EVENTS`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct EventLog {
    /// Number of the next drop; that of the last one is written before this is.
    pub next_drop: u64,
    /// Number of the next trace.
    pub next_trace: u64,
    /// All drops.
    pub drop_budget: Budget,
    /// Traces.
    pub trace_budget: Budget,
    /// Drops by [`Reason`].
    pub reason_budgets: [Budget; Reason::SLOTS],
    /// The drop with number n is at n modulo [`DROP_SLOTS`].
    pub drops: [Event; DROP_SLOTS],
    /// The trace with number n is at n modulo [`TRACE_SLOTS`].
    pub traces: [Event; TRACE_SLOTS],
}

/// Monitors that can ask for traces at the same time.
pub const TRACE_REQUESTS: usize = 4;

/// Which packets are traced. A field that is zero is fulfilled by every packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct TraceFilter {
    /// Source or destination.
    pub either: Addr,
    /// Source.
    pub src: Addr,
    /// Destination.
    pub dst: Addr,
    /// Source or destination port, host order.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Reserved, 0.
    pub reserved: [u8; 5],
}

/// The addresses and ports of a packet, as a filter looks at them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Tuple {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port, host order.
    pub src_port: u16,
    /// Destination port, host order.
    pub dst_port: u16,
    /// IP protocol number.
    pub protocol: u8,
}

impl TraceFilter {
    /// Is this packet one of those?
    #[inline(always)]
    pub fn matches(&self, packet: &Tuple) -> bool {
        let open = |wanted: &Addr| wanted.is(&Addr::UNSPECIFIED);
        (open(&self.either) || self.either.is(&packet.src) || self.either.is(&packet.dst))
            && (open(&self.src) || self.src.is(&packet.src))
            && (open(&self.dst) || self.dst.is(&packet.dst))
            && (self.port == 0 || self.port == packet.src_port || self.port == packet.dst_port)
            && (self.protocol == 0 || self.protocol == packet.protocol)
    }
}

/// One monitor's wish, until a moment that it keeps moving on. A monitor that is killed leaves one that runs out.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct TraceRequest {
    /// `CLOCK_MONOTONIC` in nanoseconds; 0 where nobody asks.
    pub until_ns: u64,
    /// For which packets.
    pub filter: TraceFilter,
}

/// The only entry of `TRACE_SWITCH`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct TraceSwitch {
    /// Not before the end of any request; 0 is off, the one word that every packet pays for. The first packet after that
    /// moment sets it to 0.
    pub until_ns: u64,
    /// Who asks.
    pub requests: [TraceRequest; TRACE_REQUESTS],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_new_in_each_window() {
        let mut budget = Budget::default();
        let mut recorded = [0; 3];
        for (window, recorded) in (7..).zip(&mut recorded) {
            for _ in 0..10 {
                if budget.has_room(window, 4) {
                    budget.take(window);
                    *recorded += 1;
                } else {
                    budget.suppress();
                }
            }
        }
        assert_eq!(recorded, [4, 4, 4]);
        assert_eq!((budget.used, budget.suppressed), (4, 3 * 6));
    }

    #[test]
    fn windows_are_an_eighth_of_a_second_and_go_on_after_a_wrap() {
        assert_eq!(Budget::window(0), 0);
        assert_eq!(Budget::window(134_217_727), 0);
        assert_eq!(Budget::window(134_217_728), 1);
        assert_eq!(Budget::window(u64::MAX), u32::MAX);
    }

    fn addr(text: &str) -> Addr {
        text.parse::<core::net::IpAddr>().unwrap().into()
    }

    fn packet() -> Tuple {
        Tuple {
            src: addr("10.244.0.2"),
            dst: addr("10.244.1.3"),
            src_port: 40_000,
            dst_port: 80,
            protocol: 6,
        }
    }

    #[test]
    fn an_empty_filter_is_for_every_packet() {
        assert!(TraceFilter::default().matches(&packet()));
        assert!(TraceFilter::default().matches(&Tuple::default()));
    }

    #[test]
    fn each_field_of_a_filter_has_to_be_fulfilled() {
        let (a, b, c) = (addr("10.244.0.2"), addr("10.244.1.3"), addr("10.244.2.4"));
        let none = TraceFilter::default();
        let yes = [
            TraceFilter { either: a, ..none },
            TraceFilter { either: b, ..none },
            TraceFilter { src: a, dst: b, ..none },
            TraceFilter { port: 80, ..none },
            TraceFilter { port: 40_000, protocol: 6, ..none },
        ];
        let no = [
            TraceFilter { either: c, ..none },
            TraceFilter { src: b, ..none },
            TraceFilter { dst: a, ..none },
            TraceFilter { src: a, dst: c, ..none },
            TraceFilter { port: 443, ..none },
            TraceFilter { either: a, protocol: 17, ..none },
            TraceFilter { src: addr("fd00::af4:2"), ..none },
        ];
        for filter in yes {
            assert!(filter.matches(&packet()), "{filter:?}");
        }
        for filter in no {
            assert!(!filter.matches(&packet()), "{filter:?}");
        }
    }

    #[test]
    fn a_filter_is_for_one_family() {
        let (v4, v6) =
            (packet(), Tuple { src: addr("fd00::af4:2"), dst: addr("fd00:1::af4:103"), ..packet() });
        let filter = TraceFilter { src: v6.src, ..TraceFilter::default() };
        assert!(filter.matches(&v6) && !filter.matches(&v4));
        let filter = TraceFilter { either: v4.dst, ..TraceFilter::default() };
        assert!(filter.matches(&v4) && !filter.matches(&v6));
    }
}
