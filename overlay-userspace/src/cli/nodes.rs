//! `overlay nodes`: where each node subnet and node address is reached, as `NODES` has it.

use std::{collections::HashMap, net::IpAddr};

use overlay_common::maps::{NODE_HOST, NODE_SELF};
use serde::Serialize;

use super::output::{Cell, OutputArgs, Row, mac, print_list};
use crate::datapath::{
    DatapathError,
    pins::Pins,
    tables::{NodeNames, Nodes},
};

/// An entry of `NODES`.
#[derive(Debug, Serialize)]
pub(super) struct NodeRow {
    /// Of a subnet that is larger than the longest prefix in use: that of the part.
    address: IpAddr,
    prefix_len: u8,
    /// The node's name; `null` while it is known by its address alone.
    name: Option<String>,
    vtep: IpAddr,
    vtep_mac: String,
    #[serde(rename = "self")]
    own: bool,
    host: bool,
}

impl Row for NodeRow {
    const COLUMNS: &'static [&'static str] = &["ADDRESS", "NODE", "VTEP", "VTEP MAC", "OF"];

    fn cells(&self) -> Vec<Cell> {
        let what = if self.host { "node" } else { "pods" };
        let own = if self.own { ", this node" } else { "" };
        let address = format!("{}/{}", self.address, self.prefix_len);
        let name = self.name.as_deref().unwrap_or("-");
        vec![
            address.into(),
            name.into(),
            self.vtep.into(),
            (&self.vtep_mac).into(),
            format!("{what}{own}").into(),
        ]
    }
}

/// All entries, by address.
pub(super) fn list(pins: &Pins) -> Result<Vec<NodeRow>, DatapathError> {
    let mut entries = Nodes::open(pins)?.entries()?;
    entries.sort_by_key(|(key, _)| *key);
    let names: HashMap<_, _> = NodeNames::all(pins)?.into_iter().collect();
    let row = |(key, node): &(overlay_common::maps::Addr, overlay_common::maps::Node)| NodeRow {
        address: key.to_ip(),
        prefix_len: node.prefix_len,
        name: names.get(&node.vtep).map(|name| name.as_str().to_owned()),
        vtep: node.vtep.to_ip(),
        vtep_mac: mac(node.vtep_mac),
        own: node.flags & NODE_SELF != 0,
        host: node.flags & NODE_HOST != 0,
    };
    Ok(entries.iter().map(row).collect())
}

/// Prints them.
pub(super) fn run(pins: &Pins, args: OutputArgs) -> anyhow::Result<()> {
    print_list(args, &list(pins)?)
}
