//! The paths a packet can take through the programs, each with a packet and a byte counter.
//!
//! One [`Counter`] per [`Path`] and CPU lives in the pinned per-CPU array `COUNTERS`. Written by the programs,
//! read by the agent and the command line. A GSO super-packet counts as one packet, with all its bytes.

use bytemuck::{Pod, Zeroable};

/// One slot of `COUNTERS` or `DROPS`: monotonic, per CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Counter {
    /// Packets, where a GSO super-packet is one.
    pub packets: u64,
    /// Bytes as seen by the hook, Ethernet header included.
    pub bytes: u64,
}

/// What became of a packet that was not dropped. The discriminant is the index into `COUNTERS`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Pod to pod on this node, by `bpf_redirect_peer`.
    Local = 0,
    /// Encapsulated by a program and sent to the underlay device.
    EncapNative = 1,
    /// Handed to the anchor device with a tunnel key; the kernel encapsulates.
    EncapAnchor = 2,
    /// Decapsulated by a program and delivered to a pod.
    DecapNative = 3,
    /// Decapsulated by the anchor device and delivered to a pod.
    DecapAnchor = 4,
    /// From a pod to the node's network stack (host, Services, world).
    PodToStack = 5,
    /// From the node's network stack to a pod.
    StackToPod = 6,
    /// From the tunnel to the node's network stack.
    TunnelToStack = 7,
    /// Left to the stack, where a redirect was possible, because its flow left through the stack. The packet is counted
    /// under its own path too.
    ReturnsToStack = 8,
    /// The first packet of a flow that leaves through the stack: an entry of `STACK_FLOWS` was made.
    FlowRecorded = 9,
    /// As before, but the table took no entry (out of memory): answers may miss the stack.
    FlowNotRecorded = 10,
}

impl Path {
    /// Every path, in index order.
    pub const ALL: [Self; 11] = [
        Self::Local,
        Self::EncapNative,
        Self::EncapAnchor,
        Self::DecapNative,
        Self::DecapAnchor,
        Self::PodToStack,
        Self::StackToPod,
        Self::TunnelToStack,
        Self::ReturnsToStack,
        Self::FlowRecorded,
        Self::FlowNotRecorded,
    ];

    /// Paths that exist.
    pub const COUNT: usize = Self::ALL.len();

    /// Entries of the `COUNTERS` map: room for paths to come without a new schema.
    pub const SLOTS: usize = 32;

    /// The stable, machine-readable name: a metrics label and a JSON key.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::EncapNative => "encap_native",
            Self::EncapAnchor => "encap_anchor",
            Self::DecapNative => "decap_native",
            Self::DecapAnchor => "decap_anchor",
            Self::PodToStack => "pod_to_stack",
            Self::StackToPod => "stack_to_pod",
            Self::TunnelToStack => "tunnel_to_stack",
            Self::ReturnsToStack => "returns_to_stack",
            Self::FlowRecorded => "flow_recorded",
            Self::FlowNotRecorded => "flow_not_recorded",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Path;

    #[test]
    fn paths_are_dense_and_named_once() {
        let mut names = std::collections::HashSet::new();
        for (index, path) in Path::ALL.into_iter().enumerate() {
            assert_eq!(path as usize, index);
            assert!(names.insert(path.name()), "{} is named twice", path.name());
        }
        const { assert!(Path::COUNT <= Path::SLOTS) }
    }
}
