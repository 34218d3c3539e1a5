//! Schemas: which one of this node is in force, and how this build reads, writes and fills others.
//!
//! A schema is a directory `v<number>` with maps, programs and links, beside those of others. One is in force: what the
//! CNI plugin and the command line work on, and the truth about leases and host ports. There are two only while one takes
//! the place of the other; then the symbolic link `current` beside them says which is in force, and renaming another
//! over it is the one moment at which that changes. Where there is one directory, that is in force, and there is no link.
//!
//! Maps whose layout is the same in both schemas are not copied: the same map is pinned in both directories. Contents of the
//! others are converted, always by the newer of two builds, which knows both layouts.
//!
//! - `record`: conversions, and what changed with which schema: to be extended with a new schema
//! - `view`: typed maps of whichever schema
//! - [`lock`]: keeps the CNI plugin away while the schema in force changes
//!
//! Called by the agent, which drives a change, by `overlay migrate` on behalf of an older agent, by the plugin and by the
//! command line.

use std::{
    fs, io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd},
        unix::fs::symlink,
    },
    path::{Path, PathBuf},
};

use aya::{
    maps::{MapData, MapInfo},
    programs::links::{FdLink, PinnedLink},
};
use overlay_common::maps::{Addr, FAMILY_V4, FAMILY_V6};

use super::{
    Cause, DatapathError,
    flows::StackFlows,
    object,
    pins::{self, Pins},
    tables::{self, Endpoints, HostPorts, LeaseCursor, LocalTable},
};

pub mod lock;
pub(super) mod record;
pub(super) mod view;

/// The link that says which schema is in force.
const POINTER: &str = "current";

/// The schema in force; `None` where nothing is pinned.
pub fn in_force(pins: &Pins) -> Result<Option<Pins>, DatapathError> {
    if let Some(base) = pins.base() {
        let pointer = base.join(POINTER);
        match fs::read_link(&pointer) {
            Ok(target) => {
                let named = target.to_str().and_then(pins::schema_of).map(|schema| pins.of_schema(schema));
                if let Some(found) = named.filter(|found| found.root().exists()) {
                    return Ok(Some(found));
                }
            }
            // Not there, or somebody else's file.
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => {}
            Err(e) => return Err(DatapathError::new(format!("read {}", pointer.display()), e)),
        }
    }
    if pins.root().exists() {
        return Ok(Some(pins.clone()));
    }
    Ok(others(pins)?.pop())
}

/// The pins to read: those of the schema in force, of this build's own where there are none.
///
/// # Errors
///
/// [`DatapathError::Newer`] when this build does not know that schema.
pub fn readable(pins: &Pins) -> Result<Pins, DatapathError> {
    let found = in_force(pins)?.unwrap_or_else(|| pins.clone());
    if found.schema() > pins.schema() {
        return Err(DatapathError::Newer { dir: found.root().to_owned(), own: pins.schema() });
    }
    Ok(found)
}

/// What else is pinned beside these, oldest first.
pub fn others(pins: &Pins) -> Result<Vec<Pins>, DatapathError> {
    let Some(base) = pins.base() else { return Ok(Vec::new()) };
    let failed = |e| DatapathError::new(format!("list {}", base.display()), e);
    let entries = match fs::read_dir(base) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if let Some(schema) = entry.file_name().to_str().and_then(pins::schema_of)
            && schema != pins.schema()
            && entry.file_type().map_err(failed)?.is_dir()
        {
            found.push(pins.of_schema(schema));
        }
    }
    found.sort_by_key(Pins::schema);
    Ok(found)
}

/// Where the link to the schema in force is; `None` for pins that have no schemas beside them.
pub fn pointer(pins: &Pins) -> Option<PathBuf> {
    pins.base().map(|base| base.join(POINTER))
}

/// Puts these in force, atomically.
pub fn put_in_force(pins: &Pins) -> Result<(), DatapathError> {
    let Some(pointer) = pointer(pins) else { return Ok(()) };
    pins::replace(&pointer, |path| {
        symlink(pins::directory(pins.schema()), path)
            .map_err(|e| DatapathError::new(format!("make {}", path.display()), e))
    })
}

/// Is there a link, or one that a killed agent has begun?
pub fn has_pointer(pins: &Pins) -> bool {
    pointer(pins).is_some_and(|pointer| pointer.is_symlink() || pins::fresh(&pointer).is_symlink())
}

/// Removes the link, which one directory alone does not need, and one that a killed agent has begun. Missing is fine.
pub fn remove_pointer(pins: &Pins) -> Result<(), DatapathError> {
    let Some(pointer) = pointer(pins) else { return Ok(()) };
    pins::remove_file(&pins::fresh(&pointer))?;
    pins::remove_file(&pointer)
}

/// Pins the maps that both schemas have in the same layout in the second as well, in place of other maps there. To be
/// called before programs are loaded onto the second, by a build that knows both.
pub fn share_maps(from: &Pins, to: &Pins) -> Result<(), DatapathError> {
    for name in object::map_names() {
        let (source, target) = (from.map(name), to.map(name));
        if record::changed(name, from.schema(), to.schema()) || !source.exists() {
            continue;
        }
        let id = |path: &Path| {
            MapInfo::from_pin(path)
                .map(|info| info.id())
                .map_err(|e| DatapathError::new(format!("open {}", path.display()), e))
        };
        if target.exists() && id(&source)? == id(&target)? {
            continue;
        }
        let map = tables::open(&source)?;
        pins::replace(&target, |path| pin_map(&map, path))?;
    }
    Ok(())
}

