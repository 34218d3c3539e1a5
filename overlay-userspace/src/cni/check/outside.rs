//! The node's side of a pod: its device, the way to it, its programs, and what all pods share.

use overlay_common::maps::Endpoint;

use super::{Findings, Subject, device};
use crate::{
    cni::{failure::Failure, sandbox::permanent_neighbour, status::tunnel_works, types::result::mac_text},
    datapath::{
        attach::{Programs, Role},
        pins::Pins,
    },
    host::{
        netlink::Netlink,
        sysctl::{self, Family},
    },
};

pub(super) fn check(
    subject: &Subject<'_>,
    netlink: &mut Netlink,
    pins: &Pins,
    findings: &mut Findings,
) -> Result<(), Failure> {
    let Subject { node, device: link, address, endpoint, expected } = subject;
    let Endpoint { ifindex, mac, gateway_mac, .. } = **endpoint;
    let name = &link.name;
    findings.unless(link.index == ifindex, || {
        format!("the endpoint entry of {address} has device index {ifindex}, {name} has {}", link.index)
    });
    findings.unless(link.up, || format!("{name} is down"));
    findings.unless(!link.up || link.running, || format!("{name} has no carrier"));
    findings.unless(link.mac == Some(gateway_mac), || {
        let found = link.mac.map_or_else(|| "none".to_owned(), mac_text);
        format!("{name} has MAC {found} instead of {}", mac_text(gateway_mac))
    });
    if let Some(mtu) = expected.mtu {
        findings.unless(link.mtu == mtu, || format!("{name} has MTU {} instead of {mtu}", link.mtu));
    }
    for (family, setting, wanted) in [(Family::Ipv4, "forwarding", "1"), (Family::Ipv6, "disable_ipv6", "1")]
    {
        // A kernel without IPv6 has no such setting.
        if let Ok(found) = sysctl::get(&sysctl::interface(family, name, setting)) {
            findings
                .unless(found == wanted, || format!("{setting} of {name} is {found} instead of {wanted}"));
        }
    }

    let host = ipnet::Ipv4Net::from(*address);
    let routes = netlink.routes_of_link(Family::Ipv4, link.index)?;
    findings.unless(routes.iter().any(|route| route.dst == host.into()), || {
        format!("the node's route {host} dev {name} is missing")
    });
    let neighbour = permanent_neighbour(netlink, link.index, *address)?;
    findings.unless(neighbour == Some(mac), || match neighbour {
        None => format!("the node's permanent neighbour entry of {address} on {name} is missing"),
        Some(found) => {
            format!(
                "the node's neighbour entry of {address} has MAC {} instead of {}",
                mac_text(found),
                mac_text(mac)
            )
        }
    });
    for &hook in Role::Pod.hooks() {
        findings.unless(Programs::is_attached(netlink, device(link), hook)?, || {
            format!("the program {} is not attached to {name}", hook.name())
        });
    }
    if let Err(what) = tunnel_works(netlink, pins, node) {
        findings.add(what);
    }
    Ok(())
}
