//! What ends a start: each reason is one clear line on standard error and an exit status, and the node is left as it was.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests panic, in helper functions as well, to keep the line number"
)]

mod adopted;
mod bed;
mod environment;
mod file;
mod port;
mod shown;
