//! The agent is not on the path of any packet: killed, absent, started again, started twice, started with another
//! configuration, it loses none ([`outage`]); and a start that was cut off leaves nothing that the next one does not put
//! right ([`start`]). All of it in both ways of attaching programs.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests panic, in helper functions as well, to keep the line number"
)]

mod outage;
mod start;
