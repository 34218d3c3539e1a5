//! A private instance of the attached programs, to be asked what they would do with a packet.
//!
//! The same object, with the constants that the attached programs run with (read back from their frozen `.rodata`), and
//! with maps of its own for all that programs write: what it counts and records is of the asked packet alone, and nobody
//! else sees it. `ENDPOINTS`, which programs only read, is the live one; `NODES` is a copy, because programs keep time in
//! its values; of the recorded flows the copy holds what the asked packets could match. Nothing is pinned and nothing
//! attached: when this is dropped, the kernel frees it all.
//!
//! `BPF_PROG_TEST_RUN` reports a redirect and does not make it: the helpers note the target for the hook
//! (`skb_do_redirect`, net/core/filter.c), which a test run does not have.
//!
//! Invariant: nothing that is pinned is written. Called by the command line (`overlay trace`).

use std::{collections::BTreeMap, net::IpAddr};

use aya::{
    Ebpf, EbpfLoader, TestRunOptions,
    maps::{HashMap, Map},
    programs::{ProgramInfo, SchedClassifier, TestRun as _, Xdp},
};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
use overlay_common::{
    counter::Path,
    maps::{Addr, FAMILY_V4, FAMILY_V6, Flow, FlowKey, Local, NODE_HOST, Node, Subnet},
    reason::{Hook, Reason},
};

use super::{
    Cause, DatapathError,
    attach::Running,
    flows::StackFlows,
    load::through_signals,
    object::OBJECT,
    pins::Pins,
    run::Verdict,
    tables::{LocalTable, Nodes},
};
use crate::family::{Family, OfFamily as _};

mod asked;
mod counted;
mod syscall;

pub use asked::{Fib, FibAnswer, FibQuestion};
use counted::{Counters, packets};

/// Maps that the instance shares with the attached programs, because no program writes them.
const SHARED: [&str; 1] = ["ENDPOINTS"];

/// The programs that are asked: those that decide.
const ASKED: [Hook; 4] = [Hook::FromPod, Hook::FromHost, Hook::FromTunnel, Hook::FromWire];

/// Room in its own table of flows: those that an asked packet could match, and those that it records.
const FLOWS: u32 = 256;

/// Constants of the attached programs (`overlay-ebpf/src/config.rs`), by name, as they lie in memory.
#[derive(Clone, Debug)]
pub struct Frozen(BTreeMap<String, Vec<u8>>);

impl Frozen {
    /// Constants of programs of another build, from what the agent has left about this node. What is no part of that
    /// has its default.
    fn of_local(local: &Local, nodes: &Nodes) -> Result<Self, DatapathError> {
        let mut values = BTreeMap::from([
            ("VNI".to_owned(), local.vni.to_ne_bytes().to_vec()),
            ("ANCHOR_IFINDEX".to_owned(), local.anchor_ifindex.to_ne_bytes().to_vec()),
        ]);
        let nodes = nodes.entries()?;
        for family in Family::ALL {
            let index = family.index();
            // Nothing is in a range that there is none of.
            let range = |range: &Subnet| match range.prefix_len {
                0 => (vec![0xff; bytes_of(family)], vec![0; bytes_of(family)]),
                prefix => (octets(range.addr.to_ip()), mask(family, prefix)),
            };
            let (cluster, own) = (range(&local.cluster[index]), range(&local.subnet[index]));
            let of_pods = nodes
                .iter()
                .filter(|(key, node)| node.flags & NODE_HOST == 0 && key.to_ip().family() == family);
            let longest = of_pods.map(|(_, node)| u32::from(node.prefix_len)).max();
            let all = u32::try_from(bytes_of(family) * 8).unwrap_or(u32::MAX);
            let mut set = |name: &str, bytes: Vec<u8>| values.insert(constant(name, family), bytes);
            set("CLUSTER_NET", cluster.0);
            set("CLUSTER_MASK", cluster.1);
            set("SUBNET_NET", own.0);
            set("SUBNET_MASK", own.1);
            set("NODE_MASK", mask(family, longest.unwrap_or(all)));
            if local.vtep.to_ip().family() == family {
                set("VTEP", octets(local.vtep.to_ip()));
            }
        }
        values.insert("TUNNEL_PORT".into(), (local.port as u16).to_ne_bytes().to_vec());
        values.insert("ANCHOR_MAC".into(), local.gateway_mac.to_vec());
        values.insert("STACK_FLOWS_ON".into(), vec![1]);
        values.insert("FAMILIES".into(), vec![families(local)]);
        Ok(Self(values))
    }

