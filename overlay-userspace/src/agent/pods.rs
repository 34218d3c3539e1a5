//! The pods that are on the node: the CNI plugin has made their devices; the agent keeps what others may break.
//!
//! Source of truth is `ENDPOINTS`. A pod whose device is gone keeps its lease until the runtime's DEL; a lease without
//! device (`ifindex` 0) is an ADD at work and nobody else's business. Only what differs is written. A pod has an entry for
//! each family that it was made with; each is looked at by itself.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use anyhow::Context as _;
use ipnet::IpNet;
use log::{info, warn};
use overlay_common::maps::{Addr, Endpoint};

use crate::{
    cluster::gateway,
    cni::device_settings,
    datapath::attach::{Attached, Device, Programs, Role},
    family::{ByFamily, Family, OfFamily as _},
    host::{
        netlink::{Changes, Link, MacAddress, Netlink, ROUTE_PROTOCOL, Route},
        sysctl,
    },
};

/// What is known of the pods between passes.
#[derive(Default)]
pub(super) struct Pods {
    /// Devices of the pods that were seen right since the last [`Pods::forget`].
    verified: HashMap<Addr, u32>,
    /// Pods whose device is gone, and whether that was said. Not on the first look: a DEL may be at work.
    missing: HashMap<Addr, bool>,
    /// Pods that are said to be outside of the subnet.
    outside: HashSet<Addr>,
    /// Names of the pods' devices, at the last look.
    devices: Vec<String>,
}

/// What pods are compared with.
struct Actual {
    routes: HashMap<IpNet, Route>,
    /// Permanent entries; read only when some pod has to be looked at closely.
    neighbours: Option<HashMap<(u32, IpAddr), MacAddress>>,
}

impl Actual {
    fn read(netlink: &mut Netlink) -> anyhow::Result<Self> {
        let routes = netlink.routes(Some(ROUTE_PROTOCOL))?;
        Ok(Self { routes: routes.into_iter().map(|route| (route.dst, route)).collect(), neighbours: None })
    }

    fn neighbour(
        &mut self,
        netlink: &mut Netlink,
        device: u32,
        address: IpAddr,
    ) -> anyhow::Result<Option<MacAddress>> {
        let neighbours = match &mut self.neighbours {
            Some(neighbours) => neighbours,
            unread => {
                let all = netlink.neighbours(None)?;
                let permanent = all.into_iter().filter(|neighbour| neighbour.permanent);
                unread.insert(permanent.filter_map(|n| Some(((n.index, n.address), n.mac?))).collect())
            }
        };
        Ok(neighbours.get(&(device, address)).copied())
    }
}

impl Pods {
    /// Forgets what was verified: all pods are looked at again.
    pub(super) fn forget(&mut self) {
        self.verified.clear();
    }

    /// Puts every pod right that is not known to be. Returns what failed, by pod; one pod does not stop the others.
    pub(super) fn reconcile(
        &mut self,
        netlink: &mut Netlink,
        programs: &Programs,
        endpoints: &[(Addr, Endpoint)],
        links: &[Link],
        subnets: &ByFamily<IpNet>,
    ) -> anyhow::Result<Vec<anyhow::Error>> {
        let by_index: HashMap<u32, &Link> = links.iter().map(|link| (link.index, link)).collect();
        let mut actual = Actual::read(netlink)?;
        let held: HashSet<Addr> = endpoints.iter().map(|(addr, _)| *addr).collect();
        self.verified.retain(|addr, _| held.contains(addr));
        self.missing.retain(|addr, _| held.contains(addr));
        self.outside.retain(|addr| held.contains(addr) && outside(subnets, addr.to_ip()).is_some());
        self.devices.clear();
        let mut failed = Vec::new();
        for (addr, endpoint) in endpoints.iter().filter(|(_, endpoint)| endpoint.ifindex != 0) {
            let ip = addr.to_ip();
            if let Some(what) = outside(subnets, ip)
                && self.outside.insert(*addr)
            {
                warn!("pod {ip} {what}; restart it");
            }
            let Some(link) = by_index.get(&endpoint.ifindex) else {
                self.verified.remove(addr);
                self.miss(*addr);
                continue;
            };
            self.missing.remove(addr);
            self.devices.push(link.name.clone());
            let route = route_to(ip, link.index, subnets);
            let routed = actual.routes.get(&route.dst) == Some(&route);
            if link.up && routed && self.verified.get(addr) == Some(&link.index) {
                continue;
            }
            match put_right(netlink, programs, &mut actual, ip, endpoint, link, &route) {
                Ok(()) => {
                    self.verified.insert(*addr, link.index);
                }
                // A DEL took it away at this moment.
                Err(_) if netlink.link_by_index(link.index)?.is_none() => {}
                Err(error) => failed.push(error.context(format!("restore pod {ip} on {}", link.name))),
            }
        }
        self.devices.sort_unstable();
        self.devices.dedup();
        Ok(failed)
    }

