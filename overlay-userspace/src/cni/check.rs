//! CHECK: is a pod still connected as ADD left it?
//!
//! Finds all that is missing or different, not only the first of it. What plugins after this one in a list, or the pod's
//! own network policy, may rightly have changed is no finding: more addresses and routes, routes in another table or by
//! another way, queueing disciplines, a smaller MTU. Changes nothing.

use std::{net::IpAddr, path::Path};

use overlay_common::maps::Endpoint;

use super::{
    env::Attachment,
    failure::{Code, Failure},
    lease,
    local::{Net, Node},
    owner::{device_name, owner},
    sandbox::Sandbox,
    types::{Conf, Version},
};
use crate::{
    datapath::{attach::Device, tables::Endpoints},
    family::OfFamily as _,
    host::netlink::{Link, Netlink},
};

mod expected;
mod inside;
mod outside;
mod published;

use expected::Expected;

/// What was found, in words: what it is, how it is, how it should be.
#[derive(Default)]
struct Findings(Vec<String>);

impl Findings {
    fn add(&mut self, what: String) {
        self.0.push(what);
    }

    fn unless(&mut self, fine: bool, what: impl FnOnce() -> String) {
        if !fine {
            self.0.push(what());
        }
    }
}

/// What is looked at.
struct Subject<'a> {
    node: &'a Node,
    /// The node's end of the pair.
    device: &'a Link,
    /// What is known of it at each of its addresses.
    leases: Vec<Lease>,
    expected: &'a Expected,
}

/// An address of the pod with its entry.
struct Lease {
    address: IpAddr,
    endpoint: Endpoint,
}

impl Subject<'_> {
    /// The entry of the first address: MACs and owner are the same at each.
    fn endpoint(&self) -> Option<&Endpoint> {
        self.leases.first().map(|lease| &lease.endpoint)
    }

    /// The addresses, each with what this node has of its family.
    fn connected(&self) -> impl Iterator<Item = (&Lease, &Net)> {
        self.leases.iter().filter_map(|lease| Some((lease, self.node.nets.get(lease.address.family())?)))
    }
}

/// What the configuration alone can be refused for.
pub(super) fn judge(attachment: &Attachment, conf: &Conf) -> Result<(), Failure> {
    conf.ports()?;
    expected(attachment, conf).map(drop)
}

fn expected(attachment: &Attachment, conf: &Conf) -> Result<Expected, Failure> {
    conf.since(Version::V0_4_0, "CHECK")?;
    Expected::read(conf, attachment)
}

/// Compares a pod with the result of its ADD.
///
/// # Errors
///
/// [`Code::Unsound`] with everything that was found; [`Code::UnknownContainer`] when there is nothing of it.
pub(super) fn check(attachment: &Attachment, netns: &Path, conf: &Conf) -> Result<(), Failure> {
    let expected = expected(attachment, conf)?;
    let wanted = conf.ports()?;
    let node = Node::read(&conf.pins)?;
    let owner = owner(attachment);
    let name = device_name(&owner);
    let entries = Endpoints::open(&conf.pins)?.entries()?;
    let leases = lease::held_by(&entries, &owner);
    let mut netlink = Netlink::open()?;
    let link = netlink.link(&name)?;
    if leases.is_empty() && link.is_none() {
        return Err(Failure::new(
            Code::UnknownContainer,
            format!("{attachment} is not on this node: it has neither an address nor a device, add it first"),
        ));
    }

    let mut findings = Findings::default();
    for (address, _) in leases.iter().filter(|(_, endpoint)| endpoint.ifindex == 0) {
        findings.add(format!("the endpoint entry of {} is incomplete", address.to_ip()));
    }
    // An address outside of the node's subnets has been given by somebody else.
    let is_ours =
        |address: &IpAddr| node.nets.get(address.family()).is_some_and(|net| net.subnet.contains(address));
    let lost = |address: &&IpAddr| {
        let held = leases.iter().any(|(held, _)| held.to_ip() == **address);
        !held && (leases.is_empty() || is_ours(address))
    };
    for address in expected.addresses.iter().filter(lost) {
        findings.add(format!("the endpoint entry of {address} is missing"));
    }
    findings.unless(link.is_some(), || format!("the node's device {name} is missing"));
    let complete = leases.iter().filter(|(_, endpoint)| endpoint.ifindex != 0);
    let complete: Vec<_> =
        complete.map(|(address, endpoint)| Lease { address: address.to_ip(), endpoint: *endpoint }).collect();
    for Lease { address, .. } in &complete {
        findings.unless(expected.addresses.contains(address), || {
            format!("its address is {address}, prevResult says {}", expected.addresses_text())
        });
        let family = address.family();
        findings.unless(node.nets.get(family).is_some(), || {
            format!("its address {address} reaches nobody: this node carries no {family} any more")
        });
    }
    if let (Some(device), false) = (&link, complete.is_empty()) {
        let subject = Subject { node: &node, device, leases: complete, expected: &expected };
        outside::check(&subject, &mut netlink, &conf.pins, &mut findings)?;
        published::check(&subject, &wanted, &conf.pins, &mut findings)?;
        inside::check(&subject, &mut Sandbox::open(netns)?, &attachment.ifname, &mut findings)?;
    }
    if findings.0.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Code::Unsound, format!("{attachment}: {}", findings.0.join("; "))).with_details(
        "what is on the node's side and not the endpoint entry or the device itself, the overlay agent puts right within seconds; for the rest delete the pod and create it anew",
    ))
}

fn device(link: &Link) -> Device<'_> {
    Device { name: &link.name, ifindex: link.index }
}

#[cfg(test)]
mod tests;
