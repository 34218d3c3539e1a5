//! The anchor device `overlay.<VNI>`: an external-mode vxlan device with the node's gateway address, and the routes that
//! lead to it.
//!
//! Its UDP socket makes the kernel aggregate tunnel packets (GRO) and tells NICs of the port; it is the slow path; and it
//! is where the node's own traffic to pods enters the tunnel.

use std::net::IpAddr;

use anyhow::{Context as _, anyhow};
use ipnet::IpNet;
use log::{info, warn};
use nix::errno::Errno;

use crate::{
    cluster::gateway,
    host::{
        netlink::{Link, MacAddress, Netlink, NetlinkError, ROUTE_PROTOCOL, Route, RouteKind, VxlanSpec},
        sysctl::{self, Family},
    },
};

/// What the anchor should be.
#[derive(Clone, Debug)]
pub(super) struct Anchor {
    pub(super) vni: u32,
    pub(super) port: u16,
    pub(super) mac: MacAddress,
    pub(super) mtu: u32,
    pub(super) cluster: IpNet,
    pub(super) subnet: IpNet,
    /// The index it had, so that it gets the same one again.
    pub(super) last_index: Option<u32>,
}

/// Devices of ours, whatever their VNI.
const PREFIX: &str = "overlay.";

/// Whether a device is an anchor device, of whichever VNI.
pub(crate) fn is_anchor(link: &Link) -> bool {
    link.name.starts_with(PREFIX) && link.vxlan.as_ref().is_some_and(|vxlan| vxlan.collect_metadata)
}

impl Anchor {
    /// The name of the anchor device of this VNI: with its number, which for the largest ones has to be hexadecimal to
    /// fit the kernel's 15 characters.
    pub(super) fn name_of(vni: u32) -> String {
        if vni < 10_000_000 { format!("{PREFIX}{vni}") } else { format!("{PREFIX}x{vni:x}") }
    }

    fn name(&self) -> String {
        Self::name_of(self.vni)
    }

    /// Brings the device into the wanted state, and says what was wrong with it.
    pub(super) fn ensure(&self, netlink: &mut Netlink) -> anyhow::Result<Link> {
        let name = self.name();
        for link in netlink.links()? {
            if is_anchor(&link) && link.name != name {
                info!("removing {}: the VNI is {} now", link.name, self.vni);
                netlink.delete_link(&link.name)?;
            }
        }
        let mut link = netlink.link(&name)?;
        if let Some(found) = &link
            && !self.fits(found)
        {
            warn!("{name} is not the vxlan device that it should be: making it anew");
            netlink.delete_link(&name)?;
            link = None;
        }
        if let Some(link) = link {
            for repair in self.configure(netlink, &link)? {
                warn!("{name}: {repair}");
            }
        } else {
            let link = self.create(netlink)?;
            // A device that cannot be used is not left behind.
            if let Err(error) = self.configure(netlink, &link) {
                let _ = netlink.delete_link(&name);
                return Err(error);
            }
            info!("made {name} (index {}, UDP port {}, MTU {})", link.index, self.port, self.mtu);
        }
        netlink.link(&name)?.ok_or_else(|| anyhow!("{name} disappeared while it was set up"))
    }

    fn fits(&self, link: &Link) -> bool {
        link.vxlan
            .as_ref()
            .is_some_and(|vxlan| vxlan.collect_metadata && vxlan.port == self.port && !vxlan.learning)
    }

    fn create(&self, netlink: &mut Netlink) -> anyhow::Result<Link> {
        let name = self.name();
        let spec = |index| VxlanSpec { name: &name, port: self.port, mac: self.mac, mtu: self.mtu, index };
        match netlink.create_vxlan(&spec(self.last_index)) {
            // Somebody else has got that index meanwhile.
            Err(e) if e.errno() == Errno::EBUSY || e.errno() == Errno::EEXIST => {
                netlink.create_vxlan(&spec(None))
            }
            other => other,
        }
        .map_err(|e| self.explain(netlink, e))
    }

