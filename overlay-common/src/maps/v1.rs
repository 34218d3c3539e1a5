//! Schema 1, frozen: the layouts of what its maps hold. Never changed again; userspace reads and writes the maps of an
//! older schema by these types (`overlay_userspace::datapath::schema`).
//!
//! A new schema gets a module like this one on the day it is made. What is not here ([`Addr`], [`Owner`], [`Local`],
//! [`HostPort`], counters, records) is the same in all schemas so far; who changes it puts its present form here first.
//!
//! [`Local`]: super::Local
//! [`HostPort`]: super::HostPort

use bytemuck::{Pod, Zeroable};

use super::{Addr, Owner};

/// The number of this schema.
pub const SCHEMA: u32 = 1;
/// The last schema that has these layouts: one that changes others only moves it on.
pub const LAST: u32 = 2;

/// The value of `NODES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Node {
    /// Tunnel address.
    pub vtep: Addr,
    /// Inner destination MAC.
    pub vtep_mac: [u8; 6],
    /// Length of the whole subnet's prefix.
    pub prefix_len: u8,
    /// `NODE_SELF`, `NODE_HOST`.
    pub flags: u8,
    /// In units of 256 jiffies.
    pub neigh_epoch: u32,
}

/// The value of `ENDPOINTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Endpoint {
    /// The host side device; 0 until the pod's devices are complete.
    pub ifindex: u32,
    /// Tag of the CNI network.
    pub network: u32,
    /// MAC of the pod's own device.
    pub mac: [u8; 6],
    /// MAC of the host side device.
    pub gateway_mac: [u8; 6],
    /// Who holds the lease.
    pub owner: Owner,
}

/// The value of `HOST_PORTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct HostPortTarget {
    /// The pod.
    pub pod: Addr,
    /// Its port, host order.
    pub port: u16,
    /// 0.
    pub reserved: u16,
    /// Whose it is.
    pub owner: Owner,
}

/// The key of `STACK_FLOWS`.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FlowKey {
    /// Whom the packets that return come from.
    pub src: Addr,
    /// Whom they go to.
    pub dst: Addr,
    /// Host order.
    pub src_port: u16,
    /// Host order.
    pub dst_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// A `FlowKind`.
    pub kind: u8,
    /// 0.
    pub reserved: [u8; 2],
}

/// The value of `STACK_FLOWS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Flow {
    /// `CLOCK_MONOTONIC` in nanoseconds.
    pub recorded_ns: u64,
}

#[cfg(feature = "user")]
mod user {
    use super::{Endpoint, Flow, FlowKey, HostPortTarget, Node};

    // SAFETY: all are `bytemuck::Pod`: `repr(C)`, no padding, every bit pattern valid.
    unsafe impl aya::Pod for Node {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Endpoint {}
    // SAFETY: as above.
    unsafe impl aya::Pod for HostPortTarget {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FlowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Flow {}
}

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use super::*;

    /// Nodes that were set up by schema 1 have these. No change is right here.
    #[test]
    fn layouts_never_change() {
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
        assert_eq!(size_of::<Endpoint>(), 100);
        assert_eq!(
            [
                offset_of!(Endpoint, network),
                offset_of!(Endpoint, mac),
                offset_of!(Endpoint, gateway_mac),
                offset_of!(Endpoint, owner)
            ],
            [4, 8, 14, 20]
        );
        assert_eq!(size_of::<HostPortTarget>(), 100);
        assert_eq!([offset_of!(HostPortTarget, port), offset_of!(HostPortTarget, owner)], [16, 20]);
        assert_eq!((size_of::<FlowKey>(), size_of::<Flow>()), (40, 8));
        assert_eq!(
            [
                offset_of!(FlowKey, dst),
                offset_of!(FlowKey, src_port),
                offset_of!(FlowKey, dst_port),
                offset_of!(FlowKey, protocol),
                offset_of!(FlowKey, kind)
            ],
            [16, 32, 34, 36, 37]
        );
        assert_eq!((size_of::<Addr>(), size_of::<Owner>()), (16, 80));
    }
}
