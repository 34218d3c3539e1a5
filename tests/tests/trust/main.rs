//! Who may send what: forged tunnel packets from the underlay ([`wire`]) and forged packets from a pod ([`pod`]). Each
//! is sent through real devices and has to be dropped under its one reason: counted as often as it was sent, described
//! by as many records, and seen nowhere else.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests panic, in helper functions as well, to keep the line number"
)]

mod families;
mod plain;
mod pod;
mod stage;
mod wire;
