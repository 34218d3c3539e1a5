//! What the tests stand on: a cluster of both families, two pods on `cp`, one on each other node; and the ways between them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use overlay_tests::lab::{Cluster, Families, Namespace, Node, Pod};
use overlay_tests::traffic::drops::Drops;
use overlay_tests::traffic::inject::{inject, mac_of};
use overlay_tests::traffic::packet::Packet;
use overlay_userspace::family::Family;

/// How long something may take that takes milliseconds.
const SOON: Duration = Duration::from_secs(5);

/// A running cluster.
pub(crate) struct Bed {
    /// The one that sends.
    pub(crate) pod: Pod,
    /// On the same node.
    pub(crate) near: Pod,
    /// On `w1`.
    pub(crate) peer: Pod,
    /// On `w2`, behind the router.
    pub(crate) far: Pod,
    pub(crate) cluster: Cluster,
}

/// From whom to whom.
#[derive(Clone, Copy)]
pub(crate) struct Way<'a> {
    pub(crate) name: &'static str,
    pub(crate) from: End<'a>,
    pub(crate) to: End<'a>,
}

/// An end of a way.
#[derive(Clone, Copy)]
pub(crate) enum End<'a> {
    Pod(&'a Pod),
    Node(&'a Node),
}

impl<'a> End<'a> {
    pub(crate) fn namespace(self) -> &'a Namespace {
        match self {
            Self::Pod(pod) => pod.namespace(),
            Self::Node(node) => node.namespace(),
        }
    }

    /// Where it is called.
    pub(crate) fn address(self, family: Family) -> IpAddr {
        match self {
            Self::Pod(pod) => pod.addr_of(family),
            Self::Node(node) => node.address_of(family),
        }
    }

    /// Whom pods see.
    pub(crate) fn seen(self, family: Family) -> IpAddr {
        match self {
            Self::Pod(pod) => pod.addr_of(family),
            Self::Node(node) => node.gateway_of(family),
        }
    }
}

impl Bed {
    #[track_caller]
    pub(crate) fn new() -> Self {
        let cluster = Cluster::builder().families(Families::Dual).start();
        let [pod, near] = ["a", "b"].map(|name| cluster.add_pod("cp", name));
        let [peer, far] = ["w1", "w2"].map(|node| cluster.add_pod(node, "a"));
        Self { pod, near, peer, far, cluster }
    }

    pub(crate) fn cp(&self) -> &Node {
        self.cluster.node("cp")
    }

    /// All ways between pods and nodes.
    pub(crate) fn ways(&self) -> [Way<'_>; 7] {
        let Self { pod, near, peer, far, .. } = self;
        let (pod, cp, w1) = (End::Pod(pod), End::Node(self.cp()), End::Node(self.cluster.node("w1")));
        let way = |name, from, to| Way { name, from, to };
        [
            way("pod to pod, same node", pod, End::Pod(near)),
            way("pod to pod, other node", pod, End::Pod(peer)),
            way("pod to pod, behind a router", pod, End::Pod(far)),
            way("pod to its node", pod, cp),
            way("pod to another node", pod, w1),
            way("node to its pod", cp, pod),
            way("node to another's pod", cp, End::Pod(peer)),
        ]
    }

    /// MACs of what [`Self::pod`] sends to its gateway.
    #[track_caller]
    pub(crate) fn macs(&self) -> ([u8; 6], [u8; 6]) {
        (mac_of(self.pod.namespace(), "eth0"), mac_of(self.cp().namespace(), &self.pod.host_device()))
    }

    /// A datagram of [`Self::pod`].
    #[track_caller]
    pub(crate) fn datagram(&self, to: SocketAddr, data: &[u8]) -> Packet {
        let family = if to.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
        Packet::udp(self.macs(), SocketAddr::new(self.pod.addr_of(family), 40_000), to, data)
    }

    /// Puts frames on the device of [`Self::pod`].
    #[track_caller]
    pub(crate) fn send(&self, frames: &[Vec<u8>]) {
        inject(self.pod.namespace(), "eth0", frames);
    }

    /// What the programs of all nodes have dropped.
    #[track_caller]
    pub(crate) fn drops(&self) -> Vec<Drops> {
        self.cluster.nodes().iter().map(Drops::read).collect()
    }

    /// Nothing has been dropped since.
    #[track_caller]
    pub(crate) fn expect_no_drops(&self, before: &[Drops], what: &str) {
        for (node, before) in self.cluster.nodes().iter().zip(before) {
            assert_eq!(Drops::read(node).since(before), BTreeMap::new(), "{what}: on {}", node.name());
        }
    }

    /// `cp` drops that many under that reason, and nothing else, while `send` runs.
    #[track_caller]
    pub(crate) fn dropped(&self, what: &str, reason: &str, count: usize, send: impl FnOnce()) {
        let before = Drops::read(self.cp());
        send();
        let wanted = BTreeMap::from([(reason.to_owned(), count as u64)]);
        let counted = eventually(|| Drops::read(self.cp()).since(&before), |counted| *counted == wanted);
        assert_eq!(counted, wanted, "{what}");
    }
}

/// The value once it is `good`, or the last one.
pub(crate) fn eventually<T>(mut read: impl FnMut() -> T, good: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        let value = read();
        if good(&value) || Instant::now() > deadline {
            return value;
        }
        thread::sleep(Duration::from_millis(5));
    }
}
