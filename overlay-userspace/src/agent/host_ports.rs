//! Host ports: the CNI plugin takes them and gives them back; the agent keeps what others may break.
//!
//! Source of truth is `HOST_PORTS`, as far as leases of living pods stand behind its entries.

use anyhow::Context as _;
use log::{info, warn};
use overlay_common::maps::{Addr, Endpoint};

use crate::{
    datapath::pins::Pins,
    host::{
        netlink::Link,
        sysctl::{self, Family},
    },
    ports::{HostPorts, Reconciled},
};

/// Removes what nobody holds, writes the rules anew where they are not those of the map, and lets pods with host ports
/// answer to 127.0.0.1. Forks `nft`.
pub(super) fn reconcile(pins: &Pins, endpoints: &[(Addr, Endpoint)], links: &[Link]) -> anyhow::Result<()> {
    let reconciled =
        HostPorts::lock(pins).and_then(|mut ports| ports.reconcile(pins)).context("reconcile host ports")?;
    let Reconciled { removed, rewritten, pods } = reconciled;
    if let Some(first) = removed.first() {
        warn!("removed {} host ports of pods that are gone, {first} the first", removed.len());
    }
    if rewritten {
        info!("wrote the rules of host ports again, for {} pods", pods.len());
    }
    // IPv6 has no such way in.
    let held = endpoints.iter().filter(|(addr, _)| addr.to_ip().is_ipv4() && pods.contains(addr));
    for (addr, endpoint) in held {
        // A DEL may be at work.
        let Some(link) = links.iter().find(|link| link.index == endpoint.ifindex) else { continue };
        let setting = sysctl::interface(Family::Ipv4, &link.name, "route_localnet");
        match sysctl::ensure(&setting, "1") {
            Ok(false) => {}
            Ok(true) => info!("pod {}: set {setting} for its host ports again", addr.to_ip()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
