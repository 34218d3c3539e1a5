//! What the eBPF programs and userspace share: header arithmetic ([`wire`]), map layouts ([`maps`]), drop
//! reasons ([`reason`]) and packet counters ([`counter`]).
//!
//! Everything here is `no_std`, allocates nothing and never panics, so that the same function runs in the
//! kernel, in property tests and in fuzzers. Callers: overlay-ebpf (the programs are glue over [`wire`]),
//! overlay-userspace (fills and reads the maps) and the tests.
#![cfg_attr(not(test), no_std)]
#![allow(
    clippy::inline_always,
    reason = "a function that is not inlined becomes a BPF subprogram: at most five arguments, no packet pointers kept"
)]

pub mod counter;
pub mod flow;
pub mod maps;
pub mod reason;
pub mod wire;
