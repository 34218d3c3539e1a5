//! Each program by a table of packets through `BPF_PROG_TEST_RUN`: maps and packet in, verdict, whole packet and
//! counter out. Packets are built and expected by etherparse, byte by byte, never by the code under test.
//!
//! What a run without a wire cannot have (tunnel metadata, real GSO, the redirect itself) is tested in the lab.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "tests panic, to keep the line number"
)]

mod bed;
mod budget;
mod dual;
mod events;
mod flows;
mod from_host;
mod from_pod;
mod from_tunnel;
mod from_wire;
mod signals;
mod to_pod;
mod xdp_wire;
