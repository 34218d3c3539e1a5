//! Host ports: the pinned map `HOST_PORTS`, and the rules of the packet filter that are made from it.
//!
//! The map is the database: a port is taken by inserting it where there is no entry, and its holder is the owner of the
//! pod's lease in `ENDPOINTS`. The rules follow it. What is taken is taken after the lease, and given back before it, rules
//! first: so an entry without a lease of the same owner is nobody's, and no rule leads to an address that somebody else
//! may have. Nobody's is also what is left of a pod whose device is gone.
//!
//! Map and rules are two things that cannot change at once, and a port on all addresses is in the way of one on a single
//! address, which no insertion notices. So those who change them hold a lock, a `flock` on the directory of the maps, which
//! the kernel releases when its holder, and `nft` if that is at work, has ended, however that ends. Pods without host ports never need it.
//!
//! Called by the CNI plugin, which needs no agent for it, and by the agent, which puts right what others have changed.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
    net::IpAddr,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use nix::fcntl::{FcntlArg, FdFlag, Flock, FlockArg, fcntl};
use overlay_common::maps::{Addr, HOST_PORTS_MAX, HostPort, HostPortTarget, Owner, PortProtocol};

use crate::{
    cni::owner_text,
    datapath::{
        DatapathError,
        pins::Pins,
        tables::{self, Endpoints, LocalTable},
    },
    family::{ByFamily, Family, OfFamily as _},
    host::{
        conntrack::{self, Connection},
        netlink::{Netlink, NetlinkError},
        nft::{
            NftError,
            ports::{self as rules, Mapping},
        },
    },
};

/// How long somebody else may hold the lock: he is changing thousands of ports, or has been stopped.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks at the lock.
const PAUSE: Duration = Duration::from_millis(5);

/// A port, and where it leads.
pub type Entry = (HostPort, HostPortTarget);

/// Why ports could not be taken, given back or read.
#[derive(Debug, thiserror::Error)]
pub enum PortsError {
    /// The map.
    #[error(transparent)]
    Map(#[from] DatapathError),
    /// The rules.
    #[error(transparent)]
    Rules(#[from] NftError),
    /// Links and addresses.
    #[error(transparent)]
    Links(#[from] NetlinkError),
    /// The lock cannot be had.
    #[error("lock {path}: {cause}")]
    Lock {
        /// The directory.
        path: PathBuf,
        /// The system's reason.
        cause: io::Error,
    },
    /// Another pod has the port.
    #[error(
        "host port {wanted} is taken: {} has {held}; delete that pod, or choose another port or hostIP", holder(.owner)
    )]
    Taken {
        /// What was to be taken.
        wanted: HostPort,
        /// What is in its way.
        held: HostPort,
        /// Whose that is.
        owner: Box<Owner>,
    },
    /// There is no room for another one.
    #[error("the map HOST_PORTS is full: a node has room for {HOST_PORTS_MAX} host ports")]
    Full,
}

fn holder(owner: &Owner) -> String {
    let (container, ifname) = owner_text(owner);
    format!("{ifname} of container {container}")
}

/// What an owner holds; nothing where there is no map. Needs no lock: calls for one container come one after the other.
pub fn held_by(pins: &Pins, owner: &Owner) -> Result<Vec<Entry>, DatapathError> {
    let table = match tables::HostPorts::open(pins) {
        Err(DatapathError::NotPinned { .. }) => return Ok(Vec::new()),
        table => table?,
    };
    Ok(table.entries()?.into_iter().filter(|(_, target)| target.owner == *owner).collect())
}

/// Map and rules, held alone.
pub struct HostPorts {
    table: tables::HostPorts,
    /// The node's, of the families that it carries.
    gateways: ByFamily<IpAddr>,
    _lock: Flock<File>,
}

/// What [`HostPorts::reconcile`] had to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Entries without a lease; they are gone.
    pub removed: Vec<HostPort>,
    /// The rules were not those of the map; they are.
    pub rewritten: bool,
    /// Addresses of pods with host ports.
    pub pods: HashSet<Addr>,
}

