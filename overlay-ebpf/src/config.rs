//! Constants that the agent sets before it loads the programs; frozen `.rodata`, so that the verifier prunes what
//! they rule out. The names are resolved by `overlay_userspace::datapath::object`.
//!
//! Addresses and masks are kept as they lie in a packet (network order in memory), so that a comparison needs no swap.

use aya_ebpf::Global;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use overlay_common::wire::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6,
    ip::{Address, IpHeader},
    vxlan::Vtep,
};

/// VXLAN network identifier.
#[unsafe(no_mangle)]
static VNI: Global<u32> = Global::new(1);
/// UDP port of the tunnel, host order.
#[unsafe(no_mangle)]
static TUNNEL_PORT: Global<u16> = Global::new(8472);
/// Which families are in use for what, one bit each: the `*_V4` and `*_V6` below.
#[unsafe(no_mangle)]
static FAMILIES: Global<u8> = Global::new(0);
/// The cluster's IPv4 range. A family that is not in use has a network that no masked address equals.
#[unsafe(no_mangle)]
static CLUSTER_NET4: Global<u32> = Global::new(u32::MAX);
#[unsafe(no_mangle)]
static CLUSTER_MASK4: Global<u32> = Global::new(0);
/// This node's IPv4 pod subnet.
#[unsafe(no_mangle)]
static SUBNET_NET4: Global<u32> = Global::new(u32::MAX);
#[unsafe(no_mangle)]
static SUBNET_MASK4: Global<u32> = Global::new(0);
/// The mask of the keys of `NODES` inside the cluster's range: that of the longest prefix of any node subnet.
#[unsafe(no_mangle)]
static NODE_MASK4: Global<u32> = Global::new(0);
/// Own IPv4 tunnel address.
#[unsafe(no_mangle)]
static VTEP4: Global<u32> = Global::new(0);
/// The same for IPv6.
#[unsafe(no_mangle)]
static CLUSTER_NET6: Global<u128> = Global::new(u128::MAX);
#[unsafe(no_mangle)]
static CLUSTER_MASK6: Global<u128> = Global::new(0);
#[unsafe(no_mangle)]
static SUBNET_NET6: Global<u128> = Global::new(u128::MAX);
#[unsafe(no_mangle)]
static SUBNET_MASK6: Global<u128> = Global::new(0);
#[unsafe(no_mangle)]
static NODE_MASK6: Global<u128> = Global::new(0);
#[unsafe(no_mangle)]
static VTEP6: Global<u128> = Global::new(0);
/// The anchor device.
#[unsafe(no_mangle)]
static ANCHOR_IFINDEX: Global<u32> = Global::new(0);
/// MAC of the anchor device, the inner source of tunnel packets. As numbers: the bytes of an array are read one by one.
#[unsafe(no_mangle)]
static ANCHOR_MAC: Global<[u16; 3]> = Global::new([0; 3]);
/// 1 where pods' addresses may come in by the underlay outside of the tunnel: nodes do not masquerade.
#[unsafe(no_mangle)]
static PLAIN_PODS: Global<u8> = Global::new(0);
/// 1 where flows of the stack return through the stack; 0 only where nothing translates between pods.
#[unsafe(no_mangle)]
static STACK_FLOWS_ON: Global<u8> = Global::new(1);
/// 1 where what pods send to nodes is the stack's, which masquerades it.
#[unsafe(no_mangle)]
static NODES_MASQUERADED: Global<u8> = Global::new(0);
/// MAC of the underlay device that `xdp_wire` is for.
#[unsafe(no_mangle)]
static WIRE_MAC: Global<[u8; 6]> = Global::new([0; 6]);
/// Flags of `bpf_fib_lookup`: `BPF_FIB_LOOKUP_DIRECT` where the main table alone says where packets go.
#[unsafe(no_mangle)]
static FIB_FLAGS: Global<u32> = Global::new(0);
/// Further flags of `bpf_skb_adjust_room` on decapsulation, where the kernel has them.
#[unsafe(no_mangle)]
static DECAP_FLAGS: Global<u64> = Global::new(0);
/// 1 where those flags clear a super-packet's tunnel state, so that every GSO packet may be decapsulated natively.
#[unsafe(no_mangle)]
static DECAP_ANY_GSO: Global<u8> = Global::new(0);

/// This node's pods have addresses of the family.
const PODS_V4: u8 = 1 << 0;
const PODS_V6: u8 = 1 << 1;
/// The cluster has addresses of the family.
const CLUSTER_V4: u8 = 1 << 2;
const CLUSTER_V6: u8 = 1 << 3;
/// This node has a tunnel address of the family.
const UNDERLAY_V4: u8 = 1 << 4;
const UNDERLAY_V6: u8 = 1 << 5;

#[inline(always)]
fn families(bit: u8) -> bool {
    FAMILIES.load() & bit != 0
}

#[inline(always)]
pub(crate) fn tunnel_port() -> u16 {
    TUNNEL_PORT.load()
}

#[inline(always)]
pub(crate) fn vni() -> u32 {
    VNI.load()
}

