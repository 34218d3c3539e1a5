//! Typed views of the pinned maps. Opening one needs no agent and no object.

use std::{collections::HashSet, hash::Hash, io, path::Path as FsPath};

use aya::maps::{Map, MapData, MapError, PerCpuArray};
use overlay_common::{
    counter::{Counter, Path},
    maps::{Addr, Endpoint, HostPort, HostPortTarget, Local, Node, NodeName, PodName},
    reason::Reason,
};

use super::{
    Cause, DatapathError,
    pins::Pins,
    schema::{
        record::Record,
        view::{ArrayView, HashView},
    },
};

/// `BPF_NOEXIST`: insert only where there is no entry (bpf(2)).
const NOEXIST: u64 = 1;
/// `BPF_EXIST`: only replace.
const EXIST: u64 = 2;

pub(super) fn open(path: &FsPath) -> Result<MapData, DatapathError> {
    MapData::from_pin(path).map_err(|e| match Cause::from(e) {
        Cause::Io(e) if e.kind() == io::ErrorKind::NotFound => {
            DatapathError::NotPinned { path: path.to_owned() }
        }
        cause => DatapathError::new(format!("open {}", path.display()), cause),
    })
}

/// What a hash map is keyed by; in words for errors.
trait Key: Record + Eq + Hash {
    fn text(&self) -> String;
}

impl Key for Addr {
    fn text(&self) -> String {
        self.to_ip().to_string()
    }
}

impl Key for HostPort {
    fn text(&self) -> String {
        self.to_string()
    }
}

/// A hash map.
struct Table<K: Key, V: Record> {
    name: &'static str,
    map: HashView<K, V>,
}

impl<K: Key, V: Record> Table<K, V> {
    fn open(pins: &Pins, name: &'static str) -> Result<Self, DatapathError> {
        Ok(Self { name, map: HashView::open(pins, name, Map::HashMap)? })
    }

    /// Gives it the entries of the other one, and no more.
    fn make(&mut self, other: &Self) -> Result<(), DatapathError> {
        let wanted = other.entries()?;
        let kept: HashSet<K> = wanted.iter().map(|(key, _)| *key).collect();
        for (key, _) in self.entries()? {
            if !kept.contains(&key) {
                self.remove(key)?;
            }
        }
        wanted.into_iter().try_for_each(|(key, value)| self.insert(key, value, 0).map(drop))
    }

    fn failed(&self, what: &str, key: &K, error: impl Into<Cause>) -> DatapathError {
        DatapathError::new(format!("{what} {} in {}", key.text(), self.name), error)
    }

    /// All entries. An entry that is inserted or removed meanwhile may be missing; others are not.
    fn entries(&self) -> Result<Vec<(K, V)>, DatapathError> {
        self.map.entries(self.name)
    }

    fn get(&self, key: K) -> Result<Option<V>, DatapathError> {
        match self.map.get(&key) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(e) => Err(self.failed("look up", &key, e)),
        }
    }

    /// `Ok(false)` where `flags` forbid it: the entry exists ([`NOEXIST`]) or does not ([`EXIST`]).
    fn insert(&mut self, key: K, value: V, flags: u64) -> Result<bool, DatapathError> {
        match self.map.insert(&key, &value, flags).map_err(Cause::from) {
            Ok(()) => Ok(true),
            Err(Cause::Io(e))
                if matches!(e.raw_os_error(), Some(libc::EEXIST | libc::ENOENT)) && flags != 0 =>
            {
                Ok(false)
            }
            Err(cause) => Err(self.failed("insert", &key, cause)),
        }
    }

    /// `Ok(false)` where there was none.
    fn remove(&mut self, key: K) -> Result<bool, DatapathError> {
        match self.map.remove(&key) {
            Ok(()) => Ok(true),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(e) => match Cause::from(e) {
                Cause::Io(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
                cause => Err(self.failed("remove", &key, cause)),
            },
        }
    }
}

/// `NODES`: where each node subnet and node address is reached. Written by the agent alone.
pub struct Nodes(Table<Addr, Node>);

impl Nodes {
    /// Opens the pinned map.
    pub fn open(pins: &Pins) -> Result<Self, DatapathError> {
        Table::open(pins, "NODES").map(Self)
    }

