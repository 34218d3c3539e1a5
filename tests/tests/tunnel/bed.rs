//! What the tests stand on: the default cluster, running, with one pod on each node.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use overlay_tests::lab::{Cluster, ClusterBuilder, Families, Link, Namespace, Network, Node, Pod};
use overlay_tests::traffic::counters::Counters;
use overlay_userspace::family::Family;

/// All namespaces share one receive queue per CPU (`net.core.netdev_max_backlog`, 1000 packets), and bulk transfers that are
/// cut into segments fill it. While a test floods, tests that count on every single packet wait.
static TRAFFIC: RwLock<()> = RwLock::new(());

/// The right to send what fits anywhere, and to rely on its arrival.
pub(crate) fn quiet() -> RwLockReadGuard<'static, ()> {
    TRAFFIC.read().unwrap_or_else(PoisonError::into_inner)
}

/// The right to flood.
pub(crate) fn flood() -> RwLockWriteGuard<'static, ()> {
    TRAFFIC.write().unwrap_or_else(PoisonError::into_inner)
}

/// A running cluster with a pod on each node.
pub(crate) struct Bed {
    /// Before the cluster: a pod's namespace goes first.
    pods: Vec<Pod>,
    pub(crate) cluster: Cluster,
    /// The family of the tunnel's outer headers.
    pub(crate) outer: Family,
}

impl Bed {
    /// Starts the cluster and adds the pods.
    #[track_caller]
    pub(crate) fn start(cluster: ClusterBuilder) -> Self {
        let cluster = cluster.start();
        let pods = cluster.nodes().iter().map(|node| node.add_pod(cluster.lab(), "a")).collect();
        Self { pods, cluster, outer: Family::Ipv4 }
    }

    /// A dual-stack cluster whose nodes, which have addresses of both families, talk over `outer`.
    #[track_caller]
    pub(crate) fn dual(link: Link, outer: Family) -> Self {
        let underlay = (outer == Family::Ipv6).then(|| "ipv6".to_owned());
        let network = Network { underlay, ..Network::default() };
        let bed = Self::start(Cluster::builder().link(link).families(Families::Dual).network(network));
        Self { outer, ..bed }
    }

    /// A cluster of IPv6 alone.
    #[track_caller]
    pub(crate) fn ipv6(link: Link) -> Self {
        let bed = Self::start(Cluster::builder().link(link).families(Families::Ipv6));
        Self { outer: Family::Ipv6, ..bed }
    }

    /// What the tunnel adds to a packet, in bytes: outer IP header, UDP (8), VXLAN (8), inner Ethernet (14).
    pub(crate) fn overhead(&self) -> u32 {
        match self.outer {
            Family::Ipv4 => 50,
            Family::Ipv6 => 70,
        }
    }

    /// As [`Bed::start`], with nothing but the link chosen.
    #[track_caller]
    pub(crate) fn on(link: Link) -> Self {
        Self::start(Cluster::builder().link(link))
    }

    /// The pod on this node.
    pub(crate) fn pod(&self, node: &str) -> &Pod {
        self.pods.iter().find(|pod| pod.node() == node).expect("there is a pod on each node")
    }

    pub(crate) fn node(&self, name: &str) -> &Node {
        self.cluster.node(name)
    }

    /// Every namespace that packets pass: pods, nodes and the router.
    fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        let pods = self.pods.iter().map(Pod::namespace);
        let nodes = self.cluster.nodes().iter().map(Node::namespace);
        pods.chain(nodes).chain([self.cluster.router()])
    }

    /// No protocol of any namespace has met a wrong checksum.
    #[track_caller]
    pub(crate) fn expect_no_checksum_errors(&self) {
        for namespace in self.namespaces() {
            let errors = Counters::read(namespace).checksum_errors();
            assert_eq!(errors, 0, "InCsumErrors in {}", namespace.name());
        }
    }
}
