//! `overlay monitor` and `overlay capture` in the lab: what they show is what happened, under the right names, and they cost
//! nothing when they are gone.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests panic, in helper functions as well, to keep the line number"
)]

mod bed;
mod capture;
mod cost;
mod ends;
mod files;
mod filters;
mod flood;
mod names;
mod reasons;
mod traces;
