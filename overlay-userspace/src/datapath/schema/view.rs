//! Typed maps of whichever schema this build knows: callers see the newest types, the map may hold older ones.

use aya::{
    Pod,
    maps::{Array, HashMap, IterableMap as _, Map, MapData, MapError},
};
use overlay_common::maps::{SCHEMA, v1};

use super::{super::DatapathError, record::Record};
use crate::datapath::{pins::Pins, tables, usage::scan_map};

/// The layout of what is pinned.
#[derive(Clone, Copy)]
enum Layout {
    /// This build's.
    Own,
    /// Of schema 1, and those after it that have the same.
    V1,
}

fn layout(pins: &Pins) -> Result<Layout, DatapathError> {
    let schema = pins.schema();
    if schema == SCHEMA {
        Ok(Layout::Own)
    } else if (v1::SCHEMA..=v1::LAST).contains(&schema) {
        Ok(Layout::V1)
    } else {
        Err(DatapathError::Newer { dir: pins.root().to_owned(), own: SCHEMA })
    }
}

/// A hash map.
pub(in crate::datapath) enum HashView<K: Record, V: Record> {
    Own(HashMap<MapData, K, V>),
    V1(HashMap<MapData, K::V1, V::V1>),
}

fn hash<K: Pod, V: Pod>(map: Map, pins: &Pins, name: &str) -> Result<HashMap<MapData, K, V>, DatapathError> {
    HashMap::try_from(map).map_err(|e| DatapathError::new(format!("open {}", pins.map(name).display()), e))
}

impl<K: Record, V: Record> HashView<K, V> {
    /// Opens the pinned map; `kind` is its type.
    pub(in crate::datapath) fn open(
        pins: &Pins,
        name: &str,
        kind: fn(MapData) -> Map,
    ) -> Result<Self, DatapathError> {
        let map = kind(tables::open(&pins.map(name))?);
        Ok(match layout(pins)? {
            Layout::Own => Self::Own(hash(map, pins, name)?),
            Layout::V1 => Self::V1(hash(map, pins, name)?),
        })
    }

    pub(in crate::datapath) fn get(&self, key: &K) -> Result<V, MapError> {
        match self {
            Self::Own(map) => map.get(key, 0),
            Self::V1(map) => map.get(&key.to_v1(), 0).map(V::from_v1),
        }
    }

    pub(in crate::datapath) fn insert(&mut self, key: &K, value: &V, flags: u64) -> Result<(), MapError> {
        match self {
            Self::Own(map) => map.insert(key, value, flags),
            Self::V1(map) => map.insert(key.to_v1(), value.to_v1(), flags),
        }
    }

    pub(in crate::datapath) fn remove(&mut self, key: &K) -> Result<(), MapError> {
        match self {
            Self::Own(map) => map.remove(key),
            Self::V1(map) => map.remove(&key.to_v1()),
        }
    }

    /// All entries, by a few system calls for thousands. One that comes or goes meanwhile may be missing, others are not.
    pub(in crate::datapath) fn entries(&self, name: &str) -> Result<Vec<(K, V)>, DatapathError> {
        let mut entries = Vec::new();
        match self {
            Self::Own(map) => {
                scan_map(map.map(), name, |key, value| entries.push((read(key), read(value))))?;
            }
            Self::V1(map) => {
                let mut old = |key: K::V1, value: V::V1| entries.push((K::from_v1(key), V::from_v1(value)));
                scan_map(map.map(), name, |key, value| old(read(key), read(value)))?;
            }
        }
        Ok(entries)
    }

    pub(in crate::datapath) fn keys(&self) -> Box<dyn Iterator<Item = Result<K, MapError>> + '_> {
        match self {
            Self::Own(map) => Box::new(map.keys()),
            Self::V1(map) => Box::new(map.keys().map(|key| key.map(K::from_v1))),
        }
    }
}

/// A key or a value as it lies in a map that holds such.
fn read<T: Pod>(bytes: &[u8]) -> T {
    debug_assert_eq!(bytes.len(), size_of::<T>());
    // SAFETY: any bytes are a `T`, and there are as many: sizes are compared when the map is opened.
    unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
}

/// An array.
pub(in crate::datapath) enum ArrayView<V: Record> {
    Own(Array<MapData, V>),
    V1(Array<MapData, V::V1>),
}

impl<V: Record> ArrayView<V> {
    /// Opens the pinned map.
    pub(in crate::datapath) fn open(pins: &Pins, name: &str) -> Result<Self, DatapathError> {
        let map = Map::Array(tables::open(&pins.map(name))?);
        let failed = |e: MapError| DatapathError::new(format!("open {}", pins.map(name).display()), e);
        Ok(match layout(pins)? {
            Layout::Own => Self::Own(Array::try_from(map).map_err(failed)?),
            Layout::V1 => Self::V1(Array::try_from(map).map_err(failed)?),
        })
    }

    pub(in crate::datapath) fn get(&self, index: u32) -> Result<V, MapError> {
        match self {
            Self::Own(map) => map.get(&index, 0),
            Self::V1(map) => map.get(&index, 0).map(V::from_v1),
        }
    }

    pub(in crate::datapath) fn set(&mut self, index: u32, value: &V) -> Result<(), MapError> {
        match self {
            Self::Own(map) => map.set(index, value, 0),
            Self::V1(map) => map.set(index, value.to_v1(), 0),
        }
    }
}
