//! ADD: connects a pod.
//!
//! The order makes every moment safe. An address is leased before anything carries it; the programs are attached before
//! the device is up; the endpoint entry becomes complete, and packets are delivered, when everything else is. A step
//! that fails is reported with its cause, and what the steps before it made is removed. A call that is killed leaves a
//! lease that DEL, or the next ADD of the same attachment, finds and clears.

use std::{net::Ipv4Addr, path::Path};

use overlay_common::maps::Endpoint;

use super::{
    del,
    env::Attachment,
    failure::{Code, Failure},
    interface, lease,
    local::Node,
    owner::{device_name, owner},
    sandbox,
    types::Added,
};
use crate::{
    datapath::{
        attach::Programs,
        pins::Pins,
        tables::{Endpoints, LeaseCursor},
    },
    host::{netlink::Netlink, netns::NetNs},
};

/// Connects the container in `netns`.
///
/// # Errors
///
/// Any [`Code`] but those of parsing; after an error nothing of the attachment is left, or the details say what is.
pub(super) fn add(attachment: &Attachment, netns: &Path, pins: &Pins) -> Result<Added, Failure> {
    let node = Node::read(pins)?;
    let mut endpoints = Endpoints::open(pins)?;
    let mut cursor = LeaseCursor::open(pins)?;
    let pod = open_pod(netns)?;
    let mut netlink = Netlink::open()?;
    clear_leftovers(attachment, pins, &endpoints, &mut netlink)?;
    sandbox::ensure_free(&pod, &attachment.ifname)?;

    let (address, endpoint) = lease::take(&mut endpoints, &mut cursor, &node, owner(attachment))?;
    let device = device_name(attachment);
    let mut attempt = Attempt { attachment, node, pod, endpoints, netlink, pins, device, made_device: false };
    match attempt.connect(address, endpoint) {
        Ok(routes) => Ok(Added {
            device: attempt.device,
            gateway_mac: node.gateway_mac,
            ifname: attachment.ifname.clone(),
            mac: endpoint.mac,
            mtu: node.mtu,
            sandbox: netns.to_owned(),
            address,
            gateway: node.gateway,
            routes,
        }),
        Err(failure) => Err(attempt.undo(address, failure)),
    }
}

fn open_pod(netns: &Path) -> Result<NetNs, Failure> {
    let pod = NetNs::open(netns)?;
    if pod.is_current()? {
        return Err(Failure::new(
            Code::InvalidNetns,
            format!(
                "CNI_NETNS {} is the node's own network namespace: pods on the host network need no ADD",
                netns.display()
            ),
        ));
    }
    Ok(pod)
}

/// Refuses an attachment that exists, and clears what a killed call left of it.
fn clear_leftovers(
    attachment: &Attachment,
    pins: &Pins,
    endpoints: &Endpoints,
    netlink: &mut Netlink,
) -> Result<(), Failure> {
    let (owner, device) = (owner(attachment), device_name(attachment));
    let entries = endpoints.entries()?;
    let leases = lease::held_by(&entries, &owner);
    let link = netlink.link(&device)?;
    if let Some(link) = &link {
        if lease::is_foreign(&entries, &owner, link.index) {
            return Err(Failure::new(
                Code::Step,
                format!(
                    "the device of {attachment} would be {device}, which is another pod's: give the container another id"
                ),
            ));
        }
        if let Some((address, _)) = leases.iter().find(|(_, endpoint)| endpoint.ifindex == link.index) {
            return Err(Failure::new(
                Code::AlreadyAdded,
                format!(
                    "{attachment} has been added already, with address {}: it needs DEL first",
                    address.to_ip()
                ),
            ));
        }
    }
    if leases.is_empty() && link.is_none() {
        return Ok(());
    }
    del::del(attachment, pins)
}

/// An ADD from the moment it holds an address.
struct Attempt<'a> {
    attachment: &'a Attachment,
    node: Node,
    pod: NetNs,
    endpoints: Endpoints,
    netlink: Netlink,
    pins: &'a Pins,
    device: String,
    made_device: bool,
}

impl Attempt<'_> {
    fn connect(&mut self, address: Ipv4Addr, endpoint: Endpoint) -> Result<Vec<ipnet::Ipv4Net>, Failure> {
        let Self { attachment, node, pod, netlink, .. } = self;
        let link = interface::create(netlink, &self.device, pod, &attachment.ifname, endpoint.mac, node)?;
        self.made_device = true;
        let programs = Programs::new(self.pins, node.attach);
        interface::set_up(netlink, &programs, &link, address, endpoint.mac, node.gateway)?;
        let routes = sandbox::set_up(pod, &attachment.ifname, address, node)?;
        interface::await_carrier(netlink, link.index)
            .map_err(|e| Failure::step("connect the host side", e))?;
        lease::complete(&mut self.endpoints, address, Endpoint { ifindex: link.index, ..endpoint })?;
        Ok(routes)
    }

    /// Removes what was made, in reverse; `failure` gets details about what could not be removed.
    fn undo(mut self, address: Ipv4Addr, failure: Failure) -> Failure {
        let mut errors = Vec::new();
        let mut gone = true;
        if self.made_device {
            let removal = interface::remove(&mut self.netlink, self.pins, &self.device);
            gone = removal.gone;
            errors.extend(removal.errors);
        }
        if gone && let Err(error) = self.endpoints.release(address.into()) {
            errors.push(error.to_string());
        }
        if errors.is_empty() {
            return failure;
        }
        failure.with_details(format!("undoing it failed too, DEL can be repeated: {}", errors.join("; ")))
    }
}

#[cfg(test)]
mod tests;
