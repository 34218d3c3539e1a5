//! The default cluster: one control-plane node and two workers, the second in another subnet behind a router,
//! and an outside world behind the same router.
//!
//! ```text
//!  cp 192.0.2.11  w1 192.0.2.12          w2 192.0.2.75       world 198.51.100.10
//!        └──── LAN A ──┴──── .1 router .65 ────┘ LAN B          │
//!              192.0.2.0/26    │       192.0.2.64/26            │
//!                              └ .1 ──── 198.51.100.0/24 ───────┘
//! ```
//!
//! With IPv6 on the underlay, LAN A is 2001:db8:a::/64, LAN B 2001:db8:b::/64 and the world's network 2001:db8:f::/64, with the
//! router at ::1 everywhere, `cp` and `w2` at ::11, `w1` at ::12, the world at ::10.
//!
//! The addresses are those of RFC 5737 and RFC 3849, which no real network has. Neither the router nor the world has a route
//! to the pods.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use overlay_userspace::family::{ByFamily, Family, OfFamily as _};

use super::families::{self, host};
use super::{
    AgentOptions, Build, CIDR_V4, CIDR_V6, ClusterFile, Docker, Families, Lab, Lan, Link, Listed, Namespace,
    Network, Node, NodeEntry, Pod,
};

/// The network of one wire of the underlay, in both families.
#[derive(Debug, Clone, Copy)]
struct Wire {
    v4: Ipv4Net,
    v6: Ipv6Net,
}

impl Wire {
    const fn new(v4: [u8; 4], prefix: u8, v6: u16) -> Self {
        let [a, b, c, d] = v4;
        Self {
            v4: Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix),
            v6: Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, v6, 0, 0, 0, 0, 0), 64),
        }
    }

    fn net(self, family: Family) -> IpNet {
        match family {
            Family::Ipv4 => self.v4.into(),
            Family::Ipv6 => self.v6.into(),
        }
    }

    /// The address of host `number`, written alike in both families, with the prefix length.
    #[track_caller]
    fn host(self, family: Family, number: u32) -> IpNet {
        let net = self.net(family);
        let number = match family {
            Family::Ipv4 => number,
            Family::Ipv6 => number / 10 * 16 + number % 10,
        };
        IpNet::new(host(net, number), net.prefix_len()).expect("the prefix length is that of a network")
    }
}

const LAN_A: Wire = Wire::new([192, 0, 2, 0], 26, 0xa);
const LAN_B: Wire = Wire::new([192, 0, 2, 64], 26, 0xb);
const WORLD: Wire = Wire::new([198, 51, 100, 0], 24, 0xf);

/// Host number of the router in each of its networks.
const ROUTER_HOST: u32 = 1;

/// Host number of the world.
const WORLD_HOST: u32 = 10;

/// The running default cluster.
///
/// Fields drop in order: agents first, then namespaces, the lab last.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    network: Network,
    lan_a: Lan,
    lan_b: Lan,
    router: Namespace,
    world: World,
    lab: Lab,
}

/// A host that is no part of the cluster and has no route to its pods.
#[derive(Debug)]
pub struct World {
    namespace: Namespace,
    addresses: ByFamily<IpAddr>,
}

impl World {
    /// Its namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its addresses, of the underlay's families.
    pub fn addresses(&self) -> ByFamily<IpAddr> {
        self.addresses
    }

    /// Its address of this family, which the underlay must have.
    #[track_caller]
    pub fn address_of(&self, family: Family) -> IpAddr {
        *self.addresses.get(family).unwrap_or_else(|| panic!("the world has no {family} address"))
    }

    /// Its IPv4 address, which the underlay must have.
    #[track_caller]
    pub fn address(&self) -> Ipv4Addr {
        let IpAddr::V4(address) = self.address_of(Family::Ipv4) else { unreachable!("an IPv4 address") };
        address
    }
}

/// What can be different in the default cluster; [`Cluster::builder`].
#[derive(Debug, Clone, Default)]
pub struct ClusterBuilder {
    link: Link,
    docker: Docker,
    network: Network,
    families: Families,
    underlay: Option<Families>,
    primary: Option<Family>,
    others: Vec<(String, Families, Families)>,
    first: Build,
}

