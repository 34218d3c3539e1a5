//! The eBPF object: embedded in the binary, configured by constants, loaded with its maps pinned.
//!
//! Loading costs tens of milliseconds (vmlinux BTF, feature probes, the verifier); only the agent does it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{MapInfo, MapType},
    programs::{Program, ProgramError, ProgramInfo, SchedClassifier, Xdp},
    util::nr_cpus,
};
use aya_log::EbpfLogger;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use overlay_common::{
    counter::{Counter, Path},
    maps::{
        Addr, CNI_VERBS_MAX, CniCalls, ENDPOINTS_MAX, Endpoint, EventLog, Flow, FlowKey, HOST_PORTS_MAX,
        HostPort, HostPortTarget, Local, NODES_MAX, Node, NodeName, PodName, TraceSwitch,
    },
    reason::{Hook, Reason},
};

use super::{DatapathError, kernel, load::through_signals, pins, pins::Pins};
use crate::family::ByFamily;

mod trial;

pub use trial::verify;

pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("OVERLAY_BPF_OBJECT"));

/// Values of the object's constants (`overlay-ebpf/src/config.rs`). Two loads with equal constants are equal.
#[allow(clippy::struct_excessive_bools, reason = "each is a constant of the object")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constants {
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// The cluster's ranges. Pods and nodes have nothing to say in a family that has none.
    pub cluster: ByFamily<IpNet>,
    /// This node's pod subnets. Its pods have nothing to say in a family that has none.
    pub subnet: ByFamily<IpNet>,
    /// Prefix lengths of the keys of `NODES` inside the cluster's ranges.
    pub node_prefix: ByFamily<u8>,
    /// Own tunnel addresses. The tunnel does not go over a family that has none.
    pub vtep: ByFamily<IpAddr>,
    /// The anchor device.
    pub anchor_ifindex: u32,
    /// Its MAC.
    pub anchor_mac: [u8; 6],
    /// Pods' addresses may come in by the underlay outside of the tunnel, because nodes do not masquerade them.
    pub plain_pods: bool,
    /// Flows of the stack return through the stack.
    pub stack_flows: bool,
    /// Entries of their table, where it is not pinned yet.
    pub flow_entries: u32,
    /// The main table alone says where tunnel packets go: policy rules need not be asked.
    pub main_table_only: bool,
    /// What pods send to nodes is the stack's, which masquerades it.
    pub nodes_masqueraded: bool,
    /// MAC of the underlay device that `xdp_wire` is loaded for: what is not addressed to it passes. `None`: not loaded.
    pub xdp_wire: Option<[u8; 6]>,
    /// Level of the programs' own diagnostics; 0 is off and costs nothing.
    pub log_level: u8,
}

/// An address as it lies in a packet, read as one number.
fn v4(addr: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(addr.octets())
}

/// As [`v4()`].
fn v6(addr: Ipv6Addr) -> u128 {
    u128::from_ne_bytes(addr.octets())
}

