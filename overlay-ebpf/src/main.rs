//! The programs of overlay: glue between hooks, maps and the header arithmetic of overlay-common.
//!
//! | program | hook | what it does |
//! |---|---|---|
//! | [`from_pod`] | tc ingress of a pod's host side device | checks the sender; to a local pod, into the tunnel, or to the stack |
//! | [`to_pod`] | tc egress of a pod's host side device | counts what the stack sends to a pod, and records flows that have to return through it |
//! | [`from_host`] | tc egress of the anchor device | into the tunnel: host traffic, and what a program could not encapsulate |
//! | [`from_tunnel`] | tc ingress of the anchor device | checks what the kernel decapsulated; to a pod or to the stack |
//! | [`from_wire`] | tc ingress of an underlay device | checks and decapsulates natively; the rest goes to the kernel |
//! | [`xdp_wire`] | XDP of an underlay device, where it is wanted | drops what `from_wire` and `from_tunnel` would, earlier |
//!
//! Invariants: no program keeps per-packet state; a packet that is not fully understood takes the kernel's own path;
//! a packet dropped on purpose is counted under its [`overlay_common::reason::Reason`]; nothing panics (the build
//! checks the object for panic paths). Loaded, attached and configured by `overlay_userspace::datapath`.
#![no_std]
#![no_main]
#![allow(
    clippy::inline_always,
    reason = "a function that is not inlined becomes a BPF subprogram: at most five arguments, no packet pointers kept"
)]
#![allow(
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "helpers take lengths as i32 and return i64; the verifier knows the ranges"
)]
#![allow(
    clippy::needless_pass_by_value,
    reason = "`#[classifier]` and `#[xdp]` hand the context over by value"
)]

mod config;
mod decap;
mod drop;
mod encap;
mod flows;
mod frame;
mod from_host;
mod from_pod;
mod from_tunnel;
mod from_wire;
mod maps;
mod packet;
mod record;
mod to_pod;
mod trace;
mod transport;
mod tunnel_key;
mod xdp_wire;

/// Several helpers used here (`bpf_redirect_neigh`, `bpf_fib_lookup`, …) are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Unreachable: the build fails when a panic path is left in the object. The loop satisfies the type.
    loop {}
}
