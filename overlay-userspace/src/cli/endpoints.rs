//! `overlay endpoints`: the pods of this node and who holds which address, as `ENDPOINTS` has it.

use std::{collections::HashMap, net::IpAddr};

use overlay_common::maps::PodName;
use serde::Serialize;

use super::output::{Cell, OutputArgs, Row, mac, print_list};
use crate::{
    cni::{device_name, owner_text},
    datapath::{
        DatapathError,
        pins::Pins,
        tables::{Endpoints, PodNames},
    },
};

/// An entry of `ENDPOINTS`.
#[derive(Debug, Serialize)]
pub(super) struct EndpointRow {
    address: IpAddr,
    /// Of the host side device; 0 until the pod is complete.
    ifindex: u32,
    /// What the plugin calls that device.
    device: String,
    /// Kubernetes' name of the pod, where the runtime has told it.
    namespace: Option<String>,
    pod: Option<String>,
    mac: String,
    gateway_mac: String,
    container: String,
    ifname: String,
    ready: bool,
}

impl Row for EndpointRow {
    const COLUMNS: &'static [&'static str] = &["ADDRESS", "POD", "IFINDEX", "MAC", "CONTAINER", "INTERFACE"];
    const WIDE: &'static [&'static str] = &["DEVICE", "GATEWAY MAC", "STATE"];

    fn cells(&self) -> Vec<Cell> {
        let container = Cell::id(&self.container);
        let pod = match (&self.namespace, &self.pod) {
            (Some(namespace), Some(pod)) => format!("{namespace}/{pod}"),
            _ => "-".to_owned(),
        };
        vec![
            self.address.into(),
            pod.into(),
            self.ifindex.into(),
            (&self.mac).into(),
            container,
            (&self.ifname).into(),
        ]
    }

    fn wide_cells(&self) -> Vec<Cell> {
        let state = if self.ready { Cell::good("ready") } else { Cell::bad("incomplete") };
        vec![(&self.device).into(), (&self.gateway_mac).into(), state]
    }
}

/// All entries, by address.
pub(super) fn list(pins: &Pins) -> Result<Vec<EndpointRow>, DatapathError> {
    let mut entries = Endpoints::open(pins)?.entries()?;
    entries.sort_by_key(|(key, _)| *key);
    let mut names: HashMap<_, _> = PodNames::all(pins)?.into_iter().collect();
    let rows = entries.iter().map(|(key, endpoint)| {
        let (container, ifname) = owner_text(&endpoint.owner);
        let name = names.remove(key);
        let name = name.as_ref().map(PodName::as_strs);
        EndpointRow {
            address: key.to_ip(),
            ifindex: endpoint.ifindex,
            device: device_name(&endpoint.owner),
            namespace: name.map(|(namespace, _)| namespace.to_owned()),
            pod: name.map(|(_, pod)| pod.to_owned()),
            mac: mac(endpoint.mac),
            gateway_mac: mac(endpoint.gateway_mac),
            container,
            ifname,
            ready: endpoint.ifindex != 0,
        }
    });
    Ok(rows.collect())
}

/// Prints them.
pub(super) fn run(pins: &Pins, args: OutputArgs) -> anyhow::Result<()> {
    print_list(args, &list(pins)?)
}
