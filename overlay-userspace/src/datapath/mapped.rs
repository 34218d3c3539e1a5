//! Memory of an array map, mapped (`BPF_F_MMAPABLE`, Linux 5.5): what the programs write is read without a system call.
//!
//! Invariant: nothing makes a reference to what lies there, because programs, and other processes, write it at any time;
//! callers copy single records, or use atomics. Called by [`super::events`] and [`super::tracing`].

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd as _, AsRawFd as _},
    ptr::NonNull,
};

use aya::Pod;

use super::{DatapathError, pins::Pins, tables};

/// The elements of a pinned array map.
pub(super) struct Mapped<T> {
    start: NonNull<T>,
    elements: usize,
    element: PhantomData<T>,
}

impl<T: Pod> Mapped<T> {
    /// Maps the pinned array `name`, for writing as well where `writable`.
    pub(super) fn open(pins: &Pins, name: &str, writable: bool) -> Result<Self, DatapathError> {
        // The kernel rounds the size of an element up to this.
        const { assert!(size_of::<T>().is_multiple_of(8)) }
        let path = pins.map(name);
        let map = tables::open(&path)?;
        let failed = |e: io::Error| DatapathError::new(format!("map the memory of {}", path.display()), e);
        let info = map.info().map_err(|e| DatapathError::new(format!("inspect {}", path.display()), e))?;
        if info.value_size() as usize != size_of::<T>() {
            return Err(failed(io::Error::other("its elements have another size")));
        }
        let elements = info.max_entries() as usize;
        let write = if writable { libc::PROT_WRITE } else { 0 };
        // SAFETY: a new mapping; the kernel chooses its place. It outlives the descriptor.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                elements * size_of::<T>(),
                libc::PROT_READ | write,
                libc::MAP_SHARED,
                map.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(failed(io::Error::last_os_error()));
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| failed(io::Error::other("mapped at zero")))?;
        Ok(Self { start, elements, element: PhantomData })
    }

    /// How many elements there are.
    pub(super) const fn len(&self) -> usize {
        self.elements
    }

    /// An element; valid while this is held.
    pub(super) fn get(&self, index: usize) -> Option<*mut T> {
        // SAFETY: inside of the mapping.
        (index < self.elements).then(|| unsafe { self.start.as_ptr().add(index) })
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping that `open` made; nothing points into it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.elements * size_of::<T>()) };
    }
}
