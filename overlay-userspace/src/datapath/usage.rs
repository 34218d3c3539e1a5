//! How full the maps are, and how long the programs ran.
//!
//! Entries are counted with batched lookups (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6): a full `ENDPOINTS` takes 4 calls instead of
//! 32 768. aya 0.14 has no wrapper for it.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    time::Duration,
};

use aya::{
    maps::{MapData, MapInfo},
    programs::ProgramInfo,
};
use bytemuck::{Pod, Zeroable};
use overlay_common::reason::Hook;

use super::{DatapathError, pins::Pins, tables};

/// Entries per call.
const BATCH: u32 = 4096;
/// `BPF_MAP_LOOKUP_BATCH` (include/uapi/linux/bpf.h).
const LOOKUP_BATCH: libc::c_long = 24;

/// The part of `union bpf_attr` that batched operations use.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// How many entries a pinned map can have.
pub fn capacity(pins: &Pins, name: &str) -> Result<u32, DatapathError> {
    let path = pins.map(name);
    MapInfo::from_pin(&path)
        .map(|info| info.max_entries())
        .map_err(|e| DatapathError::new(format!("open {}", path.display()), e))
}

/// Walks through a pinned hash map, giving key and value as they lie there. Entries that come or go meanwhile may be missed,
/// others are not. Returns how many there are.
pub fn scan(pins: &Pins, name: &str, entry: impl FnMut(&[u8], &[u8])) -> Result<usize, DatapathError> {
    scan_map(&tables::open(&pins.map(name))?, name, entry)
}

/// As [`scan`], of a map that is open.
pub(super) fn scan_map(
    map: &MapData,
    name: &str,
    mut entry: impl FnMut(&[u8], &[u8]),
) -> Result<usize, DatapathError> {
    let failed = |error: io::Error| DatapathError::new(format!("list {name}"), error);
    let info = map.info().map_err(|e| DatapathError::new(format!("inspect {name}"), e))?;
    let (key, value) = (info.key_size() as usize, info.value_size() as usize);
    let mut keys = vec![0_u8; key * BATCH as usize];
    let mut values = vec![0_u8; value * BATCH as usize];
    // A place in a hash map is a number of 32 bits; larger keys of other maps do not come here.
    let (mut place, mut next) = ([0_u8; 4], [0_u8; 4]);
    let mut total = 0;
    let mut first = true;
    loop {
        let mut attr = BatchAttr {
            in_batch: if first { 0 } else { place.as_ptr() as u64 },
            out_batch: next.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: BATCH,
            map_fd: map.fd().as_fd().as_raw_fd().cast_unsigned(),
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the kernel writes at most `count` keys and values to the buffers, which have room for them, and a place.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, LOOKUP_BATCH, &raw mut attr, size_of::<BatchAttr>() as libc::c_uint)
        };
        let error = (result < 0).then(io::Error::last_os_error);
        // No more entries after these.
        let last = error.as_ref().is_some_and(|error| error.raw_os_error() == Some(libc::ENOENT));
        if let Some(error) = error.filter(|_| !last) {
            return Err(failed(error));
        }
        let got = (attr.count as usize).min(BATCH as usize);
        for (key, value) in keys.chunks_exact(key).zip(values.chunks_exact(value)).take(got) {
            entry(key, value);
        }
        total += got;
        if last {
            return Ok(total);
        }
        place = next;
        first = false;
    }
}

/// How long a program has run.
#[derive(Clone, Debug)]
pub struct RunTime {
    /// Its name.
    pub name: &'static str,
    /// In all, on all CPUs.
    pub time: Duration,
    /// How often.
    pub count: u64,
}

/// How long each program that is pinned has run since it was loaded. The kernel counts only while `kernel.bpf_stats_enabled`
/// is 1; programs that have not run meanwhile are left out.
pub fn run_times(pins: &Pins) -> Vec<RunTime> {
    let info = |hook: Hook| {
        let info = ProgramInfo::from_pin(pins.program(hook.name())).ok()?;
        (info.run_count() > 0).then(|| RunTime {
            name: hook.name(),
            time: info.run_time(),
            count: info.run_count(),
        })
    };
    Hook::ALL.into_iter().filter_map(info).collect()
}
