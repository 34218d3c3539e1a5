//! The tunnel between real agents: what crosses the wire, what arrives, and what becomes of it when the next hop changes.
//! Every pod comes from a call of the CNI plugin.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests panic, in helper functions as well, to keep the line number"
)]

mod bed;
mod bulk;
mod datagrams;
mod everywhere;
mod families;
mod flannel;
mod hops;
mod mtu;
mod narrow;
mod next_hop;
mod wire;
