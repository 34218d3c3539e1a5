//! Host ports that a call asks for: the capability `portMappings` of `runtimeConfig`.
//!
//! Reading is pure, and total. Taking them and giving them back is [`crate::ports`]'s work, in the order that ADD, DEL and
//! GC need. Called by these, and by CHECK.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use overlay_common::maps::{Addr, HostPort, HostPortTarget, Owner, PortProtocol};
use serde_json::Value;

use super::{
    failure::{Code, Failure},
    local::Node,
};
use crate::{
    datapath::{DatapathError, pins::Pins},
    family::{ByFamily, Family, OfFamily as _},
    ports::{self, Entry, HostPorts, PortsError},
};

/// Where a runtime puts them.
const PLACE: &str = "runtimeConfig.portMappings";

/// The ports that are asked for, each with where it is to lead.
pub(super) type Wanted = BTreeMap<HostPort, PodPort>;

/// Where a port is to lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PodPort {
    /// The pod's own port.
    number: u16,
    /// Whether it may be left out for a pod that has no address of its family.
    optional: bool,
}

/// What a mapping says.
struct Item {
    /// None for all.
    address: Option<IpAddr>,
    protocol: PortProtocol,
    port: u16,
    pod_port: u16,
}

/// The addresses that stand for all of a family.
const ALL: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];

/// Reads the list.
///
/// A host port of 0 asks for none. One without an address is asked for in each family that the pod will have. One that is
/// asked for in both families explicitly is had in those that the pod will have: runtimes that know no better write both.
///
/// # Errors
///
/// [`Code::InvalidConfig`] for what makes no sense or cannot be had, with the mapping.
pub(super) fn read(runtime_config: Option<&Value>) -> Result<Wanted, Failure> {
    let invalid = |what: String| Failure::new(Code::InvalidConfig, format!("{PLACE}: {what}"));
    let items = match runtime_config.and_then(|config| config.get("portMappings")) {
        None | Some(Value::Null) => return Ok(Wanted::new()),
        Some(Value::Array(items)) => items,
        Some(_) => return Err(invalid("is not an array".to_owned())),
    };
    let (mut wanted, mut inward) = (Wanted::new(), Vec::new());
    for value in items {
        let Some(item) = item(value).map_err(|what| invalid(format!("{value}: {what}")))? else { continue };
        let Item { address, protocol, port, pod_port } = item;
        if let Some(IpAddr::V6(address)) = address
            && is_inward(address)
        {
            inward.push((value, protocol, port));
            continue;
        }
        let target = PodPort { number: pod_port, optional: address.is_none() };
        for address in ALL.into_iter().filter(|_| address.is_none()).chain(address) {
            let key = HostPort { addr: address.into(), port, protocol: protocol as u8, reserved: 0 };
            let Some(other) = wanted.insert(key, target) else { continue };
            if other.number != pod_port {
                let number = other.number;
                return Err(invalid(format!(
                    "{key} cannot lead to both {number} and {pod_port}: leave one out"
                )));
            }
            wanted.insert(key, PodPort { optional: other.optional || target.optional, ..target });
        }
    }
    let keys: Vec<HostPort> = wanted.keys().copied().collect();
    let has = |port: u16, protocol: u8, family: Family| {
        let same = |key: &&HostPort| key.port == port && key.protocol == protocol;
        keys.iter().filter(same).any(|key| key.addr.to_ip().family() == family)
    };
    for (key, target) in &mut wanted {
        let other = if key.addr.to_ip().is_ipv4() { Family::Ipv6 } else { Family::Ipv4 };
        target.optional |= has(key.port, key.protocol, other);
    }
    for (value, protocol, port) in inward {
        if !has(port, protocol as u8, Family::Ipv4) {
            return Err(invalid(format!(
                "{value}: the kernel leads nothing from there to a pod: give another address of the node as hostIP, or none"
            )));
        }
    }
    Ok(wanted)
}

/// Addresses of the node that a pod cannot be reached by: the loopback address, which IPv6 has no `route_localnet` for,
/// and link-local ones, which are never forwarded.
fn is_inward(address: Ipv6Addr) -> bool {
    address.is_loopback() || address.is_unicast_link_local()
}

