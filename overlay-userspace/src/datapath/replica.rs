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

use std::{collections::BTreeMap, net::Ipv4Addr};

use aya::{
    Ebpf, EbpfLoader, TestRunOptions,
    maps::{HashMap, Map, MapData, PerCpuArray},
    programs::{ProgramInfo, SchedClassifier, TestRun as _, Xdp},
};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
use overlay_common::{
    counter::{Counter, Path},
    maps::{Addr, FAMILY_V4, Flow, FlowKey, Local, NODE_HOST, Node, Subnet},
    reason::{Hook, Reason},
};

use super::{
    Cause, DatapathError,
    attach::Running,
    flows::StackFlows,
    object::OBJECT,
    pins::Pins,
    run::Verdict,
    tables::{LocalTable, Nodes},
};

mod asked;
mod syscall;

pub use asked::{Fib, FibAnswer, FibQuestion};

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
        let mask = |prefix: u32| u32::MAX.checked_shl(32 - prefix.min(32)).unwrap_or(0).to_be_bytes();
        let subnet = |subnet: &Subnet| (subnet.addr.v4_bytes(), mask(subnet.prefix_len));
        let (cluster, own) = (subnet(&local.cluster[FAMILY_V4]), subnet(&local.subnet[FAMILY_V4]));
        let of_pods = nodes.entries()?.into_iter().filter(|(_, node)| node.flags & NODE_HOST == 0);
        let longest = of_pods.map(|(_, node)| u32::from(node.prefix_len)).max().unwrap_or(32);
        let values = [
            ("VNI", local.vni.to_ne_bytes()),
            ("ANCHOR_IFINDEX", local.anchor_ifindex.to_ne_bytes()),
            ("CLUSTER_NET4", cluster.0),
            ("CLUSTER_MASK4", cluster.1),
            ("SUBNET_NET4", own.0),
            ("SUBNET_MASK4", own.1),
            ("NODE_MASK4", mask(longest)),
            ("VTEP4", local.vtep.v4_bytes()),
        ];
        let mut values: BTreeMap<_, _> =
            values.into_iter().map(|(name, bytes)| (name.to_owned(), bytes.to_vec())).collect();
        values.insert("TUNNEL_PORT".into(), (local.port as u16).to_ne_bytes().to_vec());
        values.insert("ANCHOR_MAC".into(), local.gateway_mac.to_vec());
        values.insert("STACK_FLOWS_ON".into(), vec![1]);
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

    fn address(&self, name: &str) -> Ipv4Addr {
        self.bytes::<4>(name).into()
    }

    fn contains(&self, net: &str, mask: &str, addr: Ipv4Addr) -> bool {
        addr & self.address(mask) == self.address(net)
    }

    /// Own tunnel address.
    pub fn vtep(&self) -> Ipv4Addr {
        self.address("VTEP4")
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

    /// The cluster's range: network and mask.
    pub fn cluster(&self) -> (Ipv4Addr, Ipv4Addr) {
        (self.address("CLUSTER_NET4"), self.address("CLUSTER_MASK4"))
    }

    /// This node's pod subnet: network and mask.
    pub fn subnet(&self) -> (Ipv4Addr, Ipv4Addr) {
        (self.address("SUBNET_NET4"), self.address("SUBNET_MASK4"))
    }

    /// Is this address of a pod or a gateway, of whatever node?
    pub fn in_cluster(&self, addr: Ipv4Addr) -> bool {
        self.contains("CLUSTER_NET4", "CLUSTER_MASK4", addr)
    }

    /// Is this address of this node's own pod subnet?
    pub fn in_own_subnet(&self, addr: Ipv4Addr) -> bool {
        self.contains("SUBNET_NET4", "SUBNET_MASK4", addr)
    }

    /// The key by which the programs look for the node behind an address.
    pub fn node_key(&self, addr: Ipv4Addr) -> Ipv4Addr {
        if self.in_cluster(addr) { addr & self.address("NODE_MASK4") } else { addr }
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

/// The circumstances of a packet that are not in its bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Circumstances {
    /// The device whose hook runs, in the calling thread's network namespace.
    pub ifindex: u32,
    /// `skb->mark`.
    pub mark: u32,
    /// The packet came out of a tunnel: outer source, and the VNI.
    pub tunnel: Option<(Ipv4Addr, u32)>,
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
    /// The reason that a drop was counted under.
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
            classifier(&mut ebpf, name)?
                .load()
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
                let decapsulated = asked::Decapsulated::new(program, outer_src, self.frozen.vtep(), vni)?;
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
            program
                .load()
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
            let own = frozen(&info)?.0.vtep();
            let decapsulated = asked::Decapsulated::new(&program, outer_src, own, vni)?;
            syscall::test_run(&decapsulated, &running.name, packet, how)?
        }
    };
    Ok(Counters::live(pins)?.since(&before, tested))
}

/// Packets by index of path and reason.
struct Counters {
    paths: Vec<u64>,
    drops: Vec<u64>,
}

impl Counters {
    fn live(pins: &Pins) -> Result<Self, DatapathError> {
        let paths = super::tables::paths(pins)?.into_iter().map(|(_, counter)| counter.packets).collect();
        let drops = super::tables::drops(pins)?.into_iter().map(|(_, counter)| counter.packets).collect();
        Ok(Self { paths, drops })
    }

    fn since(&self, before: &Self, tested: syscall::Tested) -> Run {
        let moved = |now: &[u64], then: &[u64]| -> Vec<usize> {
            now.iter().zip(then).enumerate().filter(|(_, (now, then))| now > then).map(|(at, _)| at).collect()
        };
        let paths = moved(&self.paths, &before.paths);
        let drops = moved(&self.drops, &before.drops);
        let syscall::Tested { returned, packet, mark } = tested;
        let verdict = Verdict::of(returned);
        Run {
            verdict,
            packet,
            mark,
            paths: paths.into_iter().filter_map(|at| Path::ALL.get(at).copied()).collect(),
            // Counted beside it on a busy node: not of a packet that was not dropped.
            reason: drops
                .first()
                .filter(|_| verdict == Verdict::Drop)
                .and_then(|at| Reason::from_index(*at as u32)),
        }
    }
}

fn packets(map: &PerCpuArray<&mut MapData, Counter>) -> Result<Vec<u64>, DatapathError> {
    let failed = |e| DatapathError::new("read the private counters", e);
    map.iter().map(|slot| Ok(slot.map_err(failed)?.iter().map(|cpu| cpu.packets).sum())).collect()
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, DatapathError> {
    ebpf.program_mut(name)
        .ok_or_else(|| DatapathError::Unsupported(format!("the eBPF object has no program {name}")))?
        .try_into()
        .map_err(|e| DatapathError::new(format!("open program {name}"), Cause::from(e)))
}
