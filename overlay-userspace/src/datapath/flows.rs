//! `STACK_FLOWS` as userspace sees it: the flows that left through the node's stack, and so return through it.
//!
//! The programs write it. Userspace lists it, removes what conntrack has forgotten, and copies it when its size changes. A
//! look from here does not keep an entry young (`htab_lru_map_lookup_elem_sys`, kernel/bpf/hashtab.c).

use aya::maps::{Array, Map, MapData, MapError, MapInfo};
use overlay_common::maps::{Flow, FlowKey};

use super::{
    Cause, DatapathError,
    pins::{self, Pins},
    schema::view::HashView,
    tables,
};

const NAME: &str = "STACK_FLOWS";
const SWITCH: &str = "FLOW_SWITCH";

/// The table. It stays what it is while this is held, also when another takes its place under the pin.
pub struct StackFlows {
    map: HashView<FlowKey, Flow>,
    switch: Array<MapData, u32>,
    capacity: u32,
}

/// How many entries the pinned table has room for; `None` where none is pinned.
pub fn pinned_capacity(pins: &Pins) -> Result<Option<u32>, DatapathError> {
    let path = pins.map(NAME);
    if !path.exists() {
        return Ok(None);
    }
    MapInfo::from_pin(&path)
        .map(|info| Some(info.max_entries()))
        .map_err(|e| DatapathError::new(format!("open {}", path.display()), e))
}

/// Takes the pin away: the next load makes a new table. Programs that run keep the old one.
pub fn unpin(pins: &Pins) -> Result<(), DatapathError> {
    pins::remove_file(&pins.map(NAME))
}

impl StackFlows {
    /// Opens the pinned map.
    pub fn open(pins: &Pins) -> Result<Self, DatapathError> {
        let path = pins.map(NAME);
        let failed = |e: MapError| DatapathError::new(format!("open {}", path.display()), e);
        let map = HashView::open(pins, NAME, Map::LruHashMap)?;
        let capacity = tables::open(&path)?.info().map_err(failed)?.max_entries();
        let switch = pins.map(SWITCH);
        let switch = Array::try_from(Map::Array(tables::open(&switch)?)).map_err(failed)?;
        Ok(Self { map, switch, capacity })
    }

    /// How many entries there is room for. A flow takes one, and each pair of addresses another.
    pub const fn capacity(&self) -> u32 {
        self.capacity
    }

    /// All keys. An entry that comes or goes meanwhile may be missing, or be there twice.
    pub fn keys(&self) -> Result<Vec<FlowKey>, DatapathError> {
        // The kernel begins anew when the entry that the iteration stands at is evicted; bounded for that.
        let limit = self.capacity as usize * 2;
        self.map
            .keys()
            .take(limit)
            .collect::<Result<_, _>>()
            .map_err(|e| DatapathError::new(format!("list {NAME}"), e))
    }

    /// One entry.
    pub fn get(&self, key: &FlowKey) -> Result<Option<Flow>, DatapathError> {
        match self.map.get(key) {
            Ok(flow) => Ok(Some(flow)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(e) => Err(DatapathError::new(format!("look up a flow in {NAME}"), e)),
        }
    }

    /// Makes an entry, as the programs do.
    pub fn record(&mut self, key: &FlowKey, flow: Flow) -> Result<(), DatapathError> {
        self.map
            .insert(key, &flow, 0)
            .map_err(|e| DatapathError::new(format!("record a flow in {NAME}"), e))?;
        self.switch(true)
    }

    /// Tells the programs whether there is anything to look up. [`StackFlows::record`] says so by itself.
    pub fn switch(&mut self, on: bool) -> Result<(), DatapathError> {
        self.switch.set(0, u32::from(on), 0).map_err(|e| DatapathError::new(format!("write {SWITCH}"), e))
    }

    /// Removes an entry; missing is fine.
    pub fn remove(&mut self, key: &FlowKey) -> Result<(), DatapathError> {
        match self.map.remove(key) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(e) => match Cause::from(e) {
                Cause::Io(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
                cause => Err(DatapathError::new(format!("remove a flow from {NAME}"), cause)),
            },
        }
    }

    /// Adds what `other` has and this one lacks.
    pub fn adopt(&mut self, other: &Self) -> Result<(), DatapathError> {
        for key in other.keys()? {
            if let Some(flow) = other.get(&key)?
                && self.get(&key)?.is_none()
            {
                self.record(&key, flow)?;
            }
        }
        Ok(())
    }
}
