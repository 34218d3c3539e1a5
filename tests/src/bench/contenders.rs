//! The contenders: for each two nodes on a wire of their own, built with the lab, and what is needed to send through them.
//!
//! All are alive at the same time, with the same addresses in namespaces of their own, so that a round can go through all of them
//! without anything being set up in between. Nobody else speaks in them: agents are stopped once everything is in place.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use ipnet::Ipv4Net;
use overlay_tests::lab::services::{
    Backend, External, Protocol, Proxy, ProxyMode, ProxyNode, Service, ServicePort,
};
use overlay_tests::lab::{
    AgentOptions, ClusterFile, Docker, FlannelNode, FlannelWire, Lab, Link, Namespace, Network, Node, Pod,
    WireMode,
};
use serde::Serialize;

/// Who is measured. The order is that of tables and plots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Contender {
    /// Two nodes without pods: the physical limit, and what all others are divided by.
    Wire,
    /// Pods routed plainly: no tunnel, no packet filter, the full MTU.
    Routed,
    /// The same with the MTU that a tunnel leaves: what is lost by more segments alone.
    RoutedNarrow,
    /// Flannel's path: bridge, `br_netfilter`, vxlan device, conntrack, its rules and kube-proxy's.
    Flannel,
    /// The same without packet filter and conntrack.
    FlannelBare,
    /// overlay, with kube-proxy's rules on its nodes as well.
    Overlay,
}

impl Contender {
    /// All of them.
    pub(crate) const ALL: [Self; 6] =
        [Self::Wire, Self::Routed, Self::RoutedNarrow, Self::Flannel, Self::FlannelBare, Self::Overlay];

    /// For tables, plots and namespaces.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Wire => "wire",
            Self::Routed => "routed",
            Self::RoutedNarrow => "routed-1450",
            Self::Flannel => "flannel",
            Self::FlannelBare => "flannel-bare",
            Self::Overlay => "overlay",
        }
    }
}

/// From where to where.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    /// Who asks.
    pub(crate) client: Namespace,
    /// Who answers.
    pub(crate) server: Namespace,
    /// The server's address.
    pub(crate) at: Ipv4Addr,
}

/// One contender, ready to be measured.
pub(crate) struct Site {
    /// Which one.
    pub(crate) contender: Contender,
    /// Between the nodes.
    pub(crate) far: Way,
    /// Between two pods of one node; of the wire, the wire once more.
    pub(crate) near: Way,
    /// The nodes: a namespace lives as long as its handle.
    _nodes: Vec<Namespace>,
}

/// Two overlay nodes with their agents stopped.
pub(crate) struct Pair {
    /// The client's node and the server's.
    pub(crate) nodes: [Node; 2],
    /// The client's pod, the server's, and a second one on the client's node.
    pub(crate) pods: [Pod; 3],
}

/// Services that kube-proxy has rules for.
const SERVICES: u8 = 100;

const UNDERLAY: [Ipv4Net; 2] = [net([192, 0, 2, 1], 24), net([192, 0, 2, 2], 24)];
const SUBNETS: [Ipv4Net; 2] = [net([10, 244, 1, 0], 24), net([10, 244, 2, 0], 24)];
const CLUSTER: Ipv4Net = net([10, 244, 0, 0], 16);

const fn net([a, b, c, d]: [u8; 4], prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

/// The name of a wire mode, as the command line spells it.
pub(crate) const fn wire_name(mode: WireMode) -> &'static str {
    match mode {
        WireMode::Veth => "w1",
        WireMode::Nic => "w2",
    }
}

