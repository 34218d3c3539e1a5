//! Keys and values of the pinned maps, their names and sizes.
//!
//! Invariants: every type is `repr(C)` without padding (checked by `bytemuck::Pod`), so that two keys with the
//! same fields are the same bytes; addresses and MACs are byte arrays in network order, so that
//! `bpftool map dump` prints them readably; both address families share one layout, IPv4 as the IPv4-mapped
//! IPv6 address of RFC 4291, 2.5.5.2. A change of any layout bumps [`SCHEMA`], and with it the pin directory; the
//! tests below hold the sizes and offsets.
//!
//! | map | key → value | written by | read by |
//! |---|---|---|---|
//! | `NODES` | masked subnet or node address → [`Node`] | agent (`neigh_epoch`: programs) | all programs but `to_pod` |
//! | `ENDPOINTS` | pod address → [`Endpoint`] | CNI plugin | all programs |
//! | `LOCAL` | 0 → [`Local`] | agent | CNI plugin, command line |
//! | `LEASE_CURSOR` | family → last address tried | CNI plugin | CNI plugin |
//! | `COUNTERS`, `DROPS` | path, reason → per-CPU counter | programs | command line, metrics |
//! | `EVENTS` | CPU → [`EventLog`] | programs | command line |
//! | `TRACE_SWITCH` | 0 → [`TraceSwitch`] | command line, programs | programs |
//! | `STACK_FLOWS` | [`FlowKey`] → [`Flow`] (LRU) | programs | programs, agent, command line |
//! | `FLOW_SWITCH` | 0 → 0, or 1 once `STACK_FLOWS` has had an entry | programs | programs |
//! | `HOST_PORTS` | [`HostPort`] → [`HostPortTarget`] | CNI plugin | CNI plugin, agent, command line |
//! | `NODE_NAMES` | tunnel address → [`NodeName`] | agent | agent, command line |
//! | `POD_NAMES` | pod address → [`PodName`] | CNI plugin | command line |
//! | `CNI_CALLS` | verb → [`CniCalls`] | CNI plugin | agent |

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytemuck::{Pod, Zeroable};

mod calls;
mod event;
mod flow;
mod host_port;
mod name;
#[cfg(feature = "next-schema")]
mod next;
pub mod v1;

pub use calls::{CNI_BOUNDS_US, CNI_RESULTS, CNI_VERBS, CNI_VERBS_MAX, CniCalls};
pub use event::{
    Budget, DROP_BUDGET, DROP_SLOTS, Event, EventKind, EventLog, HEAD, REASON_BUDGET, TRACE_BUDGET,
    TRACE_REQUESTS, TRACE_SLOTS, TraceFilter, TraceRequest, TraceSwitch, Tuple, WINDOW_SHIFT,
};
#[cfg(not(feature = "next-schema"))]
pub use flow::{Flow, FlowKey};
pub use flow::{FlowKind, STACK_FLOWS_DEFAULT};
#[cfg(not(feature = "next-schema"))]
pub use host_port::HostPortTarget;
pub use host_port::{HOST_PORTS_MAX, HostPort, PortProtocol};
pub use name::{NodeName, PodName};
#[cfg(feature = "next-schema")]
pub use next::{Endpoint, Flow, FlowKey, HostPortTarget, Node};

/// The newest schema that there is.
const PRESENT: u32 = 2;

/// The version of all layouts in this module; the pins live in a directory `v<SCHEMA>`. Another one with the feature
/// `next-schema`, which only tests have.
pub const SCHEMA: u32 = PRESENT + cfg!(feature = "next-schema") as u32;

/// Entries of `NODES`: subnets (in units of the longest prefix in use) plus node addresses.
pub const NODES_MAX: usize = 65_536;
/// Entries of `ENDPOINTS`: the largest node subnet that can be used fully is a /18.
pub const ENDPOINTS_MAX: usize = 16_384;

/// An address of either family: IPv6, or IPv4 as `::ffff:a.b.c.d`. Network byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct Addr {
    /// The sixteen bytes.
    pub bytes: [u8; 16],
}

impl Addr {
    /// No address.
    pub const UNSPECIFIED: Self = Self { bytes: [0; 16] };

    /// The IPv4-mapped form of four bytes in network order.
    #[inline(always)]
    pub const fn v4(a: [u8; 4]) -> Self {
        // As one number: from single bytes LLVM makes a call to a loop over bytes for those that are zero.
        Self { bytes: (0xffff_0000_0000 | u32::from_be_bytes(a) as u128).to_be_bytes() }
    }