impl ClusterBuilder {
    /// Which build the nodes are of at first.
    #[must_use]
    pub fn first(mut self, build: Build) -> Self {
        self.first = build;
        self
    }

    /// Wire mode and MTU of every link of the underlay.
    #[must_use]
    pub fn link(mut self, link: Link) -> Self {
        self.link = link;
        self
    }

    /// What Docker left on every node.
    #[must_use]
    pub fn docker(mut self, docker: Docker) -> Self {
        self.docker = docker;
        self
    }

    /// The `[network]` table of the cluster file. A cluster CIDR of a family that the cluster has and the table has not is
    /// added, one of a family that the cluster has not is left out.
    #[must_use]
    pub fn network(mut self, network: Network) -> Self {
        self.network = network;
        self
    }

    /// The families of the pods, and of the underlay unless [`ClusterBuilder::underlay`] says otherwise. IPv4 if not said.
    #[must_use]
    pub fn families(mut self, families: Families) -> Self {
        self.families = families;
        self
    }

    /// The families of the underlay: of nodes, router and world.
    #[must_use]
    pub fn underlay(mut self, families: Families) -> Self {
        self.underlay = Some(families);
        self
    }

    /// The family that comes first in every list of the file; IPv4, if there is IPv4, unless said.
    #[must_use]
    pub fn primary(mut self, family: Family) -> Self {
        self.primary = Some(family);
        self
    }

    /// Makes node `name` different: `pods` are the families of its pods, `underlay` those of its addresses.
    #[must_use]
    pub fn mixed(mut self, name: &str, pods: Families, underlay: Families) -> Self {
        self.others.push((name.to_owned(), pods, underlay));
        self
    }

    /// The cluster CIDRs.
    fn cidrs(&self) -> ByFamily<IpNet> {
        self.families.map(|family| {
            self.network.cidr.of(family).unwrap_or(match family {
                Family::Ipv4 => CIDR_V4.into(),
                Family::Ipv6 => CIDR_V6.into(),
            })
        })
    }

    /// Builds the underlay and writes the cluster file; no agent runs yet.
    #[track_caller]
    pub fn build(mut self) -> Cluster {
        let lab = Lab::new();
        let lan_a = Lan::new(&lab, "lan-a", self.link);
        let lan_b = Lan::new(&lab, "lan-b", self.link);
        let underlay = self.underlay.unwrap_or(self.families);
        let cidrs = self.cidrs();
        let primary = self.primary.unwrap_or(self.network.cidr.all()[0].family());
        self.network.cidr = Listed::ordered(&cidrs, primary);

        let router = lab.router("router");
        lan_a.attach(&router, "lan-a");
        lan_b.attach(&router, "lan-b");
        let world = lab.namespace("world");
        self.link.connect(&world, "eth0", &router, "world");
        for (device, wire) in [("lan-a", LAN_A), ("lan-b", LAN_B), ("world", WORLD)] {
            for family in underlay.iter() {
                add_address(&router, device, wire.host(family, ROUTER_HOST));
            }
        }
        for family in underlay.iter() {
            add_address(&world, "eth0", WORLD.host(family, WORLD_HOST));
            // To the nodes only: a packet that leaves with a pod's address never gets an answer.
            for lan in [LAN_A, LAN_B] {
                let (net, router) = (lan.net(family), WORLD.host(family, ROUTER_HOST).addr());
                world.ip(&format!("{} route add {net} via {router}", families::option(family)));
            }
        }
        let world = World {
            namespace: world,
            addresses: underlay.map(|family| WORLD.host(family, WORLD_HOST).addr()),
        };

        let mut nodes = Vec::new();
        let plan = [("cp", &lan_a, LAN_A, 11), ("w1", &lan_a, LAN_A, 12), ("w2", &lan_b, LAN_B, 11)];
        for (index, (name, lan, wire, number)) in (0..).zip(plan) {
            let other = self.others.iter().find(|(other, ..)| other == name);
            let (pods, underlay) =
                other.map_or((self.families, underlay), |(_, pods, underlay)| (*pods, *underlay));
            let address = underlay.map(|family| wire.host(family, number));
            let subnets = pods.map(|family| subnet(cidrs.get(family).copied(), index));
            let node = Node::builder_of(name, address, subnets)
                .primary(primary)
                .docker(self.docker)
                .build(self.first);
            let node = underlay
                .iter()
                .fold(node, |node, family| node.gateway(wire.host(family, ROUTER_HOST).addr()));
            nodes.push(node.on_lan(&lab, lan));
        }

        let cluster = Cluster { nodes, network: self.network, lan_a, lan_b, router, world, lab };
        cluster.write_nodes(&cluster.entries());
        cluster
    }