/// Builds a contender on a wire of this mode; of overlay also what its programs can be run by.
pub(crate) fn build(lab: &Lab, mode: WireMode, contender: Contender) -> Result<(Site, Option<Pair>)> {
    let name = format!("{}-{}", wire_name(mode), contender.name());
    let nodes = wire(lab, &name, mode);
    let mut pair = None;
    let (far, near) = match contender {
        Contender::Wire => {
            for (node, address) in nodes.iter().zip(UNDERLAY) {
                node.ip(&format!("addr add {address} dev {}", Node::DEVICE));
            }
            let [client, server] = nodes.clone();
            let way = Way { client, server, at: UNDERLAY[1].addr() };
            (way.clone(), way)
        }
        Contender::Routed => routed(lab, &nodes, &name, 1500),
        Contender::RoutedNarrow => routed(lab, &nodes, &name, 1450),
        Contender::Flannel => flannel(lab, &nodes, &name, true),
        Contender::FlannelBare => flannel(lab, &nodes, &name, false),
        Contender::Overlay => {
            let built = overlay(lab, &nodes, &name, Network::default(), SUBNETS)?;
            kube_proxy(lab, &nodes, &name);
            let ways = built.ways();
            pair = Some(built);
            ways
        }
    };
    for way in [&far, &near] {
        settle(&way.client);
        settle(&way.server);
    }
    Ok((Site { contender, far, near, _nodes: nodes.to_vec() }, pair))
}

/// Two namespaces with a wire between them.
pub(crate) fn wire(lab: &Lab, name: &str, mode: WireMode) -> [Namespace; 2] {
    let nodes = ["a", "b"].map(|end| lab.namespace(&format!("{name}-{end}")));
    Link::new(mode).connect(&nodes[0], Node::DEVICE, &nodes[1], Node::DEVICE);
    nodes
}

/// Sets in the namespace of a socket what this machine may have otherwise, the same for all contenders.
pub(crate) fn settle(namespace: &Namespace) {
    // Pacing by the clock, as BBR does it, would hide what a packet costs. Reno is in every kernel and allowed in every namespace;
    // on a wire that loses nothing it does what Cubic does.
    namespace.sysctl("net.ipv4.tcp_congestion_control", "reno");
    // A connection idles while the others have their turn.
    namespace.sysctl("net.ipv4.tcp_slow_start_after_idle", "0");
    // Each connection of connect/request/response leaves a port in TIME_WAIT for a minute.
    namespace.sysctl("net.ipv4.tcp_tw_reuse", "1");
    namespace.sysctl("net.ipv4.ip_local_port_range", "30000 64999");
}

fn routed(lab: &Lab, nodes: &[Namespace; 2], name: &str, mtu: u32) -> (Way, Way) {
    let mut pods = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        let (own, other) = (SUBNETS[index], 1 - index);
        let gateway = Ipv4Addr::from(u32::from(own.addr()) + 1);
        node.sysctl("net.ipv4.ip_forward", "1");
        node.ip_batch(&format!(
            "addr add {} dev {eth}\nroute add {} via {} dev {eth}\n",
            UNDERLAY[index],
            SUBNETS[other],
            UNDERLAY[other].addr(),
            eth = Node::DEVICE,
        ));
        // The second pod of the client's node is its neighbour.
        for number in 2..=u32::from(index == 0) + 2 {
            let addr = Ipv4Addr::from(u32::from(own.addr()) + number);
            let pod = lab.namespace(&format!("{name}-pod{index}{number}"));
            let veth = format!("veth{number}");
            node.ip_batch(&format!(
                "link add name {veth} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}\n\
                 addr add {gateway}/32 dev {veth}\n\
                 link set dev {veth} up\n\
                 route add {addr}/32 dev {veth}\n",
                pod.name()
            ));
            pod.ip_batch(&format!(
                "addr add {addr}/32 dev eth0\n\
                 link set dev eth0 up\n\
                 route add {gateway}/32 dev eth0\n\
                 route add default via {gateway} dev eth0\n"
            ));
            pods.push((pod, addr));
        }
    }
    let (client, neighbour, server) = (&pods[0], &pods[1], &pods[2]);
    let way = |to: &(Namespace, Ipv4Addr)| Way { client: client.0.clone(), server: to.0.clone(), at: to.1 };
    (way(server), way(neighbour))
}