    /// The bytes of the constant at the front of an array; zeroes where this build has no such constant.
    fn bytes<const N: usize>(&self, name: &str) -> [u8; N] {
        let mut bytes = [0; N];
        for (to, from) in bytes.iter_mut().zip(self.0.get(name).into_iter().flatten()) {
            *to = *from;
        }
        bytes
    }

    /// The constant of this family; nothing but zeroes where this build has no such one.
    fn address(&self, name: &str, family: Family) -> IpAddr {
        let name = constant(name, family);
        match family {
            Family::Ipv4 => self.bytes::<4>(&name).into(),
            Family::Ipv6 => self.bytes::<16>(&name).into(),
        }
    }

    fn masked(&self, addr: IpAddr, mask: &str) -> IpAddr {
        match (addr, self.address(mask, addr.family())) {
            (IpAddr::V4(addr), IpAddr::V4(mask)) => (addr & mask).into(),
            (IpAddr::V6(addr), IpAddr::V6(mask)) => (addr & mask).into(),
            (addr, _) => addr,
        }
    }

    fn contains(&self, net: &str, mask: &str, addr: IpAddr) -> bool {
        let family = addr.family();
        self.0.contains_key(&constant(net, family)) && self.masked(addr, mask) == self.address(net, family)
    }

    /// Own tunnel address of a family; unspecified where there is none.
    pub fn vtep(&self, family: Family) -> IpAddr {
        self.address("VTEP", family)
    }

    /// UDP port of the tunnel, host order.
    pub fn port(&self) -> u16 {
        u16::from_ne_bytes(self.bytes("TUNNEL_PORT"))
    }

    /// VXLAN network identifier.
    pub fn vni(&self) -> u32 {
        u32::from_ne_bytes(self.bytes("VNI"))
    }

    /// The anchor device.
    pub fn anchor(&self) -> u32 {
        u32::from_ne_bytes(self.bytes("ANCHOR_IFINDEX"))
    }

    /// MAC of the anchor device.
    pub fn anchor_mac(&self) -> [u8; 6] {
        self.bytes("ANCHOR_MAC")
    }

    /// Is this address of a pod or a gateway, of whatever node?
    pub fn in_cluster(&self, addr: IpAddr) -> bool {
        self.contains("CLUSTER_NET", "CLUSTER_MASK", addr)
    }

    /// Is this address of this node's own pod subnet?
    pub fn in_own_subnet(&self, addr: IpAddr) -> bool {
        self.contains("SUBNET_NET", "SUBNET_MASK", addr)
    }

    /// The key by which the programs look for the node behind an address.
    pub fn node_key(&self, addr: IpAddr) -> IpAddr {
        if self.in_cluster(addr) { self.masked(addr, "NODE_MASK") } else { addr }
    }

    /// Flags of the programs' FIB lookups.
    pub fn fib_flags(&self) -> u32 {
        u32::from_ne_bytes(self.bytes("FIB_FLAGS"))
    }

    /// Flows of the stack return through the stack.
    pub fn stack_flows(&self) -> bool {
        self.bytes::<1>("STACK_FLOWS_ON") != [0]
    }

    /// What pods send to nodes is the stack's.
    pub fn nodes_masqueraded(&self) -> bool {
        self.bytes::<1>("NODES_MASQUERADED") != [0]
    }

