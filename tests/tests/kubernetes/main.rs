//! The `kubernetes` source against an API server that speaks HTTP and has faults: the map of nodes equals what the API
//! says, whatever happens on the way; nothing is lost while the API is away; and the order of a start.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests panic, in helper functions as well, to keep the line number"
)]

mod bed;
mod conflicts;
mod crowd;
mod families;
mod faults;
mod flannel;
mod order;
mod outage;
mod own;