/// One mapping; none where it asks for nothing.
fn item(value: &Value) -> Result<Option<Item>, String> {
    let port = |key: &str| match value.get(key) {
        None | Some(Value::Null) => Ok(0),
        Some(port) => {
            let number = port.as_u64().and_then(|port| u16::try_from(port).ok());
            number.ok_or_else(|| format!("{key} {port} is no port: use 1 to 65535"))
        }
    };
    let text = |key: &str| match value.get(key) {
        None | Some(Value::Null) => Ok(""),
        Some(text) => text.as_str().ok_or_else(|| format!("{key} {text} is no text")),
    };
    if !value.is_object() {
        return Err("is not an object".to_owned());
    }
    let (host_port, pod_port) = (port("hostPort")?, port("containerPort")?);
    if host_port == 0 {
        return Ok(None);
    }
    if pod_port == 0 {
        return Err("containerPort is missing: use 1 to 65535".to_owned());
    }
    let protocol = match text("protocol")? {
        "" => PortProtocol::Tcp,
        name => PortProtocol::from_name(name)
            .ok_or_else(|| format!("protocol {name:?} has no host ports: use tcp, udp or sctp"))?,
    };
    let address = match text("hostIP")? {
        "" => None,
        text => Some(
            text.parse::<IpAddr>()
                .map_err(|_| format!("hostIP {text:?} is no address: give one of the node, or none for all"))?
                .to_canonical(),
        ),
    };
    Ok(Some(Item { address, protocol, port: host_port, pod_port }))
}

/// The entries for a pod that has these addresses.
///
/// # Errors
///
/// [`Code::InvalidConfig`] for the port of the tunnel, because its packets would go to the pod, and for one of a family that
/// the pod has no address of.
pub(super) fn entries(
    wanted: &Wanted,
    pod: &ByFamily<IpAddr>,
    owner: Owner,
    node: &Node,
) -> Result<Vec<Entry>, Failure> {
    let refused = |port: &HostPort, what: &str| {
        Failure::new(Code::InvalidConfig, format!("{PLACE}: host port {port} {what}"))
    };
    let mut entries = Vec::new();
    for (port, target) in wanted {
        if port.protocol == PortProtocol::Udp as u8 && port.port == node.tunnel_port {
            return Err(refused(port, "is the tunnel's: choose another one"));
        }
        let family = port.addr.to_ip().family();
        let Some(address) = pod.get(family).copied() else {
            if target.optional {
                continue;
            }
            let what = format!(
                "is asked for in {family}, which pods of this node do not have: give a hostIP of the other family, or none"
            );
            return Err(refused(port, &what));
        };
        entries.push((
            *port,
            HostPortTarget { pod: Addr::from(address), port: target.number, reserved: 0, owner },
        ));
    }
    Ok(entries)
}

/// Takes them all, or none; tells whether there is one, which another interface of the container may have already.
///
/// # Errors
///
/// [`Code::PortTaken`] with the holder; others as a failed step.
pub(super) fn take(pins: &Pins, entries: &[Entry]) -> Result<bool, Failure> {
    if entries.is_empty() {
        return Ok(false);
    }
    let taken = HostPorts::lock(pins).and_then(|mut ports| ports.take(pins, entries));
    taken.map(|taken| taken > 0).map_err(|error| {
        let failure = Failure::step("take the host ports", &error);
        match error {
            PortsError::Taken { .. } => Failure::new(Code::PortTaken, error.to_string()),
            // Of a build without host ports, whose agent still runs.
            PortsError::Map(DatapathError::NotPinned { .. }) => {
                Failure { code: Code::TryAgainLater, ..failure }
            }
            _ => failure,
        }
    })
}

/// Gives back what an owner holds; nothing is fine, and costs no lock.
pub(super) fn give_back(pins: &Pins, owner: &Owner) -> Result<(), PortsError> {
    if ports::held_by(pins, owner)?.is_empty() {
        return Ok(());
    }
    HostPorts::lock(pins)?.release(owner)
}

#[cfg(test)]
mod tests;
