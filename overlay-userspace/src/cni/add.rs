//! ADD: connects a pod.
//!
//! The order makes every moment safe. Addresses are leased, one of each family that the node carries, before anything carries them; the programs are attached before
//! the device is up; host ports are led to a pod that can answer; the endpoint entries become complete, and packets are delivered, when everything else is. A step
//! that fails is reported with its cause, and what the steps before it made is removed. A call that is killed leaves a
//! lease that DEL, or the next ADD of the same attachment, finds and clears.

use std::path::Path;

use ipnet::IpNet;
use overlay_common::maps::{AttachMode, PodName};

use super::{
    del,
    env::Attachment,
    failure::{Code, Failure},
    interface,
    lease::{self, Applicant, Leased},
    local::Node,
    names,
    owner::{device_name, owner},
    ports,
    sandbox::Sandbox,
    types::{
        Conf,
        result::{Added, AddedIp},
    },
    wanted::Wanted,
};
use crate::{
    datapath::{
        attach::Programs,
        pins::Pins,
        tables::{Endpoints, LeaseCursor},
    },
    family::ByFamily,
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

    let leased = lease::take(&mut endpoints, pins, &mut cursor, &node, &applicant)?;
    leased.addresses.values().for_each(|address| names::keep(pins, *address, name));
    let device = device_name(&applicant.owner);
    let mut attempt =
        Attempt { attachment, node, pod, programs, endpoints, netlink, pins, device, made_device: false };
    let connected = ports::entries(&wanted_ports, &leased.addresses, applicant.owner, &node)
        .and_then(|ports| attempt.connect(&leased, &ports));
    match connected {
        Ok(mut routes) => Ok(Added {
            device: attempt.device,
            gateway_mac: node.gateway_mac,
            ifname: attachment.ifname.clone(),
            mac: leased.endpoint.mac,
            mtu: node.mtu,
            sandbox: netns.to_owned(),
            ips: node
                .in_order()
                .filter_map(|(family, net)| {
                    let address = leased.addresses.get(family).copied()?;
                    let routes = routes.set(family, Vec::new()).unwrap_or_default();
                    Some(AddedIp { address, gateway: net.gateway, routes })
                })
                .collect(),
        }),
        Err(failure) => Err(attempt.undo(&leased, failure)),
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
        let complete = leases.iter().filter(|(_, endpoint)| endpoint.ifindex == link.index);
        let addresses: Vec<_> = complete.map(|(address, _)| address.to_ip().to_string()).collect();
        // Of a call that was killed between two entries one is incomplete.
        if !addresses.is_empty() && leases.iter().all(|(_, endpoint)| endpoint.ifindex != 0) {
            return Err(Failure::new(
                Code::AlreadyAdded,
                format!(
                    "{attachment} has been added already, with {}: it needs DEL first",
                    addresses.join(" and ")
                ),
            ));
        }
    }
    if leases.is_empty() && link.is_none() {
        return Ok(());
    }
    del::del(attachment, pins)
}

/// An ADD from the moment it holds addresses.
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
    fn connect(&mut self, leased: &Leased, ports: &[Entry]) -> Result<ByFamily<Vec<IpNet>>, Failure> {
        let Self { attachment, node, pod, programs, netlink, .. } = self;
        let ifname = &attachment.ifname;
        let link = interface::create(netlink, &self.device, pod, ifname, leased.endpoint.mac, node)?;
        self.made_device = true;
        interface::prepare(netlink, programs, &link, node)?;
        let routes = pod.set_up(ifname, &link, leased, node)?;
        interface::connect(netlink, pod, ifname, &link, leased, node)
            .map_err(|e| Failure::step("connect the host side", e))?;
        if ports::take(self.pins, ports)? && ports.iter().any(|(_, target)| target.pod.to_ip().is_ipv4()) {
            // After the rules, which keep the pod from what this would open to it.
            interface::answer_to_loopback(&link.name)
                .map_err(|e| Failure::step("configure the host side", e))?;
        }
        lease::complete(&mut self.endpoints, leased, link.index)?;
        Ok(routes)
    }

    /// Removes what was made, in reverse; `failure` gets details about what could not be removed.
    fn undo(mut self, leased: &Leased, failure: Failure) -> Failure {
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
                for address in leased.addresses.values() {
                    names::forget(self.pins, (*address).into());
                    if let Err(error) = lease::release(&mut self.endpoints, self.pins, (*address).into()) {
                        errors.push(error.to_string());
                    }
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
mod families;
#[cfg(test)]
mod tests;
