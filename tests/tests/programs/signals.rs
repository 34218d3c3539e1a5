//! Loading while signals come.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use nix::sys::{
    pthread::{pthread_kill, pthread_self},
    signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
};

use crate::bed::Bed;

/// Taken by no other test, and sent to the loading thread alone.
const SIGNAL: Signal = Signal::SIGURG;
/// Signals during one load: one less than a program is tried.
const SIGNALS: u64 = 9;
const LOADS: u64 = 10;

static CAME: AtomicU64 = AtomicU64::new(0);

extern "C" fn count(_: libc::c_int) {
    CAME.fetch_add(1, Ordering::Relaxed);
}

/// The verifier stops at each of them.
#[test]
fn programs_are_loaded_in_spite_of_signals() {
    let action = SigAction::new(SigHandler::Handler(count), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler adds to an atomic number, which is safe at any time.
    unsafe { sigaction(SIGNAL, &action) }.unwrap();
    Bed::with(|bed| {
        let loader = pthread_self();
        for load in 0..LOADS {
            thread::scope(|scope| {
                scope.spawn(|| {
                    for _ in 0..SIGNALS {
                        // Another place each time.
                        thread::sleep(Duration::from_micros(7_000 + 1_300 * load));
                        pthread_kill(loader, SIGNAL).unwrap();
                    }
                });
                bed.reload(|_| {});
            });
        }
        assert_eq!(bed.loaded.facts.len(), 6);
    });
    assert!(CAME.load(Ordering::Relaxed) > LOADS, "one that is pending takes in those that follow");
}
