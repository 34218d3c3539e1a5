//! `CNI_CALLS`: what the calls of the CNI plugin have counted. Shared memory, because each call is a process of its own: a call
//! opens the pin, maps one page or two and adds to three words.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use overlay_common::maps::{CNI_BOUNDS_US, CNI_RESULTS, CNI_VERBS, CNI_VERBS_MAX, CniCalls};

use super::{DatapathError, pins::Pins, tables};

const NAME: &str = "CNI_CALLS";
const LENGTH: usize = size_of::<CniCalls>() * CNI_VERBS_MAX;
/// Words of one verb.
const WORDS: usize = size_of::<CniCalls>() / size_of::<u64>();

/// The codes of the CNI plugin's errors in the order of their words, which is part of the layout: append only.
const CODES: [u32; 19] = [1, 2, 3, 4, 5, 6, 7, 8, 11, 50, 51, 100, 101, 102, 103, 104, 105, 106, 107];

/// Where a result is counted; 0 is success.
fn slot(code: u32) -> usize {
    match code {
        0 => 0,
        code => CODES.iter().position(|known| *known == code).map_or(CNI_RESULTS - 1, |at| at + 1),
    }
}

/// The name of a slot: 0, the code, or `other`.
fn code(slot: usize) -> String {
    match slot.checked_sub(1) {
        None => "0".to_owned(),
        Some(at) => CODES.get(at).map_or_else(|| "other".to_owned(), u32::to_string),
    }
}

/// The map in this process's memory.
#[derive(Debug)]
pub struct Calls {
    area: NonNull<AtomicU64>,
}

/// What calls of one verb came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verb {
    /// `ADD`, …
    pub name: &'static str,
    /// How many ended with each code, where any did. `0` is success.
    pub results: Vec<(String, u64)>,
    /// How many took at most so long, cumulative.
    pub durations: Vec<(Duration, u64)>,
    /// How many there were.
    pub count: u64,
    /// How long all of them took.
    pub sum: Duration,
}

impl Calls {
    /// Maps the pinned map.
    ///
    /// # Errors
    ///
    /// [`DatapathError::NotPinned`] also where an agent without this map runs.
    pub fn open(pins: &Pins) -> Result<Self, DatapathError> {
        let map = tables::open(&pins.map(NAME))?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let fd = map.fd().as_fd().as_raw_fd();
        // SAFETY: a new mapping at an address of the kernel's choice; the map has at least `LENGTH` bytes, or mmap fails.
        let area = unsafe { libc::mmap(ptr::null_mut(), LENGTH, protection, libc::MAP_SHARED, fd, 0) };
        match NonNull::new(area.cast::<AtomicU64>()) {
            Some(words) if area != libc::MAP_FAILED => Ok(Self { area: words }),
            _ => Err(DatapathError::new(format!("map {NAME}"), io::Error::last_os_error())),
        }
    }

    fn word(&self, verb: usize, index: usize) -> &AtomicU64 {
        let at = verb.min(CNI_VERBS_MAX - 1) * WORDS + index.min(WORDS - 1);
        // SAFETY: inside of the mapping, which lives as long as `self`; others write to it by atomic additions only.
        unsafe { self.area.add(at).as_ref() }
    }

    /// Counts a call: its verb as the specification names it, the code that it ended with or 0, and how long it took.
    pub fn count(&self, verb: &str, code: u32, took: Duration) {
        let Some(verb) = CNI_VERBS.iter().position(|name| *name == verb) else { return };
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = CNI_BOUNDS_US.iter().position(|bound| micros <= *bound).unwrap_or(CNI_BOUNDS_US.len());
        self.word(verb, slot(code)).fetch_add(1, Relaxed);
        self.word(verb, CNI_RESULTS + bucket).fetch_add(1, Relaxed);
        self.word(verb, WORDS - 1).fetch_add(u64::try_from(took.as_nanos()).unwrap_or(0), Relaxed);
    }

    /// What was counted so far.
    pub fn read(&self) -> Vec<Verb> {
        let verb = |(index, name): (usize, &&'static str)| {
            let word = |at| self.word(index, at).load(Relaxed);
            let results =
                (0..CNI_RESULTS).map(|slot| (code(slot), word(slot))).filter(|(_, count)| *count > 0);
            let mut count = 0;
            let mut durations = Vec::with_capacity(CNI_BOUNDS_US.len());
            for (at, bound) in CNI_BOUNDS_US.iter().enumerate() {
                count += word(CNI_RESULTS + at);
                durations.push((Duration::from_micros(*bound), count));
            }
            count += word(CNI_RESULTS + CNI_BOUNDS_US.len());
            let sum = Duration::from_nanos(word(WORDS - 1));
            Verb { name, results: results.collect(), durations, count, sum }
        };
        CNI_VERBS.iter().enumerate().map(verb).collect()
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nothing borrows from it any more.
        unsafe { libc::munmap(self.area.as_ptr().cast(), LENGTH) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_word_of_its_own_and_others_share_one() {
        let mut slots: Vec<usize> = CODES.into_iter().chain([0, 999]).map(slot).collect();
        assert_eq!(CODES.map(slot).map(code), CODES.map(|code| code.to_string()));
        assert_eq!((code(slot(0)), code(slot(999))), ("0".to_owned(), "other".to_owned()));
        slots.sort_unstable();
        slots.dedup();
        assert_eq!(slots.len(), CODES.len() + 2);
        const { assert!(CODES.len() + 2 <= CNI_RESULTS && CNI_BOUNDS_US.len() < 16) }
    }
}