    /// Pods' addresses may come in by the underlay outside of the tunnel.
    pub fn plain_pods(&self) -> bool {
        self.bytes::<1>("PLAIN_PODS") != [0]
    }
}

/// `FAMILIES` as `object::load` makes it, as far as `LOCAL` says.
fn families(local: &Local) -> u8 {
    let used = |subnet: &Subnet| !subnet.addr.is_unspecified();
    let underlay = |v4| !local.vtep.is_unspecified() && local.vtep.is_v4() == v4;
    let used = [
        used(&local.subnet[FAMILY_V4]),
        used(&local.subnet[FAMILY_V6]),
        used(&local.cluster[FAMILY_V4]),
        used(&local.cluster[FAMILY_V6]),
        underlay(true),
        underlay(false),
    ];
    used.iter().rev().fold(0, |bits, used| bits << 1 | u8::from(*used))
}

/// The name of a constant of a family: `VTEP4`, `VTEP6`.
fn constant(name: &str, family: Family) -> String {
    let number = match family {
        Family::Ipv4 => 4,
        Family::Ipv6 => 6,
    };
    format!("{name}{number}")
}

const fn bytes_of(family: Family) -> usize {
    match family {
        Family::Ipv4 => 4,
        Family::Ipv6 => 16,
    }
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

/// A mask of so many bits, as it lies in a packet.
fn mask(family: Family, bits: u32) -> Vec<u8> {
    let left = |at: usize| bits.saturating_sub(u32::try_from(at * 8).unwrap_or(u32::MAX)).min(8);
    (0..bytes_of(family)).map(|at| u8::MAX.checked_shl(8 - left(at)).unwrap_or(0)).collect()
}

/// The circumstances of a packet that are not in its bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Circumstances {
    /// The device whose hook runs, in the calling thread's network namespace.
    pub ifindex: u32,
    /// `skb->mark`.
    pub mark: u32,
    /// The packet came out of a tunnel: outer source, and the VNI.
    pub tunnel: Option<(IpAddr, u32)>,
}

/// What the programs did with a packet.
#[derive(Clone, Debug)]
pub struct Run {
    /// What the program returned.
    pub verdict: Verdict,
    /// The packet as it left the program.
    pub packet: Vec<u8>,
    /// `skb->mark` as it left the program.
    pub mark: u32,
    /// The paths that it was counted under.
    pub paths: Vec<Path>,
    /// The reason that a drop was counted under; also of a packet that came back to its sender as the answer to itself.
    pub reason: Option<Reason>,
}

/// The private instance.
pub struct Replica {
    ebpf: Ebpf,
    same_build: bool,
    live_flows: StackFlows,
    frozen: Frozen,
}

/// Constants of a program: the value of its `.rodata`, taken apart by the symbols of this build's object, and whether it
/// is as long as this build's.
fn frozen(program: &ProgramInfo) -> Result<(Frozen, bool), DatapathError> {
    let failed = |what: &str| DatapathError::Unsupported(format!("the eBPF object {what}"));
    let file = object::File::parse(OBJECT).map_err(|e| failed(&format!("cannot be read: {e}")))?;
    let section = file.section_by_name(".rodata").ok_or_else(|| failed("has no constants"))?;
    let data = syscall::rodata(program)?;
    let mut values = BTreeMap::new();
    for symbol in file.symbols().filter(|symbol| symbol.section_index() == Some(section.index())) {
        let (Ok(name), start) = (symbol.name(), symbol.address() as usize) else { continue };
        let end = start.saturating_add(symbol.size() as usize);
        if let Some(bytes) = data.get(start..end).filter(|bytes| symbol.is_global() && !bytes.is_empty()) {
            values.insert(name.to_owned(), bytes.to_vec());
        }
    }
    Ok((Frozen(values), data.len() as u64 == section.size()))
}