fn flannel(lab: &Lab, nodes: &[Namespace; 2], name: &str, filter: bool) -> (Way, Way) {
    let mut built: Vec<FlannelNode> = (0..2)
        .map(|index| {
            let wire = FlannelWire::default();
            let node_name = format!("{name}-{index}");
            FlannelNode::in_namespace(&nodes[index], &node_name, UNDERLAY[index], SUBNETS[index], wire)
        })
        .collect();
    for index in 0..2 {
        let peer = built[1 - index].entry();
        let mac = built[1 - index].vtep_mac();
        built[index].add_peer(&peer, &mac);
        if bridge_filter().is_some() {
            // Of a namespace its own; 1 is also what the kernel begins with.
            let value = if filter { "1" } else { "0" };
            for key in ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"] {
                nodes[index].sysctl(key, value);
            }
        }
        if filter {
            built[index].masquerade(CLUSTER);
        }
    }
    if filter {
        kube_proxy(lab, nodes, name);
    }
    let client = built[0].add_pod(lab, "client");
    let neighbour = built[0].add_pod(lab, "neighbour");
    let server = built[1].add_pod(lab, "server");
    let way = |to: &overlay_tests::lab::FlannelPod| Way {
        client: client.namespace().clone(),
        server: to.namespace().clone(),
        at: to.addr(),
    };
    (way(&server), way(&neighbour))
}

/// `Some` where this kernel has `br_netfilter`, loaded or built in.
pub(crate) fn bridge_filter() -> Option<()> {
    std::path::Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists().then_some(())
}

/// kube-proxy's rules for a hundred Services of two backends each.
fn kube_proxy(lab: &Lab, nodes: &[Namespace; 2], name: &str) {
    let proxied = nodes.iter().zip(UNDERLAY).enumerate().map(|(index, (namespace, address))| ProxyNode {
        name: format!("{name}-{index}"),
        namespace: namespace.clone(),
        address: address.addr(),
    });
    let services: Vec<Service> = (0..SERVICES)
        .map(|number| Service {
            name: format!("service{number}"),
            cluster_ip: Ipv4Addr::new(10, 96, 1, number),
            ports: vec![ServicePort { protocol: Protocol::Tcp, port: 80, target: 8080, node_port: None }],
            external: External::Cluster,
            affinity: None,
            backends: (0..2)
                .map(|node: u8| Backend {
                    addr: Ipv4Addr::new(10, 244, 1 + node, 100 + number % 100),
                    node: format!("{name}-{node}"),
                })
                .collect(),
        })
        .collect();
    let api = (&nodes[0], UNDERLAY[0].addr());
    // What it writes stays when it is gone.
    Proxy::start(lab, &ProxyMode::Iptables, proxied.collect(), CLUSTER, api).apply(&services);
}

/// Two overlay nodes with three pods. The agents have done their work and are stopped.
pub(crate) fn overlay(
    lab: &Lab,
    nodes: &[Namespace; 2],
    name: &str,
    network: Network,
    subnets: [Ipv4Net; 2],
) -> Result<Pair> {
    let [a, b] = [0, 1].map(|index| {
        let node_name = format!("{name}-{}", ["a", "b"][index]);
        Node::builder(&node_name, UNDERLAY[index], subnets[index])
            .docker(Docker::Absent)
            .in_namespace(lab, &nodes[index])
    });
    // A file of its own: an agent follows changes of the one that it reads.
    let config = lab.dir().join(format!("{name}.toml"));
    let file = ClusterFile { network, nodes: vec![a.entry(), b.entry()] };
    file.write(&config).with_context(|| format!("write {}", config.display()))?;
    let options = AgentOptions { config: Some(config), ..AgentOptions::default() };
    for node in [&a, &b] {
        node.spawn_agent(&options);
    }
    for node in [&a, &b] {
        node.wait_agent_ready();
    }
    let pods = [a.add_pod(lab, "client"), b.add_pod(lab, "server"), a.add_pod(lab, "neighbour")];
    for node in [&a, &b] {
        node.stop_agent();
    }
    Ok(Pair { nodes: [a, b], pods })
}

impl Pair {
    /// To the other node's pod, and to the one on the same node.
    pub(crate) fn ways(&self) -> (Way, Way) {
        let [client, server, neighbour] = &self.pods;
        let way = |to: &Pod| Way {
            client: client.namespace().clone(),
            server: to.namespace().clone(),
            at: to.addr(),
        };
        (way(server), way(neighbour))
    }
}
