//! Odd packets: each row of the table "Odd packets" of ARCHITECTURE.md, with real sockets or real frames, between pods of one
//! node, of two, and nodes, in both families.
//!
//! Elsewhere: what forged and broken tunnel packets come to (trust), super-packets, TTL and narrow paths (tunnel), fragments of
//! Services' flows (services), the fields of every header (programs), odd underlays (underlay).

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "tests panic, to keep the line number"
)]

mod bed;
mod class;
mod errors;
mod fragments;
mod headers;
mod link;
mod many;
mod nested;
mod protocols;
