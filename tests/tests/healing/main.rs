//! The agent keeps a node in the state that the file describes: it follows the file, and it heals what somebody or
//! something breaks, says so in its log, and is idle afterwards.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests panic, in helper functions as well, to keep the line number"
)]

mod anchor;
mod bed;
mod families;
mod file;
mod filter;
mod flows;
mod idle;
mod masquerade;
mod pods;
mod prefixes;
mod settings;
mod sysctls;
mod underlay;
mod xdp;