    /// The four bytes of an IPv4-mapped address; meaningless for IPv6.
    #[inline(always)]
    pub const fn v4_bytes(&self) -> [u8; 4] {
        let b = &self.bytes;
        [b[12], b[13], b[14], b[15]]
    }

    /// The IPv4-mapped form of an IPv4 address?
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        u128::from_be_bytes(self.bytes) >> 32 == 0xffff
    }

    /// Equal, compared as two words.
    #[inline(always)]
    pub const fn is(&self, other: &Self) -> bool {
        u128::from_ne_bytes(self.bytes) == u128::from_ne_bytes(other.bytes)
    }

    /// An IPv6 address, by a look at half of it: those of `::/64`, where the mapped ones are, are no pod's and no node's.
    #[inline(always)]
    pub const fn is_v6(&self) -> bool {
        let [b0, b1, b2, b3, b4, b5, b6, b7, ..] = self.bytes;
        u64::from_ne_bytes([b0, b1, b2, b3, b4, b5, b6, b7]) != 0
    }

    /// The network address: all but the first `prefix_len` bits zero, counted in the family's own bits (0–32 or 0–128). The
    /// key of a subnet in `NODES`.
    #[must_use]
    pub const fn masked(&self, prefix_len: u32) -> Self {
        let bits = if self.is_v4() { 96 + prefix_len } else { prefix_len };
        let zeroes = 128_u32.saturating_sub(bits);
        let mask = match u128::MAX.checked_shl(zeroes) {
            Some(mask) => mask,
            None => 0,
        };
        Self { bytes: (u128::from_be_bytes(self.bytes) & mask).to_be_bytes() }
    }

    /// As the standard library's type; IPv4-mapped addresses become IPv4.
    pub const fn to_ip(self) -> IpAddr {
        Ipv6Addr::from_octets(self.bytes).to_canonical()
    }

    /// Nothing set.
    pub fn is_unspecified(&self) -> bool {
        self.bytes == [0; 16]
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(ip: Ipv4Addr) -> Self {
        Self::v4(ip.octets())
    }
}

impl From<Ipv6Addr> for Addr {
    fn from(ip: Ipv6Addr) -> Self {
        Self { bytes: ip.octets() }
    }
}

/// The entry describes this node itself.
pub const NODE_SELF: u8 = 1 << 0;
/// The key is an address of the node (a host), not a pod subnet.
pub const NODE_HOST: u8 = 1 << 1;
/// The node takes tunnel packets over IPv6 only with a real outer UDP checksum, as the socket of a kernel's vxlan device does
/// that nobody told otherwise (RFC 6935, 5; `udp6zerocsumrx` of ip-link(8)). Other nodes get none, in either family.
pub const NODE_CHECKSUM: u8 = 1 << 2;

/// Where a node subnet or a node's own address is reached: the value of `NODES`.
#[cfg(not(feature = "next-schema"))]
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Node {
    /// The node's tunnel address (VTEP).
    pub vtep: Addr,
    /// Inner destination MAC: the address of the node's anchor device.
    pub vtep_mac: [u8; 6],
    /// Length of the whole subnet's prefix, counted in the family's own bits (0–32 or 0–128). One subnet may
    /// have several keys: one for each unit of the longest prefix in use.
    pub prefix_len: u8,
    /// [`NODE_SELF`], [`NODE_HOST`], [`NODE_CHECKSUM`].
    pub flags: u8,
    /// When a packet to this entry last went through the kernel's neighbour subsystem, in units of 256 jiffies.
    /// Written by the programs only; see `overlay-ebpf/src/encap.rs`.
    pub neigh_epoch: u32,
}

/// Who holds an address: CNI container id and interface name, NUL-padded ASCII.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Owner {
    /// The container id; ids longer than 64 bytes are stored abbreviated (see the CNI plugin).
    pub container: [u8; 64],
    /// The interface in the pod, at most 15 bytes.
    pub ifname: [u8; 16],
}

/// A pod's address: the value of `ENDPOINTS`, and at the same time the lease of that address. `ifindex` is 0
/// from the allocation until the pod's devices are complete.
#[cfg(not(feature = "next-schema"))]
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Endpoint {
    /// The host side device.
    pub ifindex: u32,
    /// Tag of the CNI network that the lease belongs to (a hash of its name): garbage collection looks at one network.
    pub network: u32,
    /// MAC of the pod's own device.
    pub mac: [u8; 6],
    /// MAC of the host side device: what the pod believes to be its gateway.
    pub gateway_mac: [u8; 6],
    /// Who holds the lease.
    pub owner: Owner,
}

