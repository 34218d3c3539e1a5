//! The value of `CNI_CALLS`: how many calls of the CNI plugin ended how, and how long they took.
//!
//! The map is an array that processes map into their memory (`BPF_F_MMAPABLE`, Linux 5.5), so that every call of the plugin, a
//! process of its own, counts with a few atomic additions. All fields are 64-bit words for that.

use bytemuck::{Pod, Zeroable};

/// The verbs that are counted, by index into the map. VERSION touches nothing and is not counted.
pub const CNI_VERBS: [&str; 5] = ["ADD", "DEL", "CHECK", "GC", "STATUS"];

/// Entries of the map: room for verbs to come.
pub const CNI_VERBS_MAX: usize = 8;

/// Words of results: the first for success, then one for each error code that the plugin knows, the last for any other.
pub const CNI_RESULTS: usize = 32;

/// Upper bounds of the buckets of durations, in microseconds.
pub const CNI_BOUNDS_US: [u64; 13] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000,
];

/// Calls of one verb. Written by the CNI plugin, read by the agent.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct CniCalls {
    /// Calls by result.
    pub results: [u64; CNI_RESULTS],
    /// Calls by duration, not cumulative; the last word used is for what is longer than all of [`CNI_BOUNDS_US`].
    pub durations: [u64; 16],
    /// All durations together, in nanoseconds.
    pub sum_ns: u64,
}
