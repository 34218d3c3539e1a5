//! Loading one program, whatever signals come meanwhile. [`super::object`] and [`super::replica`] load by it.
//!
//! The verifier gives up with `EAGAIN` when a signal is pending for the thread (`do_check`, kernel/bpf/verifier.c). Nothing is
//! wrong then: libbpf tries again as well (`PROG_LOAD_ATTEMPTS`), aya does not.

use aya::programs::ProgramError;
use nix::errno::Errno;

/// How often a program is tried before its signals count as an error.
const ATTEMPTS: usize = 10;

/// Calls `load` again for as long as a signal comes in between.
pub(super) fn through_signals(
    mut load: impl FnMut() -> Result<(), ProgramError>,
) -> Result<(), ProgramError> {
    for _ in 1..ATTEMPTS {
        match load() {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.raw_os_error() == Some(Errno::EAGAIN as i32) => {}
            other => return other,
        }
    }
    load()
}
