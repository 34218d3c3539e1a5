//! `overlay cleanup` takes a node back to what it was before overlay came, and nothing else with it ([`whole`]); also one
//! of which parts are missing, broken or another's ([`broken`]).

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests panic, in helper functions as well, to keep the line number"
)]

mod bed;
mod broken;
mod inventory;
mod whole;