    /// Builds the cluster and starts an agent on every node; returns when all are ready.
    #[track_caller]
    pub fn start(self) -> Cluster {
        let cluster = self.build();
        cluster.start_agents();
        cluster
    }
}

/// The subnet of node `index`: the third byte of an IPv4 address, the fourth group of an IPv6 address.
#[track_caller]
fn subnet(cidr: Option<IpNet>, index: u8) -> IpNet {
    match cidr.expect("a node's families are among the cluster's") {
        IpNet::V4(cidr) => {
            let [a, b, ..] = cidr.addr().octets();
            Ipv4Net::new_assert(Ipv4Addr::new(a, b, index, 0), 24).into()
        }
        IpNet::V6(cidr) => {
            let [a, b, c, d, ..] = cidr.addr().segments();
            Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d + u16::from(index), 0, 0, 0, 0), 64).into()
        }
    }
}

/// Adds an address that is usable at once.
#[track_caller]
fn add_address(namespace: &Namespace, device: &str, address: IpNet) {
    let nodad = if address.addr().is_ipv6() { " nodad" } else { "" };
    namespace.ip(&format!("addr add {address} dev {device}{nodad}"));
}

impl Cluster {
    /// The default cluster, to be changed before it is built.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder::default()
    }

    /// Starts the agents that do not run; returns when all are ready.
    #[track_caller]
    pub fn start_agents(&self) {
        self.start_agents_with(|_| AgentOptions::default());
    }

    /// As [`Cluster::start_agents`], with options for each.
    #[track_caller]
    pub fn start_agents_with(&self, options: impl Fn(&Node) -> AgentOptions) {
        for node in &self.nodes {
            if node.agent_pid().is_none() {
                node.spawn_agent(&options(node));
            }
        }
        for node in &self.nodes {
            node.wait_agent_ready();
        }
    }

    /// The nodes: `cp`, `w1`, `w2`.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of this name.
    #[track_caller]
    pub fn node(&self, name: &str) -> &Node {
        self.nodes.iter().find(|node| node.name() == name).unwrap_or_else(|| panic!("no node {name}"))
    }

    /// Adds a pod on a node; it must succeed. `cluster.add_pod("w1", "a")`
    #[track_caller]
    pub fn add_pod(&self, node: &str, name: &str) -> Pod {
        self.node(node).add_pod(&self.lab, name)
    }

    /// The rows of all nodes for the cluster file.
    pub fn entries(&self) -> Vec<NodeEntry> {
        self.nodes.iter().map(Node::entry).collect()
    }

    /// Replaces the nodes in the cluster file, atomically.
    #[track_caller]
    pub fn write_nodes(&self, nodes: &[NodeEntry]) {
        self.lab.write_cluster(&ClusterFile { network: self.network.clone(), nodes: nodes.to_vec() });
    }

    /// The `[network]` table of the cluster file.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The LAN of `cp` and `w1`.
    pub fn lan_a(&self) -> &Lan {
        &self.lan_a
    }

    /// The LAN of `w2`.
    pub fn lan_b(&self) -> &Lan {
        &self.lan_b
    }

    /// The router between the LANs and the world; its devices are `lan-a`, `lan-b` and `world`.
    pub fn router(&self) -> &Namespace {
        &self.router
    }

    /// The outside world.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The lab that holds it all.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }
}
