//! The lab: nodes, pods, wires, routers and an outside world made of network namespaces, and the traffic
//! tools to prove things in it. One API for `cargo xtask run --lab`, for the tests and for benchmarks.
//!
//! Everything is built by calling `ip`, `ethtool` and `iptables`, on purpose without a line of the netlink
//! code under test. A lab touches nothing outside of namespaces that it made itself, and leaves nothing
//! behind: see [`lab::sweep`].
//!
//! This is a test API. What builds or changes a lab panics, at the caller's line, with a message that names
//! the command that failed; there is nothing a caller could do about it, and unwinding cleans up. What is
//! *measured* in a lab (see [`traffic`], [`lab::Node::try_add_pod`]) returns a `Result`: there a failure may be
//! what the test wants to see.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a test API: a lab that cannot be built has no caller who could go on; see the crate documentation"
)]

pub mod api;
pub mod attached;
pub mod lab;
pub mod proof;
pub mod report;
pub mod trace;
pub mod traffic;
