//! Host ports that a call asks for: the capability `portMappings` of `runtimeConfig`.
//!
//! Reading is pure, and total. Taking them and giving them back is [`crate::ports`]'s work, in the order that ADD, DEL and
//! GC need. Called by these, and by CHECK.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use overlay_common::maps::{Addr, HostPort, HostPortTarget, Owner, PortProtocol};
use serde_json::Value;

use super::{
    failure::{Code, Failure},
    local::Node,
};
use crate::{
    datapath::{DatapathError, pins::Pins},
    ports::{self, Entry, HostPorts, PortsError},
};

/// Where a runtime puts them.
const PLACE: &str = "runtimeConfig.portMappings";

/// The ports that are asked for, each with the pod's own port.
pub(super) type Wanted = BTreeMap<HostPort, u16>;

/// What a mapping says, before it is known whether it is for us.
struct Item {
    address: IpAddr,
    protocol: PortProtocol,
    port: u16,
    pod_port: u16,
}

/// Reads the list.
///
/// A host port of 0 asks for none. A mapping to an IPv6 address is ignored where the list has the same port for IPv4 as
/// well: runtimes that know no better write both.
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
    let (mut wanted, mut sixes) = (Wanted::new(), Vec::new());
    for value in items {
        let Some(item) = item(value).map_err(|what| invalid(format!("{value}: {what}")))? else { continue };
        let Item { address, protocol, port, pod_port } = item;
        let IpAddr::V4(address) = address else {
            sixes.push((value, protocol, port));
            continue;
        };
        let key = HostPort { addr: address.into(), port, protocol: protocol as u8, reserved: 0 };
        if let Some(other) = wanted.insert(key, pod_port)
            && other != pod_port
        {
            return Err(invalid(format!("{key} cannot lead to both {other} and {pod_port}: leave one out")));
        }
    }
    for (value, protocol, port) in sixes {
        if !wanted.keys().any(|key| key.port == port && key.protocol == protocol as u8) {
            return Err(invalid(format!(
                "{value}: this version of overlay carries IPv4 only: give an IPv4 address as hostIP, or none"
            )));
        }
    }
    Ok(wanted)
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
        "" => Ipv4Addr::UNSPECIFIED.into(),
        text => text
            .parse::<IpAddr>()
            .map_err(|_| format!("hostIP {text:?} is no address: give one of the node, or none for all"))?
            .to_canonical(),
    };
    Ok(Some(Item { address, protocol, port: host_port, pod_port }))
}

/// The entries for a pod.
///
/// # Errors
///
/// [`Code::InvalidConfig`] for the port of the tunnel: its packets would go to the pod.
pub(super) fn entries(
    wanted: &Wanted,
    pod: Ipv4Addr,
    owner: Owner,
    node: &Node,
) -> Result<Vec<Entry>, Failure> {
    let entry = |(port, pod_port): (&HostPort, &u16)| {
        if port.protocol == PortProtocol::Udp as u8 && port.port == node.tunnel_port {
            return Err(Failure::new(
                Code::InvalidConfig,
                format!("{PLACE}: host port {port} is the tunnel's: choose another one"),
            ));
        }
        Ok((*port, HostPortTarget { pod: Addr::from(pod), port: *pod_port, reserved: 0, owner }))
    };
    wanted.iter().map(entry).collect()
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
