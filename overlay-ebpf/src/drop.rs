//! Dropping on purpose: every drop is counted under its reason, and described in a record as far as the budget goes.
//!
//! Not inlined: a drop is rare, and the record's code would otherwise stand in every program many times. The functions that
//! write records are exported, which makes them global functions (Linux 5.6, 51c39bb1d5d1): the verifier goes through each
//! of them once, for any arguments, instead of once for each reason and packet that it may be called with.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, xdp_action, xdp_md},
    programs::{TcContext, XdpContext},
};
use overlay_common::{
    maps::{Addr, EventKind},
    reason::{Hook, Reason},
};

use crate::{
    frame, maps, packet,
    record::{self, Facts, Subject},
};

/// Where the header that the record describes begins.
#[derive(Clone, Copy)]
pub(crate) enum Describe {
    /// The packet is what a pod or the host sent.
    Packet,
    /// The packet is in its tunnel headers.
    Tunnel,
    /// The anchor device has taken the tunnel headers off; the outer source is this.
    Decapsulated(Addr),
}

impl Describe {
    /// In tunnel headers, and the outer source where it is not in the packet, as two words: a subprogram takes no more.
    #[inline(always)]
    pub(crate) const fn parts(self) -> (bool, u64, u64) {
        match self {
            Self::Packet => (false, 0, 0),
            Self::Tunnel => (true, 0, 0),
            Self::Decapsulated(outer_src) => {
                let number = u128::from_ne_bytes(outer_src.bytes);
                (false, number as u64, (number >> 64) as u64)
            }
        }
    }
}

/// The outer source from its two words.
#[inline(always)]
pub(crate) const fn outer_src(low: u64, high: u64) -> Addr {
    Addr { bytes: (low as u128 | (high as u128) << 64).to_ne_bytes() }
}

/// Counts, records and returns the verdict.
#[inline(always)]
pub(crate) fn drop(ctx: &TcContext, reason: Reason, hook: Hook, what: Describe) -> i32 {
    let (tunnel, low, high) = what.parts();
    record_drop(packet::skb(ctx), Subject::new(reason as u32, hook as u32, tunnel).0, low, high);
    maps::count_drop(reason, ctx.len());
    TC_ACT_SHOT
}

/// As [`drop`], before there is an skb.
#[inline(always)]
pub(crate) fn drop_frame(ctx: &XdpContext, reason: Reason, in_tunnel: bool) -> u32 {
    let len = frame::len(ctx);
    let subject = Subject::new(reason as u32, Hook::XdpWire as u32, in_tunnel);
    record_frame(ctx.ctx, subject.0, len);
    maps::count_drop(reason, len);
    xdp_action::XDP_DROP
}

/// Writes the record, or counts that there is none. The result, which a global function has to have, says nothing.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn record_drop(skb: *mut __sk_buff, subject: u32, low: u64, high: u64) -> u32 {
    let subject = Subject(subject);
    if let Some(open) = record::open_drop(subject.code().into()) {
        let facts = Facts::read(&skb, subject, outer_src(low, high));
        open.write(&skb, EventKind::Drop, subject, &facts);
    }
    0
}

/// As [`record_drop`], of a frame of this length.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn record_frame(ctx: *mut xdp_md, subject: u32, len: u32) -> u32 {
    let subject = Subject(subject);
    if let Some(open) = record::open_drop(subject.code().into()) {
        let frame = (ctx, len);
        let facts = Facts::read(&frame, subject, Addr::UNSPECIFIED);
        open.write(&frame, EventKind::Drop, subject, &facts);
    }
    0
}
