//! ADD: connects a pod.
//!
//! The order makes every moment safe. An address is leased before anything carries it; the programs are attached before
//! the device is up; host ports are led to a pod that can answer; the endpoint entry becomes complete, and packets are delivered, when everything else is. A step
//! that fails is reported with its cause, and what the steps before it made is removed. A call that is killed leaves a
//! lease that DEL, or the next ADD of the same attachment, finds and clears.

use std::{net::Ipv4Addr, path::Path};

use overlay_common::maps::{AttachMode, Endpoint, PodName};

use super::{
    del,
    env::Attachment,
    failure::{Code, Failure},
    interface,
    lease::{self, Applicant},
    local::Node,
    names,
    owner::{device_name, owner},
    ports,
    sandbox::Sandbox,
    types::{Conf, result::Added},
    wanted::Wanted,
};
use crate::{
    datapath::{
        attach::Programs,
        pins::Pins,
        tables::{Endpoints, LeaseCursor},
    },
    host::netlink::Netlink,
    ports::Entry,
};

/// Connects the container in `netns`. `wanted` is what `CNI_ARGS` asks for; the configuration goes before it. `name` is for
/// people.
///
/// # Errors
///
/// Any [`Code`] but those of parsing; after an error nothing of the attachment is left, or the details say what is.
pub(super) fn add(
    attachment: &Attachment,
    netns: &Path,
    wanted: Wanted,
    name: Option<&PodName>,
    conf: &Conf,
) -> Result<Added, Failure> {
    conf.supported()?;
    let wanted_ports = conf.ports()?;
    let pins = &conf.pins;
    let applicant =
        Applicant { owner: owner(attachment), network: conf.network, wanted: conf.wanted()?.or(wanted) };
    let node = Node::read(pins)?;
    let programs = Programs::new(pins, attach_mode(conf, &node)?);
    let mut endpoints = Endpoints::open(pins)?;
    let mut cursor = LeaseCursor::open(pins)?;
    let mut pod = Sandbox::open(netns)?;
    let mut netlink = Netlink::open()?;
    clear_leftovers(attachment, pins, &endpoints, &mut netlink)?;
    pod.ensure_free(&attachment.ifname)?;

    let (address, endpoint) = lease::take(&mut endpoints, &mut cursor, &node, &applicant)?;
    names::keep(pins, address, name);
    let device = device_name(&applicant.owner);
    let mut attempt =
        Attempt { attachment, node, pod, programs, endpoints, netlink, pins, device, made_device: false };
    let connected = ports::entries(&wanted_ports, address, applicant.owner, &node)
        .and_then(|ports| attempt.connect(address, endpoint, &ports));
    match connected {
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

/// How to attach a pod's programs: by filters, which cost a pod's start and end much less than tcx links (see
/// `datapath::attach::clsact`), but where the configuration wants links, or a later plugin needs the place that the
/// filters' qdisc takes.
fn attach_mode(conf: &Conf, node: &Node) -> Result<AttachMode, Failure> {
    Ok(match (node.attach, conf.attach()?) {
        // The agent's configuration decides for all devices, or its kernel has no tcx.
        (mode @ (AttachMode::Clsact | AttachMode::Tcx), _) | (AttachMode::Auto, Some(mode)) => mode,
        // `bandwidth` makes an ingress qdisc for what the pod sends; a clsact qdisc would be in its way.
        (AttachMode::Auto, None) if conf.limits_bandwidth() => AttachMode::Tcx,
        (AttachMode::Auto, None) => AttachMode::Clsact,
    })
}

/// Refuses an attachment that exists, and clears what a killed call left of it.
fn clear_leftovers(
    attachment: &Attachment,
    pins: &Pins,
    endpoints: &Endpoints,
    netlink: &mut Netlink,
) -> Result<(), Failure> {
    let owner = owner(attachment);
    let device = device_name(&owner);
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
    pod: Sandbox,
    programs: Programs,
    endpoints: Endpoints,
    netlink: Netlink,
    pins: &'a Pins,
    device: String,
    made_device: bool,
}

impl Attempt<'_> {
    fn connect(
        &mut self,
        address: Ipv4Addr,
        endpoint: Endpoint,
        ports: &[Entry],
    ) -> Result<Vec<ipnet::Ipv4Net>, Failure> {
        let Self { attachment, node, pod, programs, netlink, .. } = self;
        let ifname = &attachment.ifname;
        let link = interface::create(netlink, &self.device, pod, ifname, endpoint.mac, node)?;
        self.made_device = true;
        interface::prepare(netlink, programs, &link)?;
        let routes = pod.set_up(ifname, address, node)?;
        interface::connect(netlink, pod, ifname, &link, address, &endpoint, node.gateway)
            .map_err(|e| Failure::step("connect the host side", e))?;
        if ports::take(self.pins, ports)? {
            // After the rules, which keep the pod from what this would open to it.
            interface::answer_to_loopback(&link.name)
                .map_err(|e| Failure::step("configure the host side", e))?;
        }
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
        if gone {
            let returned = ports::give_back(self.pins, &owner(self.attachment));
            let gone = returned.is_ok();
            errors.extend(returned.err().map(|error| error.to_string()));
            if gone {
                names::forget(self.pins, address.into());
                if let Err(error) = lease::release(&mut self.endpoints, self.pins, address.into()) {
                    errors.push(error.to_string());
                }
            }
        }
        if errors.is_empty() {
            return failure;
        }
        failure.with_details(format!("undoing it failed too, DEL can be repeated: {}", errors.join("; ")))
    }
}

#[cfg(test)]
mod tests;
