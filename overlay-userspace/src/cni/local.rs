//! What the agent left in `LOCAL` about this node, checked and in the standard library's types.
//!
//! The plugin asks nobody else: with the agent gone, pods are added by what is pinned.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use overlay_common::maps::{Addr, AttachMode, FAMILY_V4, Local, Subnet};

use super::failure::{Code, Failure};
use crate::{
    datapath::{pins::Pins, tables::LocalTable},
    host::netlink::MacAddress,
};

/// This node, as far as a pod's network needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Node {
    /// Where pods' addresses come from.
    pub(super) subnet: Ipv4Net,
    /// The pods' gateway: an address of this node in its subnet.
    pub(super) gateway: Ipv4Addr,
    /// The range of all pods.
    pub(super) cluster: Ipv4Net,
    /// MTU of pods' devices, bytes.
    pub(super) mtu: u32,
    /// How programs are attached.
    pub(super) attach: AttachMode,
    /// MAC of host side devices.
    pub(super) gateway_mac: MacAddress,
    /// Index of the anchor device.
    pub(super) anchor: u32,
    /// UDP port of the tunnel, host order.
    pub(super) tunnel_port: u16,
}

impl Node {
    /// Reads the pinned entry.
    ///
    /// # Errors
    ///
    /// [`Code::TryAgainLater`] while nothing is pinned, or the agent's first start is not complete.
    pub(super) fn read(pins: &Pins) -> Result<Self, Failure> {
        Self::try_from(&LocalTable::open(pins)?.get()?)
    }
}

impl TryFrom<&Local> for Node {
    type Error = Failure;

    fn try_from(local: &Local) -> Result<Self, Failure> {
        if local.ready == 0 {
            return Err(Failure::new(
                Code::TryAgainLater,
                "the overlay agent has not finished its first start on this node: see its log, pods are added once it is ready",
            ));
        }
        let node = || {
            let gateway = v4(local.gateway.get(FAMILY_V4)?)?;
            let subnet = net(local.subnet.get(FAMILY_V4)?)?;
            Some(Self {
                subnet,
                gateway: Some(gateway).filter(|gateway| subnet.contains(gateway))?,
                cluster: net(local.cluster.get(FAMILY_V4)?)?,
                mtu: local.mtu,
                attach: AttachMode::from_index(local.attach_mode)?,
                gateway_mac: local.gateway_mac,
                anchor: local.anchor_ifindex,
                tunnel_port: u16::try_from(local.port).ok()?,
            })
        };
        node().ok_or_else(|| {
            Failure::new(
                Code::Io,
                "the pinned map LOCAL makes no sense: restart the overlay agent, which writes it anew",
            )
        })
    }
}

fn v4(addr: &Addr) -> Option<Ipv4Addr> {
    match addr.to_ip() {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    }
}

fn net(subnet: &Subnet) -> Option<Ipv4Net> {
    Ipv4Net::new(v4(&subnet.addr)?, u8::try_from(subnet.prefix_len).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use overlay_common::maps::FAMILY_V6;

    use super::*;

    fn good() -> Local {
        let mut local: Local = bytemuck::Zeroable::zeroed();
        local.ready = 1;
        local.attach_mode = AttachMode::Tcx as u32;
        local.mtu = 1450;
        local.subnet[FAMILY_V4] = Subnet { addr: Addr::v4([10, 244, 1, 0]), prefix_len: 24 };
        local.gateway[FAMILY_V4] = Addr::v4([10, 244, 1, 1]);
        local.cluster[FAMILY_V4] = Subnet { addr: Addr::v4([10, 244, 0, 0]), prefix_len: 16 };
        local.gateway_mac = [0x0a, 0x6f, 192, 0, 2, 1];
        local
    }

    #[test]
    fn a_ready_node_is_read() {
        let node = Node::try_from(&good()).unwrap();
        assert_eq!(
            (node.subnet.to_string(), node.gateway.to_string()),
            ("10.244.1.0/24".into(), "10.244.1.1".into())
        );
        assert_eq!((node.mtu, node.attach), (1450, AttachMode::Tcx));
    }

    #[test]
    fn before_the_agent_is_ready_the_runtime_is_told_to_come_again() {
        let failure = Node::try_from(&Local { ready: 0, ..good() }).unwrap_err();
        assert_eq!(failure.code, Code::TryAgainLater);
        assert!(failure.message.contains("agent"), "{failure}");
    }

    #[test]
    fn values_out_of_range_are_an_error_each() {
        let spoil: [fn(&mut Local); 5] = [
            |l| l.attach_mode = 7,
            |l| l.subnet[FAMILY_V4].prefix_len = 33,
            |l| l.subnet[FAMILY_V4] = l.subnet[FAMILY_V6],
            |l| l.gateway[FAMILY_V4] = Addr::v4([10, 244, 2, 1]),
            |l| l.cluster[FAMILY_V4].prefix_len = u32::MAX,
        ];
        for spoil in spoil {
            let mut local = good();
            spoil(&mut local);
            assert_eq!(Node::try_from(&local).unwrap_err().code, Code::Io);
        }
    }
}