/// What [`HostPorts::reconcile`] has to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Entries that a lease stands behind.
    pub held: Vec<Entry>,
    /// Entries without one.
    pub stale: Vec<Entry>,
    /// The families whose rules are not those of what is held.
    pub rewrite: Vec<Family>,
}

impl HostPorts {
    /// Waits for the lock.
    ///
    /// # Errors
    ///
    /// [`PortsError::Lock`] when somebody holds it for five seconds; [`DatapathError::NotPinned`] before an agent has
    /// been started.
    pub fn lock(pins: &Pins) -> Result<Self, PortsError> {
        let table = tables::HostPorts::open(pins)?;
        let gateways =
            LocalTable::open(pins)?.get()?.gateway.into_iter().filter(|gateway| !gateway.is_unspecified());
        let gateways = ByFamily::from_values(gateways.map(Addr::to_ip)).unwrap_or_default();
        let path = pins.root().join("maps");
        let failed = |cause| PortsError::Lock { path: path.clone(), cause };
        let mut file = File::open(&path).map_err(failed)?;
        // `nft` is to inherit it: when this process is killed, the lock is held until what it has begun is done.
        fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty())).map_err(|cause| failed(cause.into()))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Self { table, gateways, _lock: lock }),
                Err((file, nix::Error::EWOULDBLOCK)) if Instant::now() < deadline => file,
                Err((_, cause)) => return Err(failed(cause.into())),
            };
            thread::sleep(PAUSE);
        }
    }

    /// Takes all of `wanted`, which are one owner's, and leads them to it; what it held before is given back. A port that
    /// another interface of the same container has stays there: runtimes ask for a container's ports on each of its
    /// networks. Returns how many were taken.
    ///
    /// # Errors
    ///
    /// Then it holds none, or giving them back has failed as well and [`HostPorts::release`] can be repeated.
    pub fn take(&mut self, pins: &Pins, wanted: &[Entry]) -> Result<usize, PortsError> {
        let Some(owner) = wanted.first().map(|(_, target)| target.owner) else { return Ok(0) };
        self.release(&owner)?;
        let mut held: HashMap<(u16, u8), Vec<Entry>> = HashMap::new();
        for entry in self.table.entries()? {
            held.entry((entry.0.port, entry.0.protocol)).or_default().push(entry);
        }
        let mut free = Vec::new();
        for entry @ (port, _) in wanted {
            let same = held.get(&(port.port, port.protocol)).map_or(&[][..], Vec::as_slice);
            let mut is_free = true;
            for (other, target) in same.iter().filter(|(other, _)| port.overlaps(other)) {
                if !Holders::open(pins)?.is_alive(target)? {
                    self.release(&target.owner)?;
                } else if target.owner.container == owner.container {
                    is_free = false;
                } else {
                    let owner = Box::new(target.owner);
                    return Err(PortsError::Taken { wanted: *port, held: *other, owner });
                }
            }
            if is_free {
                free.push(*entry);
            }
        }
        if free.is_empty() {
            return Ok(0);
        }
        match self.take_free(&free) {
            Ok(()) => Ok(free.len()),
            Err(error) => {
                // The first error is what is told; DEL says what is left of the rest.
                let _ = self.release(&owner);
                Err(error)
            }
        }
    }

    fn take_free(&mut self, wanted: &[Entry]) -> Result<(), PortsError> {
        for (port, target) in wanted {
            let taken = self.table.take(*port, *target).map_err(|error| match error.errno() {
                Some(libc::E2BIG) => PortsError::Full,
                _ => error.into(),
            })?;
            if !taken {
                return Err(PortsError::Taken { wanted: *port, held: *port, owner: Box::new(target.owner) });
            }
        }
        let mappings = mappings(wanted);
        if rules::add(&self.gateways, &mappings).is_err() {
            // What is loaded is not what it should be, or cannot be changed, which shows now.
            self.rewrite(families(&mappings), &self.table.entries()?)?;
        }
        // Flows from before go to the node itself, or to a pod that is gone.
        let local = local_addresses().unwrap_or_default();
        forget(&mappings, |mapping, flow| {
            let to = flow.original.dst;
            mapping.family() == to.family()
                && mapping.address.is_none_or(|address| address == to)
                && (to.is_loopback() || local.contains(&to))
                && flow.reply.src != mapping.pod
        });
        Ok(())
    }

    /// Gives back all that an owner holds, the rules first; nothing is fine.
    ///
    /// # Errors
    ///
    /// Then what is left in the map is what the rules may still have.
    pub fn release(&mut self, owner: &Owner) -> Result<(), PortsError> {
        let (own, rest): (Vec<_>, Vec<_>) =
            self.table.entries()?.into_iter().partition(|(_, target)| target.owner == *owner);
        if own.is_empty() {
            return Ok(());
        }
        let gone = mappings(&own);
        if rules::delete(&gone, &mappings(&rest)).is_err() {
            self.rewrite(families(&gone), &rest)?;
        }
        self.remove(&own)
    }

    /// Removes the entries that no lease stands behind, and writes the rules anew where they are not those of the map.
    ///
    /// # Errors
    ///
    /// As [`HostPorts::release`].
    pub fn reconcile(&mut self, pins: &Pins) -> Result<Reconciled, PortsError> {
        let Plan { held, stale, rewrite } = self.plan(pins)?;
        self.rewrite(rewrite.iter().copied(), &held)?;
        self.remove(&stale)?;
        Ok(Reconciled {
            removed: stale.into_iter().map(|(port, _)| port).collect(),
            rewritten: !rewrite.is_empty(),
            pods: held.into_iter().map(|(_, target)| target.pod).collect(),
        })
    }

    /// What [`HostPorts::reconcile`] would do.
    pub fn plan(&self, pins: &Pins) -> Result<Plan, PortsError> {
        // In this order: who is in the map has had his lease before.
        let entries = self.table.entries()?;
        let (mut held, mut stale) = (Vec::new(), Vec::new());
        if !entries.is_empty() {
            let holders = Holders::open(pins)?;
            for entry in entries {
                let known = mapping(&entry).is_some() && holders.is_alive(&entry.1)?;
                if known { held.push(entry) } else { stale.push(entry) }
            }
        }
        let all = mappings(&held);
        let mut rewrite = Vec::new();
        for family in Family::ALL {
            let gateway = self.gateways.get(family).copied();
            // Without a gateway a family has no table.
            let gateway = gateway.filter(|_| all.iter().any(|mapping| mapping.family() == family));
            let differs = match rules::loaded(family) {
                Ok(None) => gateway.is_some(),
                Ok(Some(loaded)) => gateway.is_none_or(|gateway| !loaded.is(gateway, &all)),
                // What nft cannot show is not as it was made: nft 1.0.6 crashes on a table with flags.
                Err(NftError::Refused { .. } | NftError::Output { .. }) => true,
                Err(error) => return Err(error.into()),
            };
            rewrite.extend(differs.then_some(family));
        }
        Ok(Plan { held, stale, rewrite })
    }

    /// What is not as [`HostPorts::take`] of `wanted` has left it, in words.
    pub fn differences(&self, wanted: &[Entry]) -> Result<Vec<String>, PortsError> {
        let mut differences = Vec::new();
        let held = self.table.entries()?;
        for (port, target) in wanted {
            match self.table.get(*port)? {
                Some(found) if found == *target => {}
                found => {
                    let sibling = |(other, by): &Entry| {
                        by.owner.container == target.owner.container
                            && by.owner != target.owner
                            && port.overlaps(other)
                    };
                    if !held.iter().any(sibling) {
                        differences.push(found.map_or_else(
                            || format!("host port {port} is missing in HOST_PORTS"),
                            |found| {
                                format!(
                                    "host port {port} leads to port {} of {}",
                                    found.port,
                                    found.pod.to_ip()
                                )
                            },
                        ));
                    }
                }
            }
        }
        Ok(differences)
    }

    /// What the rules lack of that these entries need, in words.
    pub fn missing(&self, entries: &[Entry]) -> Result<Vec<String>, PortsError> {
        let mut missing = Vec::new();
        for family in families(&mappings(entries)) {
            let table = format!("the table {} {}", family.nft(), rules::TABLE);
            let Some(loaded) = rules::loaded(family)? else {
                missing.push(format!("{table} is missing"));
                continue;
            };
            if !self.gateways.get(family).is_some_and(|gateway| loaded.is_sound(*gateway)) {
                missing.push(format!("the rules of {table} are not as they were made"));
            }
            let own = entries.iter().filter_map(|entry| Some((entry.0, mapping(entry)?)));
            let lacking = own.filter(|(_, mapping)| mapping.family() == family && !loaded.has(mapping));
            missing.extend(lacking.map(|(port, _)| format!("host port {port} is not in {table}")));
        }
        Ok(missing)
    }

    /// Writes the tables of these families anew; all are tried.
    fn rewrite(&self, families: impl IntoIterator<Item = Family>, entries: &[Entry]) -> Result<(), NftError> {
        let mappings = mappings(entries);
        let mut written = Ok(());
        for family in families {
            written = written.and(rules::replace(family, &self.gateways, &mappings));
        }
        written
    }

    /// Removes entries whose rules are gone, and ends flows of theirs.
    fn remove(&mut self, entries: &[Entry]) -> Result<(), PortsError> {
        let mappings = mappings(entries);
        forget(&mappings, |mapping, flow| flow.reply.src == mapping.pod);
        for (port, _) in entries {
            self.table.release(*port)?;
        }
        Ok(())
    }
}