    /// Settings and addresses; returns what differed.
    fn configure(&self, netlink: &mut Netlink, link: &Link) -> anyhow::Result<Vec<String>> {
        let mut repairs = Vec::new();
        if link.mac != Some(self.mac) {
            netlink.set_mac(link.index, self.mac)?;
            repairs.push("set its MAC address again".into());
        }
        if link.mtu != self.mtu {
            netlink.set_mtu(link.index, self.mtu)?;
            repairs.push(format!("set its MTU to {}, it was {}", self.mtu, link.mtu));
        }
        if !link.noarp {
            netlink.set_noarp(link.index, true)?;
            repairs.push("turned neighbour resolution off again".into());
        }
        without_ipv6(&link.name)?;
        if !link.up {
            netlink.set_up(link.index).map_err(|e| self.explain(netlink, e))?;
            repairs.push("was down, is up again".into());
        }
        self.addresses(netlink, link, &mut repairs)?;
        Ok(repairs)
    }

    fn addresses(&self, netlink: &mut Netlink, link: &Link, repairs: &mut Vec<String>) -> anyhow::Result<()> {
        let wanted = IpNet::from(gateway(self.subnet));
        let present = netlink.addresses(Some(link.index))?;
        // The new one first: routes go with the address that they prefer as source.
        if !present.iter().any(|address| address.net == wanted) {
            netlink.replace_address(link.index, wanted)?;
            repairs.push(format!("added address {wanted}"));
        }
        for address in present.iter().filter(|address| address.net != wanted) {
            netlink.delete_address(link.index, address.net)?;
            repairs.push(format!("removed address {}", address.net));
        }
        Ok(())
    }

    /// The routes of the node that are ours, but those to its pods: the cluster through the anchor, and no loop for
    /// addresses of the own subnet that no pod has.
    pub(super) fn routes(&self, index: u32) -> [Route; 2] {
        [
            Route { prefsrc: Some(gateway(self.subnet)), ..Route::unicast(self.cluster, index) },
            Route::unreachable(self.subnet),
        ]
    }

    /// A busy port is the one failure that people meet: say who has it.
    fn explain(&self, netlink: &mut Netlink, error: NetlinkError) -> anyhow::Error {
        if error.errno() != Errno::EADDRINUSE && error.errno() != Errno::EEXIST {
            return error.into();
        }
        let port = self.port;
        let own = self.name();
        let holder = netlink
            .links()
            .ok()
            .and_then(|links| {
                links
                    .into_iter()
                    .find(|l| l.name != own && l.vxlan.as_ref().is_some_and(|vxlan| vxlan.port == port))
            })
            .map_or_else(
                || format!("a process (see `ss -lunp sport = :{port}`)"),
                |link| {
                    format!(
                        "the vxlan device {} (`ip link del {}` once its owner is gone)",
                        link.name, link.name
                    )
                },
            );
        anyhow!("UDP port {port} is taken by {holder}: free it, or set network.port on all nodes")
    }
}

/// Keeps IPv6 off a device that carries IPv4 only.
fn without_ipv6(device: &str) -> anyhow::Result<()> {
    match sysctl::ensure(&sysctl::interface(Family::Ipv6, device, "disable_ipv6"), "1") {
        // A kernel without IPv6.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map(drop).context("keep IPv6 off the anchor device"),
    }
}

/// Writes missing routes, removes those of ours that nobody wants.
pub(super) fn reconcile_routes(netlink: &mut Netlink, wanted: &[Route]) -> Result<(), NetlinkError> {
    let present = netlink.routes(Some(ROUTE_PROTOCOL))?;
    for route in wanted {
        if !present.contains(route) {
            info!("adding route {route}");
            netlink.replace_route(route)?;
        }
    }
    for route in &present {
        // A pod's route belongs to the CNI plugin, which may be at work on it right now.
        let host = route.dst.prefix_len() == route.dst.max_prefix_len() && route.kind == RouteKind::Unicast;
        if !host
            && !wanted.contains(route)
            && !wanted.iter().any(|w| w.dst == route.dst && w.metric == route.metric)
        {
            info!("removing route {route}");
            netlink.delete_route(route)?;
        }
    }
    Ok(())
}

/// The route from the node to one of its pods.
pub(super) fn pod_route(pod: IpAddr, device: u32, subnet: IpNet) -> Route {
    Route { prefsrc: Some(gateway(subnet)), ..Route::unicast(IpNet::from(pod), device) }
}

#[cfg(test)]
mod tests {
    use super::Anchor;

    #[test]
    fn every_vni_has_a_name_that_the_kernel_takes() {
        assert_eq!(Anchor::name_of(1), "overlay.1");
        assert_eq!(Anchor::name_of(9_999_999), "overlay.9999999");
        assert_eq!(Anchor::name_of(0xff_ffff), "overlay.xffffff");
        assert_eq!(Anchor::name_of(10_000_000).len(), 15);
    }
}
