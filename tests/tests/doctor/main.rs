//! `overlay doctor`: every check on a node that something is wrong with, and on nodes that are well. What is broken is
//! broken for real, has to be found by its check and by nothing else, and has to be gone after what the finding says
//! that helps.
//!
//! The symptoms of docs/troubleshooting.md are bound to these tests ([`page`]).

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests panic, in helper functions as well, to keep the line number"
)]

mod agent;
mod bed;
mod checksums;
mod cni;
mod drift;
mod families;
mod firewall;
mod flannel;
mod ground;
mod healthy;
mod mtu;
mod nodes;
mod page;
mod peers;
mod pins;
mod ports;
mod sysctls;