    /// All entries.
    pub fn entries(&self) -> Result<Vec<(Addr, Node)>, DatapathError> {
        self.0.entries()
    }

    /// Inserts or replaces.
    pub fn set(&mut self, key: Addr, node: Node) -> Result<(), DatapathError> {
        self.0.insert(key, node, 0).map(|_| ())
    }

    /// Removes; missing is fine.
    pub fn remove(&mut self, key: Addr) -> Result<(), DatapathError> {
        self.0.remove(key).map(|_| ())
    }
}

/// `ENDPOINTS`: the pods of this node, and the leases of their addresses. Written by the CNI plugin.
pub struct Endpoints(Table<Addr, Endpoint>);

impl Endpoints {
    /// Gives it the entries of another one, and no more.
    pub(super) fn make(&mut self, other: &Self) -> Result<(), DatapathError> {
        self.0.make(&other.0)
    }

    /// Opens the pinned map.
    pub fn open(pins: &Pins) -> Result<Self, DatapathError> {
        Table::open(pins, "ENDPOINTS").map(Self)
    }

    /// All entries.
    pub fn entries(&self) -> Result<Vec<(Addr, Endpoint)>, DatapathError> {
        self.0.entries()
    }

    /// One entry.
    pub fn get(&self, addr: Addr) -> Result<Option<Endpoint>, DatapathError> {
        self.0.get(addr)
    }

    /// Takes an address atomically; `false` when somebody holds it.
    pub fn lease(&mut self, addr: Addr, endpoint: Endpoint) -> Result<bool, DatapathError> {
        self.0.insert(addr, endpoint, NOEXIST)
    }

    /// Replaces the entry of an address that is held; `false` when nobody holds it.
    pub fn update(&mut self, addr: Addr, endpoint: Endpoint) -> Result<bool, DatapathError> {
        self.0.insert(addr, endpoint, EXIST)
    }

    /// Gives an address back; `false` when nobody held it.
    pub fn release(&mut self, addr: Addr) -> Result<bool, DatapathError> {
        self.0.remove(addr)
    }
}

/// `HOST_PORTS`: the ports of this node that lead to pods, and who holds them. Written under the lock of
/// [`crate::ports`].
pub struct HostPorts(Table<HostPort, HostPortTarget>);

impl HostPorts {
    /// Gives it the entries of another one, and no more.
    pub(super) fn make(&mut self, other: &Self) -> Result<(), DatapathError> {
        self.0.make(&other.0)
    }

    /// Opens the pinned map.
    pub fn open(pins: &Pins) -> Result<Self, DatapathError> {
        Table::open(pins, "HOST_PORTS").map(Self)
    }

    /// All entries.
    pub fn entries(&self) -> Result<Vec<(HostPort, HostPortTarget)>, DatapathError> {
        self.0.entries()
    }

    /// One entry.
    pub fn get(&self, port: HostPort) -> Result<Option<HostPortTarget>, DatapathError> {
        self.0.get(port)
    }

    /// Takes a port atomically; `false` when somebody holds it.
    pub fn take(&mut self, port: HostPort, target: HostPortTarget) -> Result<bool, DatapathError> {
        self.0.insert(port, target, NOEXIST)
    }

    /// Gives a port back; `false` when nobody held it.
    pub fn release(&mut self, port: HostPort) -> Result<bool, DatapathError> {
        self.0.remove(port)
    }
}

/// `NODE_NAMES`: what nodes are called, by their tunnel addresses. Written by the agent.
pub struct NodeNames(Table<Addr, NodeName>);

impl NodeNames {
    /// Opens the pinned map.
    pub fn open(pins: &Pins) -> Result<Self, DatapathError> {
        Table::open(pins, "NODE_NAMES").map(Self)
    }

