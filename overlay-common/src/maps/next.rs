//! A rehearsal of the schema that comes after this one, with the feature `next-schema`: the same facts in other layouts, so
//! that tests can take a node to another schema and back before there is one. Nothing that runs anywhere is built so.
//!
//! Fields are in another order, and two values are longer: what is not converted is found out, whether the kernel
//! compares sizes or not.

use bytemuck::{Pod, Zeroable};

use super::{Addr, Owner};

/// The value of `NODES`: see [`super::Node`] without the feature.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Node {
    /// As before.
    pub neigh_epoch: u32,
    /// As before.
    pub vtep_mac: [u8; 6],
    /// As before.
    pub flags: u8,
    /// As before.
    pub prefix_len: u8,
    /// As before.
    pub vtep: Addr,
}

/// The value of `ENDPOINTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Endpoint {
    /// As before.
    pub owner: Owner,
    /// As before.
    pub gateway_mac: [u8; 6],
    /// As before.
    pub mac: [u8; 6],
    /// As before.
    pub network: u32,
    /// As before.
    pub ifindex: u32,
    /// Makes it longer.
    pub rehearsal: [u32; 4],
}

/// The value of `HOST_PORTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct HostPortTarget {
    /// As before.
    pub owner: Owner,
    /// As before.
    pub reserved: u16,
    /// As before.
    pub port: u16,
    /// As before.
    pub pod: Addr,
}

/// The key of `STACK_FLOWS`.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct FlowKey {
    /// As before.
    pub dst: Addr,
    /// As before.
    pub src: Addr,
    /// As before.
    pub reserved: [u8; 2],
    /// As before.
    pub kind: u8,
    /// As before.
    pub protocol: u8,
    /// As before.
    pub dst_port: u16,
    /// As before.
    pub src_port: u16,
}

/// The value of `STACK_FLOWS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Flow {
    /// Makes it longer.
    pub rehearsal: u64,
    /// As before.
    pub recorded_ns: u64,
}
