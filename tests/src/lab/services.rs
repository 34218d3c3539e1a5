//! Services on the nodes of a lab: what kube-proxy makes of them, without a cluster or with the real one.
//!
//! A [`Service`] says what is wanted; a [`Proxy`] brings it about on every node of a lab, in one of three ways
//! ([`ProxyMode`]): the rules of kube-proxy's iptables mode or of its nftables mode, written by this module in one transaction
//! per node, or the real kube-proxy on every node, told by a real API server ([`KubeBinaries`]).
//!
//! A proxy is of one family, as in kube-proxy, which on a dual-stack node has one for each: that of the addresses it is given.
//!
//! As kube-proxy does, a changed Service changes rules and nothing else: connections under way keep their backend. Only
//! conntrack entries of UDP flows to a backend that is gone are deleted, because such a flow has no end that would do it.

mod iptables;
mod kube;
mod nft;
mod stale;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use overlay_userspace::family::{Family, OfFamily as _};

use super::families::host;
use super::{Lab, Namespace};

pub use kube::{ControlPlane, KubeBinaries};

/// The range of ClusterIPs of a family.
pub const fn service_range(family: Family) -> IpNet {
    match family {
        Family::Ipv4 => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16)),
        Family::Ipv6 => IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0), 112)),
    }
}

/// ClusterIP `number` of a family.
#[track_caller]
pub fn cluster_ip(family: Family, number: u32) -> IpAddr {
    host(service_range(family), number)
}

/// The namespace that all Services are in, for their names.
const NAMESPACE: &str = "default";

/// A transport protocol of a Service's port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];
}

impl fmt::Display for Protocol {
    /// As iptables and nft spell it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// `externalTrafficPolicy`: what becomes of traffic to a node port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum External {
    /// Any backend; the client's address is lost.
    #[default]
    Cluster,
    /// Backends on the node alone; they see the client's address.
    Local,
}

/// One port of a Service. Its name is its protocol's: a Service has at most one port of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServicePort {
    /// Protocol.
    pub protocol: Protocol,
    /// Port at the ClusterIP.
    pub port: u16,
    /// Port at each backend.
    pub target: u16,
    /// Port at every node, if any.
    pub node_port: Option<u16>,
}

/// An endpoint of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Address of a pod or of a node.
    pub addr: IpAddr,
    /// Name of the node that it is on.
    pub node: String,
}

/// A Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its address, of the family's [`service_range`].
    pub cluster_ip: IpAddr,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Policy for its node ports.
    pub external: External,
    /// How long a client stays with its backend (`sessionAffinity: ClientIP`); `None`: each connection for itself.
    pub affinity: Option<Duration>,
    /// Where it goes.
    pub backends: Vec<Backend>,
}

impl Service {
    /// The port of this protocol.
    #[track_caller]
    pub fn port(&self, protocol: Protocol) -> ServicePort {
        let port = self.ports.iter().find(|port| port.protocol == protocol);
        *port.unwrap_or_else(|| panic!("service {} has no {protocol} port", self.name))
    }

    /// Where clients in the cluster dial.
    #[track_caller]
    pub fn dial(&self, protocol: Protocol) -> SocketAddr {
        SocketAddr::new(self.cluster_ip, self.port(protocol).port)
    }

    /// Where clients outside dial, at the node with this address.
    #[track_caller]
    pub fn dial_node(&self, node: IpAddr, protocol: Protocol) -> SocketAddr {
        let port = self.port(protocol).node_port;
        SocketAddr::new(node, port.unwrap_or_else(|| panic!("service {} has no node port", self.name)))
    }

    /// `default/name:port`, as kube-proxy calls one port of a Service.
    fn port_name(&self, port: ServicePort) -> String {
        format!("{NAMESPACE}/{}:{}", self.name, port.protocol)
    }

    /// Every port of every Service.
    fn ports_of(services: &[Self]) -> impl Iterator<Item = (&Self, ServicePort)> {
        services.iter().flat_map(|service| service.ports.iter().map(move |port| (service, *port)))
    }
}

