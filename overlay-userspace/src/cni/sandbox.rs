//! The pod's side: its network namespace, and address, neighbour and routes of its device.
//!
//! Everything here goes with the pod's device, but for the rule of an address that is not the pod's first on this network:
//! it leads to an empty table then, and goes with the namespace. `lo` is the runtime's business. Called by ADD and CHECK.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use anyhow::Context as _;
use ipnet::{IpNet, Ipv4Net};

use super::{
    failure::{Code, Failure},
    interface::without_ipv6,
    local::Node,
};
use crate::host::{
    netlink::{MacAddress, Netlink, NetlinkError, Route},
    netns::NetNs,
    sysctl::SysctlError,
};

/// The routing table of an attachment that is not a pod's first to this network: this and the index of its device.
const SOURCE_TABLES: u32 = 7900;

/// A pod's network namespace, and a connection to it.
pub(super) struct Sandbox {
    pub(super) netns: NetNs,
    /// Made inside of the namespace, so it acts there whoever uses it.
    pub(super) netlink: Netlink,
}

impl Sandbox {
    /// Opens the namespace that a runtime names.
    ///
    /// # Errors
    ///
    /// [`Code::InvalidNetns`] for what is no namespace, and for the node's own.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let netns = NetNs::open(path)?;
        if netns.is_current()? {
            return Err(Failure::new(
                Code::InvalidNetns,
                format!(
                    "CNI_NETNS {} is the node's own network namespace: pods on the host network need no ADD",
                    path.display()
                ),
            ));
        }
        let netlink = netns.run(Netlink::open)??;
        Ok(Self { netns, netlink })
    }

    /// Refuses a pod that has a device of this name.
    pub(super) fn ensure_free(&mut self, ifname: &str) -> Result<(), Failure> {
        match self.netlink.link(ifname)? {
            None => Ok(()),
            Some(_) => Err(Failure::new(
                Code::InterfaceExists,
                format!(
                    "the pod has an interface {ifname} already: delete it, or ask for another CNI_IFNAME"
                ),
            )),
        }
    }

    /// Brings the pod's device up, without a carrier yet, and gives the pod its address and its routes; returns what it
    /// reaches by the gateway now.
    pub(super) fn set_up(
        &mut self,
        ifname: &str,
        address: Ipv4Addr,
        node: &Node,
    ) -> Result<Vec<Ipv4Net>, Failure> {
        let inside = self.netns.run(|| without_ipv6(ifname).map(drop));
        inside
            .map_err(Failure::from)?
            .map_err(|e: SysctlError| Failure::step("configure the pod's side", e))?;
        self.connect(ifname, address, node).map_err(|e| Failure::step("connect the pod's side", e))
    }

    fn connect(&mut self, ifname: &str, address: Ipv4Addr, node: &Node) -> anyhow::Result<Vec<Ipv4Net>> {
        let netlink = &mut self.netlink;
        let link = netlink.link(ifname)?.with_context(|| format!("the pod has no {ifname}"))?;
        netlink.replace_address(link.index, Ipv4Net::from(address).into())?;
        netlink.set_up(link.index)?;
        netlink.replace_neighbour(link.index, node.gateway.into(), node.gateway_mac)?;

        // A pod's second network must not take over what its first has; a fresh namespace has no routes, so the list is short.
        let existing = netlink.routes(None)?;
        let default = Route {
            gateway: Some(node.gateway.into()),
            onlink: true,
            ..Route::unicast(Ipv4Net::default().into(), link.index)
        };
        // On this network already, by another device: what the pod sends from this address must leave by this one, or the
        // node drops it as another's.
        if existing.iter().any(|route| route.dst == default.dst && route.gateway == default.gateway) {
            let table = SOURCE_TABLES + link.index;
            netlink
                .replace_route_in(table, &Route::unicast(Ipv4Net::from(node.gateway).into(), link.index))?;
            netlink.replace_route_in(table, &default)?;
            netlink.delete_source_rules(address.into())?;
            netlink.add_source_rule(IpAddr::from(address), table)?;
            return Ok(Vec::new());
        }
        let is_free = |dst: Ipv4Net| existing.iter().all(|route| route.dst != IpNet::from(dst));
        let gateway = Ipv4Net::from(node.gateway);
        if is_free(gateway) {
            netlink.replace_route(&Route::unicast(gateway.into(), link.index))?;
        }
        let Some(dst) = [Ipv4Net::default(), node.cluster].into_iter().find(|dst| is_free(*dst)) else {
            return Ok(Vec::new());
        };
        netlink.replace_route(&Route { dst: dst.into(), ..default })?;
        Ok(vec![dst])
    }

    /// The MAC that a neighbour of a device has for good.
    pub(super) fn permanent_neighbour(
        &mut self,
        index: u32,
        address: Ipv4Addr,
    ) -> Result<Option<MacAddress>, NetlinkError> {
        permanent_neighbour(&mut self.netlink, index, address)
    }
}

/// The MAC of a permanent neighbour entry.
pub(super) fn permanent_neighbour(
    netlink: &mut Netlink,
    index: u32,
    address: Ipv4Addr,
) -> Result<Option<MacAddress>, NetlinkError> {
    let neighbours = netlink.neighbours(Some(index))?;
    let entry = neighbours.iter().find(|entry| entry.permanent && entry.address == address);
    Ok(entry.and_then(|entry| entry.mac))
}
