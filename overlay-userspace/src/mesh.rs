//! The health mesh: how well nodes reach each other through the tunnel.
//!
//! A probe is a UDP datagram from the gateway address of one node to that of another, so it takes the way that packets of
//! the nodes and of the stack take: encapsulated by the programs, through the underlay, up to the peer's agent and back.
//!
//! - [`packet`]: the datagrams
//! - `socket`: how they are sent and received
//! - [`ask`]: one probe, for the command line
//! - `table`, `latency`: what the agent knows of its peers, and whom it asks next
//!
//! The agent's part, asking and answering, is `agent::mesh`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;
use overlay_common::maps::{Addr, NODE_HOST, NODE_SELF, Node};

use crate::cluster::gateway;

pub mod ask;
pub(crate) mod latency;
pub mod packet;
pub(crate) mod socket;
pub(crate) mod table;

pub use ask::{Answered, ProbeError, probe, row};
pub use packet::{Entry, State};

/// The UDP port of the mesh, where `agent.mesh.port` says nothing else.
pub const PORT: u16 = 8473;

/// The peers that the map of nodes knows: tunnel address and gateway address of each, by tunnel address.
pub fn peers(nodes: &[(Addr, Node)]) -> BTreeMap<Ipv4Addr, Ipv4Addr> {
    let subnets = nodes.iter().filter(|(_, node)| node.flags & (NODE_HOST | NODE_SELF) == 0);
    subnets
        .filter_map(|(key, node)| {
            // One entry for each unit of the subnet: all have the same gateway.
            let subnet = IpNet::new(key.to_ip(), node.prefix_len).ok()?.trunc();
            match (node.vtep.to_ip(), gateway(subnet)) {
                (IpAddr::V4(vtep), IpAddr::V4(gateway)) => Some((vtep, gateway)),
                _ => None,
            }
        })
        .collect()
}
