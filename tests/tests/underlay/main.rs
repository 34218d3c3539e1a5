//! Underlays that are no plain NIC: bridges, VLANs, bonds, two NICs at once, devices that nobody told the agent about. Pods' traffic
//! passes by all of them, and the counters tell which way it took.
//!
//! What needs modules that a kernel may lack is ignored unless asked for.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests panic, in helper functions as well, to keep the line number"
)]

mod bed;
mod bond;
mod bridge;
mod nics;
mod sctp;
mod vlan;
