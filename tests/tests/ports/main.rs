//! Host ports against a real cluster: who reaches them and as whom they are seen, what becomes of them when pods, rules or
//! agents go, and how many there can be.
//!
//! What each call answers to each input is the business of the unit tests.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests panic, in helper functions as well, to keep the line number"
)]

mod bed;
mod gone;
mod many;
mod reach;
mod stale;