    /// The names of the pods' devices that were there at the last look.
    pub(super) fn devices(&self) -> &[String] {
        &self.devices
    }

    fn miss(&mut self, addr: Addr) {
        let said = self.missing.get(&addr).copied();
        if said == Some(false) {
            warn!(
                "the device of pod {} is gone; its address is kept until the runtime removes the pod",
                addr.to_ip()
            );
        }
        self.missing.insert(addr, said.is_some());
    }
}

/// What is wrong with an address that other nodes do not send here.
fn outside(subnets: &ByFamily<IpNet>, ip: IpAddr) -> Option<String> {
    let family = ip.family();
    match subnets.get(family) {
        Some(subnet) if subnet.contains(&ip) => None,
        Some(subnet) => {
            Some(format!("is outside of this node's subnet {subnet}: other nodes do not find it"))
        }
        None => Some(format!("has an {family} address, and this node has no {family} subnet any more")),
    }
}

/// The route from the node to one of its pods.
fn route_to(ip: IpAddr, device: u32, subnets: &ByFamily<IpNet>) -> Route {
    let prefsrc = subnets.get(ip.family()).map(|subnet| gateway(*subnet));
    Route { prefsrc, ..Route::unicast(IpNet::from(ip), device) }
}

/// What a closer look at a pod shows: what is to be written again, and what the device has of programs.
struct Faults {
    down: bool,
    neighbour: bool,
    route: bool,
}

impl Faults {
    fn of(
        netlink: &mut Netlink,
        actual: &mut Actual,
        ip: IpAddr,
        endpoint: &Endpoint,
        link: &Link,
        route: &Route,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            down: !link.up,
            neighbour: actual.neighbour(netlink, link.index, ip)? != Some(endpoint.mac),
            route: actual.routes.get(&route.dst) != Some(route),
        })
    }
}

/// What [`Pods::reconcile`] would put right, each with the pod and its device. Programs are not looked at.
pub(super) fn look(
    netlink: &mut Netlink,
    endpoints: &[(Addr, Endpoint)],
    links: &[Link],
    subnets: &ByFamily<IpNet>,
) -> anyhow::Result<Vec<(String, String)>> {
    let mut actual = Actual::read(netlink)?;
    let mut found = Vec::new();
    for (addr, endpoint) in endpoints {
        let Some(link) = links.iter().find(|link| link.index == endpoint.ifindex) else { continue };
        let ip = addr.to_ip();
        let mut add = |what: &str| found.push((format!("pod {ip} on {}", link.name), what.to_owned()));
        if let Some(what) = outside(subnets, ip) {
            add(&what);
        }
        let route = route_to(ip, link.index, subnets);
        let Faults { down, neighbour, route } = Faults::of(netlink, &mut actual, ip, endpoint, link, &route)?;
        if down {
            add("its device is down");
        }
        if neighbour {
            add("the node's neighbour entry of it is missing or wrong");
        }
        if route {
            add("the node's route to it is missing or wrong");
        }
    }
    Ok(found)
}

fn put_right(
    netlink: &mut Netlink,
    programs: &Programs,
    actual: &mut Actual,
    ip: IpAddr,
    endpoint: &Endpoint,
    link: &Link,
    route: &Route,
) -> anyhow::Result<()> {
    let name = &link.name;
    // Programs before the device is up: nothing unchecked gets out of a pod.
    if programs.attach_all(Role::Pod, Device { name, ifindex: link.index })? == Attached::New {
        warn!("pod {ip}: attached the programs of {name} again");
    }
    let faults = Faults::of(netlink, actual, ip, endpoint, link, route)?;
    if ip.is_ipv6() {
        // Before what the kernel refuses to a device without IPv6.
        for (_, path, value) in device_settings(name, |family| family == Family::Ipv6) {
            if sysctl::ensure(&path, value)? {
                info!("pod {ip}: set {path} = {value} again");
            }
        }
    }
    if faults.down {
        netlink.set_up(link.index)?;
        warn!("pod {ip}: {name} was down, is up again");
    }
    if faults.neighbour {
        netlink.replace_neighbour(link.index, ip, endpoint.mac).context("write its neighbour entry")?;
        info!("pod {ip}: wrote its neighbour entry on {name} again");
    }
    if faults.route {
        netlink.replace_route(route)?;
        info!("pod {ip}: wrote its route to {name} again");
    }
    if let (true, Some(gateway)) = (ip.is_ipv6(), route.prefsrc) {
        let mut changes = Changes::new();
        changes.proxy(link.index, gateway);
        netlink.apply(changes)?;
    }
    Ok(())
}