impl Replica {
    /// Loads the instance with the constants of `attached`, and copies what it may read.
    pub fn load(pins: &Pins, attached: &Running) -> Result<Self, DatapathError> {
        let (frozen, fits) = frozen(&attached.info()?)?;
        let shared = SHARED.map(|name| (name, pins.map(name)));
        let mut loader = EbpfLoader::new();
        for (name, value) in &frozen.0 {
            loader.override_global(name, value.as_slice(), true);
        }
        loader.map_max_entries("STACK_FLOWS", FLOWS);
        for (name, path) in &shared {
            // aya would make and pin a new one under a path that is free.
            if !path.exists() {
                return Err(DatapathError::NotPinned { path: path.clone() });
            }
            loader.map_pin_path(name, path.as_path());
        }
        let mut ebpf = loader
            .load(OBJECT)
            .map_err(|e| DatapathError::new("load a private instance of the programs", e))?;
        for hook in ASKED {
            let name = hook.name();
            let program = classifier(&mut ebpf, name)?;
            through_signals(|| program.load())
                .map_err(|e| DatapathError::new(format!("load a private instance of {name}"), e))?;
        }
        let mut replica = Self { ebpf, same_build: fits, live_flows: StackFlows::open(pins)?, frozen };
        let nodes = Nodes::open(pins)?;
        if !replica.stands_for(attached)? {
            // Another build may keep its constants otherwise: what the agent has told everybody holds for all.
            replica.same_build = false;
            replica.frozen = Frozen::of_local(&LocalTable::open(pins)?.get()?, &nodes)?;
        }
        replica.copy_nodes(&nodes)?;
        Ok(replica)
    }

    /// Has the attached program the same instructions as the one of its name here, and constants of the same layout?
    pub fn stands_for(&mut self, attached: &Running) -> Result<bool, DatapathError> {
        let name = attached.name.as_str();
        let tag = classifier(&mut self.ebpf, name)?
            .info()
            .map(|info| info.tag())
            .map_err(|e| DatapathError::new(format!("inspect the private {name}"), e))?;
        Ok(self.same_build && tag == attached.tag)
    }

    fn copy_nodes(&mut self, live: &Nodes) -> Result<(), DatapathError> {
        let mut nodes: HashMap<_, Addr, Node> = self.map("NODES")?;
        for (key, node) in live.entries()? {
            nodes.insert(key, node, 0).map_err(|e| DatapathError::new("copy NODES", e))?;
        }
        Ok(())
    }

