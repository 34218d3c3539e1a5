//! Instructions that the calling thread's kernel side has executed, by the processor's counter (`perf_event_open(2)`). Virtual machines
//! often have none.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{FromRawFd as _, RawFd};

/// The fields of `struct perf_event_attr` that its first version has (include/uapi/linux/perf_event.h); the kernel takes
/// the rest for zero.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    config1: u64,
}

/// `PERF_ATTR_SIZE_VER0`.
const _: () = assert!(size_of::<Attributes>() == 64);

/// `PERF_TYPE_HARDWARE`, whose `PERF_COUNT_HW_INSTRUCTIONS` is this.
const INSTRUCTIONS: u64 = 1;
/// `exclude_user`, the fifth bit of the flags.
const EXCLUDE_USER: u64 = 1 << 4;

/// `PERF_FLAG_FD_CLOEXEC`.
const CLOSE_ON_EXEC: libc::c_ulong = 1 << 3;

/// A running counter.
pub(crate) struct Instructions(File);

impl Instructions {
    /// Starts counting for the calling thread.
    pub(crate) fn start() -> io::Result<Self> {
        let attributes = Attributes {
            kind: 0,
            size: size_of::<Attributes>() as u32,
            config: INSTRUCTIONS,
            flags: EXCLUDE_USER,
            ..Attributes::default()
        };
        let (this_thread, any_cpu, no_group): (libc::pid_t, libc::c_int, libc::c_int) = (0, -1, -1);
        // SAFETY: the attributes outlive the call and say how long they are.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attributes,
                this_thread,
                any_cpu,
                no_group,
                CLOSE_ON_EXEC,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nobody else has.
        Ok(Self(unsafe { File::from_raw_fd(fd as RawFd) }))
    }

    /// The count so far.
    pub(crate) fn count(&mut self) -> io::Result<u64> {
        let mut count = [0; 8];
        self.0.read_exact(&mut count)?;
        Ok(u64::from_ne_bytes(count))
    }
}
