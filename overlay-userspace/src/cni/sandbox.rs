//! The pod's side: its network namespace, and addresses, neighbours and routes of its device.
//!
//! Everything here goes with the pod's device, but for the rules of addresses that are not the pod's first on this network:
//! they lead to an empty table then, and go with the namespace. `lo` is the runtime's business, except that IPv6 is switched
//! on there where it was off, because a pod talks to itself by it. Called by ADD and CHECK.

use std::{
    io,
    net::{IpAddr, Ipv6Addr},
    path::Path,
};

use anyhow::Context as _;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    failure::{Code, Failure},
    interface::{NO_ADDRESS, without_ipv6},
    lease::Leased,
    local::{Net, Node},
};
use crate::{
    family::{ByFamily, Family},
    host::{
        netlink::{Changes, Link, MacAddress, Netlink, NetlinkError, Route},
        netns::NetNs,
        sysctl::{self, SysctlError},
    },
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

    /// Brings the pod's device up, without a carrier yet, and gives the pod its addresses and its routes; returns what it
    /// reaches by the gateways now. `device` is the other end.
    pub(super) fn set_up(
        &mut self,
        ifname: &str,
        device: &Link,
        leased: &Leased,
        node: &Node,
    ) -> Result<ByFamily<Vec<IpNet>>, Failure> {
        let configure = || if node.nets.v6.is_some() { with_ipv6(ifname) } else { without_ipv6(ifname) };
        let configured = self.netns.run(configure).map_err(Failure::from)?;
        configured.map_err(|e| Failure::step("configure the pod's side", e))?;
        self.connect(ifname, device, leased, node).map_err(|e| Failure::step("connect the pod's side", e))
    }

    fn connect(
        &mut self,
        ifname: &str,
        device: &Link,
        leased: &Leased,
        node: &Node,
    ) -> anyhow::Result<ByFamily<Vec<IpNet>>> {
        // Of a pair, each end names the other's index.
        let index = match device.link {
            Some(index) => index,
            None => self.netlink.link(ifname)?.with_context(|| format!("the pod has no {ifname}"))?.index,
        };
        // A pod's second network must not take over what its first has; a fresh namespace has no routes, so the list is short.
        let existing = self.netlink.routes(None)?;
        let mut changes = Changes::new();
        for address in leased.addresses.values() {
            changes.address(index, IpNet::from(*address));
        }
        if node.nets.v6.is_some() {
            changes.address(index, link_local(leased.endpoint.mac)?.into());
        }
        changes.set_up(index);
        let mut routes = ByFamily::default();
        let mut elsewhere = ByFamily::default();
        for (family, net) in node.nets.iter() {
            changes.neighbour(index, net.gateway, node.gateway_mac);
            let ways = Ways::new(net, index, &existing);
            ways.main.iter().for_each(|route| changes.route(index, route));
            routes.set(family, ways.reached);
            elsewhere.set(family, ways.of_source);
        }
        self.netlink.apply(changes)?;
        for (family, ways) in elsewhere.iter() {
            if let (Some(address), false) = (leased.addresses.get(family).copied(), ways.is_empty()) {
                let table = SOURCE_TABLES + index;
                for route in ways {
                    self.netlink.replace_route_in(table, route)?;
                }
                self.netlink.delete_source_rules(address)?;
                self.netlink.add_source_rule(address, table)?;
            }
        }
        Ok(routes)
    }

    /// The MAC that a neighbour of a device has for good.
    pub(super) fn permanent_neighbour(
        &mut self,
        index: u32,
        address: IpAddr,
    ) -> Result<Option<MacAddress>, NetlinkError> {
        permanent_neighbour(&mut self.netlink, index, address)
    }
}

/// How a pod reaches others in one family by one of its devices.
struct Ways {
    /// For the main table.
    main: Vec<Route>,
    /// What the pod reaches by the gateway with these.
    reached: Vec<IpNet>,
    /// For a table of the pod's address, where the main one leads to the gateway by another device.
    of_source: Vec<Route>,
}

impl Ways {
    fn new(net: &Net, index: u32, existing: &[Route]) -> Self {
        let everything = match net.gateway {
            IpAddr::V4(_) => IpNet::from(Ipv4Net::default()),
            IpAddr::V6(_) => IpNet::from(Ipv6Net::default()),
        };
        let gateway = Route::unicast(IpNet::from(net.gateway), index);
        let default = Route {
            gateway: Some(net.gateway),
            // IPv6 asks the main table about a next hop that is declared on-link, and the table of the route about one that
            // is not: there it is.
            onlink: net.gateway.is_ipv4(),
            ..Route::unicast(everything, index)
        };
        // On this network already, by another device: what the pod sends from this address must leave by this one, or the
        // node drops it as another's.
        if existing.iter().any(|route| route.dst == default.dst && route.gateway == default.gateway) {
            return Self { main: Vec::new(), reached: Vec::new(), of_source: vec![gateway, default] };
        }
        let is_free = |dst: IpNet| existing.iter().all(|route| route.dst != dst);
        let mut ways = Self { main: Vec::new(), reached: Vec::new(), of_source: Vec::new() };
        if is_free(gateway.dst) {
            ways.main.push(gateway);
        }
        if let Some(dst) = [everything, net.cluster].into_iter().find(|dst| is_free(*dst)) {
            ways.main.push(Route { dst, ..default });
            ways.reached.push(dst);
        }
        ways
    }
}

/// Settings for IPv6 inside of a pod, which a runtime may have switched off: no address but those that it is given, and
/// all of these usable at once.
fn with_ipv6(ifname: &str) -> Result<(), SysctlError> {
    let of = |device: &str, setting: &str| sysctl::interface(Family::Ipv6, device, setting);
    for (setting, value) in
        [("accept_ra", "0"), ("autoconf", "0"), ("addr_gen_mode", NO_ADDRESS), ("disable_ipv6", "0")]
    {
        sysctl::ensure(&of(ifname, setting), value)?;
    }
    match sysctl::ensure(&of("lo", "disable_ipv6"), "0") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The link-local address that the kernel would make of this MAC (RFC 4291, appendix A), but without duplicate address
/// detection: of the two ends of a pair no other has it.
fn link_local(mac: MacAddress) -> anyhow::Result<Ipv6Net> {
    let mac = mac.iter().fold(0_u64, |bits, byte| (bits << 8) | u64::from(*byte));
    // ff:fe goes between the halves, and the bit for "local" is turned round.
    let identifier = (((mac >> 24) << 40) | 0xff_fe00_0000 | (mac & 0xff_ffff)) ^ (2 << 56);
    Ok(Ipv6Net::new(Ipv6Addr::from_bits((0xfe80 << 112) | u128::from(identifier)), 64)?)
}

/// The MAC of a permanent neighbour entry.
pub(super) fn permanent_neighbour(
    netlink: &mut Netlink,
    index: u32,
    address: IpAddr,
) -> Result<Option<MacAddress>, NetlinkError> {
    let neighbours = netlink.neighbours(Some(index))?;
    let entry = neighbours.iter().find(|entry| entry.permanent && entry.address == address);
    Ok(entry.and_then(|entry| entry.mac))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_local_addresses_are_those_that_the_kernel_makes() {
        let net = link_local([0x0a, 0x58, 10, 244, 1, 5]).unwrap();
        assert_eq!(net.to_string(), "fe80::858:aff:fef4:105/64");
    }
}
