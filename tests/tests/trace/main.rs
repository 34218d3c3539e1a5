//! `overlay trace` against what really happens: each question is asked first, then exactly that packet is sent, and counters,
//! wires and sockets have to agree with the answer. Asking itself leaves no trace.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests panic, in helper functions as well, to keep the line number"
)]

mod ask;
mod bed;
mod builds;
mod errors;
mod narrow;
mod peers;
mod services;
mod ways;