/// A prefix of either family. All zero: the family is not in use.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Subnet {
    /// The network address.
    pub addr: Addr,
    /// Prefix length in the family's own bits.
    pub prefix_len: u32,
}

impl Endpoint {
    /// A lease: the address is taken, the pod's devices are not complete.
    pub const fn lease(network: u32, mac: [u8; 6], gateway_mac: [u8; 6], owner: Owner) -> Self {
        Self {
            ifindex: 0,
            network,
            mac,
            gateway_mac,
            owner,
            #[cfg(feature = "next-schema")]
            rehearsal: [0; 4],
        }
    }
}

/// How programs are attached to devices.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// Filters on a clsact qdisc (before Linux 6.6).
    Clsact = 1,
    /// tcx links (Linux 6.6).
    Tcx = 2,
    /// tcx links on the anchor and the underlay; filters on pods' devices, which come and go (see
    /// `overlay_userspace::datapath::attach`).
    Auto = 3,
}

impl AttachMode {
    /// The mode with this number.
    pub const fn from_index(index: u32) -> Option<Self> {
        match index {
            1 => Some(Self::Clsact),
            2 => Some(Self::Tcx),
            3 => Some(Self::Auto),
            _ => None,
        }
    }
}

/// Index of IPv4 in the per-family arrays of [`Local`].
pub const FAMILY_V4: usize = 0;
/// Index of IPv6 in the per-family arrays of [`Local`].
pub const FAMILY_V6: usize = 1;

/// What the CNI plugin needs to know of this node: the only entry of `LOCAL`. Written by the agent, as the last
/// step of a first start; `ready` stays 1 when the agent is gone.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Local {
    /// 1 once pods can be added.
    pub ready: u32,
    /// An [`AttachMode`].
    pub attach_mode: u32,
    /// MTU of the pods' devices in bytes.
    pub mtu: u32,
    /// The anchor device.
    pub anchor_ifindex: u32,
    /// The VXLAN network identifier.
    pub vni: u32,
    /// The tunnel's UDP port, host order.
    pub port: u32,
    /// This node's pod subnets, by family.
    pub subnet: [Subnet; 2],
    /// This node's gateway addresses, by family.
    pub gateway: [Addr; 2],
    /// The cluster's ranges, by family.
    pub cluster: [Subnet; 2],
    /// This node's tunnel address.
    pub vtep: Addr,
    /// MAC of the anchor device and of all host side devices of pods.
    pub gateway_mac: [u8; 6],
    /// The node's name, NUL-padded, cut at 61 bytes.
    pub node_name: [u8; 61],
    /// The family whose addresses come first in what pods are told: [`FAMILY_V4`] or [`FAMILY_V6`].
    pub primary: u8,
}

#[cfg(feature = "user")]
mod user {
    //! Leave for aya to copy these types in and out of maps.
    use super::{
        Addr, Endpoint, EventLog, Flow, FlowKey, HostPort, HostPortTarget, Local, Node, NodeName, PodName,
        TraceSwitch,
    };
    use crate::counter::Counter;

    // SAFETY: all are `bytemuck::Pod`: `repr(C)`, no padding, every bit pattern valid.
    unsafe impl aya::Pod for Addr {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Node {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Endpoint {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Local {}
    // SAFETY: as above.
    unsafe impl aya::Pod for EventLog {}
    // SAFETY: as above.
    unsafe impl aya::Pod for TraceSwitch {}
    // SAFETY: as above.
    unsafe impl aya::Pod for NodeName {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PodName {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Counter {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FlowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Flow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for HostPort {}
    // SAFETY: as above.
    unsafe impl aya::Pod for HostPortTarget {}
}

#[cfg(all(test, not(feature = "next-schema")))]
mod tests {
    use core::mem::offset_of;

    use super::*;

