//! Steady traffic between many places, none of which may be lost; and whether a pod is connected in all directions.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use overlay_userspace::family::Family;

use super::drops::Drops;
use super::stream::{Kind, Stream};
use super::{any_port, ping, tcp, udp};
use crate::lab::{Cluster, Namespace, Pod, exec};

/// Requests per second of each stream: many streams share two CPUs.
const RATE: u32 = 50;

/// The longest silence that is put down to a busy machine. One lost TCP segment of a stream is silence for 200 ms and
/// a lost datagram; this is for what is delayed and yet not lost.
const SILENCE: Duration = Duration::from_secs(1);

/// Two pods on `cp`, one on each other node.
#[derive(Debug)]
pub struct Pods {
    /// On `cp`.
    pub a: Pod,
    /// On `cp`.
    pub b: Pod,
    /// On `w1`.
    pub peer: Pod,
    /// On `w2`, behind the router.
    pub far: Pod,
}

impl Pods {
    /// Adds them.
    #[track_caller]
    pub fn new(cluster: &Cluster) -> Self {
        let add = |node, name| cluster.add_pod(node, name);
        Self { a: add("cp", "a"), b: add("cp", "b"), peer: add("w1", "a"), far: add("w2", "a") }
    }

    /// All four.
    pub fn all(&self) -> [&Pod; 4] {
        [&self.a, &self.b, &self.peer, &self.far]
    }
}

/// TCP, UDP and ping at once over every kind of path, in every family of the pods, all by way of `cp` or its pods.
#[derive(Debug)]
pub struct Steady<'a> {
    streams: Vec<(String, Stream)>,
    drops: Vec<Drops>,
    cluster: &'a Cluster,
}

impl<'a> Steady<'a> {
    /// Starts everything; traffic to the world only where it is to be `masqueraded`.
    #[track_caller]
    pub fn start(cluster: &'a Cluster, pods: &Pods, masqueraded: bool) -> Self {
        let Pods { a, b, peer, far } = pods;
        let (cp, w1) = (cluster.node("cp"), cluster.node("w1"));
        let world = cluster.world();
        let drops = cluster.nodes().iter().map(Drops::read).collect();
        let mut streams = Vec::new();
        for (family, _) in a.addrs().iter() {
            let pod = |pod: &Pod| (pod.namespace().clone(), pod.addr_of(family));
            let mut paths = vec![
                ("on the node", a.namespace(), pod(b)),
                ("over the LAN", a.namespace(), pod(peer)),
                ("over the router", b.namespace(), pod(far)),
                ("from the router", far.namespace(), pod(a)),
                ("node to pod", cp.namespace(), pod(a)),
                ("node to remote pod", cp.namespace(), pod(far)),
                ("remote node to pod", w1.namespace(), pod(b)),
            ];
            if let Some(at) = world.addresses().get(family).filter(|_| masqueraded) {
                paths.push(("to the world", a.namespace(), (world.namespace().clone(), *at)));
            }
            for (name, client, (server, at)) in paths {
                streams.extend(Kind::ALL.map(|kind| {
                    let name = format!("{kind:?} over {family} {name}");
                    let stream = Stream::start(kind, client, &server, at, (RATE / exec::patience()).max(1));
                    let stream = stream.unwrap_or_else(|error| panic!("{name}: {error:#}"));
                    (name, stream)
                }));
            }
        }
        let steady = Self { streams, drops, cluster };
        // Before anything happens, all flow.
        thread::sleep(Duration::from_millis(100));
        steady
    }

    /// One more stream, to be as whole as the others.
    pub fn add(&mut self, name: &str, stream: Stream) {
        self.streams.push((name.to_owned(), stream));
    }

    /// Ends it: every request has been answered, without a break, and no program has dropped anything.
    #[track_caller]
    pub fn lost_nothing(self) {
        self.lost_at_most(0);
    }

    /// As [`Steady::lost_nothing`], but that each stream may have lost a few.
    #[track_caller]
    pub fn lost_at_most(self, few: u64) {
        thread::sleep(Duration::from_millis(100));
        let mut bad = Vec::new();
        for (name, stream) in self.streams {
            let outcome = stream.stop();
            let good =
                outcome.lost <= few && outcome.error.is_none() && outcome.max_gap < exec::patient(SILENCE);
            if !good || outcome.sent < 10 {
                bad.push(format!("{name}: {outcome:?}"));
            }
        }
        assert!(bad.is_empty(), "{bad:#?}");
        for (node, before) in self.cluster.nodes().iter().zip(&self.drops) {
            assert_eq!(Drops::read(node).since(before), BTreeMap::new(), "{}", node.name());
        }
    }
}

#[track_caller]
fn reaches(from: (&Namespace, IpAddr), to: (&Namespace, IpAddr)) {
    let what = format!("{} to {} at {}", from.0.name(), to.0.name(), to.1);
    let at = any_port(to.1);
    for seen in [tcp::exchange(from.0, to.0, at), udp::exchange(from.0, to.0, at)] {
        let seen = seen.unwrap_or_else(|error| panic!("{what}: {error:#}"));
        assert_eq!(seen.server_saw.ip(), from.1, "{what}");
    }
    ping::ping(from.0, to.1).unwrap_or_else(|error| panic!("{what}: {error:#}"));
}

/// `pod` and all `others`, its node and the other nodes, and the world: all reach each other under their own addresses, in every
/// family that both have; the world sees the node's.
#[track_caller]
pub fn connected(cluster: &Cluster, pod: &Pod, others: &[&Pod]) {
    for (family, addr) in pod.addrs().iter() {
        connected_over(family, cluster, (pod, *addr), others);
    }
}

#[track_caller]
fn connected_over(family: Family, cluster: &Cluster, (pod, addr): (&Pod, IpAddr), others: &[&Pod]) {
    let own = (pod.namespace(), addr);
    for other in others {
        if let Some(addr) = other.addrs().get(family) {
            reaches(own, (other.namespace(), *addr));
            reaches((other.namespace(), *addr), own);
        }
    }
    for node in cluster.nodes() {
        if let Some(address) = node.addresses().get(family) {
            reaches(own, (node.namespace(), *address));
        }
        // A node speaks to pods under its gateway's address.
        if node.subnets().get(family).is_some() {
            reaches((node.namespace(), node.gateway_of(family)), own);
        }
    }
    let (world, node) = (cluster.world(), cluster.node(pod.node()));
    if let (Some(at), Some(address)) = (world.addresses().get(family), node.addresses().get(family)) {
        let seen = tcp::exchange(pod.namespace(), world.namespace(), any_port(*at)).unwrap();
        assert_eq!(seen.server_saw.ip(), *address);
    }
}