    /// All entries; none where an older schema is in force, which has no names (before 2).
    pub fn all(pins: &Pins) -> Result<Vec<(Addr, NodeName)>, DatapathError> {
        match Self::open(pins) {
            Ok(names) => names.0.entries(),
            Err(DatapathError::NotPinned { .. }) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Inserts or replaces.
    pub fn set(&mut self, vtep: Addr, name: NodeName) -> Result<(), DatapathError> {
        self.0.insert(vtep, name, 0).map(|_| ())
    }

    /// Removes; missing is fine.
    pub fn remove(&mut self, vtep: Addr) -> Result<(), DatapathError> {
        self.0.remove(vtep).map(|_| ())
    }
}

/// `POD_NAMES`: what Kubernetes calls the pods of this node, by their addresses. Written by the CNI plugin. An entry is
/// made after the address was leased and removed before it is released.
pub struct PodNames(Table<Addr, PodName>);

impl PodNames {
    /// Opens the pinned map.
    pub fn open(pins: &Pins) -> Result<Self, DatapathError> {
        Table::open(pins, "POD_NAMES").map(Self)
    }

    /// All entries, also such that nobody has removed: see [`Endpoints`] for what there is. None where an older schema is in
    /// force, which has no names (before 2).
    pub fn all(pins: &Pins) -> Result<Vec<(Addr, PodName)>, DatapathError> {
        match Self::open(pins) {
            Ok(names) => names.0.entries(),
            Err(DatapathError::NotPinned { .. }) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Inserts or replaces.
    pub fn set(&mut self, pod: Addr, name: PodName) -> Result<(), DatapathError> {
        self.0.insert(pod, name, 0).map(|_| ())
    }

    /// Removes; missing is fine.
    pub fn remove(&mut self, pod: Addr) -> Result<(), DatapathError> {
        self.0.remove(pod).map(|_| ())
    }
}

/// `LOCAL`: what the agent has found out about this node, for those that run without it.
pub struct LocalTable(ArrayView<Local>);

impl LocalTable {
    /// Opens the pinned map.
    pub fn open(pins: &Pins) -> Result<Self, DatapathError> {
        ArrayView::open(pins, "LOCAL").map(Self)
    }

    /// The entry; all zero before the agent's first start is complete.
    pub fn get(&self) -> Result<Local, DatapathError> {
        self.0.get(0).map_err(|e| DatapathError::new("read LOCAL", e))
    }

    /// Replaces the entry.
    pub fn set(&mut self, local: &Local) -> Result<(), DatapathError> {
        self.0.set(0, local).map_err(|e| DatapathError::new("write LOCAL", e))
    }
}

/// `LEASE_CURSOR`: the address tried last in each family, so that a released address is not reused at once. Not exact
/// under concurrency, and need not be: [`Endpoints::lease`] decides.
pub struct LeaseCursor(ArrayView<Addr>);

impl LeaseCursor {
    /// Opens the pinned map.
    pub fn open(pins: &Pins) -> Result<Self, DatapathError> {
        ArrayView::open(pins, "LEASE_CURSOR").map(Self)
    }

    /// The address tried last, unspecified at first. `family` is `FAMILY_V4` or `FAMILY_V6`.
    pub fn get(&self, family: usize) -> Result<Addr, DatapathError> {
        self.0.get(family as u32).map_err(|e| DatapathError::new("read LEASE_CURSOR", e))
    }

    /// Remembers an address.
    pub fn set(&mut self, family: usize, addr: Addr) -> Result<(), DatapathError> {
        self.0.set(family as u32, &addr).map_err(|e| DatapathError::new("write LEASE_CURSOR", e))
    }
}

/// A per-CPU array of counters, summed.
fn counters(pins: &Pins, name: &'static str) -> Result<Vec<Counter>, DatapathError> {
    let path = pins.map(name);
    let failed = |e: MapError| DatapathError::new(format!("read {}", path.display()), e);
    let map: PerCpuArray<MapData, Counter> =
        PerCpuArray::try_from(Map::PerCpuArray(open(&path)?)).map_err(failed)?;
    let mut sums = Vec::new();
    for slot in map.iter() {
        let mut sum = Counter::default();
        for cpu in slot.map_err(failed)?.iter() {
            sum.packets += cpu.packets;
            sum.bytes += cpu.bytes;
        }
        sums.push(sum);
    }
    Ok(sums)
}

/// What went which way.
pub fn paths(pins: &Pins) -> Result<Vec<(Path, Counter)>, DatapathError> {
    Ok(Path::ALL.into_iter().zip(counters(pins, "COUNTERS")?).collect())
}

/// What was dropped why.
pub fn drops(pins: &Pins) -> Result<Vec<(Reason, Counter)>, DatapathError> {
    Ok(Reason::ALL.into_iter().zip(counters(pins, "DROPS")?).collect())
}
