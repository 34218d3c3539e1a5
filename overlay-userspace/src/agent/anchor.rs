//! The anchor device `overlay.<VNI>`: an external-mode vxlan device with the node's gateway addresses, and the routes that
//! lead to it.
//!
//! Its UDP sockets, one for each family, make the kernel aggregate tunnel packets (GRO) and tell NICs of the port; it is the
//! slow path; and it is where the node's own traffic to pods enters the tunnel.
//!
//! The device as such comes first ([`Anchor::ensure`]); then, for each family by itself, settings, address and routes
//! ([`Anchor::ensure_family`]): what one of them cannot have the other does not miss.

use std::{fmt, io};

use anyhow::anyhow;
use ipnet::IpNet;
use log::{Level, info, log, warn};
use nix::errno::Errno;

use super::families::Families;
use crate::{
    cluster::gateway,
    family::OfFamily as _,
    host::{
        netlink::{Link, MacAddress, Netlink, NetlinkError, Route, RouteKind, VxlanSpec},
        sysctl::{self, Family},
    },
};

/// What every link that carries IPv6 can carry, in bytes (RFC 8200, 5); the kernel has no IPv6 on one that cannot.
const IPV6_MIN_MTU: u32 = 1280;

/// What the anchor should be.
#[derive(Clone, Debug)]
pub(super) struct Anchor {
    pub(super) vni: u32,
    pub(super) port: u16,
    pub(super) mac: MacAddress,
    pub(super) mtu: u32,
    pub(super) families: Families,
    /// The index it had, so that it gets the same one again.
    pub(super) last_index: Option<u32>,
}

/// What is found wrong, each with the device's name.
type Found = Vec<(String, String)>;

/// Devices of ours, whatever their VNI.
const PREFIX: &str = "overlay.";