/// A node as a proxy sees it.
#[derive(Debug, Clone)]
pub struct ProxyNode {
    /// Its name, as [`Backend::node`] has it.
    pub name: String,
    /// Its host namespace.
    pub namespace: Namespace,
    /// Its address, which node ports are at.
    pub address: IpAddr,
}

/// Who writes the rules.
#[derive(Debug, Clone)]
pub enum ProxyMode {
    /// This module, as kube-proxy's iptables mode writes them.
    Iptables,
    /// This module, as kube-proxy's nftables mode writes them.
    Nft,
    /// The real kube-proxy in iptables mode.
    Real(KubeBinaries),
}

/// Services on all nodes of a lab.
#[derive(Debug)]
pub struct Proxy {
    nodes: Vec<ProxyNode>,
    cluster: IpNet,
    services: Vec<Service>,
    writer: Writer,
}

#[derive(Debug)]
enum Writer {
    Iptables(Vec<iptables::Chains>),
    Nft,
    Real(Box<ControlPlane>),
}

impl Proxy {
    /// A proxy for these nodes, whose pods have addresses of `cluster`; there are no Services yet. Its family is that of `cluster`.
    ///
    /// [`ProxyMode::Real`], which is for IPv4 alone, starts the control plane in namespace `api`, which is connected and has its address already, and
    /// can be reached from all nodes.
    #[track_caller]
    pub fn start(
        lab: &Lab,
        mode: &ProxyMode,
        nodes: Vec<ProxyNode>,
        cluster: IpNet,
        api: (&Namespace, IpAddr),
    ) -> Self {
        let family = cluster.family();
        let writer = match mode {
            ProxyMode::Iptables => {
                for node in &nodes {
                    iptables::kubelet(&node.namespace, family);
                    // What kube-proxy sets in this mode, for node ports at 127.0.0.1. There is no such thing for ::1.
                    if family == Family::Ipv4 {
                        node.namespace.sysctl("net.ipv4.conf.all.route_localnet", "1");
                    }
                }
                Writer::Iptables(vec![iptables::Chains::default(); nodes.len()])
            }
            ProxyMode::Nft => Writer::Nft,
            ProxyMode::Real(binaries) => {
                assert_eq!(family, Family::Ipv4, "the real kube-proxy of these tests is for IPv4");
                for node in &nodes {
                    iptables::kubelet(&node.namespace, family);
                }
                Writer::Real(Box::new(ControlPlane::start(lab, binaries, api, &nodes, cluster)))
            }
        };
        Self { nodes, cluster, services: Vec::new(), writer }
    }

    /// Makes these the Services, in place of those that were; returns when every node has them.
    #[track_caller]
    pub fn apply(&mut self, services: &[Service]) {
        match &mut self.writer {
            Writer::Iptables(chains) => {
                for (node, chains) in self.nodes.iter().zip(chains) {
                    iptables::apply(node, self.cluster, services, chains);
                }
            }
            Writer::Nft => {
                for node in &self.nodes {
                    nft::apply(node, self.cluster, services);
                }
            }
            Writer::Real(control_plane) => control_plane.apply(&self.nodes, &self.services, services),
        }
        // The real one does it by itself.
        if !matches!(self.writer, Writer::Real(_)) {
            for node in &self.nodes {
                stale::forget(node, &self.services, services);
            }
        }
        services.clone_into(&mut self.services);
    }

    /// Changes the backends of one Service.
    #[track_caller]
    pub fn move_backends(&mut self, name: &str, backends: Vec<Backend>) {
        let mut services = self.services.clone();
        let service = services.iter_mut().find(|service| service.name == name);
        service.unwrap_or_else(|| panic!("no service {name}")).backends = backends;
        self.apply(&services);
    }

    /// The Service of this name.
    #[track_caller]
    pub fn service(&self, name: &str) -> &Service {
        let service = self.services.iter().find(|service| service.name == name);
        service.unwrap_or_else(|| panic!("no service {name}"))
    }
}

/// A name that tells ports and endpoints of Services apart: eight characters, as the nftables mode has them.
fn hash(text: &str) -> String {
    use std::hash::{DefaultHasher, Hasher as _};
    let mut hasher = DefaultHasher::new();
    hasher.write(text.as_bytes());
    format!("{:016X}", hasher.finish())
}
