//! The pods that are on the node: the CNI plugin has made their devices; the agent keeps what others may break.
//!
//! Source of truth is `ENDPOINTS`. A pod whose device is gone keeps its lease until the runtime's DEL; a lease without
//! device (`ifindex` 0) is an ADD at work and nobody else's business.

use std::collections::{HashMap, HashSet};

use anyhow::Context as _;
use ipnet::IpNet;
use log::{info, warn};
use overlay_common::maps::{Addr, Endpoint};

use super::anchor::pod_route;
use crate::{
    datapath::attach::{Attached, Device, Programs, Role},
    host::netlink::{Link, Netlink, ROUTE_PROTOCOL},
};

/// Pods seen right since the programs were loaded.
#[derive(Default)]
pub(super) struct Pods {
    verified: HashSet<u32>,
    missing: HashSet<Addr>,
}

impl Pods {
    /// Forgets what was verified: all pods are looked at again.
    pub(super) fn forget(&mut self) {
        self.verified.clear();
    }

    /// Puts every pod right that is not known to be; collects errors and goes on.
    pub(super) fn reconcile(
        &mut self,
        netlink: &mut Netlink,
        programs: &Programs,
        endpoints: &[(Addr, Endpoint)],
        links: &[Link],
        subnet: IpNet,
    ) -> anyhow::Result<()> {
        let by_index: HashMap<u32, &Link> = links.iter().map(|link| (link.index, link)).collect();
        let routes: HashSet<IpNet> =
            netlink.routes(Some(ROUTE_PROTOCOL))?.into_iter().map(|route| route.dst).collect();
        self.missing.retain(|addr| endpoints.iter().any(|(other, _)| other == addr));
        let mut failed = Vec::new();
        for (addr, endpoint) in endpoints.iter().filter(|(_, endpoint)| endpoint.ifindex != 0) {
            let Some(link) = by_index.get(&endpoint.ifindex) else {
                self.verified.remove(&endpoint.ifindex);
                if self.missing.insert(*addr) {
                    warn!(
                        "the device of pod {} is gone; its address is kept until the runtime removes the pod",
                        addr.to_ip()
                    );
                }
                continue;
            };
            let whole = link.up && routes.contains(&IpNet::from(addr.to_ip()));
            if whole && self.verified.contains(&endpoint.ifindex) {
                continue;
            }
            match put_right(netlink, programs, *addr, endpoint, link, subnet) {
                Ok(()) => {
                    self.verified.insert(endpoint.ifindex);
                }
                Err(error) => failed.push(format!("pod {} on {}: {error:#}", addr.to_ip(), link.name)),
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(anyhow::anyhow!(failed.join("; "))) }
    }
}

fn put_right(
    netlink: &mut Netlink,
    programs: &Programs,
    addr: Addr,
    endpoint: &Endpoint,
    link: &Link,
    subnet: IpNet,
) -> anyhow::Result<()> {
    // Programs before the device is up: nothing unchecked gets out of a pod.
    let device = Device { name: &link.name, ifindex: link.index };
    if programs.attach_all(Role::Pod, device)? == Attached::New {
        info!("attached the programs of {} again", link.name);
    }
    if !link.up {
        netlink.set_up(link.index)?;
        info!("{} is up again", link.name);
    }
    let ip = addr.to_ip();
    netlink.replace_neighbour(link.index, ip, endpoint.mac).context("write its neighbour entry")?;
    let route = pod_route(ip, link.index, subnet);
    netlink.replace_route(&route)?;
    Ok(())
}
