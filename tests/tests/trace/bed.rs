//! Three nodes with pods, a socket everywhere, and all there is to see of a node's live state.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use overlay_tests::lab::{Cluster, Namespace, Node, Pod, exec};
use overlay_tests::traffic::drops::{Drops, Paths};
use overlay_tests::traffic::{inject, udp};
use serde_json::Value;

/// Where crafted datagrams are for; no answer comes from there.
pub(crate) const PORT: u16 = 7777;

/// How long what was sent may take to arrive, or to be counted.
const LIMIT: Duration = Duration::from_secs(3);

pub(crate) struct Bed {
    /// The sender, on `cp`, and its neighbour there.
    pub(crate) pod: Pod,
    pub(crate) neighbour: Pod,
    /// On the same LAN, and behind the router.
    pub(crate) near: Pod,
    pub(crate) far: Pod,
    pub(crate) cluster: Cluster,
}

impl Bed {
    pub(crate) fn new() -> Self {
        Self::on(Cluster::builder().start())
    }

    pub(crate) fn on(cluster: Cluster) -> Self {
        let add = |node, name| cluster.add_pod(node, name);
        let (pod, neighbour, near, far) = (add("cp", "a"), add("cp", "b"), add("w1", "a"), add("w2", "a"));
        Self { pod, neighbour, near, far, cluster }
    }

    pub(crate) fn cp(&self) -> &Node {
        self.cluster.node("cp")
    }

    pub(crate) fn w1(&self) -> &Node {
        self.cluster.node("w1")
    }

    pub(crate) fn w2(&self) -> &Node {
        self.cluster.node("w2")
    }

    /// Sends a frame out of the pod's device.
    #[track_caller]
    pub(crate) fn send(&self, frame: Vec<u8>) {
        inject::inject(self.pod.namespace(), "eth0", &[frame]);
    }

    /// A socket at [`PORT`] everywhere.
    pub(crate) fn sockets(&self) -> Sockets {
        let pods = [&self.pod, &self.neighbour, &self.near, &self.far].map(Pod::namespace);
        let nodes = self.cluster.nodes().iter().map(Node::namespace);
        let world = self.cluster.world().namespace();
        let places = pods.into_iter().chain(nodes).chain([world]);
        Sockets(places.map(|place| (place.name().to_owned(), listen(place))).collect())
    }
}

fn listen(place: &Namespace) -> UdpSocket {
    udp::bind(place, SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT))).unwrap()
}

/// Sockets at [`PORT`].
pub(crate) struct Sockets(Vec<(String, UdpSocket)>);

impl Sockets {
    /// One datagram arrives in `place`, from this address.
    #[track_caller]
    pub(crate) fn received(&self, what: &str, place: &Namespace, from: Ipv4Addr) {
        let (_, socket) = self.0.iter().find(|(name, _)| name == place.name()).expect("a known place");
        let mut got = [0; 2048];
        let got = socket.recv_from(&mut got);
        let (_, sender) = got.unwrap_or_else(|error| panic!("{what}: {} got nothing: {error}", place.name()));
        assert_eq!(sender.ip(), from, "{what}");
    }

    /// None of them has got anything that was not waited for.
    #[track_caller]
    pub(crate) fn got_nothing(&self, what: &str) {
        for (name, socket) in &self.0 {
            socket.set_nonblocking(true).unwrap();
            let mut got = [0; 2048];
            let result = socket.recv_from(&mut got);
            assert!(result.is_err(), "{what}: {name} got {result:?}");
            socket.set_nonblocking(false).unwrap();
        }
    }
}

/// Everything that programs write on a node.
#[derive(Debug, PartialEq)]
pub(crate) struct Live {
    counters: Counters,
    flows: Value,
    /// The values of `NODES`, in which programs keep time.
    nodes: String,
}

impl Live {
    #[track_caller]
    pub(crate) fn read(node: &Node) -> Self {
        let mut dump = node.namespace().command("bpftool");
        dump.args(["-j", "map", "dump", "pinned"]).arg(node.pins().join("maps/NODES"));
        let mut flows = node.show("flows");
        for flow in flows.as_array_mut().expect("a list of flows") {
            flow["age_seconds"] = Value::Null;
        }
        Self { counters: Counters::read(node), flows, nodes: exec::must(&mut dump, "") }
    }
}

/// Paths and reasons of a node, by name.
#[derive(Debug, PartialEq)]
pub(crate) struct Counters {
    paths: Paths,
    drops: Drops,
}

impl Counters {
    #[track_caller]
    pub(crate) fn read(node: &Node) -> Self {
        Self { paths: Paths::read(node), drops: Drops::read(node) }
    }

    /// What has been counted since on `node`, once all of `wanted` is.
    #[track_caller]
    pub(crate) fn since(&self, node: &Node, wanted: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let now = Self::read(node);
            let mut counted = now.paths.since(&self.paths);
            counted.extend(now.drops.since(&self.drops));
            let enough = wanted.iter().all(|(name, count)| counted.get(name).is_some_and(|got| got >= count));
            if enough || Instant::now() >= deadline {
                return counted;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Live {
    /// The recorded flows.
    pub(crate) fn flows(&self) -> &Value {
        &self.flows
    }
}
