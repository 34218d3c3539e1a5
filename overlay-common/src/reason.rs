//! The one enum of reasons for which the programs drop a packet on purpose.
//!
//! The discriminant is the index into the pinned per-CPU array `DROPS` and is part of the map schema: reasons
//! are appended, never renumbered. The names are used by metrics, by the command line and by the docs.

/// Why a packet was dropped.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A pod sent from an address that is not its own.
    PodSourceAddress = 0,
    /// A pod sent with a MAC address that is not its own.
    PodSourceMac = 1,
    /// A pod sent a packet to the tunnel port of something that is not a pod.
    PodTunnelPort = 2,
    /// A pod sent a protocol that this network does not carry: neither ARP nor IP of a family that the node's pods have.
    PodProtocol = 3,
    /// A tunnel packet came from an address that is no node of the cluster.
    UnknownVtep = 4,
    /// A tunnel packet's inner source does not belong to the node that sent it.
    InnerSource = 5,
    /// A tunnel packet's inner destination is neither a pod nor an address of this node.
    InnerDestination = 6,
    /// A tunnel packet carried something else than IP of a family that the cluster has.
    InnerProtocol = 7,
    /// A tunnel packet had another VNI than this network.
    Vni = 8,
    /// The outer header was marked Congestion Experienced, the inner one is not ECN-capable (RFC 6040, 4.2).
    Ecn = 9,
    /// The destination is in the cluster's range, but in no node's subnet.
    NoNode = 10,
    /// The node's stack sent to an address of this node's subnet that no pod has.
    NoEndpoint = 11,
    /// The node's stack sent multicast or broadcast into the tunnel, which carries unicast only.
    Multicast = 12,
    /// The node's stack sent a protocol into the tunnel that it does not carry.
    HostProtocol = 13,
    /// The packet is shorter than its headers say.
    Truncated = 14,
    /// The kernel refused to add or remove the outer headers (out of memory, unsupported packet).
    HeaderRoom = 15,
    /// The kernel refused the tunnel key for the anchor device, or gave none.
    TunnelKey = 16,
    /// A packet with a pod's source address came in by the underlay, outside of the tunnel.
    PodAddressOnWire = 17,
    /// A pod sent a router advertisement or a redirect, which are its node's alone.
    PodRouter = 18,
    /// A pod sent more IPv6 extension headers than are looked through, so that nobody knows what they hide.
    PodExtensions = 19,
    /// A packet was longer than the path to its node carries, and must not or cannot be fragmented. The sender was told
    /// (RFC 1191, RFC 8201).
    PathMtu = 20,
}

impl Reason {
    /// Every reason, in index order.
    pub const ALL: [Self; 21] = [
        Self::PodSourceAddress,
        Self::PodSourceMac,
        Self::PodTunnelPort,
        Self::PodProtocol,
        Self::UnknownVtep,
        Self::InnerSource,
        Self::InnerDestination,
        Self::InnerProtocol,
        Self::Vni,
        Self::Ecn,
        Self::NoNode,
        Self::NoEndpoint,
        Self::Multicast,
        Self::HostProtocol,
        Self::Truncated,
        Self::HeaderRoom,
        Self::TunnelKey,
        Self::PodAddressOnWire,
        Self::PodRouter,
        Self::PodExtensions,
        Self::PathMtu,
    ];

    /// Reasons that exist.
    pub const COUNT: usize = Self::ALL.len();

    /// Entries of the `DROPS` map: room for reasons to come without a new schema.
    pub const SLOTS: usize = 64;

    /// The reason with this index, `None` where a newer version counted one that this one does not know.
    pub fn from_index(index: u32) -> Option<Self> {
        Self::ALL.get(index as usize).copied()
    }

