//! The health mesh: how well nodes reach each other through the tunnel.
//!
//! A probe is a UDP datagram from the gateway address of one node to that of another, so it takes the way that packets of
//! the nodes and of the stack take: encapsulated by the programs, through the underlay, up to the peer's agent and back.
//! Of two families it goes by the primary one, where both nodes have subnets of it.
//!
//! - [`packet`]: the datagrams
//! - `socket`: how they are sent and received
//! - [`ask`]: one probe, for the command line
//! - `table`, `latency`: what the agent knows of its peers, and whom it asks next
//!
//! The agent's part, asking and answering, is `agent::mesh`.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use overlay_common::maps::{Addr, NODE_HOST, NODE_SELF, Node};

use crate::{
    cluster::gateway,
    family::{Family, OfFamily as _},
};

pub mod ask;
pub(crate) mod latency;
pub mod packet;
pub(crate) mod socket;
pub(crate) mod table;

pub use ask::{Answered, ProbeError, probe, row};
pub use packet::{Entry, State};

/// The UDP port of the mesh, where `agent.mesh.port` says nothing else.
pub const PORT: u16 = 8473;

/// The peers that the map of nodes knows: tunnel address and gateway address of each, by tunnel address. Where there are
/// gateways of both families, those of the first in `order`.
pub fn peers(nodes: &[(Addr, Node)], order: [Family; 2]) -> BTreeMap<IpAddr, IpAddr> {
    let subnets = nodes.iter().filter(|(_, node)| node.flags & (NODE_HOST | NODE_SELF) == 0);
    let mut peers: BTreeMap<IpAddr, IpAddr> = BTreeMap::new();
    for (key, node) in subnets {
        // One entry for each unit of the subnet: all have the same gateway.
        let Ok(subnet) = IpNet::new(key.to_ip(), node.prefix_len) else { continue };
        let of_peer = gateway(subnet.trunc());
        let known = peers.entry(node.vtep.to_ip()).or_insert(of_peer);
        if of_peer.family() == order[0] {
            *known = of_peer;
        }
    }
    peers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_the_gateway_of_the_primary_family_where_it_has_one() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let entry = |key: &str, prefix_len, vtep: &str, flags| {
            let node = Node { vtep: ip(vtep).into(), vtep_mac: [2; 6], prefix_len, flags, neigh_epoch: 0 };
            (Addr::from(ip(key)), node)
        };
        let nodes = [
            entry("fd00:2::", 64, "192.0.2.2", 0),
            entry("10.244.2.0", 24, "192.0.2.2", 0),
            entry("10.244.3.128", 24, "2001:db8::3", 0),
            entry("192.0.2.2", 32, "192.0.2.2", NODE_HOST),
            entry("10.244.1.0", 24, "192.0.2.1", NODE_SELF),
        ];
        let with = |order: [Family; 2]| peers(&nodes, order).into_iter().collect::<Vec<_>>();
        let third = (ip("2001:db8::3"), ip("10.244.3.1"));
        assert_eq!(with([Family::Ipv4, Family::Ipv6]), [(ip("192.0.2.2"), ip("10.244.2.1")), third]);
        assert_eq!(with([Family::Ipv6, Family::Ipv4]), [(ip("192.0.2.2"), ip("fd00:2::1")), third]);
    }
}
