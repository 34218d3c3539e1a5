//! The pinned maps as they are, byte by byte: for a dump that somebody else reads later, perhaps with another build.
//!
//! Keys and values are hexadecimal, in the order of memory; overlay-common's `maps` has the layouts of each schema.

use std::{fmt::Write as _, fs};

use aya::{
    Pod,
    maps::{Array, HashMap, IterableMap as _, Map, MapData, MapInfo, PerCpuArray},
};
use overlay_common::{
    counter::Counter,
    maps::{Addr, Endpoint, Flow, FlowKey, HostPort, HostPortTarget, Local, Node},
};
use serde::Serialize;

use super::{Cause, DatapathError, pins::Pins, tables};

/// What the kernel says of a map.
#[derive(Debug, Serialize)]
pub struct Facts {
    /// The name of the pin.
    pub name: String,
    /// The kernel's id.
    pub id: u32,
    /// As `enum bpf_map_type` counts (include/uapi/linux/bpf.h).
    pub map_type: u32,
    /// In bytes.
    pub key_size: u32,
    /// In bytes.
    pub value_size: u32,
    /// Room.
    pub max_entries: u32,
    /// As it was made with.
    pub flags: u32,
}

/// An entry. A per-CPU value is one after the other.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Hexadecimal.
    pub key: String,
    /// Hexadecimal.
    pub value: String,
}

/// All pinned maps, by name.
pub fn facts(pins: &Pins) -> Result<Vec<Facts>, DatapathError> {
    let dir = pins.root().join("maps");
    let failed = |e| DatapathError::new(format!("list {}", dir.display()), e);
    let mut all = Vec::new();
    for entry in fs::read_dir(&dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        let failed = |e| DatapathError::new(format!("open {}", path.display()), e);
        let info = MapInfo::from_pin(&path).map_err(failed)?;
        all.push(Facts {
            name: entry.file_name().to_string_lossy().into_owned(),
            id: info.id(),
            map_type: info.map_type().map_err(failed)? as u32,
            key_size: info.key_size(),
            value_size: info.value_size(),
            max_entries: info.max_entries(),
            flags: info.map_flags(),
        });
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

/// Those whose layout this build knows.
pub const KNOWN: [&str; 9] = [
    "NODES",
    "ENDPOINTS",
    "HOST_PORTS",
    "STACK_FLOWS",
    "LOCAL",
    "LEASE_CURSOR",
    "FLOW_SWITCH",
    "COUNTERS",
    "DROPS",
];

/// The entries of one of [`KNOWN`].
pub fn entries(pins: &Pins, name: &str) -> Result<Vec<Entry>, DatapathError> {
    let path = pins.map(name);
    let data = tables::open(&path)?;
    let failed = |cause: Cause| DatapathError::new(format!("read {}", path.display()), cause);
    match name {
        "NODES" => hash::<Addr, Node>(Map::HashMap(data)),
        "ENDPOINTS" => hash::<Addr, Endpoint>(Map::HashMap(data)),
        "HOST_PORTS" => hash::<HostPort, HostPortTarget>(Map::HashMap(data)),
        "STACK_FLOWS" => hash::<FlowKey, Flow>(Map::LruHashMap(data)),
        "LOCAL" => array::<Local>(data),
        "LEASE_CURSOR" => array::<Addr>(data),
        "FLOW_SWITCH" => array::<u32>(data),
        "COUNTERS" | "DROPS" => per_cpu(data),
        other => Err(Cause::Other(format!("this build does not know the layout of {other}"))),
    }
    .map_err(failed)
}

fn hex<T: bytemuck::NoUninit>(value: &T) -> String {
    let mut text = String::new();
    for byte in bytemuck::bytes_of(value) {
        // A String takes all.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn hash<K: Pod + bytemuck::NoUninit, V: Pod + bytemuck::NoUninit>(map: Map) -> Result<Vec<Entry>, Cause> {
    let map: HashMap<MapData, K, V> = HashMap::try_from(map)?;
    let room = map.map().info()?.max_entries() as usize;
    let mut entries = Vec::new();
    // An iteration begins anew when the entry that it stands at goes: bounded for that.
    for key in map.keys().take(room * 2) {
        let key = key?;
        if let Ok(value) = map.get(&key, 0) {
            entries.push(Entry { key: hex(&key), value: hex(&value) });
        }
    }
    entries.sort_by(|a, b| a.key.cmp(&b.key));
    entries.dedup_by(|a, b| a.key == b.key);
    Ok(entries)
}

fn array<V: Pod + bytemuck::NoUninit>(data: MapData) -> Result<Vec<Entry>, Cause> {
    let map: Array<MapData, V> = Array::try_from(Map::Array(data))?;
    let entry = |(index, value): (u32, _)| -> Result<Entry, Cause> {
        let value: V = value?;
        Ok(Entry { key: hex(&index), value: hex(&value) })
    };
    (0..map.len()).zip(map.iter().map(|value| value.map_err(Cause::from))).map(entry).collect()
}

fn per_cpu(data: MapData) -> Result<Vec<Entry>, Cause> {
    let map: PerCpuArray<MapData, Counter> = PerCpuArray::try_from(Map::PerCpuArray(data))?;
    let mut entries = Vec::new();
    for (index, values) in (0..map.len()).zip(map.iter()) {
        let values = values?;
        let value = values.iter().map(hex).collect::<Vec<_>>().join(" ");
        entries.push(Entry { key: hex(&index), value });
    }
    Ok(entries)
}
