//! Keys and values of `STACK_FLOWS`: the flows that left through the node's stack, and so return through it.
//!
//! A key is what the packets that *return* look like. The programs make keys of headers; that arithmetic is
//! [`crate::flow`].

#[cfg(not(feature = "next-schema"))]
use bytemuck::{Pod, Zeroable};

#[cfg(not(feature = "next-schema"))]
use super::Addr;
#[cfg(feature = "next-schema")]
use super::Flow;

/// Entries of `STACK_FLOWS` where neither the configuration nor `nf_conntrack` says anything.
pub const STACK_FLOWS_DEFAULT: usize = 262_144;

/// What a key stands for.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowKind {
    /// One flow, by its five-tuple.
    Flow = 0,
    /// Any flow of these two addresses: for fragments, of which only the first has ports. Protocol and ports are 0.
    Pair = 1,
}

/// Packets of a flow in one direction.
#[cfg(not(feature = "next-schema"))]
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct FlowKey {
    /// Whom they come from.
    pub src: Addr,
    /// Whom they go to.
    pub dst: Addr,
    /// Source port, host order; the identifier of an ICMP echo; 0 for protocols without ports.
    pub src_port: u16,
    /// Destination port, host order; as above.
    pub dst_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// A [`FlowKind`].
    pub kind: u8,
    /// Reserved, 0.
    pub reserved: [u8; 2],
}

/// The value: enough for a person to see how old an entry is. Programs do not write it again.
#[cfg(not(feature = "next-schema"))]
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Flow {
    /// When it was recorded: `CLOCK_MONOTONIC` in nanoseconds.
    pub recorded_ns: u64,
}

impl Flow {
    /// Recorded at that time of `CLOCK_MONOTONIC`, in nanoseconds.
    #[inline(always)]
    pub const fn at(recorded_ns: u64) -> Self {
        Self {
            recorded_ns,
            #[cfg(feature = "next-schema")]
            rehearsal: 0,
        }
    }
}
