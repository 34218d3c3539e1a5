//! `overlay ports`: the ports of this node that lead to pods, and who holds them, as `HOST_PORTS` has it.

use std::net::{IpAddr, SocketAddr};

use overlay_common::maps::PortProtocol;
use serde::Serialize;

use super::output::{Cell, OutputArgs, Row, print_list};
use crate::{
    cni::owner_text,
    datapath::{DatapathError, pins::Pins, tables::HostPorts},
};

/// An entry of `HOST_PORTS`.
#[derive(Debug, Serialize)]
pub(super) struct PortRow {
    /// Unspecified: every address of the node.
    address: IpAddr,
    port: u16,
    /// `null` where a newer version has written it.
    protocol: Option<&'static str>,
    pod: IpAddr,
    pod_port: u16,
    container: String,
    ifname: String,
    #[serde(skip)]
    text: String,
}

impl Row for PortRow {
    const COLUMNS: &'static [&'static str] = &["PORT", "POD", "CONTAINER", "INTERFACE"];

    fn cells(&self) -> Vec<Cell> {
        let pod = SocketAddr::new(self.pod, self.pod_port).to_string();
        vec![(&self.text).into(), pod.into(), Cell::id(&self.container), (&self.ifname).into()]
    }
}

/// All entries, by port.
pub(super) fn list(pins: &Pins) -> Result<Vec<PortRow>, DatapathError> {
    let mut entries = HostPorts::open(pins)?.entries()?;
    entries.sort_by_key(|(key, _)| (key.port, key.protocol, key.addr));
    let rows = entries.iter().map(|(key, target)| {
        let (container, ifname) = owner_text(&target.owner);
        PortRow {
            address: key.addr.to_ip(),
            port: key.port,
            protocol: PortProtocol::from_number(key.protocol).map(PortProtocol::name),
            pod: target.pod.to_ip(),
            pod_port: target.port,
            container,
            ifname,
            text: key.to_string(),
        }
    });
    Ok(rows.collect())
}

/// Prints them.
pub(super) fn run(pins: &Pins, args: OutputArgs) -> anyhow::Result<()> {
    print_list(args, &list(pins)?)
}
