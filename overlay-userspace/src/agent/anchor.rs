//! The anchor device `overlay.<VNI>`: an external-mode vxlan device with the node's gateway address, and the routes that
//! lead to it.
//!
//! Its UDP socket makes the kernel aggregate tunnel packets (GRO) and tells NICs of the port; it is the slow path; and it
//! is where the node's own traffic to pods enters the tunnel.

use std::fmt;

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

/// What is found wrong, each with the device's name.
type Found = Vec<(String, String)>;

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
    fn configure(&self, netlink: &mut Netlink, link: &Link) -> anyhow::Result<Vec<Fault>> {
        let faults = self.faults(netlink, link)?;
        without_ipv6(&link.name)?;
        for fault in &faults {
            match fault {
                Fault::Mac => netlink.set_mac(link.index, self.mac)?,
                Fault::Mtu { .. } => netlink.set_mtu(link.index, self.mtu)?,
                Fault::Arp => netlink.set_noarp(link.index, true)?,
                Fault::Down => netlink.set_up(link.index).map_err(|e| self.explain(netlink, e))?,
                Fault::Lacks(wanted) => netlink.replace_address(link.index, *wanted)?,
                Fault::Holds(address) => drop(netlink.delete_address(link.index, *address)?),
            }
        }
        Ok(faults)
    }

    /// In which ways a device that fits is not as it should be, in the order in which that is put right.
    fn faults(&self, netlink: &mut Netlink, link: &Link) -> anyhow::Result<Vec<Fault>> {
        let mut faults = Vec::new();
        if link.mac != Some(self.mac) {
            faults.push(Fault::Mac);
        }
        if link.mtu != self.mtu {
            faults.push(Fault::Mtu { found: link.mtu, wanted: self.mtu });
        }
        if !link.noarp {
            faults.push(Fault::Arp);
        }
        if !link.up {
            faults.push(Fault::Down);
        }
        let wanted = IpNet::from(gateway(self.subnet));
        let present = netlink.addresses(Some(link.index))?;
        // The new one first: routes go with the address that they prefer as source.
        if !present.iter().any(|address| address.net == wanted) {
            faults.push(Fault::Lacks(wanted));
        }
        let others = present.iter().filter(|address| address.net != wanted);
        faults.extend(others.map(|address| Fault::Holds(address.net)));
        Ok(faults)
    }

    /// What [`Anchor::ensure`] would change, each with the name of the device; the device, if it may stay.
    pub(super) fn look(&self, netlink: &mut Netlink) -> anyhow::Result<(Option<Link>, Found)> {
        let name = self.name();
        let mut found = Vec::new();
        for link in netlink.links()?.into_iter().filter(|link| is_anchor(link) && link.name != name) {
            found.push((link.name, format!("is the anchor device of another VNI than {}", self.vni)));
        }
        let link = match netlink.link(&name)? {
            Some(link) if self.fits(&link) => link,
            Some(_) => {
                let what = format!("is not an external-mode vxlan device on UDP port {}", self.port);
                found.push((name, what));
                return Ok((None, found));
            }
            None => {
                found.push((name, "the anchor device is missing".into()));
                return Ok((None, found));
            }
        };
        found.extend(self.faults(netlink, &link)?.into_iter().map(|fault| (name.clone(), fault.found())));
        Ok((Some(link), found))
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

/// One way in which the device is not as it should be.
enum Fault {
    Mac,
    Mtu { found: u32, wanted: u32 },
    Arp,
    Down,
    Lacks(IpNet),
    Holds(IpNet),
}

impl Fault {
    /// As it is found.
    fn found(&self) -> String {
        match self {
            Self::Mac => "has another MAC address than peers send to".into(),
            Self::Mtu { found, wanted } => format!("has MTU {found} instead of {wanted}"),
            Self::Arp => "resolves neighbours, which nobody answers".into(),
            Self::Down => "is down".into(),
            Self::Lacks(address) => format!("lacks the address {address}"),
            Self::Holds(address) => format!("holds the address {address}, which is not its own"),
        }
    }
}

/// As it was put right.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mac => f.write_str("set its MAC address again"),
            Self::Mtu { found, wanted } => write!(f, "set its MTU to {wanted}, it was {found}"),
            Self::Arp => f.write_str("turned neighbour resolution off again"),
            Self::Down => f.write_str("was down, is up again"),
            Self::Lacks(address) => write!(f, "added address {address}"),
            Self::Holds(address) => write!(f, "removed address {address}"),
        }
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
    let RouteDifference { add, remove } = RouteDifference::read(netlink, wanted)?;
    for route in add {
        info!("adding route {route}");
        netlink.replace_route(&route)?;
    }
    for route in remove {
        info!("removing route {route}");
        netlink.delete_route(&route)?;
    }
    Ok(())
}

/// The difference of the routes of ours to those that are wanted; pods' are left out.
pub(super) struct RouteDifference {
    /// Missing or wrong.
    pub(super) add: Vec<Route>,
    /// Nobody wants them.
    pub(super) remove: Vec<Route>,
}

impl RouteDifference {
    pub(super) fn read(netlink: &mut Netlink, wanted: &[Route]) -> Result<Self, NetlinkError> {
        let present = netlink.routes(Some(ROUTE_PROTOCOL))?;
        let add = wanted.iter().filter(|route| !present.contains(route)).cloned().collect();
        // A pod's route belongs to the CNI plugin, which may be at work on it right now.
        let is_pod = |route: &Route| {
            route.dst.prefix_len() == route.dst.max_prefix_len() && route.kind == RouteKind::Unicast
        };
        let replaced = |route: &Route| wanted.iter().any(|w| w.dst == route.dst && w.metric == route.metric);
        let remove = present.iter().filter(|route| !is_pod(route) && !replaced(route)).cloned().collect();
        Ok(Self { add, remove })
    }
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