/// The settings of IPv6 that an anchor device has where pods have addresses of IPv6, and where they have not.
pub(crate) const fn ipv6_settings(used: bool) -> &'static [(&'static str, &'static str)] {
    // Nobody in the tunnel is a router for the node.
    if used { &[("disable_ipv6", "0"), ("accept_ra", "0")] } else { &[("disable_ipv6", "1")] }
}

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

    /// Brings the device into the wanted state, and says what was wrong with it. Whether it was made just now comes with it.
    pub(super) fn ensure(&self, netlink: &mut Netlink) -> anyhow::Result<(Link, bool)> {
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
        let made = link.is_none();
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
        let link = netlink.link(&name)?;
        Ok((link.ok_or_else(|| anyhow!("{name} disappeared while it was set up"))?, made))
    }

    fn fits(&self, link: &Link) -> bool {
        // That it takes checksums of zero over IPv6 is decided when it is made.
        let checksums = self.families.vteps.get(Family::Ipv6).is_none();
        link.vxlan.as_ref().is_some_and(|vxlan| {
            vxlan.collect_metadata
                && vxlan.port == self.port
                && !vxlan.learning
                && (checksums || vxlan.zero_checksums)
        })
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

    /// Brings settings, address and routes of a family on the device into the wanted state; on one that was just `made`
    /// nothing is worth a warning.
    pub(super) fn ensure_family(
        &self,
        netlink: &mut Netlink,
        (link, made): (&Link, bool),
        family: Family,
    ) -> anyhow::Result<()> {
        let faults = self.family_faults(netlink, link, family)?;
        for fault in &faults {
            self.repair(netlink, link, fault)?;
            let level = if made { Level::Debug } else { Level::Warn };
            log!(level, "{}: {fault}", link.name);
        }
        Ok(reconcile_routes(netlink, family, &self.routes(family, link.index))?)
    }

    /// The device's own settings; returns what differed.
    fn configure(&self, netlink: &mut Netlink, link: &Link) -> anyhow::Result<Vec<Fault>> {
        let faults = self.faults(link);
        for fault in &faults {
            self.repair(netlink, link, fault)?;
        }
        Ok(faults)
    }

    fn repair(&self, netlink: &mut Netlink, link: &Link, fault: &Fault) -> anyhow::Result<()> {
        match fault {
            Fault::Mac => netlink.set_mac(link.index, self.mac)?,
            Fault::Mtu { .. } => netlink.set_mtu(link.index, self.mtu)?,
            Fault::Arp => netlink.set_noarp(link.index, true)?,
            Fault::Multicast => netlink.set_multicast(link.index, false)?,
            Fault::Down => netlink.set_up(link.index).map_err(|e| self.explain(netlink, e))?,
            Fault::Lacks(wanted) => netlink.replace_address(link.index, *wanted)?,
            Fault::Holds(address) => drop(netlink.delete_address(link.index, *address)?),
            Fault::Setting { path, value, .. } => sysctl::set(path, value)?,
            Fault::NoIpv6 => {
                let why = if self.mtu < IPV6_MIN_MTU {
                    format!("its MTU is {}, and IPv6 takes {IPV6_MIN_MTU}: raise network.mtu", self.mtu)
                } else {
                    "start the kernel without ipv6.disable=1, or take the IPv6 range out of network.cidr"
                        .to_owned()
                };
                return Err(anyhow!("{} has no IPv6: {why}", link.name));
            }
        }
        Ok(())
    }

    /// In which ways a device that fits is not as it should be, in the order in which that is put right.
    fn faults(&self, link: &Link) -> Vec<Fault> {
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
        // The kernel would tell routers of groups (MLD), into a tunnel that has neither routers nor groups.
        if link.multicast {
            faults.push(Fault::Multicast);
        }
        if !link.up {
            faults.push(Fault::Down);
        }
        faults
    }

    /// The same of what it has of one family.
    fn family_faults(
        &self,
        netlink: &mut Netlink,
        link: &Link,
        family: Family,
    ) -> anyhow::Result<Vec<Fault>> {
        let wanted = self.families.gateways().get(family).copied().map(IpNet::from);
        let mut faults = Vec::new();
        if family == Family::Ipv6 {
            for (setting, value) in ipv6_settings(wanted.is_some()) {
                let path = sysctl::interface(family, &link.name, setting);
                match sysctl::get(&path) {
                    Ok(found) if found == *value => {}
                    Ok(_) => faults.push(Fault::Setting { path, setting, value }),
                    // A kernel without IPv6, or a device too narrow for it.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        return Ok(wanted.map(|_| Fault::NoIpv6).into_iter().collect());
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        let present: Vec<_> = netlink
            .addresses(Some(link.index))?
            .into_iter()
            .map(|address| address.net)
            .filter(|net| net.family() == family)
            .collect();
        // The new one first: routes go with the address that they prefer as source.
        faults.extend(wanted.filter(|wanted| !present.contains(wanted)).map(Fault::Lacks));
        faults.extend(present.into_iter().filter(|net| Some(*net) != wanted).map(Fault::Holds));
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
                let what = format!(
                    "is not the external-mode vxlan device on UDP port {} that it should be",
                    self.port
                );
                found.push((name, what));
                return Ok((None, found));
            }
            None => {
                found.push((name, "the anchor device is missing".into()));
                return Ok((None, found));
            }
        };
        let mut faults = self.faults(&link);
        for family in Family::ALL {
            faults.extend(self.family_faults(netlink, &link, family)?);
        }
        found.extend(faults.into_iter().map(|fault| (name.clone(), fault.found())));
        Ok((Some(link), found))
    }

    /// The routes of the node that are ours, of one family, but those to its pods: the cluster through the anchor, and no
    /// loop for addresses of the own subnet that no pod has.
    pub(super) fn routes(&self, family: Family, index: u32) -> Vec<Route> {
        let Families { clusters, subnets, .. } = &self.families;
        let Some((cluster, subnet)) = clusters.get(family).zip(subnets.get(family)) else {
            return Vec::new();
        };
        vec![
            Route { prefsrc: Some(gateway(*subnet)), ..Route::unicast(*cluster, index) },
            Route::unreachable(*subnet),
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
    Mtu {
        found: u32,
        wanted: u32,
    },
    Arp,
    Multicast,
    Down,
    Lacks(IpNet),
    Holds(IpNet),
    /// A setting of IPv6, by its path, which should have this value.
    Setting {
        path: String,
        setting: &'static str,
        value: &'static str,
    },
    /// IPv6 is wanted, and the kernel has none on the device.
    NoIpv6,
}

impl Fault {
    /// As it is found.
    fn found(&self) -> String {
        match self {
            Self::Mac => "has another MAC address than peers send to".into(),
            Self::Mtu { found, wanted } => format!("has MTU {found} instead of {wanted}"),
            Self::Arp => "resolves neighbours, which nobody answers".into(),
            Self::Multicast => "takes part in multicast, which the tunnel does not carry".into(),
            Self::Down => "is down".into(),
            Self::Lacks(address) => format!("lacks the address {address}"),
            Self::Holds(address) => format!("holds the address {address}, which is not its own"),
            Self::Setting { setting, value, .. } => format!("does not have {setting} = {value}"),
            Self::NoIpv6 => "has no IPv6, which the kernel or its MTU does not allow".into(),
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
            Self::Multicast => f.write_str("turned multicast off"),
            Self::Down => f.write_str("was down, is up again"),
            Self::Lacks(address) => write!(f, "added address {address}"),
            Self::Holds(address) => write!(f, "removed address {address}"),
            Self::Setting { setting, value, .. } => write!(f, "set {setting} = {value}"),
            Self::NoIpv6 => f.write_str("has no IPv6"),
        }
    }
}

/// Writes missing routes of a family, removes those of ours that nobody wants.
fn reconcile_routes(netlink: &mut Netlink, family: Family, wanted: &[Route]) -> Result<(), NetlinkError> {
    let RouteDifference { add, remove } = RouteDifference::read(netlink, family, wanted)?;
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

/// The difference of the routes of ours, of one family, to those that are wanted; pods' are left out.
pub(super) struct RouteDifference {
    /// Missing or wrong.
    pub(super) add: Vec<Route>,
    /// Nobody wants them.
    pub(super) remove: Vec<Route>,
}

impl RouteDifference {
    pub(super) fn read(
        netlink: &mut Netlink,
        family: Family,
        wanted: &[Route],
    ) -> Result<Self, NetlinkError> {
        let present = netlink.own_routes(family)?;
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
mod tests;
