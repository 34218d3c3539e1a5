//! The node's side of a pod: its device, the way to it, its programs, and what all pods share.

use ipnet::IpNet;

use super::{Findings, Lease, Subject, device};
use crate::{
    cni::{
        failure::Failure, interface::settings, sandbox::permanent_neighbour, status::tunnel_works,
        types::result::mac_text,
    },
    datapath::{
        attach::{Programs, Role},
        pins::Pins,
    },
    family::OfFamily as _,
    host::{netlink::Netlink, sysctl},
};

/// Those of the settings that pods cannot do without; others may be somebody's will.
const NEEDED: [&str; 2] = ["forwarding", "disable_ipv6"];

pub(super) fn check(
    subject: &Subject<'_>,
    netlink: &mut Netlink,
    pins: &Pins,
    findings: &mut Findings,
) -> Result<(), Failure> {
    let Subject { node, device: link, leases, expected } = subject;
    let name = &link.name;
    for Lease { address, endpoint } in leases {
        findings.unless(link.index == endpoint.ifindex, || {
            let index = endpoint.ifindex;
            format!("the endpoint entry of {address} has device index {index}, {name} has {}", link.index)
        });
    }
    findings.unless(link.up, || format!("{name} is down"));
    findings.unless(!link.up || link.running, || format!("{name} has no carrier"));
    if let Some(endpoint) = subject.endpoint() {
        findings.unless(link.mac == Some(endpoint.gateway_mac), || {
            let found = link.mac.map_or_else(|| "none".to_owned(), mac_text);
            format!("{name} has MAC {found} instead of {}", mac_text(endpoint.gateway_mac))
        });
    }
    if let Some(mtu) = expected.mtu {
        findings.unless(link.mtu == mtu, || format!("{name} has MTU {} instead of {mtu}", link.mtu));
    }
    // As the pod was made: the node may carry more by now.
    let has = |family| leases.iter().any(|lease| lease.address.family() == family);
    for (_, path, wanted) in settings(name, has) {
        let setting = path.rsplit('/').next().unwrap_or_default();
        // A kernel without IPv6 has no such setting.
        if let (true, Ok(found)) = (NEEDED.contains(&setting), sysctl::get(&path)) {
            findings.unless(found == wanted, || format!("{path} is {found} instead of {wanted}"));
        }
    }

    for Lease { address, endpoint } in leases {
        let host = IpNet::from(*address);
        let routes = netlink.routes_of_link(address.family(), link.index)?;
        findings.unless(routes.iter().any(|route| route.dst == host), || {
            format!("the node's route {host} dev {name} is missing")
        });
        let neighbour = permanent_neighbour(netlink, link.index, *address)?;
        findings.unless(neighbour == Some(endpoint.mac), || match neighbour {
            None => format!("the node's permanent neighbour entry of {address} on {name} is missing"),
            Some(found) => {
                format!(
                    "the node's neighbour entry of {address} has MAC {} instead of {}",
                    mac_text(found),
                    mac_text(endpoint.mac)
                )
            }
        });
    }
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
