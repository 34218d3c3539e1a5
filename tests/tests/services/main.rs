//! Services beside kube-proxy: every way from a client to a backend, in every mode of kube-proxy that this machine has, with and without
//! Docker on the nodes.
//!
//! One lab per mode and Docker state, and in it every scenario after the other ([`matrix`]). After each of them nothing may
//! have been counted that is not counted while all goes well ([`health`]).

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests panic, in helper functions as well, to keep the line number"
)]

mod aged;
mod bed;
mod generated;
mod health;
mod matrix;
mod scenarios;
mod sharp;
