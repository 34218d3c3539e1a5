//! Ctrl-C and SIGTERM, for the `lab` binary: a signal only raises a flag, and the next step of the lab unwinds,
//! so that the one cleanup path (`Drop`) runs.
//!
//! Invariant: without [`on_signals`] nothing here has any effect; tests keep the default signal handling.

use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// The panic payload of a lab that was interrupted; the `lab` binary tells it from a failure.
#[derive(Debug, Clone, Copy)]
pub struct Interrupted;

extern "C" fn raise_flag(_: libc::c_int) {
    REQUESTED.store(true, Ordering::Relaxed);
}

/// From now on SIGINT, SIGTERM and SIGHUP end the lab in an orderly way instead of killing the process.
pub fn on_signals() {
    // SA_RESTART: the tools that a step is waiting for end by their own deadlines, not by EINTR.
    let action = SigAction::new(SigHandler::Handler(raise_flag), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler stores to an atomic and does nothing else: async-signal-safe.
        unsafe { sigaction(signal, &action) }.expect("install signal handler");
    }
}

/// Whether a signal came.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// Unwinds with [`Interrupted`] if a signal came, except while unwinding already: cleanup must go on.
pub fn check() {
    if requested() && !std::thread::panicking() {
        std::panic::panic_any(Interrupted);
    }
}
