//! Tracing: a record of each step of the packets that somebody asks for (`overlay monitor --type trace`).
//!
//! A program calls [`step`] where it lets a packet go on. While nobody asks that is the reading of one word.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use overlay_common::{
    counter::Path,
    maps::{EventKind, TraceSwitch},
    reason::Hook,
};

use crate::{
    drop::Describe,
    maps, packet,
    record::{self, Facts, Subject},
};

/// This packet goes on by `path`.
#[inline(always)]
pub(crate) fn step(ctx: &TcContext, path: Path, hook: Hook, what: Describe) {
    if maps::is_tracing() {
        let (tunnel, outer_src) = what.parts();
        record(packet::skb(ctx), Subject::new(path as u32, hook as u32, tunnel).0, outer_src);
    }
}

#[inline(never)]
fn record(skb: *mut __sk_buff, subject: u32, outer_src: u32) {
    let Some(switch) = maps::trace_switch() else { return };
    let now = record::now();
    // SAFETY: a map value, valid until the program ends; words that monitors write one at a time.
    if unsafe { (*switch).until_ns } < now {
        // Whoever asked was killed before it could say that it is done. One that asks anew in this moment says so again
        // within a second.
        // SAFETY: as above.
        unsafe { (&raw mut (*switch).until_ns).write_volatile(0) };
        return;
    }
    let subject = Subject(subject);
    let facts = Facts::read(&skb, subject, outer_src);
    if !is_wanted(switch, now, &facts) {
        return;
    }
    let Some(open) = record::open_trace(now) else { return };
    open.write(&skb, EventKind::Trace, subject, &facts);
}

/// Has anybody asked for this one?
#[inline(always)]
fn is_wanted(switch: *mut TraceSwitch, now: u64, facts: &Facts) -> bool {
    let tuple = facts.tuple();
    // SAFETY: as above. A filter that is being written may match what it should not; whoever asked looks again.
    let requests = unsafe { &(*switch).requests };
    requests.iter().any(|request| request.until_ns >= now && request.filter.matches(&tuple))
}