fn pin_map(map: &MapData, path: &Path) -> Result<(), DatapathError> {
    map.pin(path).map_err(|e| DatapathError::new(format!("pin {}", path.display()), e))
}

/// Makes the contents of the maps that differ in layout those of the first schema: leases, host ports, cursor and what the
/// plugin knows of the node exactly; recorded flows are added. By a build that knows both, while the plugin is locked out.
pub fn copy(from: &Pins, to: &Pins) -> Result<(), DatapathError> {
    let differs = |name| record::changed(name, from.schema(), to.schema());
    if differs("ENDPOINTS") {
        Endpoints::open(to)?.make(&Endpoints::open(from)?)?;
    }
    if differs("HOST_PORTS") && from.map("HOST_PORTS").exists() {
        HostPorts::open(to)?.make(&HostPorts::open(from)?)?;
    }
    if differs("LEASE_CURSOR") {
        let (cursor, mut other) = (LeaseCursor::open(from)?, LeaseCursor::open(to)?);
        for family in [FAMILY_V4, FAMILY_V6] {
            other.set(family, cursor.get(family)?)?;
        }
    }
    if differs("LOCAL") {
        LocalTable::open(to)?.set(&LocalTable::open(from)?.get()?)?;
    }
    copy_flows(from, to)
}

/// Adds the flows that are recorded in the first schema and not in the second. By a build that knows both.
pub fn copy_flows(from: &Pins, to: &Pins) -> Result<(), DatapathError> {
    if !record::changed("STACK_FLOWS", from.schema(), to.schema()) || !from.map("STACK_FLOWS").exists() {
        return Ok(());
    }
    StackFlows::open(to)?.adopt(&StackFlows::open(from)?)
}

/// Takes an address off the endpoints of all schemas but these pins' own, whichever they are: where a change was killed,
/// programs of another schema may run, and would deliver what is for the next holder of the address to a device that is gone.
///
/// The key of `ENDPOINTS` is the address in every schema, which is all that this knows of them.
pub fn forget_endpoint(pins: &Pins, addr: Addr) -> Result<(), DatapathError> {
    for other in others(pins)? {
        let path = other.map("ENDPOINTS");
        let map = match tables::open(&path) {
            Err(DatapathError::NotPinned { .. }) => continue,
            map => map?,
        };
        let failed = |e| DatapathError::new(format!("remove {} from {}", addr.to_ip(), path.display()), e);
        let key_size = map.info().map_err(|e| failed(Cause::from(e)))?.key_size();
        if key_size as usize == size_of::<Addr>() {
            delete(map.fd().as_fd(), addr).map_err(|e| failed(Cause::Io(e)))?;
        }
    }
    Ok(())
}

/// `BPF_MAP_DELETE_ELEM` (bpf(2)) on a map with keys of 16 bytes and any values, which aya does not offer. Missing is fine.
fn delete(map: BorrowedFd<'_>, key: Addr) -> io::Result<()> {
    const DELETE: libc::c_long = 3;
    /// The members of `union bpf_attr` (linux/bpf.h) for this command.
    #[repr(C)]
    struct Attributes {
        map: u32,
        padding: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let attributes = Attributes {
        map: map.as_raw_fd().cast_unsigned(),
        padding: 0,
        key: std::ptr::from_ref(&key.bytes) as u64,
        value: 0,
        flags: 0,
    };
    // SAFETY: the kernel reads the attributes, whose size it is told, and the key, whose size is the map's: 16 bytes.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, DELETE, &raw const attributes, size_of::<Attributes>()) };
    match (result, io::Error::last_os_error()) {
        (0, _) => Ok(()),
        (_, error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        (_, error) => Err(error),
    }
}

/// Pins the links of the first schema in the second as well, and no others: attaching there updates them in place. Links are
/// the same in all schemas.
pub fn adopt_links(from: &Pins, to: &Pins) -> Result<(), DatapathError> {
    let names = from.links()?;
    for name in to.links()?.iter().filter(|name| !names.contains(name)) {
        to.remove_link(name)?;
    }
    for name in names {
        let (source, target) = (from.link(&name), to.link(&name));
        let Some(link) = open_link(&source)? else { continue };
        if let Some(other) = open_link(&target)?
            && link_id(&other, &target)? == link_id(&link, &source)?
        {
            continue;
        }
        pins::replace(&target, |path| {
            link.pin(path).map(drop).map_err(|e| DatapathError::new(format!("pin {}", path.display()), e))
        })?;
    }
    Ok(())
}

fn link_id(link: &FdLink, path: &Path) -> Result<u32, DatapathError> {
    let info = link.info().map_err(|e| DatapathError::new(format!("inspect {}", path.display()), e))?;
    Ok(info.id())
}

fn open_link(path: &Path) -> Result<Option<FdLink>, DatapathError> {
    match PinnedLink::from_pin(path).map_err(Cause::from) {
        Ok(link) => Ok(Some(link.into())),
        Err(Cause::Io(e)) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(DatapathError::new(format!("open {}", path.display()), cause)),
    }
}
