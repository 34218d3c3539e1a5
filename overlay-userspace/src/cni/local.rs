//! What the agent left in `LOCAL` about this node, checked and in the standard library's types.
//!
//! The plugin asks nobody else: with the agent gone, pods are added by what is pinned.

use std::net::IpAddr;

use ipnet::IpNet;
use overlay_common::maps::{AttachMode, FAMILY_V6, Local, Subnet};

use super::failure::{Code, Failure};
use crate::{
    datapath::{pins::Pins, tables::LocalTable},
    family::{ByFamily, Family, OfFamily as _},
    host::netlink::MacAddress,
};

/// What pods of this node have of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Net {
    /// Where their addresses come from.
    pub(super) subnet: IpNet,
    /// Their gateway: an address of this node in that subnet.
    pub(super) gateway: IpAddr,
    /// The range of all pods.
    pub(super) cluster: IpNet,
}

/// This node, as far as a pod's network needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Node {
    /// By family, those that this node carries: one at least.
    pub(super) nets: ByFamily<Net>,
    /// The family that comes first in results; one of those.
    pub(super) primary: Family,
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

    /// The node's families, the primary one first.
    pub(super) fn in_order(&self) -> impl Iterator<Item = (Family, &Net)> {
        let (first, rest): (Vec<_>, Vec<_>) =
            self.nets.iter().partition(|(family, _)| *family == self.primary);
        first.into_iter().chain(rest)
    }
}

impl TryFrom<&Local> for Node {
    type Error = Failure;

    fn try_from(local: &Local) -> Result<Self, Failure> {
        if local.ready == 0 {
            return Err(Failure::new(
                Code::TryAgainLater,
                "the overlay agent has not finished its first start on this node, or is changing its pods' subnets: see its log, pods are added once it is ready",
            ));
        }
        let node = || {
            let mut nets = ByFamily::default();
            for family in Family::ALL {
                let (subnet, cluster) =
                    (local.subnet.get(family.index())?, local.cluster.get(family.index())?);
                if *subnet == Subnet::default() {
                    continue;
                }
                let subnet = net(subnet, family)?;
                let gateway = local.gateway.get(family.index())?.to_ip();
                let gateway = Some(gateway).filter(|gateway| subnet.contains(gateway))?;
                nets.set(family, Net { subnet, gateway, cluster: net(cluster, family)? });
            }
            let asked = if usize::from(local.primary) == FAMILY_V6 { Family::Ipv6 } else { Family::Ipv4 };
            let (first, _) = nets.iter().next()?;
            Some(Self {
                nets,
                primary: if nets.get(asked).is_some() { asked } else { first },
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

fn net(subnet: &Subnet, family: Family) -> Option<IpNet> {
    let net = IpNet::new(subnet.addr.to_ip(), u8::try_from(subnet.prefix_len).ok()?).ok()?;
    Some(net).filter(|net| net.family() == family)
}

#[cfg(test)]
mod tests {
    use overlay_common::maps::{Addr, FAMILY_V4};

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

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn dual() -> Local {
        let mut local = good();
        local.subnet[FAMILY_V6] = Subnet { addr: addr("fd00:244:0:1::"), prefix_len: 64 };
        local.gateway[FAMILY_V6] = addr("fd00:244:0:1::1");
        local.cluster[FAMILY_V6] = Subnet { addr: addr("fd00:244::"), prefix_len: 48 };
        local
    }

    fn families(local: &Local) -> Vec<(Family, String)> {
        let node = Node::try_from(local).unwrap();
        node.in_order().map(|(family, net)| (family, format!("{} {}", net.subnet, net.gateway))).collect()
    }

    #[test]
    fn a_ready_node_is_read() {
        let node = Node::try_from(&good()).unwrap();
        let net = node.nets.v4.unwrap();
        assert_eq!(
            (net.subnet.to_string(), net.gateway.to_string(), net.cluster.to_string()),
            ("10.244.1.0/24".into(), "10.244.1.1".into(), "10.244.0.0/16".into())
        );
        assert_eq!((node.nets.v6, node.primary), (None, Family::Ipv4));
        assert_eq!((node.mtu, node.attach), (1450, AttachMode::Tcx));
    }

    #[test]
    fn each_family_is_there_or_not_and_the_primary_one_comes_first() {
        let v4 = (Family::Ipv4, "10.244.1.0/24 10.244.1.1".to_owned());
        let v6 = (Family::Ipv6, "fd00:244:0:1::/64 fd00:244:0:1::1".to_owned());
        for (primary, expected) in [(0, [&v4, &v6]), (1, [&v6, &v4]), (b'x', [&v4, &v6])] {
            let found = families(&Local { primary, ..dual() });
            assert_eq!(found.iter().collect::<Vec<_>>(), expected);
            // What a node does not carry comes not at all.
            assert_eq!(families(&Local { primary, ..good() }).as_slice(), std::slice::from_ref(&v4));
            let mut six = Local { primary, ..dual() };
            (six.subnet[FAMILY_V4], six.gateway[FAMILY_V4]) = (Subnet::default(), Addr::UNSPECIFIED);
            assert_eq!(families(&six).as_slice(), std::slice::from_ref(&v6));
        }
    }

    #[test]
    fn before_the_agent_is_ready_the_runtime_is_told_to_come_again() {
        let failure = Node::try_from(&Local { ready: 0, ..good() }).unwrap_err();
        assert_eq!(failure.code, Code::TryAgainLater);
        assert!(failure.message.contains("agent"), "{failure}");
    }

    #[test]
    fn values_out_of_range_are_an_error_each() {
        let spoil: [fn(&mut Local); 10] = [
            |l| l.attach_mode = 7,
            |l| l.subnet[FAMILY_V4].prefix_len = 33,
            |l| l.subnet[FAMILY_V6].prefix_len = 129,
            |l| l.subnet = [Subnet::default(); 2],
            |l| l.subnet.swap(FAMILY_V4, FAMILY_V6),
            |l| l.gateway[FAMILY_V4] = Addr::v4([10, 244, 2, 1]),
            |l| l.gateway[FAMILY_V6] = Addr::UNSPECIFIED,
            |l| l.gateway[FAMILY_V6] = l.gateway[FAMILY_V4],
            |l| l.cluster[FAMILY_V4].prefix_len = u32::MAX,
            |l| l.cluster[FAMILY_V6] = l.cluster[FAMILY_V4],
        ];
        for (number, spoil) in spoil.into_iter().enumerate() {
            let mut local = dual();
            spoil(&mut local);
            assert_eq!(Node::try_from(&local).map_err(|failure| failure.code), Err(Code::Io), "{number}");
        }
    }
}
