//! What the scenarios stand on: three nodes with two pods each, an outside world, perhaps a container of Docker's on every node, and the
//! Services of [`services`] on all nodes.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use overlay_tests::lab::services::{
    Backend, External, Protocol, Proxy, ProxyMode, ProxyNode, Service, ServicePort, cluster_ip,
};
use overlay_tests::lab::{
    Cluster, Docker, DockerContainer, Families, FlannelNode, FlannelWire, Namespace, Network, Node, nets,
};
use overlay_userspace::family::{ByFamily, Family};

/// The nodes: two on one LAN, the third behind the router.
pub(crate) const NODES: [&str; 3] = ["cp", "w1", "w2"];

/// How long a client stays with its backend, in the Service that has affinity.
const AFFINITY: Duration = Duration::from_hours(3);

/// Where the API server is, in the mode that has one: on the LAN of the first two nodes.
const API: [&str; 2] = ["192.0.2.30/26", "2001:db8:a::30/64"];

/// The routers of the two LANs.
const ROUTERS: [[&str; 2]; 2] = [["192.0.2.1", "2001:db8:a::1"], ["192.0.2.65", "2001:db8:b::1"]];

/// Somewhere with an address that clients and servers can be.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// For messages: `cp/a`, `world`.
    pub(crate) name: String,
    /// The node that it is on; its own name for what is on none.
    pub(crate) node: String,
    pub(crate) namespace: Namespace,
    /// The one of [`Bed::family`].
    pub(crate) addr: IpAddr,
    addrs: ByFamily<IpAddr>,
}

/// The pod network under the Services.
pub(crate) enum Ground {
    /// Overlay, with this `[network]` table.
    Overlay(Box<Network>),
    /// Flannel's data path, as a control: what fails there is not overlay's fault.
    Flannel,
}

/// Which lab.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) docker: bool,
    pub(crate) families: Families,
}

impl Kind {
    /// IPv4 alone.
    pub(crate) const PLAIN: Self = Self { docker: false, families: Families::Ipv4 };
    /// IPv4 alone, with a container of Docker's on every node.
    pub(crate) const DOCKER: Self = Self { docker: true, families: Families::Ipv4 };
}

pub(crate) struct Bed {
    /// The one under test at the moment.
    pub(crate) family: Family,
    /// That of [`Bed::family`].
    pub(crate) proxy: Proxy,
    /// That of the other family, if there is one.
    other: Option<Proxy>,
    /// Two on each node: clients are `a`, backends are `b`. Before the cluster: a pod's namespace goes first.
    pods: Vec<Place>,
    nodes: Vec<Place>,
    pub(crate) world: Place,
    /// One on each node, if Docker is there.
    pub(crate) containers: Vec<Place>,
    cluster: Cluster,
    is_overlay: bool,
    /// Connections that some scenario left open for a later one.
    pub(crate) idle: Vec<Idle>,
}

/// Both ends of a connection through a Service.
pub(crate) struct Idle {
    pub(crate) name: String,
    pub(crate) client: TcpStream,
    pub(crate) backend: TcpStream,
}

impl Bed {
    /// Builds it all, with the Services applied.
    #[track_caller]
    pub(crate) fn start(ground: Ground, mode: &ProxyMode, Kind { docker, families }: Kind) -> Self {
        let docker = if docker { Docker::Idle } else { Docker::Absent };
        let is_overlay = matches!(ground, Ground::Overlay(_));
        let network = match ground {
            Ground::Overlay(network) => *network,
            Ground::Flannel => Network::default(),
        };
        let cluster = Cluster::builder().docker(docker).network(network).families(families).build();
        let (nodes, pods) =
            if is_overlay { overlay_places(&cluster) } else { flannel_places(&cluster, docker) };
        let mut containers = Vec::new();
        if docker == Docker::Idle {
            for node in &nodes {
                let container = DockerContainer::run(cluster.lab(), &node.namespace, families);
                let name = format!("{}'s container", node.name);
                containers.push(place(&name, &node.name, container.namespace(), container.addrs()));
            }
        }
        let world = cluster.world();
        let world = place("world", "world", world.namespace(), world.addresses());
        let api = cluster.lab().namespace("api");
        cluster.lan_a().attach(&api, Node::DEVICE);
        let mut proxies = families.iter().map(|family| {
            let address = *nets(&API).get(family).expect("an address of each family");
            api.ip(&format!("addr add {address} dev {}", Node::DEVICE));
            api.ip(&format!("route add default via {}", ROUTERS[0][family.index()]));
            let proxied = nodes.iter().map(|node| ProxyNode {
                name: node.name.clone(),
                namespace: node.namespace.clone(),
                address: node.addr_of(family),
            });
            let cidr = cluster.network().cidr.expect(family);
            let mut proxy =
                Proxy::start(cluster.lab(), mode, proxied.collect(), cidr, (&api, address.addr()));
            proxy.apply(&services(family, &nodes, &pods));
            proxy
        });
        let proxy = proxies.next().expect("a lab has a family");
        let other = proxies.next();
        drop(proxies);
        let family = families.iter().next().expect("a lab has a family");
        Self { family, proxy, other, pods, nodes, world, containers, cluster, is_overlay, idle: Vec::new() }
    }

