//! The CNI plugin through its binary, as container runtimes call it, on a node with a real agent: what it does in bulk, when
//! it is killed, with the plugins of others after it, and how it is installed.
//!
//! What each call answers to each input is the business of the unit tests and of the conformance suite.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests panic, in helper functions as well, to keep the line number"
)]

mod bed;
mod chain;
mod crowd;
mod families;
mod install;
mod killed;
mod verbs;