/// Constants of the object that are made of addresses. A family that is not in use has ranges that no address is in:
/// `address & mask == network` is never so.
#[derive(Debug)]
struct Addresses {
    v4: [(&'static str, u32); 6],
    v6: [(&'static str, u128); 6],
    /// What each family is in use for (`overlay-ebpf/src/config.rs`).
    families: u8,
}

impl Addresses {
    fn of(constants: &Constants) -> Self {
        let Constants { cluster, subnet, node_prefix, vtep, .. } = constants;
        let v4_range = |nets: &ByFamily<IpNet>| match nets.v4 {
            Some(IpNet::V4(net)) => [v4(net.network()), v4(net.netmask())],
            _ => [u32::MAX, 0],
        };
        let v6_range = |nets: &ByFamily<IpNet>| match nets.v6 {
            Some(IpNet::V6(net)) => [v6(net.network()), v6(net.netmask())],
            _ => [u128::MAX, 0],
        };
        let ([cluster4, subnet4], [cluster6, subnet6]) =
            ([cluster, subnet].map(v4_range), [cluster, subnet].map(v6_range));
        let mask4 = Ipv4Net::new(Ipv4Addr::UNSPECIFIED, node_prefix.v4.unwrap_or(32));
        let mask6 = Ipv6Net::new(Ipv6Addr::UNSPECIFIED, node_prefix.v6.unwrap_or(128));
        let vtep4 = vtep.v4.and_then(|addr| if let IpAddr::V4(addr) = addr { Some(v4(addr)) } else { None });
        let vtep6 = vtep.v6.and_then(|addr| if let IpAddr::V6(addr) = addr { Some(v6(addr)) } else { None });
        let used = [
            subnet4[0] != u32::MAX,
            subnet6[0] != u128::MAX,
            cluster4[0] != u32::MAX,
            cluster6[0] != u128::MAX,
            vtep4.is_some(),
            vtep6.is_some(),
        ];
        Self {
            v4: [
                ("CLUSTER_NET4", cluster4[0]),
                ("CLUSTER_MASK4", cluster4[1]),
                ("SUBNET_NET4", subnet4[0]),
                ("SUBNET_MASK4", subnet4[1]),
                ("NODE_MASK4", mask4.map_or(u32::MAX, |net| v4(net.netmask()))),
                ("VTEP4", vtep4.unwrap_or(0)),
            ],
            v6: [
                ("CLUSTER_NET6", cluster6[0]),
                ("CLUSTER_MASK6", cluster6[1]),
                ("SUBNET_NET6", subnet6[0]),
                ("SUBNET_MASK6", subnet6[1]),
                ("NODE_MASK6", mask6.map_or(u128::MAX, |net| v6(net.netmask()))),
                ("VTEP6", vtep6.unwrap_or(0)),
            ],
            families: used.iter().rev().fold(0, |bits, used| bits << 1 | u8::from(*used)),
        }
    }
}

/// What is pinned, with the properties it must have: name, type, key and value size, entries, flags.
struct Layout {
    name: &'static str,
    map_type: MapType,
    key: usize,
    value: usize,
    entries: usize,
    flags: u32,
}

/// `BPF_F_NO_PREALLOC` (include/uapi/linux/bpf.h).
const NO_PREALLOC: u32 = 1;
/// `BPF_F_MMAPABLE` (include/uapi/linux/bpf.h; Linux 5.5).
const MMAPABLE: u32 = 1 << 10;

/// `BPF_FIB_LOOKUP_DIRECT` (Linux 4.18): the main table without policy rules.
const FIB_LOOKUP_DIRECT: u32 = 1;

/// Entries of a map that may have any number of them.
const ANY: usize = 0;

#[rustfmt::skip]
const LAYOUTS: [Layout; 14] = [
    Layout { name: "NODES", map_type: MapType::Hash, key: size_of::<Addr>(), value: size_of::<Node>(), entries: NODES_MAX, flags: NO_PREALLOC },
    Layout { name: "ENDPOINTS", map_type: MapType::Hash, key: size_of::<Addr>(), value: size_of::<Endpoint>(), entries: ENDPOINTS_MAX, flags: NO_PREALLOC },
    Layout { name: "LOCAL", map_type: MapType::Array, key: 4, value: size_of::<Local>(), entries: 1, flags: 0 },
    Layout { name: "LEASE_CURSOR", map_type: MapType::Array, key: 4, value: size_of::<Addr>(), entries: 2, flags: 0 },
    Layout { name: "COUNTERS", map_type: MapType::PerCpuArray, key: 4, value: size_of::<Counter>(), entries: Path::SLOTS, flags: 0 },
    Layout { name: "DROPS", map_type: MapType::PerCpuArray, key: 4, value: size_of::<Counter>(), entries: Reason::SLOTS, flags: 0 },
    // One for each CPU that this kernel may ever have.
    Layout { name: "EVENTS", map_type: MapType::Array, key: 4, value: size_of::<EventLog>(), entries: ANY, flags: MMAPABLE },
    Layout { name: "TRACE_SWITCH", map_type: MapType::Array, key: 4, value: size_of::<TraceSwitch>(), entries: 1, flags: MMAPABLE },
    // Its size is a setting, and stays what it was made with.
    Layout { name: "STACK_FLOWS", map_type: MapType::LruHash, key: size_of::<FlowKey>(), value: size_of::<Flow>(), entries: ANY, flags: 0 },
    Layout { name: "FLOW_SWITCH", map_type: MapType::Array, key: 4, value: 4, entries: 1, flags: 0 },
    Layout { name: "HOST_PORTS", map_type: MapType::Hash, key: size_of::<HostPort>(), value: size_of::<HostPortTarget>(), entries: HOST_PORTS_MAX, flags: NO_PREALLOC },
    Layout { name: "NODE_NAMES", map_type: MapType::Hash, key: size_of::<Addr>(), value: size_of::<NodeName>(), entries: NODES_MAX, flags: NO_PREALLOC },
    Layout { name: "POD_NAMES", map_type: MapType::Hash, key: size_of::<Addr>(), value: size_of::<PodName>(), entries: ENDPOINTS_MAX, flags: NO_PREALLOC },
    Layout { name: "CNI_CALLS", map_type: MapType::Array, key: 4, value: size_of::<CniCalls>(), entries: CNI_VERBS_MAX, flags: MMAPABLE },
];

/// The names of all maps that are pinned.
pub(super) fn map_names() -> impl Iterator<Item = &'static str> {
    LAYOUTS.iter().map(|layout| layout.name)
}

/// Compares what is pinned with what this build needs; aya 0.14 would take an incompatible map silently.
///
/// # Errors
///
/// [`DatapathError::Incompatible`] names the first difference. Maps that are not pinned yet are fine.
pub fn check_pinned(pins: &Pins) -> Result<(), DatapathError> {
    for layout in &LAYOUTS {
        let path = pins.map(layout.name);
        if !path.exists() {
            continue;
        }
        let info = MapInfo::from_pin(&path)
            .map_err(|e| DatapathError::new(format!("open {}", path.display()), e))?;
        let found_type =
            info.map_type().map_err(|e| DatapathError::new(format!("inspect {}", path.display()), e))?;
        let properties = [
            ("type", found_type as u32, layout.map_type as u32),
            ("key size", info.key_size(), layout.key as u32),
            ("value size", info.value_size(), layout.value as u32),
            ("max_entries", info.max_entries(), layout.entries as u32),
            ("flags", info.map_flags(), layout.flags),
        ];
        for (field, found, wanted) in properties {
            let free = field == "max_entries" && layout.entries == ANY;
            if found != wanted && !free {
                let dir = pins.root().to_owned();
                return Err(DatapathError::Incompatible { path, dir, field, found, wanted });
            }
        }
    }
    Ok(())
}

/// Facts about a loaded program, for the table in ARCHITECTURE.md and the budget test.
#[derive(Clone, Debug)]
pub struct ProgramFacts {
    /// Its name.
    pub name: &'static str,
    /// Instructions that the verifier walked through.
    pub verified_instructions: u32,
    /// Bytes of machine code.
    pub jited_bytes: u32,
}

/// The loaded object. Its programs and maps stay in the kernel by their pins when this is dropped.
pub struct Loaded {
    ebpf: Ebpf,
    /// One entry for each program.
    pub facts: Vec<ProgramFacts>,
}

/// Loads the object with these constants. Maps that are pinned are reused, others are created and pinned; the programs
/// replace those of an earlier load under the same names, atomically. Attached links keep running the old programs until
/// [`super::attach`] updates them.
pub fn load(pins: &Pins, constants: &Constants) -> Result<Loaded, DatapathError> {
    pins.create()?;
    check_pinned(pins)?;
    let Constants {
        vni,
        port,
        cluster: _,
        subnet: _,
        node_prefix: _,
        vtep: _,
        anchor_ifindex,
        anchor_mac,
        plain_pods,
        stack_flows,
        flow_entries,
        main_table_only,
        nodes_masqueraded,
        xdp_wire,
        log_level,
    } = constants;
    let addresses = Addresses::of(constants);
    let words = [
        ("VNI", *vni),
        ("ANCHOR_IFINDEX", *anchor_ifindex),
        ("FIB_FLAGS", if *main_table_only { FIB_LOOKUP_DIRECT } else { 0 }),
    ];
    let decap_flags = kernel::decap_l4_udp_flag();
    let [plain_pods, stack_flows, nodes_masqueraded] =
        [*plain_pods, *stack_flows, *nodes_masqueraded].map(u8::from);
    let any_gso = u8::from(decap_flags.is_some());
    let decap_flags = decap_flags.unwrap_or(0);
    let wire_mac = xdp_wire.unwrap_or_default();
    let paths = LAYOUTS.map(|layout| (layout.name, pins.map(layout.name)));

    let mut loader = EbpfLoader::new();
    loader.verifier_log_level(VerifierLogLevel::DEBUG | VerifierLogLevel::STATS);
    for (name, value) in words.iter().chain(&addresses.v4) {
        loader.override_global(name, value, true);
    }
    for (name, value) in &addresses.v6 {
        loader.override_global(name, value, true);
    }
    loader
        .override_global("FAMILIES", &addresses.families, true)
        .override_global("TUNNEL_PORT", port, true)
        .override_global("ANCHOR_MAC", anchor_mac, true)
        .override_global("WIRE_MAC", &wire_mac, true)
        .override_global("PLAIN_PODS", &plain_pods, true)
        .override_global("STACK_FLOWS_ON", &stack_flows, true)
        .override_global("NODES_MASQUERADED", &nodes_masqueraded, true)
        .override_global("DECAP_FLAGS", &decap_flags, true)
        .override_global("DECAP_ANY_GSO", &any_gso, true)
        .override_global("AYA_LOG_LEVEL", log_level, true);
    loader.map_max_entries("STACK_FLOWS", *flow_entries);
    let cpus = nr_cpus().map_err(|(file, e)| DatapathError::new(format!("read {file}"), e))?;
    loader.map_max_entries("EVENTS", cpus as u32);
    for (name, path) in &paths {
        loader.map_pin_path(name, path.as_path());
    }
    let mut ebpf = loader.load(OBJECT).map_err(|e| DatapathError::new("load the eBPF object", e))?;

    let wanted = |hook: &Hook| *hook != Hook::XdpWire || xdp_wire.is_some();
    let facts = Hook::ALL
        .into_iter()
        .filter(wanted)
        .map(|hook| facts(&mut ebpf, hook.name()))
        .collect::<Result<_, _>>()?;
    // Pinned only when all are loaded: a load that fails halfway leaves the earlier programs in place.
    for hook in Hook::ALL.into_iter().filter(wanted) {
        let name = hook.name();
        let program = program(&mut ebpf, name)?;
        pins::replace(&pins.program(name), |path| {
            program.pin(path).map_err(|e| DatapathError::new(format!("pin {}", path.display()), e))
        })?;
    }
    if xdp_wire.is_none() {
        pins.remove_program(Hook::XdpWire.name())?;
    }
    Ok(Loaded { ebpf, facts })
}

/// Loads one program.
fn facts(ebpf: &mut Ebpf, name: &'static str) -> Result<ProgramFacts, DatapathError> {
    let info = load_program(program(ebpf, name)?)
        .map_err(|e| DatapathError::new(format!("load program {name}"), e))?;
    Ok(ProgramFacts {
        name,
        verified_instructions: info.verified_instruction_count().unwrap_or(0),
        jited_bytes: info.size_jitted(),
    })
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program, DatapathError> {
    ebpf.program_mut(name)
        .ok_or_else(|| DatapathError::Unsupported(format!("the eBPF object has no program {name}")))
}

fn load_program(program: &mut Program) -> Result<ProgramInfo, ProgramError> {
    if let Program::Xdp(_) = program {
        let xdp: &mut Xdp = program.try_into()?;
        through_signals(|| xdp.load())?;
        return xdp.info();
    }
    let classifier: &mut SchedClassifier = program.try_into()?;
    through_signals(|| classifier.load())?;
    classifier.info()
}

impl Loaded {
    /// The reader of the programs' own log, to be polled by the caller; only where the level is not 0.
    pub fn logger(&mut self) -> Result<EbpfLogger<&'static dyn log::Log>, DatapathError> {
        EbpfLogger::init(&mut self.ebpf).map_err(|e| DatapathError::Aya {
            action: "open the log of the programs".into(),
            message: e.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn constants() -> Constants {
        Constants {
            vni: 1,
            port: 8472,
            cluster: ByFamily::default(),
            subnet: ByFamily::default(),
            node_prefix: ByFamily::default(),
            vtep: ByFamily::default(),
            anchor_ifindex: 1,
            anchor_mac: [0; 6],
            plain_pods: false,
            stack_flows: true,
            flow_entries: 1,
            nodes_masqueraded: false,
            main_table_only: false,
            xdp_wire: None,
            log_level: 0,
        }
    }

    fn value<T: Copy>(values: &[(&str, T)], name: &str) -> T {
        values.iter().find(|(found, _)| *found == name).unwrap().1
    }

    #[test]
    fn nothing_is_in_the_ranges_of_a_family_that_is_not_in_use() {
        let off = Addresses::of(&constants());
        assert_eq!(off.families, 0);
        for addr in [0, 1, 0x0af4_0101, u32::MAX] {
            for range in ["CLUSTER", "SUBNET"] {
                let [net, mask] = ["NET4", "MASK4"].map(|part| value(&off.v4, &format!("{range}_{part}")));
                assert_ne!(addr & mask, net);
                let [net, mask] = ["NET6", "MASK6"].map(|part| value(&off.v6, &format!("{range}_{part}")));
                assert_ne!(u128::from(addr) & mask, net);
            }
        }
    }

    #[test]
    fn ranges_and_addresses_lie_as_in_a_packet() {
        let both = Addresses::of(&Constants {
            cluster: ByFamily {
                v4: Some("10.244.0.0/16".parse().unwrap()),
                v6: Some("fd00:244::/32".parse().unwrap()),
            },
            subnet: ByFamily { v4: None, v6: Some("fd00:244:0:1::/64".parse().unwrap()) },
            node_prefix: ByFamily { v4: Some(24), v6: Some(64) },
            vtep: ByFamily { v4: Some("192.0.2.1".parse().unwrap()), v6: None },
            ..constants()
        });
        assert_eq!(value(&both.v4, "CLUSTER_NET4").to_ne_bytes(), [10, 244, 0, 0]);
        assert_eq!(value(&both.v4, "CLUSTER_MASK4").to_ne_bytes(), [255, 255, 0, 0]);
        assert_eq!(value(&both.v4, "NODE_MASK4").to_ne_bytes(), [255, 255, 255, 0]);
        assert_eq!(value(&both.v4, "VTEP4").to_ne_bytes(), [192, 0, 2, 1]);
        let v6 = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
        assert_eq!(value(&both.v6, "SUBNET_NET6").to_ne_bytes(), v6("fd00:244:0:1::"));
        assert_eq!(value(&both.v6, "SUBNET_MASK6").to_ne_bytes(), v6("ffff:ffff:ffff:ffff::"));
        assert_eq!(value(&both.v6, "CLUSTER_MASK6").to_ne_bytes(), v6("ffff:ffff::"));
        // Pods: IPv6. The cluster: both. The underlay: IPv4.
        assert_eq!(both.families, 0b01_11_10);
    }
}