    /// From now on this family is under test.
    #[track_caller]
    pub(crate) fn turn_to(&mut self, family: Family) {
        if self.family == family {
            return;
        }
        let other = self.other.as_mut().unwrap_or_else(|| panic!("the lab has no {family}"));
        std::mem::swap(&mut self.proxy, other);
        self.family = family;
        let places = self.pods.iter_mut().chain(&mut self.nodes).chain(&mut self.containers);
        for place in places.chain([&mut self.world]) {
            place.addr = place.addr_of(family);
        }
    }

    /// The router of the node's LAN.
    pub(crate) fn router_of(&self, node: &str) -> &'static str {
        ROUTERS[usize::from(node == "w2")][self.family.index()]
    }

    /// The MTU of a pod.
    #[track_caller]
    pub(crate) fn pod_mtu(&self) -> u32 {
        let link = self.pod("cp", "a").namespace.ip_json("link show dev eth0");
        link[0]["mtu"].as_u64().and_then(|mtu| mtu.try_into().ok()).expect("a device has an MTU")
    }

    /// Pod `a` or `b` of a node.
    #[track_caller]
    pub(crate) fn pod(&self, node: &str, name: &str) -> &Place {
        let wanted = format!("{node}/{name}");
        self.pods.iter().find(|pod| pod.name == wanted).unwrap_or_else(|| panic!("no pod {wanted}"))
    }

    #[track_caller]
    pub(crate) fn node(&self, name: &str) -> &Place {
        self.nodes.iter().find(|node| node.name == name).unwrap_or_else(|| panic!("no node {name}"))
    }

    /// The overlay nodes; none on another ground.
    pub(crate) fn overlay_nodes(&self) -> &[Node] {
        if self.is_overlay { self.cluster.nodes() } else { &[] }
    }

    pub(crate) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The Services that were applied first.
    pub(crate) fn services(&self) -> Vec<Service> {
        services(self.family, &self.nodes, &self.pods)
    }

    /// The router between the LANs and the world.
    pub(crate) fn router(&self) -> &Namespace {
        self.cluster.router()
    }

    pub(crate) fn nodes(&self) -> &[Place] {
        &self.nodes
    }

    /// Everything that sends or receives.
    pub(crate) fn places(&self) -> impl Iterator<Item = &Place> {
        self.pods.iter().chain(&self.nodes).chain(&self.containers).chain([&self.world])
    }

    /// Where the backend of a Service with a single one listens.
    #[track_caller]
    pub(crate) fn backend(&self, service: &str, protocol: Protocol) -> (&Place, SocketAddr) {
        let service = self.proxy.service(service);
        let backend = &service.backends[0];
        let place = self.pods.iter().chain(&self.nodes).find(|place| place.addr == backend.addr);
        let listen = SocketAddr::new(backend.addr, service.port(protocol).target);
        (place.expect("a backend is a pod or a node"), listen)
    }

    /// The ClusterIP and port of a Service.
    #[track_caller]
    pub(crate) fn cluster_ip(&self, service: &str, protocol: Protocol) -> SocketAddr {
        self.proxy.service(service).dial(protocol)
    }

    /// The node port of a Service at a node.
    #[track_caller]
    pub(crate) fn node_port(&self, service: &str, node: &str, protocol: Protocol) -> SocketAddr {
        self.proxy.service(service).dial_node(self.node(node).addr, protocol)
    }

    /// Every address that packets may have that a node masqueraded.
    pub(crate) fn addresses_of_node(&self, name: &str) -> Vec<IpAddr> {
        let option = if self.family == Family::Ipv4 { "-4" } else { "-6" };
        let devices = self.node(name).namespace.ip_json(&format!("{option} addr show"));
        let devices = devices.as_array().expect("a list of devices").iter();
        let all = devices.flat_map(|device| device["addr_info"].as_array().expect("addresses of a device"));
        all.map(|address| address["local"].as_str().expect("an address").parse().expect("an address"))
            .collect()
    }
}

impl Place {
    /// Its address of this family.
    #[track_caller]
    fn addr_of(&self, family: Family) -> IpAddr {
        *self.addrs.get(family).unwrap_or_else(|| panic!("{} has no {family} address", self.name))
    }
}

/// A place, at first with its address of the lab's first family.
fn place(name: &str, node: &str, namespace: &Namespace, addrs: ByFamily<IpAddr>) -> Place {
    let addr = *addrs.values().next().expect("a place has an address");
    Place { name: name.to_owned(), node: node.to_owned(), namespace: namespace.clone(), addr, addrs }
}

