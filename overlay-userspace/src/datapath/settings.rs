//! What kernel settings of the node were before the agent changed them: a map that is pinned beside the schemas, not part of
//! any. A reboot takes it, and the changes as well. Written by the agent, read by `overlay cleanup`.

use std::{io, path::PathBuf};

use aya::maps::{HashMap, Map, MapData};

use super::{
    Cause, DatapathError,
    pins::{self, Pins},
    tables,
};

/// Settings that it has room for: an underlay that was replaced a thousand times.
const ENTRIES: u32 = 1024;
/// `BPF_NOEXIST` (bpf(2)).
const NOEXIST: u64 = 1;

/// A path below `/proc/sys`, NUL-padded; none that the agent writes is longer.
type Key = [u8; 64];
/// A value, NUL-padded.
type Value = [u8; 32];

/// The pin.
pub fn pin(pins: &Pins) -> PathBuf {
    pins.base().unwrap_or_else(|| pins.root()).join("settings")
}

fn padded<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    bytes.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
    Some(bytes)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

fn open(pins: &Pins) -> Result<HashMap<MapData, Key, Value>, DatapathError> {
    let path = pin(pins);
    HashMap::try_from(Map::HashMap(tables::open(&path)?))
        .map_err(|e| DatapathError::new(format!("open {}", path.display()), e))
}

/// Remembers what a setting was, once: what it is changed to later does not matter.
pub fn remember(pins: &Pins, path: &str, value: &str) -> Result<(), DatapathError> {
    let (Some(key), Some(value)) = (padded(path), padded(value)) else { return Ok(()) };
    let path_of_map = pin(pins);
    if !path_of_map.exists() {
        let failed = |e| DatapathError::new(format!("make {}", path_of_map.display()), Cause::from(e));
        let map = HashMap::<MapData, Key, Value>::create(ENTRIES, 0).map_err(failed)?;
        pins::replace(&path_of_map, |path| {
            map.pin(path).map_err(|e| DatapathError::new(format!("pin {}", path.display()), e))
        })?;
    }
    let mut map = open(pins)?;
    match map.insert(key, value, NOEXIST).map_err(Cause::from) {
        Err(Cause::Io(e)) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(cause) => Err(DatapathError::new(format!("remember what {path} was"), cause)),
        Ok(()) => Ok(()),
    }
}

/// What is remembered: paths and values, sorted.
pub fn remembered(pins: &Pins) -> Result<Vec<(String, String)>, DatapathError> {
    let map = match open(pins) {
        Err(DatapathError::NotPinned { .. }) => return Ok(Vec::new()),
        map => map?,
    };
    let failed = |e| DatapathError::new("read what settings were", Cause::from(e));
    let mut found = Vec::new();
    for entry in &map {
        let (path, value) = entry.map_err(failed)?;
        found.push((text(&path), text(&value)));
    }
    found.sort();
    Ok(found)
}

/// Forgets all. Nothing remembered is fine.
pub fn forget(pins: &Pins) -> Result<(), DatapathError> {
    pins::remove_file(&pin(pins))
}
