//! The maps, by the names under which they are pinned, and typed access to them. Layouts and owners:
//! `overlay_common::maps`.

use core::borrow::Borrow;

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray},
    helpers::bpf_get_smp_processor_id,
    macros::btf_map,
};
use overlay_common::{
    counter::{Counter, Path},
    maps::{
        Addr, CNI_VERBS_MAX, CniCalls, ENDPOINTS_MAX, Endpoint, EventLog, Flow, FlowKey, HOST_PORTS_MAX,
        HostPort, HostPortTarget, Local, NODE_SELF, NODES_MAX, Node, NodeName, PodName, STACK_FLOWS_DEFAULT,
        TraceSwitch,
    },
    reason::Reason,
};

use crate::config::Place;

#[btf_map]
static NODES: HashMap<Addr, Node, NODES_MAX, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

#[btf_map]
static ENDPOINTS: HashMap<Addr, Endpoint, ENDPOINTS_MAX, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Not read by programs; declared here so that it is created, typed and pinned with the others.
#[btf_map]
static LOCAL: Array<Local, 1> = Array::new();

/// As [`LOCAL`]: one cursor for each family.
#[btf_map]
static LEASE_CURSOR: Array<Addr, 2> = Array::new();

#[btf_map]
static COUNTERS: PerCpuArray<Counter, { Path::SLOTS }> = PerCpuArray::new();

#[btf_map]
static DROPS: PerCpuArray<Counter, { Reason::SLOTS }> = PerCpuArray::new();

/// One log for each CPU that there can be; their number is set at load. Not a per-CPU map, which cannot be mapped.
#[btf_map]
static EVENTS: Array<EventLog, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

#[btf_map]
static TRACE_SWITCH: Array<TraceSwitch, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

/// Its number of entries is set at load.
#[btf_map]
static STACK_FLOWS: LruHashMap<FlowKey, Flow, STACK_FLOWS_DEFAULT> = LruHashMap::new();

/// Not 0 once `STACK_FLOWS` has had an entry: an array is read without a call, so that who has no such flow pays nothing.
#[btf_map]
static FLOW_SWITCH: Array<u32, 1> = Array::new();

/// As [`LOCAL`].
#[btf_map]
static HOST_PORTS: HashMap<HostPort, HostPortTarget, HOST_PORTS_MAX, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// As [`LOCAL`].
#[btf_map]
static NODE_NAMES: HashMap<Addr, NodeName, NODES_MAX, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// As [`LOCAL`].
#[btf_map]
static POD_NAMES: HashMap<Addr, PodName, ENDPOINTS_MAX, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// As [`LOCAL`]: written by the CNI plugin.
#[btf_map]
static CNI_CALLS: Array<CniCalls, CNI_VERBS_MAX, { BPF_F_MMAPABLE as usize }> = Array::new();

/// A key on the stack, aligned for word stores (see `encap::Fib`).
#[repr(C, align(8))]
struct Key(Addr);

impl Borrow<Addr> for Key {
    #[inline(always)]
    fn borrow(&self) -> &Addr {
        &self.0
    }
}

/// The pod that has this address. The pointer is valid until the program ends (RCU).
#[inline(always)]
pub(crate) fn endpoint(addr: impl Place) -> Option<&'static Endpoint> {
    if !addr.has_key() {
        return None;
    }
    // SAFETY: the CNI plugin replaces whole entries; a reader sees the old or the new one, which RCU keeps.
    let endpoint = unsafe { ENDPOINTS.get(Key(addr.to_addr())) }?;
    // 0: the address is taken, but the pod's devices are not complete.
    (endpoint.ifindex != 0).then_some(endpoint)
}

/// The node behind an address: by subnet inside the cluster's range, by the address itself outside.
#[inline(always)]
pub(crate) fn node(addr: impl Place) -> Option<*mut Node> {
    if !addr.has_key() {
        return None;
    }
    let key = if addr.in_cluster() { addr.node_subnet() } else { addr };
    NODES.get_ptr_mut(Key(key.to_addr()))
}

/// Is this node's entry about a node other than this one?
#[inline(always)]
pub(crate) fn is_remote(node: *mut Node) -> bool {
    // SAFETY: a map value, valid until the program ends.
    unsafe { (*node).flags & NODE_SELF == 0 }
}

/// Is this address that of a node (a key of its own, not a subnet)?
#[inline(always)]
pub(crate) fn is_node_address(addr: Addr) -> bool {
    NODES.get_ptr(Key(addr)).is_some()
}

#[inline(always)]
fn add(counter: Option<*mut Counter>, bytes: u32) {
    if let Some(counter) = counter {
        // SAFETY: the slot is this CPU's own, and a tc program is not preempted by another one on the same CPU.
        unsafe {
            (*counter).packets = (*counter).packets.wrapping_add(1);
            (*counter).bytes = (*counter).bytes.wrapping_add(u64::from(bytes));
        }
    }
}

/// Counts a packet that goes on.
#[inline(always)]
pub(crate) fn count(path: Path, bytes: u32) {
    add(COUNTERS.get_ptr_mut(path as u32), bytes);
}

/// Counts a packet that does not.
#[inline(always)]
pub(crate) fn count_drop(reason: Reason, bytes: u32) {
    add(DROPS.get_ptr_mut(reason as u32), bytes);
}

/// Has `STACK_FLOWS` ever had an entry?
#[inline(always)]
pub(crate) fn any_flow() -> bool {
    FLOW_SWITCH.get(0).is_some_and(|switch| *switch != 0)
}

/// Is there an entry? Asking keeps it young.
#[inline(always)]
pub(crate) fn is_recorded(key: &FlowKey) -> bool {
    STACK_FLOWS.get_ptr(key).is_some()
}

/// Makes an entry; `false` where the table took none. An entry that is there already may be replaced: it says the same.
#[inline(always)]
pub(crate) fn record_flow(key: &FlowKey, flow: &Flow) -> bool {
    if STACK_FLOWS.insert(key, flow, 0).is_err() {
        return false;
    }
    if let Some(switch) = FLOW_SWITCH.get_ptr_mut(0) {
        // SAFETY: one aligned word; whoever writes it writes the same.
        unsafe { switch.write_volatile(1) };
    }
    true
}

/// The log of this CPU.
#[inline(always)]
pub(crate) fn event_log() -> Option<*mut EventLog> {
    // SAFETY: a helper without arguments.
    EVENTS.get_ptr_mut(unsafe { bpf_get_smp_processor_id() } as u32)
}

/// Has somebody asked for traces, and not said that it is done?
#[inline(always)]
pub(crate) fn is_tracing() -> bool {
    TRACE_SWITCH.get(0).is_some_and(|switch| switch.until_ns != 0)
}

/// Who asks for traces.
#[inline(always)]
pub(crate) fn trace_switch() -> Option<*mut TraceSwitch> {
    TRACE_SWITCH.get_ptr_mut(0)
}