/// What the constants say of an address.
pub(crate) trait Place: Address {
    /// Of a pod or a gateway, of whatever node?
    fn in_cluster(self) -> bool;
    /// Of this node's own pod subnet?
    fn in_own_subnet(self) -> bool;
    /// The key of `NODES` for an address inside the cluster's range.
    fn node_subnet(self) -> Self;
    /// May it be looked up? Not what is an address of the other family to the maps.
    fn has_key(self) -> bool;
}

impl Place for u32 {
    #[inline(always)]
    fn in_cluster(self) -> bool {
        self & CLUSTER_MASK4.load() == CLUSTER_NET4.load()
    }

    #[inline(always)]
    fn in_own_subnet(self) -> bool {
        self & SUBNET_MASK4.load() == SUBNET_NET4.load()
    }

    #[inline(always)]
    fn node_subnet(self) -> Self {
        self & NODE_MASK4.load()
    }

    #[inline(always)]
    fn has_key(self) -> bool {
        true
    }
}

impl Place for u128 {
    #[inline(always)]
    fn in_cluster(self) -> bool {
        self & CLUSTER_MASK6.load() == CLUSTER_NET6.load()
    }

    #[inline(always)]
    fn in_own_subnet(self) -> bool {
        self & SUBNET_MASK6.load() == SUBNET_NET6.load()
    }

    #[inline(always)]
    fn node_subnet(self) -> Self {
        self & NODE_MASK6.load()
    }

    #[inline(always)]
    fn has_key(self) -> bool {
        self.to_addr().is_v6()
    }
}

/// What the constants say of a family.
pub(crate) trait Family: IpHeader<Address: Place> {
    /// Do this node's pods have it?
    fn pods() -> bool;
    /// Does the cluster?
    fn cluster() -> bool;
    /// Does the tunnel go over it?
    fn underlay() -> bool;
    /// Own tunnel address.
    fn vtep() -> Vtep<Self::Bytes>;
    /// This node's gateway address: the first of its pod subnet.
    fn gateway() -> Self::Bytes;
}

impl Family for Ipv4Hdr {
    #[inline(always)]
    fn pods() -> bool {
        families(PODS_V4)
    }

    #[inline(always)]
    fn cluster() -> bool {
        families(CLUSTER_V4)
    }

    #[inline(always)]
    fn underlay() -> bool {
        families(UNDERLAY_V4)
    }

    #[inline(always)]
    fn vtep() -> Vtep {
        Vtep { addr: VTEP4.load().to_ne_bytes(), port: tunnel_port(), vni: vni() }
    }

    #[inline(always)]
    fn gateway() -> [u8; 4] {
        (SUBNET_NET4.load() | 1_u32.to_be()).to_ne_bytes()
    }
}

impl Family for Ipv6Hdr {
    #[inline(always)]
    fn pods() -> bool {
        families(PODS_V6)
    }

    #[inline(always)]
    fn cluster() -> bool {
        families(CLUSTER_V6)
    }

    #[inline(always)]
    fn underlay() -> bool {
        families(UNDERLAY_V6)
    }

    #[inline(always)]
    fn vtep() -> Vtep<[u8; 16]> {
        Vtep { addr: VTEP6.load().to_ne_bytes(), port: tunnel_port(), vni: vni() }
    }

    #[inline(always)]
    fn gateway() -> [u8; 16] {
        (SUBNET_NET6.load() | 1_u128.to_be()).to_ne_bytes()
    }
}

/// Does the network carry packets of this `EtherType` (host order)?
#[inline(always)]
pub(crate) fn carries(ether_type: u16) -> bool {
    match ether_type {
        ETHERTYPE_IPV4 => Ipv4Hdr::cluster(),
        ETHERTYPE_IPV6 => Ipv6Hdr::cluster(),
        _ => false,
    }
}

#[inline(always)]
pub(crate) fn anchor_ifindex() -> u32 {
    ANCHOR_IFINDEX.load()
}

#[inline(always)]
pub(crate) fn anchor_mac() -> [u8; 6] {
    let [low, middle, high] = ANCHOR_MAC.load().map(u16::to_ne_bytes);
    [low[0], low[1], middle[0], middle[1], high[0], high[1]]
}

#[inline(always)]
pub(crate) fn plain_pods() -> bool {
    PLAIN_PODS.load() != 0
}

#[inline(always)]
pub(crate) fn wire_mac() -> [u8; 6] {
    WIRE_MAC.load()
}

#[inline(always)]
pub(crate) fn fib_flags() -> u32 {
    FIB_FLAGS.load()
}

#[inline(always)]
pub(crate) fn stack_flows() -> bool {
    STACK_FLOWS_ON.load() != 0
}

#[inline(always)]
pub(crate) fn nodes_masqueraded() -> bool {
    NODES_MASQUERADED.load() != 0
}

#[inline(always)]
pub(crate) fn decap_flags() -> u64 {
    DECAP_FLAGS.load()
}

#[inline(always)]
pub(crate) fn decap_any_gso() -> bool {
    DECAP_ANY_GSO.load() != 0
}
