//! The records of dropped and traced packets, out of the logs that the programs write (`EVENTS`).
//!
//! A reader keeps its own place and takes nothing away: any number read at once, each sees everything. What a slow
//! reader did not get before it was overwritten is counted exactly, because records are numbered, and so is what the
//! programs did not record.

use std::{
    sync::atomic::{AtomicU64, Ordering, fence},
    time::Duration,
};

use overlay_common::{
    maps::{Budget, DROP_SLOTS, Event, EventLog, TRACE_SLOTS},
    reason::Reason,
};

use super::{DatapathError, mapped::Mapped, pins::Pins};

/// After this the writes of another CPU are seen in full, whatever the order in which an architecture lets them be seen: a
/// program has no barrier on the oldest kernels. x86 keeps their order.
const SETTLE: Option<Duration> =
    if cfg!(target_arch = "x86_64") { None } else { Some(Duration::from_millis(1)) };

/// A reader of all CPUs' logs.
pub struct Events {
    logs: Mapped<EventLog>,
    places: Vec<Place>,
}

/// The numbers of the records to read next, in one CPU's log.
#[derive(Clone, Copy, Default)]
struct Place {
    drop: u64,
    trace: u64,
}

/// What a look at the logs has found.
#[derive(Default)]
pub struct Batch {
    /// Oldest first.
    pub events: Vec<Event>,
    /// Records that were overwritten before they could be read.
    pub missed: u64,
}

/// Packets that the programs did not record since the agent's first start, because the budget was used up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suppressed {
    /// Drops: one number for each of [`Reason::ALL`].
    pub drops: [u64; Reason::COUNT],
    /// Traced packets.
    pub traces: u64,
}

impl Events {
    /// Opens the pinned logs. The records that are kept come first.
    pub fn open(pins: &Pins) -> Result<Self, DatapathError> {
        let logs: Mapped<EventLog> = Mapped::open(pins, "EVENTS", false)?;
        let mut events = Self { places: vec![Place::default(); logs.len()], logs };
        for (place, next) in events.places.iter_mut().zip(counters(&events.logs)) {
            // One less than there are: the program may be overwriting the oldest.
            place.drop = next.drop.saturating_sub(DROP_SLOTS as u64 - 1);
            place.trace = next.trace.saturating_sub(TRACE_SLOTS as u64 - 1);
        }
        Ok(events)
    }

    /// Skips what is there, so that only what happens from now on is read.
    pub fn skip(&mut self) {
        self.places = counters(&self.logs);
    }

    /// Skips the traces that are there: they were for others.
    pub fn skip_traces(&mut self) {
        for (place, next) in self.places.iter_mut().zip(counters(&self.logs)) {
            place.trace = next.trace;
        }
    }

    /// What has been recorded since the last call.
    pub fn read(&mut self) -> Batch {
        let next = counters(&self.logs);
        let mut batch = Batch::default();
        if let Some(settle) = SETTLE
            && self
                .places
                .iter()
                .zip(&next)
                .any(|(place, next)| place.drop < next.drop || place.trace < next.trace)
        {
            std::thread::sleep(settle);
        }
        for (cpu, (place, next)) in self.places.iter_mut().zip(&next).enumerate() {
            let Some(log) = self.logs.get(cpu) else { continue };
            // SAFETY: addresses of fields of a mapped log; nothing is read yet.
            let (drops, traces) = unsafe {
                let drops = Log {
                    next: &raw mut (*log).next_drop,
                    slots: (&raw const (*log).drops).cast(),
                    len: DROP_SLOTS,
                };
                let traces = Log {
                    next: &raw mut (*log).next_trace,
                    slots: (&raw const (*log).traces).cast(),
                    len: TRACE_SLOTS,
                };
                (drops, traces)
            };
            drops.read(&mut place.drop, next.drop, &mut batch);
            traces.read(&mut place.trace, next.trace, &mut batch);
        }
        batch.events.sort_by_key(|event| event.time_ns);
        batch
    }

    /// What was not recorded so far.
    pub fn suppressed(&self) -> Suppressed {
        let mut sum = Suppressed::default();
        for log in (0..self.logs.len()).filter_map(|cpu| self.logs.get(cpu)) {
            // SAFETY: words of a mapped log, aligned, read one at a time.
            unsafe {
                sum.traces += (&raw const (*log).trace_budget.suppressed).read_volatile();
                let budgets = (&raw const (*log).reason_budgets).cast::<Budget>();
                for (index, drops) in sum.drops.iter_mut().enumerate() {
                    *drops += (&raw const (*budgets.add(index)).suppressed).read_volatile();
                }
            }
        }
        sum
    }
}

/// The numbers of the next records of each CPU.
fn counters(logs: &Mapped<EventLog>) -> Vec<Place> {
    // SAFETY: addresses of fields of a mapped log.
    let next = |log: *mut EventLog| unsafe {
        Place { drop: counter(&raw mut (*log).next_drop), trace: counter(&raw mut (*log).next_trace) }
    };
    (0..logs.len()).filter_map(|cpu| logs.get(cpu)).map(next).collect()
}

/// # Safety
///
/// `next` is an aligned word of a mapped log.
unsafe fn counter(next: *mut u64) -> u64 {
    // SAFETY: see above; only ever written as one word. A relaxed load is a plain one, so that a read-only mapping will do.
    let next = unsafe { AtomicU64::from_ptr(next) }.load(Ordering::Relaxed);
    fence(Ordering::Acquire);
    next
}

/// One kind of records of one CPU.
struct Log {
    next: *mut u64,
    slots: *const Event,
    len: usize,
}

impl Log {
    /// Reads from `place` up to `end`, and moves `place` there.
    fn read(&self, place: &mut u64, end: u64, batch: &mut Batch) {
        let kept = self.len as u64;
        if end - *place > kept {
            batch.missed += end - *place - kept;
            *place = end - kept;
        }
        while *place < end {
            let slot = (*place % kept) as usize;
            // SAFETY: inside of the log. It may be overwritten meanwhile; then the counter says so.
            let event = unsafe { self.slots.add(slot).read_volatile() };
            fence(Ordering::Acquire);
            // SAFETY: the counter of the same log.
            let next = unsafe { counter(self.next) };
            // The record with the number `next` is written before the counter moves.
            if event.number == *place && next < *place + kept {
                batch.events.push(event);
            } else {
                batch.missed += 1;
            }
            *place += 1;
        }
    }
}
