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
    drop::{Describe, outer_src},
    maps, packet,
    record::{self, Facts, Subject},
};

/// This packet goes on by `path`.
#[inline(always)]
pub(crate) fn step(ctx: &TcContext, path: Path, hook: Hook, what: Describe) {
    if maps::is_tracing() {
        let (tunnel, low, high) = what.parts();
        record_trace(packet::skb(ctx), Subject::new(path as u32, hook as u32, tunnel).0, low, high);
    }
}

/// A global function, as `drop::record_drop`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn record_trace(skb: *mut __sk_buff, subject: u32, low: u64, high: u64) -> u32 {
    let Some(switch) = maps::trace_switch() else { return 0 };
    let now = record::now();
    // SAFETY: a map value, valid until the program ends; words that monitors write one at a time.
    if unsafe { (*switch).until_ns } < now {
        // Whoever asked was killed before it could say that it is done. One that asks anew in this moment says so again
        // within a second.
        // SAFETY: as above.
        unsafe { (&raw mut (*switch).until_ns).write_volatile(0) };
        return 0;
    }
    let subject = Subject(subject);
    let facts = Facts::read(&skb, subject, outer_src(low, high));
    if is_wanted(switch, now, &facts)
        && let Some(open) = record::open_trace(now)
    {
        open.write(&skb, EventKind::Trace, subject, &facts);
    }
    0
}

/// Has anybody asked for this one?
#[inline(always)]
fn is_wanted(switch: *mut TraceSwitch, now: u64, facts: &Facts) -> bool {
    let tuple = &facts.tuple;
    // SAFETY: as above. A filter that is being written may match what it should not; whoever asked looks again.
    let requests = unsafe { &(*switch).requests };
    requests.iter().any(|request| request.until_ns >= now && request.filter.matches(tuple))
}
