//! Asking the programs for traces (`TRACE_SWITCH`), for as long as somebody keeps asking.
//!
//! A request ends at a moment that its owner keeps moving on ([`Request::renew`], at least once in [`RENEW`]). A monitor
//! that is killed leaves one that runs out, and the first packet after that turns the switch off. Places are taken by a
//! compare-and-swap of that moment: no lock, nothing to clear.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use nix::time::ClockId;
use overlay_common::maps::{TRACE_REQUESTS, TraceFilter, TraceRequest, TraceSwitch};

use super::{DatapathError, mapped::Mapped, pins::Pins};

/// How long a request lives that is not renewed.
pub const LEASE: Duration = Duration::from_secs(3);
/// How often to renew it.
pub const RENEW: Duration = Duration::from_secs(1);

/// Why there is no trace.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// All places are taken.
    #[error("{TRACE_REQUESTS} monitors are tracing on this node already: end one of them")]
    Busy,
    /// The switch cannot be reached.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
}

/// A request for traces. Dropping it ends it.
pub struct Request {
    switch: Mapped<TraceSwitch>,
    filter: TraceFilter,
    place: usize,
    until: u64,
}

/// Is any request running?
pub fn is_on(pins: &Pins) -> Result<bool, DatapathError> {
    let switch = Mapped::open(pins, "TRACE_SWITCH", true)?;
    let now = now()?;
    Ok(gate(&switch).is_some_and(|gate| gate.load(Ordering::Relaxed) >= now))
}

impl Request {
    /// Asks for the packets that `filter` matches.
    pub fn new(pins: &Pins, filter: TraceFilter) -> Result<Self, TraceError> {
        let switch = Mapped::open(pins, "TRACE_SWITCH", true)?;
        let mut request = Self { switch, filter, place: 0, until: 0 };
        request.take()?;
        Ok(request)
    }

    /// Keeps it alive.
    pub fn renew(&mut self) -> Result<(), TraceError> {
        let until = now()? + LEASE.as_nanos() as u64;
        let moved = self.ends(self.place).is_some_and(|ends| {
            ends.compare_exchange(self.until, until, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        });
        if !moved {
            // It had run out (this process was stopped for a while), and somebody else has the place now.
            return self.take();
        }
        self.until = until;
        self.open_gate();
        Ok(())
    }

    fn take(&mut self) -> Result<(), TraceError> {
        let now = now()?;
        let until = now + LEASE.as_nanos() as u64;
        for place in 0..TRACE_REQUESTS {
            let Some(ends) = self.ends(place) else { continue };
            let before = ends.load(Ordering::Relaxed);
            if before < now
                && ends.compare_exchange(before, until, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            {
                (self.place, self.until) = (place, until);
                if let Some(request) = self.request(place) {
                    // SAFETY: the place is this request's now; programs may read a filter of which a part is written, and
                    // readers look at each record themselves.
                    unsafe { (&raw mut (*request).filter).write_volatile(self.filter) };
                }
                self.open_gate();
                return Ok(());
            }
        }
        Err(TraceError::Busy)
    }

    /// Programs look no further than the gate when it is shut.
    fn open_gate(&self) {
        if let Some(gate) = gate(&self.switch) {
            gate.fetch_max(self.until, Ordering::Release);
        }
    }

    fn request(&self, place: usize) -> Option<*mut TraceRequest> {
        let switch = self.switch.get(0)?;
        // SAFETY: an address inside of the mapping; the index is checked.
        (place < TRACE_REQUESTS)
            .then(|| unsafe { (&raw mut (*switch).requests).cast::<TraceRequest>().add(place) })
    }

    fn ends(&self, place: usize) -> Option<&AtomicU64> {
        let request = self.request(place)?;
        // SAFETY: an aligned word of the mapping, which lives as long as `self`; all of userspace uses atomics on it.
        Some(unsafe { AtomicU64::from_ptr(&raw mut (*request).until_ns) })
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if let Some(ends) = self.ends(self.place) {
            let _ = ends.compare_exchange(self.until, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
        let now = now().unwrap_or(0);
        let others =
            (0..TRACE_REQUESTS).filter_map(|place| self.ends(place)).map(|ends| ends.load(Ordering::Relaxed));
        let last = others.filter(|ends| *ends > now).max().unwrap_or(0);
        if let Some(gate) = gate(&self.switch) {
            // Another one that was just renewed has moved it; then it stays open, for as long as that one lives.
            let before = gate.load(Ordering::Relaxed);
            if before <= self.until {
                let _ = gate.compare_exchange(before, last, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
    }
}

fn gate(switch: &Mapped<TraceSwitch>) -> Option<&AtomicU64> {
    let switch = switch.get(0)?;
    // SAFETY: an aligned word of the mapping, which lives as long as the borrow; all of userspace uses atomics on it.
    Some(unsafe { AtomicU64::from_ptr(&raw mut (*switch).until_ns) })
}

/// The clock of the programs (`bpf_ktime_get_ns`), in nanoseconds.
pub fn now() -> Result<u64, DatapathError> {
    let now: Duration = ClockId::CLOCK_MONOTONIC
        .now()
        .map_err(|e| DatapathError::new("read the monotonic clock", io::Error::from(e)))?
        .into();
    Ok(now.as_nanos() as u64)
}