/// Who may hold ports.
struct Holders {
    endpoints: Endpoints,
    links: HashSet<u32>,
}

impl Holders {
    fn open(pins: &Pins) -> Result<Self, PortsError> {
        let links = Netlink::open()?.links()?;
        Ok(Self {
            endpoints: Endpoints::open(pins)?,
            links: links.into_iter().map(|link| link.index).collect(),
        })
    }

    /// Whether a lease of the same owner stands behind an entry, and a device, unless an ADD is still to make it.
    fn is_alive(&self, target: &HostPortTarget) -> Result<bool, PortsError> {
        let lease = self.endpoints.get(target.pod)?.filter(|endpoint| endpoint.owner == target.owner);
        Ok(lease.is_some_and(|lease| lease.ifindex == 0 || self.links.contains(&lease.ifindex)))
    }
}

/// None for what nobody can have written.
fn mapping((port, target): &Entry) -> Option<Mapping> {
    let (address, pod) = (port.addr.to_ip(), target.pod.to_ip());
    Some(Mapping {
        address: port.address().map(|_| address),
        protocol: PortProtocol::from_number(port.protocol)?,
        port: port.port,
        pod,
        pod_port: target.port,
    })
    .filter(|mapping| address.family() == mapping.family())
}

fn mappings(entries: &[Entry]) -> Vec<Mapping> {
    entries.iter().filter_map(mapping).collect()
}

