//! Dropping on purpose: every drop is counted under its reason, and described in a record as far as the budget goes.
//!
//! Not inlined: a drop is rare, and the record's code would otherwise stand in every program many times.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, xdp_action, xdp_md},
    programs::{TcContext, XdpContext},
};
use overlay_common::{
    maps::EventKind,
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
    /// The anchor device has taken the tunnel headers off; the outer source, network order, is this.
    Decapsulated(u32),
}

impl Describe {
    /// In tunnel headers, and the outer source where it is not in the packet.
    #[inline(always)]
    pub(crate) const fn parts(self) -> (bool, u32) {
        match self {
            Self::Packet => (false, 0),
            Self::Tunnel => (true, 0),
            Self::Decapsulated(outer_src) => (false, outer_src),
        }
    }
}

/// Counts, records and returns the verdict.
#[inline(always)]
pub(crate) fn drop(ctx: &TcContext, reason: Reason, hook: Hook, what: Describe) -> i32 {
    let (tunnel, outer_src) = what.parts();
    record(packet::skb(ctx), Subject::new(reason as u32, hook as u32, tunnel).0, reason as u32, outer_src);
    maps::count_drop(reason, ctx.len());
    TC_ACT_SHOT
}

/// As [`drop`], before there is an skb.
#[inline(always)]
pub(crate) fn drop_frame(ctx: &XdpContext, reason: Reason, in_tunnel: bool) -> u32 {
    let len = frame::len(ctx);
    let subject = Subject::new(reason as u32, Hook::XdpWire as u32, in_tunnel);
    record_frame(ctx.ctx, subject.0, reason as u32, len);
    maps::count_drop(reason, len);
    xdp_action::XDP_DROP
}

/// Writes the record, or counts that there is none.
#[inline(never)]
fn record(skb: *mut __sk_buff, subject: u32, reason: u32, outer_src: u32) {
    let Some(open) = record::open_drop(reason) else { return };
    let subject = Subject(subject);
    let facts = Facts::read(&skb, subject, outer_src);
    open.write(&skb, EventKind::Drop, subject, &facts);
}

/// As [`record()`], of a frame of this length, which carries IPv4.
#[inline(never)]
fn record_frame(ctx: *mut xdp_md, subject: u32, reason: u32, len: u32) {
    let Some(open) = record::open_drop(reason) else { return };
    let subject = Subject(subject);
    let frame = (ctx, len);
    let facts = Facts::read(&frame, subject, 0);
    open.write(&frame, EventKind::Drop, subject, &facts);
}
