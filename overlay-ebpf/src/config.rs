//! Constants that the agent sets before it loads the programs; frozen `.rodata`, so that the verifier prunes what
//! they rule out. The names are resolved by `overlay_userspace::datapath::object`.
//!
//! Addresses and masks are kept as they lie in a packet (network order in memory), so that a comparison needs no swap.

use aya_ebpf::Global;
use overlay_common::wire::vxlan::Vtep;

/// VXLAN network identifier.
#[unsafe(no_mangle)]
static VNI: Global<u32> = Global::new(1);
/// UDP port of the tunnel, host order.
#[unsafe(no_mangle)]
static TUNNEL_PORT: Global<u16> = Global::new(8472);
/// The cluster's IPv4 range.
#[unsafe(no_mangle)]
static CLUSTER_NET4: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static CLUSTER_MASK4: Global<u32> = Global::new(0);
/// This node's IPv4 pod subnet.
#[unsafe(no_mangle)]
static SUBNET_NET4: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SUBNET_MASK4: Global<u32> = Global::new(0);
/// The mask of the keys of `NODES` inside the cluster's range: that of the longest prefix of any node subnet.
#[unsafe(no_mangle)]
static NODE_MASK4: Global<u32> = Global::new(0);
/// Own IPv4 tunnel address.
#[unsafe(no_mangle)]
static VTEP4: Global<u32> = Global::new(0);
/// The same for IPv6, all zero where the family is not in use: network, prefix lengths of the cluster, of this node's
/// subnet and of the keys of `NODES`, tunnel address.
#[unsafe(no_mangle)]
static CLUSTER_NET6: Global<[u8; 16]> = Global::new([0; 16]);
#[unsafe(no_mangle)]
static SUBNET_NET6: Global<[u8; 16]> = Global::new([0; 16]);
#[unsafe(no_mangle)]
static PREFIXES6: Global<[u8; 4]> = Global::new([0; 4]);
#[unsafe(no_mangle)]
static VTEP6: Global<[u8; 16]> = Global::new([0; 16]);
/// The anchor device.
#[unsafe(no_mangle)]
static ANCHOR_IFINDEX: Global<u32> = Global::new(0);
/// MAC of the anchor device, the inner source of tunnel packets.
#[unsafe(no_mangle)]
static ANCHOR_MAC: Global<[u8; 6]> = Global::new([0; 6]);
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

#[inline(always)]
pub(crate) fn tunnel_port() -> u16 {
    TUNNEL_PORT.load()
}

#[inline(always)]
pub(crate) fn vni() -> u32 {
    VNI.load()
}

#[inline(always)]
pub(crate) fn vtep() -> Vtep {
    Vtep { addr: VTEP4.load().to_ne_bytes(), port: tunnel_port(), vni: vni() }
}

/// Is this address of a pod or a gateway, of whatever node?
#[inline(always)]
pub(crate) fn in_cluster(addr: u32) -> bool {
    addr & CLUSTER_MASK4.load() == CLUSTER_NET4.load()
}

/// Is this address of this node's own pod subnet?
#[inline(always)]
pub(crate) fn in_own_subnet(addr: u32) -> bool {
    addr & SUBNET_MASK4.load() == SUBNET_NET4.load()
}

/// This node's IPv4 gateway address: the first of its pod subnet.
#[inline(always)]
pub(crate) fn gateway4() -> [u8; 4] {
    (SUBNET_NET4.load() | 1_u32.to_be()).to_ne_bytes()
}

/// The key of `NODES` for an address inside the cluster's range.
#[inline(always)]
pub(crate) fn node_subnet(addr: u32) -> u32 {
    addr & NODE_MASK4.load()
}

#[inline(always)]
pub(crate) fn anchor_ifindex() -> u32 {
    ANCHOR_IFINDEX.load()
}

#[inline(always)]
pub(crate) fn anchor_mac() -> [u8; 6] {
    ANCHOR_MAC.load()
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
