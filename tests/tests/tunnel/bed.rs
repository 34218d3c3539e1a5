//! What the tests stand on: the default cluster, running, with one pod on each node.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use overlay_tests::lab::{Cluster, ClusterBuilder, Link, Namespace, Node, Pod};
use overlay_tests::traffic::counters::Counters;

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
}

impl Bed {
    /// Starts the cluster and adds the pods.
    #[track_caller]
    pub(crate) fn start(cluster: ClusterBuilder) -> Self {
        let cluster = cluster.start();
        let pods = cluster.nodes().iter().map(|node| node.add_pod(cluster.lab(), "a")).collect();
        Self { pods, cluster }
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

/// An address with any port.
pub(crate) fn any_port(address: Ipv4Addr) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(address), 0)
}
