//! The pod's side: address, neighbour and routes inside of its network namespace.
//!
//! Everything here goes with the pod's device, except that `lo` stays up. Called by ADD.

use std::net::Ipv4Addr;

use anyhow::Context as _;
use ipnet::{IpNet, Ipv4Net};

use super::{
    failure::{Code, Failure},
    interface,
    local::Node,
};
use crate::host::{
    netlink::{Netlink, Route},
    netns::NetNs,
};

/// Refuses a pod that has a device of this name.
pub(super) fn ensure_free(pod: &NetNs, ifname: &str) -> Result<(), Failure> {
    match pod.run(|| Netlink::open()?.link(ifname))?? {
        None => Ok(()),
        Some(_) => Err(Failure::new(
            Code::InterfaceExists,
            format!("the pod has an interface {ifname} already: delete it, or ask for another CNI_IFNAME"),
        )),
    }
}

/// Gives the pod its address and its routes; returns what it reaches by the gateway now.
pub(super) fn set_up(
    pod: &NetNs,
    ifname: &str,
    address: Ipv4Addr,
    node: &Node,
) -> Result<Vec<Ipv4Net>, Failure> {
    pod.run(|| {
        interface::without_ipv6(ifname).map_err(|e| Failure::step("configure the pod's side", e))?;
        connect(ifname, address, node).map_err(|e| Failure::step("connect the pod's side", e))
    })?
}

fn connect(ifname: &str, address: Ipv4Addr, node: &Node) -> anyhow::Result<Vec<Ipv4Net>> {
    let mut netlink = Netlink::open()?;
    let mut index_of =
        |name: &str| anyhow::Ok(netlink.link(name)?.with_context(|| format!("the pod has no {name}"))?.index);
    let (index, loopback) = (index_of(ifname)?, index_of("lo")?);
    netlink.replace_address(index, Ipv4Net::from(address).into())?;
    netlink.set_up(loopback)?;
    netlink.set_up(index)?;
    interface::await_carrier(&mut netlink, index)?;
    netlink.replace_neighbour(index, node.gateway.into(), node.gateway_mac)?;

    // A pod's second network must not take over what its first has; a fresh namespace has no routes, so the list is short.
    let existing = netlink.routes(None)?;
    let is_free = |dst: Ipv4Net| existing.iter().all(|route| route.dst != IpNet::from(dst));
    let gateway = Ipv4Net::from(node.gateway);
    if is_free(gateway) {
        netlink.replace_route(&Route::unicast(gateway.into(), index))?;
    }
    let Some(dst) = [Ipv4Net::default(), node.cluster].into_iter().find(|dst| is_free(*dst)) else {
        return Ok(Vec::new());
    };
    netlink.replace_route(&Route {
        gateway: Some(node.gateway.into()),
        onlink: true,
        ..Route::unicast(dst.into(), index)
    })?;
    Ok(vec![dst])
}