/// The families of mappings.
fn families(mappings: &[Mapping]) -> impl Iterator<Item = Family> + use<> {
    let has = |family: &Family| mappings.iter().any(|mapping| mapping.family() == *family);
    Family::ALL.into_iter().filter(has).collect::<Vec<_>>().into_iter()
}

/// Ends the flows of UDP to the ports of these mappings that are `stale`. A kernel without ctnetlink is no reason to refuse
/// a pod: there they end when they are silent.
fn forget(mappings: &[Mapping], stale: impl Fn(&Mapping, &Connection) -> bool) {
    let mut by_port: HashMap<u16, Vec<&Mapping>> = HashMap::new();
    for mapping in mappings.iter().filter(|mapping| mapping.protocol == PortProtocol::Udp) {
        by_port.entry(mapping.port).or_default().push(mapping);
    }
    if by_port.is_empty() {
        return;
    }
    let led = |flow: &Connection| by_port.get(&flow.original.dst_port).map_or(&[][..], Vec::as_slice);
    match conntrack::forget_udp(|flow| led(flow).iter().any(|mapping| stale(mapping, flow))) {
        Ok(0) => {}
        Ok(count) => log::info!("ended {count} flows of UDP to host ports that have changed"),
        Err(error) => log::warn!("flows of UDP to host ports that have changed go on: {error}"),
    }
}

fn local_addresses() -> Result<HashSet<IpAddr>, NetlinkError> {
    let addresses = Netlink::open()?.addresses(None)?;
    Ok(addresses.into_iter().map(|address| address.net.addr()).collect())
}