    /// The stable, machine-readable name: a metrics label and a JSON key.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PodSourceAddress => "pod_source_address",
            Self::PodSourceMac => "pod_source_mac",
            Self::PodTunnelPort => "pod_tunnel_port",
            Self::PodProtocol => "pod_protocol",
            Self::UnknownVtep => "unknown_vtep",
            Self::InnerSource => "inner_source",
            Self::InnerDestination => "inner_destination",
            Self::InnerProtocol => "inner_protocol",
            Self::Vni => "vni",
            Self::Ecn => "ecn",
            Self::NoNode => "no_node",
            Self::NoEndpoint => "no_endpoint",
            Self::Multicast => "multicast",
            Self::HostProtocol => "host_protocol",
            Self::Truncated => "truncated",
            Self::HeaderRoom => "header_room",
            Self::TunnelKey => "tunnel_key",
            Self::PodAddressOnWire => "pod_address_on_wire",
            Self::PodRouter => "pod_router",
            Self::PodExtensions => "pod_extensions",
            Self::PathMtu => "path_mtu",
        }
    }

    /// One sentence for people.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::PodSourceAddress => "a pod sent from an address that is not its own",
            Self::PodSourceMac => "a pod sent with a MAC address that is not its own",
            Self::PodTunnelPort => "a pod sent to the tunnel port of something that is not a pod",
            Self::PodProtocol => "a pod sent a protocol that is neither ARP nor IP of a family in use",
            Self::UnknownVtep => "a tunnel packet came from an address that is no node",
            Self::InnerSource => "a tunnel packet's inner source does not belong to the node that sent it",
            Self::InnerDestination => "a tunnel packet's inner destination is not on this node",
            Self::InnerProtocol => "a tunnel packet carried something else than IP of a family in use",
            Self::Vni => "a tunnel packet had a foreign VNI",
            Self::Ecn => "congestion was marked on a packet that is not ECN-capable",
            Self::NoNode => "the destination is in the cluster's range, but in no node's subnet",
            Self::NoEndpoint => "no pod has this address of the node's subnet",
            Self::Multicast => "multicast or broadcast does not go through the tunnel",
            Self::HostProtocol => "the node sent a protocol that the tunnel does not carry",
            Self::Truncated => "the packet is shorter than its headers say",
            Self::HeaderRoom => "the kernel refused to add or remove the outer headers",
            Self::TunnelKey => "the kernel refused or lacks the tunnel key of the anchor device",
            Self::PodAddressOnWire => "a pod's address came in by the underlay, outside of the tunnel",
            Self::PodRouter => "a pod sent a router advertisement or a redirect",
            Self::PodExtensions => "a pod sent more IPv6 extension headers than are looked through",
            Self::PathMtu => "longer than the path to its node carries; the sender was told so",
        }
    }
}

/// The program that dropped a packet: the `hook` of a drop record.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// tc ingress of a pod's host side device.
    FromPod = 0,
    /// tc egress of a pod's host side device.
    ToPod = 1,
    /// tc egress of the anchor device.
    FromHost = 2,
    /// tc ingress of the anchor device.
    FromTunnel = 3,
    /// tc ingress of an underlay device.
    FromWire = 4,
    /// XDP of an underlay device, where that is used.
    XdpWire = 5,
}

impl Hook {
    /// Every hook, in index order.
    pub const ALL: [Self; 6] =
        [Self::FromPod, Self::ToPod, Self::FromHost, Self::FromTunnel, Self::FromWire, Self::XdpWire];

    /// The name of the program, as `bpftool prog` shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::ToPod => "to_pod",
            Self::FromHost => "from_host",
            Self::FromTunnel => "from_tunnel",
            Self::FromWire => "from_wire",
            Self::XdpWire => "xdp_wire",
        }
    }

    /// The hook with this index.
    pub fn from_index(index: u8) -> Option<Self> {
        Self::ALL.get(usize::from(index)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::{Hook, Reason};

    #[test]
    fn reasons_are_dense_and_named_once() {
        let mut names = std::collections::HashSet::new();
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
            assert_eq!(Reason::from_index(index as u32), Some(reason));
            assert!(names.insert(reason.name()), "{} is named twice", reason.name());
            assert!(!reason.describe().is_empty());
        }
        const { assert!(Reason::COUNT <= Reason::SLOTS) }
        assert_eq!(Reason::from_index(Reason::COUNT as u32), None);
    }

    #[test]
    fn hooks_are_dense() {
        for (index, hook) in Hook::ALL.into_iter().enumerate() {
            assert_eq!(Hook::from_index(index as u8), Some(hook));
        }
        assert_eq!(Hook::from_index(Hook::ALL.len() as u8), None);
    }
}
