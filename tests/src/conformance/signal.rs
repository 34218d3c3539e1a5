//! Ctrl-C and SIGTERM: a signal raises a flag, and the suite ends after the case at hand, so that what it made is
//! removed by the one path that removes it.

use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static REQUESTED: AtomicBool = AtomicBool::new(false);

extern "C" fn raise_flag(_: libc::c_int) {
    REQUESTED.store(true, Ordering::Relaxed);
}

/// From now on signals that end a program only raise the flag.
pub(crate) fn install() -> nix::Result<()> {
    let action = SigAction::new(SigHandler::Handler(raise_flag), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler stores to an atomic and does nothing else: async-signal-safe.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}

/// Whether such a signal came.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}