#[track_caller]
fn overlay_places(cluster: &Cluster) -> (Vec<Place>, Vec<Place>) {
    cluster.start_agents();
    let (mut nodes, mut pods) = (Vec::new(), Vec::new());
    for node in cluster.nodes() {
        nodes.push(place(node.name(), node.name(), node.namespace(), node.addresses()));
        for name in ["a", "b"] {
            let pod = node.add_pod(cluster.lab(), name);
            let whole = format!("{}/{name}", node.name());
            pods.push(place(&whole, node.name(), pod.namespace(), pod.addrs()));
        }
    }
    (nodes, pods)
}

/// Three nodes of Flannel's beside the overlay nodes of `cluster`, on which no agent runs.
#[track_caller]
fn flannel_places(cluster: &Cluster, docker: Docker) -> (Vec<Place>, Vec<Place>) {
    let families = cluster.nodes()[0].families();
    let plan = [
        (cluster.lan_a(), ["192.0.2.21/26", "2001:db8:a::21/64"], ["10.244.11.0/24", "fd00:10:244:11::/64"]),
        (cluster.lan_a(), ["192.0.2.22/26", "2001:db8:a::22/64"], ["10.244.12.0/24", "fd00:10:244:12::/64"]),
        (cluster.lan_b(), ["192.0.2.85/26", "2001:db8:b::85/64"], ["10.244.13.0/24", "fd00:10:244:13::/64"]),
    ];
    let (mut nodes, mut pods, mut flannel) = (Vec::new(), Vec::new(), Vec::new());
    for (name, (lan, underlay, subnets)) in NODES.into_iter().zip(plan) {
        let [underlay, subnets] =
            [underlay, subnets].map(|both| families.map(|family| *nets(&both).get(family).expect("both")));
        let host = format!("flannel-{name}");
        let mut node = FlannelNode::new(cluster.lab(), lan, &host, underlay, subnets, FlannelWire::default());
        for family in families.iter() {
            let router = ROUTERS[usize::from(name == "w2")][family.index()];
            node.namespace().ip(&format!("route add default via {router}"));
        }
        docker.install(node.namespace(), families);
        for family in families.iter() {
            node.masquerade(cluster.network().cidr.expect(family));
        }
        nodes.push(place(name, name, node.namespace(), underlay.map(|_, net| net.addr())));
        for pod in ["a", "b"] {
            let made = node.add_pod(cluster.lab(), pod);
            pods.push(place(&format!("{name}/{pod}"), name, made.namespace(), made.addrs()));
        }
        flannel.push(node);
    }
    for node in &flannel {
        for peer in flannel.iter().filter(|peer| peer.entry() != node.entry()) {
            node.add_peer(&peer.entry(), &peer.vtep_macs());
        }
    }
    (nodes, pods)
}

/// The Services: for each node `<node>` and `local-<node>`, whose one backend is pod `b` there, and `host-<node>`, whose one backend is
/// the node itself; `all` and `sticky`, whose backends are all `b`; `moving`, whose backend is on `w1` at first.
fn services(family: Family, nodes: &[Place], pods: &[Place]) -> Vec<Service> {
    let backends: Vec<&Place> = pods.iter().filter(|pod| pod.name.ends_with("/b")).collect();
    let mut services = Vec::new();
    let mut add = |name: &str, external, affinity, node_ports: bool, backends: &[&Place]| {
        let number = u8::try_from(services.len() + 1).unwrap();
        let port = |protocol, port, base: u16| ServicePort {
            protocol,
            port,
            target: 8000 + base + u16::from(number),
            node_port: node_ports.then_some(30_000 + base + u16::from(number)),
        };
        services.push(Service {
            name: name.to_owned(),
            cluster_ip: cluster_ip(family, 100 + u32::from(number)),
            ports: vec![port(Protocol::Tcp, 80, 0), port(Protocol::Udp, 53, 100)],
            external,
            affinity,
            backends: backends
                .iter()
                .map(|place| Backend { addr: place.addr_of(family), node: place.node.clone() })
                .collect(),
        });
    };
    for (node, pod) in nodes.iter().zip(&backends) {
        add(&node.name, External::Cluster, None, true, &[pod]);
        add(&format!("local-{}", node.name), External::Local, None, true, &[pod]);
        add(&format!("host-{}", node.name), External::Cluster, None, false, &[node]);
    }
    add("all", External::Cluster, None, true, &backends);
    add("sticky", External::Cluster, Some(AFFINITY), true, &backends);
    add("moving", External::Cluster, None, true, &backends[1..2]);
    services
}

/// A place as a backend.
pub(crate) fn backend(place: &Place) -> Backend {
    Backend { addr: place.addr, node: place.node.clone() }
}
