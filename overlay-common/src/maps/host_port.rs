//! Keys and values of `HOST_PORTS`: the ports of the node that lead to a pod.
//!
//! As `ENDPOINTS` is the lease database of addresses, this is that of host ports: a port is taken by inserting it
//! with `BPF_NOEXIST`. The rules of the packet filter are made from it.

use bytemuck::{Pod, Zeroable};

use super::{Addr, Owner};

/// Entries of `HOST_PORTS`: all ports of one protocol.
pub const HOST_PORTS_MAX: usize = 65_536;

/// A port of the node.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct HostPort {
    /// The address of the node that it is on; the family's unspecified address (`0.0.0.0` mapped, `::`) stands for all.
    pub addr: Addr,
    /// The port, host order.
    pub port: u16,
    /// IP protocol number: TCP, UDP or SCTP.
    pub protocol: u8,
    /// Reserved, 0.
    pub reserved: u8,
}

/// Where packets to such a port go, and who holds it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct HostPortTarget {
    /// The pod.
    pub pod: Addr,
    /// Its port, host order.
    pub port: u16,
    /// Reserved, 0.
    pub reserved: u16,
    /// Whose it is: the owner of the pod's entry in `ENDPOINTS`.
    pub owner: Owner,
}
