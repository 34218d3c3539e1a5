//! The pod's side: its device, addresses, neighbours and routes.

use ipnet::IpNet;

use super::{Findings, Lease, Subject};
use crate::{
    cni::{failure::Failure, local::Net, sandbox::Sandbox, types::result::mac_text},
    family::OfFamily as _,
    host::netlink::{Link, Route},
};

pub(super) fn check(
    subject: &Subject<'_>,
    pod: &mut Sandbox,
    ifname: &str,
    findings: &mut Findings,
) -> Result<(), Failure> {
    let Subject { node, device, .. } = subject;
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
    if let Some(endpoint) = subject.endpoint() {
        findings.unless(link.mac == Some(endpoint.mac), || {
            let found = link.mac.map_or_else(|| "none".to_owned(), mac_text);
            format!(
                "the pod's {ifname} has MAC {found} instead of {}: what it sends is dropped (a MAC of its own has to be asked for by overlay's own capability `mac`)",
                mac_text(endpoint.mac)
            )
        });
    }
    findings.unless(link.mtu <= device.mtu.min(node.mtu), || {
        let carried = device.mtu.min(node.mtu);
        format!("the pod's {ifname} has MTU {}, {carried} is what the tunnel carries", link.mtu)
    });
    let addresses = pod.netlink.addresses(Some(link.index))?;
    let main = pod.netlink.routes(None)?;
    for (lease, net) in subject.connected() {
        findings.unless(addresses.iter().any(|held| held.net.addr() == lease.address), || {
            format!("the pod's address {} is missing on {ifname}", lease.address)
        });
        ways(subject, pod, &link, (lease, net), &main, findings)?;
    }
    Ok(())
}

/// How the pod reaches others from one of its addresses.
fn ways(
    subject: &Subject<'_>,
    pod: &mut Sandbox,
    link: &Link,
    (lease, net): (&Lease, &Net),
    main: &[Route],
    findings: &mut Findings,
) -> Result<(), Failure> {
    let Lease { address, endpoint } = lease;
    let gateway = net.gateway;
    let neighbour = pod.permanent_neighbour(link.index, gateway)?;
    findings.unless(neighbour == Some(endpoint.gateway_mac), || match neighbour {
        None => format!("the pod's permanent neighbour entry of the gateway {gateway} is missing"),
        Some(found) => format!(
            "the pod's neighbour entry of the gateway {gateway} has MAC {} instead of {}",
            mac_text(found),
            mac_text(endpoint.gateway_mac)
        ),
    });
    let elsewhere = |route: &Route| {
        route.dst.prefix_len() == 0 && route.gateway == Some(gateway) && route.oif != Some(link.index)
    };
    if main.iter().any(elsewhere) {
        let rules = pod.netlink.source_rules()?;
        findings.unless(rules.iter().any(|(source, _)| *source == IpNet::from(*address)), || {
            format!("the pod's rule for what it sends from {address} is missing (ip rule)")
        });
    }
    // In any table by this device, or in the main one by any: where a later plugin has moved it.
    let mut routes = pod.netlink.routes_of_link(address.family(), link.index)?;
    routes.extend(main.iter().cloned());
    let own = subject.expected.routes.iter().filter(|(_, next)| *next == Some(gateway)).map(|(dst, _)| *dst);
    for dst in own.chain([IpNet::from(gateway)]) {
        findings.unless(routes.iter().any(|route| route.dst == dst), || {
            format!("the pod's route to {dst} is missing")
        });
    }
    Ok(())
}