    fn map<'a, T>(&'a mut self, name: &str) -> Result<T, DatapathError>
    where
        T: TryFrom<&'a mut Map, Error = aya::maps::MapError>,
    {
        let map = self
            .ebpf
            .map_mut(name)
            .ok_or_else(|| DatapathError::Unsupported(format!("the eBPF object has no map {name}")))?;
        T::try_from(map).map_err(|e| DatapathError::new(format!("open the private {name}"), e))
    }

    /// The constants that it runs with.
    pub fn frozen(&self) -> &Frozen {
        &self.frozen
    }

    /// Lets the instance know the flow, if it is recorded; gives when that was, `CLOCK_MONOTONIC` in nanoseconds.
    pub fn know_flow(&mut self, key: &FlowKey) -> Result<Option<u64>, DatapathError> {
        let Some(flow) = self.live_flows.get(key)? else { return Ok(None) };
        self.map::<HashMap<_, FlowKey, Flow>>("STACK_FLOWS")?
            .insert(key, flow, 0)
            .map_err(|e| DatapathError::new("copy a flow", e))?;
        self.map::<aya::maps::Array<_, u32>>("FLOW_SWITCH")?
            .set(0, 1, 0)
            .map_err(|e| DatapathError::new("copy FLOW_SWITCH", e))?;
        Ok(Some(flow.recorded_ns))
    }

    /// Runs the program of a hook on a packet, which begins with an Ethernet header.
    pub fn run(&mut self, hook: Hook, packet: &[u8], how: Circumstances) -> Result<Run, DatapathError> {
        let before = self.counters()?;
        let name = hook.name();
        let program = classifier(&mut self.ebpf, name)?
            .fd()
            .map_err(|e| DatapathError::new(format!("open the private {name}"), e))?;
        let tested = match how.tunnel {
            None => syscall::test_run(program, name, packet, how)?,
            Some((outer_src, vni)) => {
                let decapsulated =
                    asked::Decapsulated::new(program, outer_src, self.frozen.vtep(outer_src.family()), vni)?;
                syscall::test_run(&decapsulated, name, packet, how)?
            }
        };
        let after = self.counters()?;
        Ok(after.since(&before, tested))
    }

    /// Runs `xdp_wire` on a packet; nothing where `attached` is not of the same instructions.
    pub fn run_guard(&mut self, attached: &Running, packet: &[u8]) -> Result<Option<Run>, DatapathError> {
        let name = Hook::XdpWire.name();
        let before = self.counters()?;
        let program: &mut Xdp = self
            .ebpf
            .program_mut(name)
            .ok_or_else(|| DatapathError::Unsupported(format!("the eBPF object has no program {name}")))?
            .try_into()
            .map_err(|e| DatapathError::new(format!("open program {name}"), Cause::from(e)))?;
        if program.fd().is_err() {
            through_signals(|| program.load())
                .map_err(|e| DatapathError::new(format!("load a private instance of {name}"), e))?;
        }
        let info =
            program.info().map_err(|e| DatapathError::new(format!("inspect the private {name}"), e))?;
        if !self.same_build || info.tag() != attached.tag {
            return Ok(None);
        }
        let options = TestRunOptions { data_in: Some(packet), ..TestRunOptions::default() };
        let result = program
            .test_run(options)
            .map_err(|e| DatapathError::new(format!("run the private {name}"), e))?;
        // XDP's numbers as those of tc: `XDP_DROP`, `XDP_PASS`.
        let returned = match result.return_value {
            1 => 2,
            2 => -1,
            other => other.cast_signed(),
        };
        let tested = syscall::Tested { returned, packet: packet.to_vec(), mark: 0 };
        Ok(Some(self.counters()?.since(&before, tested)))
    }

    fn counters(&mut self) -> Result<Counters, DatapathError> {
        Ok(Counters { paths: packets(&self.map("COUNTERS")?)?, drops: packets(&self.map("DROPS")?)? })
    }

    /// What the kernel's FIB says to a program that asks like this one.
    pub fn fib(&self, question: FibQuestion) -> Result<FibAnswer, DatapathError> {
        asked::fib(question, self.frozen.fib_flags())
    }
}

/// Runs an attached program itself, on the live maps: it is counted, and beside it what else runs meanwhile.
pub fn run_attached(
    pins: &Pins,
    running: &Running,
    packet: &[u8],
    how: Circumstances,
) -> Result<Run, DatapathError> {
    let before = Counters::live(pins)?;
    let info = running.info()?;
    let program =
        info.fd().map_err(|e| DatapathError::new(format!("open the program {}", running.name), e))?;
    let tested = match how.tunnel {
        None => syscall::test_run(&program, &running.name, packet, how)?,
        Some((outer_src, vni)) => {
            let own = frozen(&info)?.0.vtep(outer_src.family());
            let decapsulated = asked::Decapsulated::new(&program, outer_src, own, vni)?;
            syscall::test_run(&decapsulated, &running.name, packet, how)?
        }
    };
    Ok(Counters::live(pins)?.since(&before, tested))
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, DatapathError> {
    ebpf.program_mut(name)
        .ok_or_else(|| DatapathError::Unsupported(format!("the eBPF object has no program {name}")))?
        .try_into()
        .map_err(|e| DatapathError::new(format!("open program {name}"), Cause::from(e)))
}
