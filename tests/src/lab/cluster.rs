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
//! The addresses are those of RFC 5737, which no real network has. Neither the router nor the world has a route
//! to the pods.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::{
    AgentOptions, Build, ClusterFile, Docker, Lab, Lan, Link, Namespace, Network, Node, NodeEntry, Pod,
};

const LAN_A: [u8; 4] = [192, 0, 2, 0];
const LAN_B: [u8; 4] = [192, 0, 2, 64];
const LAN_PREFIX: u8 = 26;
const WORLD: [u8; 4] = [198, 51, 100, 0];
const WORLD_PREFIX: u8 = 24;

/// Host number of the router in each of its networks.
const ROUTER_HOST: u8 = 1;

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
    address: Ipv4Addr,
}

impl World {
    /// Its namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }
}

/// What can be different in the default cluster; [`Cluster::builder`].
#[derive(Debug, Clone, Default)]
pub struct ClusterBuilder {
    link: Link,
    docker: Docker,
    network: Network,
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

    /// The `[network]` table of the cluster file.
    #[must_use]
    pub fn network(mut self, network: Network) -> Self {
        self.network = network;
        self
    }

    /// Builds the underlay and writes the cluster file; no agent runs yet.
    #[track_caller]
    pub fn build(self) -> Cluster {
        let lab = Lab::new();
        let lan_a = Lan::new(&lab, "lan-a", self.link);
        let lan_b = Lan::new(&lab, "lan-b", self.link);

        let router = lab.router("router");
        lan_a.attach(&router, "lan-a");
        lan_b.attach(&router, "lan-b");
        router.ip(&format!("addr add {} dev lan-a", host(LAN_A, ROUTER_HOST, LAN_PREFIX)));
        router.ip(&format!("addr add {} dev lan-b", host(LAN_B, ROUTER_HOST, LAN_PREFIX)));

        let world = lab.namespace("world");
        self.link.connect(&world, "eth0", &router, "world");
        let gateway = host(WORLD, ROUTER_HOST, WORLD_PREFIX);
        router.ip(&format!("addr add {gateway} dev world"));
        let world = World { namespace: world, address: host(WORLD, 10, WORLD_PREFIX).addr() };
        world.namespace.ip(&format!("addr add {}/{WORLD_PREFIX} dev eth0", world.address));
        // To the nodes only: a packet that leaves with a pod's address never gets an answer.
        for lan in [LAN_A, LAN_B] {
            let net = host(lan, 0, LAN_PREFIX);
            world.namespace.ip(&format!("route add {net} via {}", gateway.addr()));
        }

        let mut nodes = Vec::new();
        let plan = [("cp", &lan_a, LAN_A, 11), ("w1", &lan_a, LAN_A, 12), ("w2", &lan_b, LAN_B, 11)];
        for (index, (name, lan, net, number)) in (0..).zip(plan) {
            let [a, b, ..] = self.network.cidr.addr().octets();
            let subnet = Ipv4Net::new_assert(Ipv4Addr::new(a, b, index, 0), 24);
            let node = Node::builder(name, host(net, number, LAN_PREFIX), subnet)
                .gateway(host(net, ROUTER_HOST, LAN_PREFIX).addr())
                .docker(self.docker)
                .build(self.first);
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

/// Host `number` of a network, with the prefix length.
fn host(net: [u8; 4], number: u8, prefix: u8) -> Ipv4Net {
    let [a, b, c, d] = net;
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d + number), prefix)
}