    /// A change here is a change of the schema: bump [`SCHEMA`].
    #[test]
    fn layouts_are_those_of_schema_2() {
        assert_eq!(SCHEMA, PRESENT);
        assert_eq!(v1::LAST, PRESENT);
        assert_eq!(size_of::<Addr>(), 16);
        assert_eq!(size_of::<Node>(), 28);
        assert_eq!(
            [
                offset_of!(Node, vtep_mac),
                offset_of!(Node, prefix_len),
                offset_of!(Node, flags),
                offset_of!(Node, neigh_epoch)
            ],
            [16, 22, 23, 24]
        );
        assert_eq!(size_of::<Owner>(), 80);
        assert_eq!(size_of::<Endpoint>(), 100);
        assert_eq!(
            [offset_of!(Endpoint, mac), offset_of!(Endpoint, gateway_mac), offset_of!(Endpoint, owner)],
            [8, 14, 20]
        );
        assert_eq!(size_of::<Local>(), 24 + 2 * 20 + 2 * 16 + 2 * 20 + 16 + 68);
        assert_eq!(
            [
                offset_of!(Local, subnet),
                offset_of!(Local, gateway),
                offset_of!(Local, cluster),
                offset_of!(Local, vtep),
                offset_of!(Local, gateway_mac),
                offset_of!(Local, primary)
            ],
            [24, 64, 96, 136, 152, 219]
        );
        assert_eq!((size_of::<Event>(), offset_of!(Event, head)), (216, 88));
        assert_eq!(
            [
                offset_of!(Event, src),
                offset_of!(Event, ifindex),
                offset_of!(Event, src_port),
                offset_of!(Event, kind),
                offset_of!(Event, protocol)
            ],
            [16, 64, 72, 80, 83]
        );
        assert_eq!(
            [
                offset_of!(EventLog, drop_budget),
                offset_of!(EventLog, trace_budget),
                offset_of!(EventLog, reason_budgets),
                offset_of!(EventLog, drops),
                offset_of!(EventLog, traces)
            ],
            [16, 32, 48, 1072, 1072 + 256 * 216]
        );
        assert_eq!(size_of::<EventLog>(), 1072 + 2 * 256 * 216);
        assert_eq!((size_of::<TraceRequest>(), size_of::<TraceSwitch>()), (64, 8 + 4 * 64));
        assert_eq!((size_of::<NodeName>(), size_of::<PodName>()), (256, 320));
        assert_eq!((size_of::<FlowKey>(), size_of::<Flow>()), (40, 8));
        assert_eq!(
            [offset_of!(FlowKey, src_port), offset_of!(FlowKey, dst_port), offset_of!(FlowKey, protocol)],
            [32, 34, 36]
        );
        assert_eq!((size_of::<HostPort>(), size_of::<HostPortTarget>()), (20, 100));
        assert_eq!([offset_of!(HostPort, port), offset_of!(HostPort, protocol)], [16, 18]);
        assert_eq!([offset_of!(HostPortTarget, port), offset_of!(HostPortTarget, owner)], [16, 20]);
        assert_eq!(size_of::<crate::counter::Counter>(), 16);
        assert_eq!((size_of::<CniCalls>(), offset_of!(CniCalls, sum_ns)), (8 * (32 + 16 + 1), 8 * (32 + 16)));
    }

    #[test]
    fn ipv4_is_stored_mapped_and_comes_back_as_ipv4() {
        let ip: IpAddr = "10.244.1.5".parse().unwrap();
        let addr = Addr::from(ip);
        assert_eq!(addr.bytes[10..], [0xff, 0xff, 10, 244, 1, 5]);
        assert_eq!(addr.v4_bytes(), [10, 244, 1, 5]);
        assert_eq!(addr.to_ip(), ip);
        let ip: IpAddr = "fd00::5".parse().unwrap();
        assert_eq!(Addr::from(ip).to_ip(), ip);
        assert!(Addr::UNSPECIFIED.is_unspecified());
    }

    #[test]
    fn the_network_address_is_cut_at_the_familys_own_bits() {
        let addr = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        for (whole, prefix_len, network) in [
            ("10.244.1.5", 24, "10.244.1.0"),
            ("10.244.1.5", 32, "10.244.1.5"),
            ("10.244.1.5", 0, "0.0.0.0"),
            ("fd00:1:2:3::5", 64, "fd00:1:2:3::"),
            ("fd00:1:2:3::5", 33, "fd00:1::"),
            ("fd00:1:2:3::5", 128, "fd00:1:2:3::5"),
            ("fd00:1:2:3::5", 0, "::"),
        ] {
            assert_eq!(addr(whole).masked(prefix_len), addr(network), "{whole}/{prefix_len}");
        }
        assert!(addr("0.0.0.0").is_v4() && !addr("::").is_v4() && !addr("::fffe:10.244.1.5").is_v4());
    }
}
