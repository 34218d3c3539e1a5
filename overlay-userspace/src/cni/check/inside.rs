//! The pod's side: its device, address, neighbour and routes.

use ipnet::{IpNet, Ipv4Net};

use super::{Findings, Subject};
use crate::{
    cni::{failure::Failure, sandbox::Sandbox, types::result::mac_text},
    family::Family,
    host::netlink::Route,
};

pub(super) fn check(
    subject: &Subject<'_>,
    pod: &mut Sandbox,
    ifname: &str,
    findings: &mut Findings,
) -> Result<(), Failure> {
    let Subject { node, device, address, endpoint, expected } = subject;
    let Some(link) = pod.netlink.link(ifname)? else {
        findings.add(format!("the pod's {ifname} is missing"));
        return Ok(());
    };
    // Of a pair, each end names the other's index.
    if link.kind.as_deref() != Some("veth")
        || link.link != Some(device.index)
        || device.link != Some(link.index)
    {
        findings.add(format!("the pod's {ifname} is not the other end of {}", device.name));
        return Ok(());
    }
    findings.unless(link.up, || format!("the pod's {ifname} is down"));
    findings.unless(link.mac == Some(endpoint.mac), || {
        let found = link.mac.map_or_else(|| "none".to_owned(), mac_text);
        format!(
            "the pod's {ifname} has MAC {found} instead of {}: what it sends is dropped (a MAC of its own has to be asked for by overlay's own capability `mac`)",
            mac_text(endpoint.mac)
        )
    });
    findings.unless(link.mtu <= device.mtu.min(node.mtu), || {
        let carried = device.mtu.min(node.mtu);
        format!("the pod's {ifname} has MTU {}, {carried} is what the tunnel carries", link.mtu)
    });
    let addresses = pod.netlink.addresses(Some(link.index))?;
    findings.unless(addresses.iter().any(|held| held.net.addr() == *address), || {
        format!("the pod's address {address} is missing on {ifname}")
    });
    let gateway = node.gateway;
    let neighbour = pod.permanent_neighbour(link.index, gateway)?;
    findings.unless(neighbour == Some(endpoint.gateway_mac), || match neighbour {
        None => format!("the pod's permanent neighbour entry of the gateway {gateway} is missing"),
        Some(found) => format!(
            "the pod's neighbour entry of the gateway {gateway} has MAC {} instead of {}",
            mac_text(found),
            mac_text(endpoint.gateway_mac)
        ),
    });

    let main = pod.netlink.routes(None)?;
    let elsewhere = |route: &Route| {
        route.dst == IpNet::from(Ipv4Net::default())
            && route.gateway == Some(gateway.into())
            && route.oif != Some(link.index)
    };
    if main.iter().any(elsewhere) {
        findings.unless(
            pod.netlink
                .source_rules()?
                .iter()
                .any(|(source, _)| *source == IpNet::from(Ipv4Net::from(*address))),
            || format!("the pod's rule for what it sends from {address} is missing (ip rule)"),
        );
    }
    // In any table by this device, or in the main one by any: where a later plugin has moved it.
    let mut routes = pod.netlink.routes_of_link(Family::Ipv4, link.index)?;
    routes.extend(main);
    let own = expected.routes.iter().filter(|(_, next)| *next == Some(gateway)).map(|(dst, _)| *dst);
    for dst in own.chain([Ipv4Net::from(gateway)]) {
        findings.unless(routes.iter().any(|route| route.dst == IpNet::from(dst)), || {
            format!("the pod's route to {dst} is missing")
        });
    }
    Ok(())
}
