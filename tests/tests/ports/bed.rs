//! The cluster, and what all tests ask of it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use overlay_tests::lab::{Cluster, Namespace, Node, Pod, exec};
use overlay_tests::traffic::{Seen, tcp, udp};
use overlay_userspace::family::{Family, OfFamily as _};
use serde_json::{Value, json};

/// How long an agent may take to put something right; it looks at everything every five seconds.
pub(crate) const HEALED: Duration = Duration::from_secs(20);

/// The port of the pods behind each host port here.
pub(crate) const POD_PORT: u16 = 80;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    pub(crate) const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "UDP",
        }
    }

    /// An exchange of `client` with the server in `pod`, which the client calls `address` and `port`.
    pub(crate) fn exchange(self, client: &Namespace, pod: &Pod, address: IpAddr, port: u16) -> Result<Seen> {
        let listen = SocketAddr::new(pod.addr_of(address.family()), POD_PORT);
        let dial = SocketAddr::new(address, port);
        match self {
            Self::Tcp => tcp::exchange_through(client, pod.namespace(), listen, dial),
            Self::Udp => udp::exchange_through(client, pod.namespace(), listen, dial),
        }
    }
}

/// A mapping to [`POD_PORT`].
pub(crate) fn mapping(protocol: Protocol, host_port: u16) -> Value {
    json!({"hostPort": host_port, "containerPort": POD_PORT, "protocol": protocol.name()})
}

/// Both protocols at one port.
pub(crate) fn both(host_port: u16) -> Value {
    json!(Protocol::ALL.map(|protocol| mapping(protocol, host_port)))
}

/// A pod of `w1` with this port for both protocols.
#[track_caller]
pub(crate) fn server(cluster: &Cluster, name: &str, host_port: u16) -> Pod {
    cluster.node("w1").add_pod_with_ports(cluster.lab(), name, &both(host_port))
}

/// Whether the node's packet filter has the table that host ports of a family need.
#[track_caller]
pub(crate) fn has_table(node: &Node, family: Family) -> bool {
    let mut nft = node.namespace().command("nft");
    let table = format!("table {} overlay-ports", family.nft());
    exec::must(nft.args(["list", "tables"]), "").lines().any(|line| line == table)
}

/// The ports that are held on a node.
#[track_caller]
pub(crate) fn held(node: &Node) -> usize {
    node.show("ports").as_array().expect("a list of ports").len()
}

/// The port can be had from outside, in each family of the pod.
#[track_caller]
pub(crate) fn expect_served(cluster: &Cluster, pod: &Pod, host_port: u16) {
    let (world, node) = (cluster.world(), cluster.node("w1"));
    for (family, _) in pod.addrs().iter() {
        for protocol in Protocol::ALL {
            let seen = protocol.exchange(world.namespace(), pod, node.address_of(family), host_port);
            let seen = seen.unwrap_or_else(|error| panic!("{protocol:?} by {family}: {error:#}"));
            assert_eq!(seen.server_saw.ip(), world.address_of(family), "{protocol:?}");
        }
    }
}
