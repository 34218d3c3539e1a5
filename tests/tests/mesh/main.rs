//! The health mesh on three nodes: what agents measure, whom they answer, and what is done with it.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests panic, in helper functions as well, to keep the line number"
)]

mod bed;
mod probe;
