//! The bpf(2) commands that aya has no form for: a test run with marks, programs of a few instructions, and values whose
//! size only the kernel knows.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
};

use aya::{
    maps::MapInfo,
    programs::{ProgramFd, ProgramInfo},
};

use super::Circumstances;
use crate::datapath::{Cause, DatapathError};

/// `enum bpf_cmd` (include/uapi/linux/bpf.h).
const MAP_CREATE: i32 = 0;
const MAP_LOOKUP: i32 = 1;
const MAP_UPDATE: i32 = 2;
const PROG_LOAD: i32 = 5;
const PROG_TEST_RUN: i32 = 10;

/// `BPF_MAP_TYPE_PROG_ARRAY` and `BPF_PROG_TYPE_SCHED_CLS`.
const PROG_ARRAY: u32 = 3;
const SCHED_CLS: u32 = 3;

/// Offsets in `struct __sk_buff`, stable API.
const MARK: usize = 8;
const IFINDEX: usize = 40;
const SK_BUFF: usize = 192;

/// Room for what a program adds.
const HEADROOM: usize = 256;

/// One BPF instruction, as it lies in memory.
pub(super) type Instruction = u64;

/// Calls bpf(2) with the attributes of a command: plain integers, in the layout of `union bpf_attr`.
fn bpf<T>(command: i32, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the callers below pass the attributes of the command, whose pointers outlive the call; the kernel reads and
    // writes no more than the size says.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

/// As [`bpf`], for a command that makes a descriptor.
fn bpf_fd<T>(command: i32, attributes: &mut T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attributes)?;
    // SAFETY: the kernel has just made it for this process; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address<T: ?Sized>(data: &T) -> u64 {
    std::ptr::from_ref(data).cast::<u8>() as u64
}

fn raw(fd: &impl AsFd) -> u32 {
    fd.as_fd().as_raw_fd().cast_unsigned()
}

#[repr(C)]
#[derive(Default)]
struct Element {
    map: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The value of the `.rodata` of a program: its constants.
pub(super) fn rodata(program: &ProgramInfo) -> Result<Vec<u8>, DatapathError> {
    let name = program.name_as_str().unwrap_or("?");
    let failed = |cause: Cause| DatapathError::new(format!("read the constants of {name}"), cause);
    let ids = program.map_ids().map_err(|e| failed(e.into()))?.unwrap_or_default();
    for id in ids {
        let info = MapInfo::from_id(id).map_err(|e| failed(e.into()))?;
        if !info.name().starts_with(b".rodata") {
            continue;
        }
        let mut value = vec![0_u8; info.value_size() as usize];
        let key = 0_u32;
        let map = info.fd().map_err(|e| failed(e.into()))?;
        let mut element = Element {
            map: raw(&map),
            key: address(&key),
            value: value.as_mut_ptr() as u64,
            ..Element::default()
        };
        bpf(MAP_LOOKUP, &mut element).map_err(|e| failed(e.into()))?;
        return Ok(value);
    }
    Err(DatapathError::Unsupported(format!(
        "the attached program {name} has no constants: it is not of overlay"
    )))
}

/// A program of a few instructions, loaded.
pub(super) fn load(name: &str, instructions: &[Instruction]) -> Result<OwnedFd, DatapathError> {
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        program_type: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
    }
    let mut attributes = Attributes {
        program_type: SCHED_CLS,
        count: instructions.len() as u32,
        instructions: address(instructions),
        license: address(b"GPL\0"),
        ..Attributes::default()
    };
    bpf_fd(PROG_LOAD, &mut attributes).map_err(|e| DatapathError::new(format!("load the program {name}"), e))
}

/// A program array with this program in its one slot.
pub(super) fn jump_table(program: &ProgramFd) -> Result<OwnedFd, DatapathError> {
    let mut attributes = [PROG_ARRAY, 4, 4, 1, 0, 0];
    let table =
        bpf_fd(MAP_CREATE, &mut attributes).map_err(|e| DatapathError::new("create a program array", e))?;
    let (key, value) = (0_u32, raw(program));
    let mut element =
        Element { map: raw(&table), key: address(&key), value: address(&value), ..Element::default() };
    bpf(MAP_UPDATE, &mut element).map_err(|e| DatapathError::new("fill a program array", e))?;
    Ok(table)
}

/// What a test run gives.
#[derive(Clone, Debug)]
pub(super) struct Tested {
    /// The program's return value.
    pub(super) returned: i32,
    pub(super) packet: Vec<u8>,
    pub(super) mark: u32,
}

/// Runs a program once on a packet (Linux 4.12; the context: 5.0).
pub(super) fn test_run(
    program: &impl AsFd,
    name: &str,
    packet: &[u8],
    how: Circumstances,
) -> Result<Tested, DatapathError> {
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        program: u32,
        returned: u32,
        data_size_in: u32,
        data_size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
        context_size_in: u32,
        context_size_out: u32,
        context_in: u64,
        context_out: u64,
    }
    let mut context = [0_u8; SK_BUFF];
    for (offset, value) in [(MARK, how.mark), (IFINDEX, how.ifindex)] {
        if let Some(field) = context.get_mut(offset..offset + 4) {
            field.copy_from_slice(&value.to_ne_bytes());
        }
    }
    let mut context_out = [0_u8; SK_BUFF];
    let mut out = vec![0; packet.len() + HEADROOM];
    let mut attributes = Attributes {
        program: raw(program),
        data_size_in: packet.len() as u32,
        data_size_out: out.len() as u32,
        data_in: address(packet),
        data_out: out.as_mut_ptr() as u64,
        context_size_in: SK_BUFF as u32,
        context_size_out: SK_BUFF as u32,
        context_in: address(&context),
        context_out: context_out.as_mut_ptr() as u64,
        ..Attributes::default()
    };
    bpf(PROG_TEST_RUN, &mut attributes).map_err(|e| {
        let action = format!("run {name} on a packet of {} bytes", packet.len());
        match e.raw_os_error() {
            Some(libc::EINVAL) => DatapathError::Unsupported(format!(
                "{action}: the kernel does not take a packet of that length for a test run: use a smaller --size"
            )),
            Some(libc::ENODEV) => DatapathError::Unsupported(format!(
                "{action}: there is no device {} in this network namespace: run this on the node itself",
                how.ifindex
            )),
            _ => DatapathError::new(action, e),
        }
    })?;
    out.truncate(attributes.data_size_out as usize);
    let mark =
        context_out.get(MARK..).and_then(<[u8]>::first_chunk).map_or(0, |mark| u32::from_ne_bytes(*mark));
    Ok(Tested { returned: attributes.returned.cast_signed(), packet: out, mark })
}
