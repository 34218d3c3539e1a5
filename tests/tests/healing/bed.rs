//! What the tests stand on: two nodes and the outside world on one LAN, a pod on each node.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::Ipv4Net;
use overlay_common::maps::{Addr, Node as Entry};
use overlay_tests::lab::{
    ClusterFile, Lab, Lan, Link, LogMark, Namespace, Network, Node, NodeEntry, Pod, within,
};
use overlay_tests::traffic::stream::{Kind, Outcome, Stream};
use overlay_tests::traffic::{tcp, udp};
use overlay_userspace::datapath::pins::Pins;
use overlay_userspace::datapath::tables::Nodes;

/// The acceptance of changes of the file: from the rename to the map.
pub(crate) const A_SECOND: Duration = Duration::from_secs(1);

/// How long healing may take that some event of the kernel asks for.
pub(crate) const SOON: Duration = Duration::from_secs(3);

/// How long healing may take that no event asks for: the periodic look, and what it does.
pub(crate) const PERIOD: Duration = Duration::from_secs(7);

/// Requests per second of a stream: a gap of some milliseconds is seen.
const RATE: u32 = 200;

/// Fields drop in order: pods first, the lab last.
pub(crate) struct Bed {
    pub(crate) pod_a: Pod,
    pub(crate) pod_b: Pod,
    pub(crate) a: Node,
    pub(crate) b: Node,
    pub(crate) world: Namespace,
    pub(crate) lan: Lan,
    pub(crate) lab: Lab,
}

/// The outside world's address.
pub(crate) const WORLD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);

/// The address of host `number` on the LAN.
pub(crate) fn on_lan(number: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 2, number), 24)
}

/// A row of the file for a node that is not there.
pub(crate) fn entry(name: &str, address: &str, subnet: &str) -> NodeEntry {
    NodeEntry {
        name: name.to_owned(),
        address: address.parse().unwrap(),
        subnet: subnet.parse().unwrap(),
        vtep_mac: None,
    }
}

impl Bed {
    /// Builds it and starts the agents.
    #[track_caller]
    pub(crate) fn start() -> Self {
        let lab = Lab::new();
        let lan = Lan::new(&lab, "lan", Link::default());
        let world = lab.namespace("world");
        lan.attach(&world, "eth0");
        world.ip(&format!("addr add {WORLD}/24 dev eth0"));
        let node = |name: &str, number: u8| {
            let subnet = Ipv4Net::new_assert(Ipv4Addr::new(10, 244, number, 0), 24);
            Node::builder(name, on_lan(number), subnet).on_lan(&lab, &lan)
        };
        let (a, b) = (node("a", 1), node("b", 2));
        let nodes = vec![a.entry(), b.entry()];
        lab.write_cluster(&ClusterFile { network: Network::default(), nodes });
        a.start_agent();
        b.start_agent();
        let (pod_a, pod_b) = (a.add_pod(&lab, "pod"), b.add_pod(&lab, "pod"));
        let bed = Self { pod_a, pod_b, a, b, world, lan, lab };
        bed.expect_traffic();
        bed
    }

    /// Replaces the file: the bed's own nodes and these.
    #[track_caller]
    pub(crate) fn write_more(&self, more: &[NodeEntry]) {
        let own = [self.a.entry(), self.b.entry()];
        self.write(&Network::default(), &[&own, more].concat());
    }

    /// Replaces the file.
    #[track_caller]
    pub(crate) fn write(&self, network: &Network, nodes: &[NodeEntry]) {
        self.lab.write_cluster(&ClusterFile { network: network.clone(), nodes: nodes.to_vec() });
    }

    /// All ways between pods, nodes and the world, on the fast path and on the slow one.
    pub(crate) fn try_traffic(&self) -> anyhow::Result<()> {
        let (pod_a, pod_b) = (self.pod_a.namespace(), self.pod_b.namespace());
        let (to_a, to_b) = (any_port(self.pod_a.addr()), any_port(self.pod_b.addr()));
        for (from, to, address) in [(pod_a, pod_b, to_b), (pod_b, pod_a, to_a)] {
            let seen = tcp::exchange(from, to, address)?;
            anyhow::ensure!(seen.same_address(), "{seen:?}");
            // Super-packets go by way of the anchor device.
            let burst = udp::burst(from, to, address, 96, udp::Sending::Segmented)?;
            anyhow::ensure!(burst.complete(), "{burst:?}");
        }
        udp::exchange(self.a.namespace(), pod_b, to_b)?;
        udp::exchange(self.a.namespace(), pod_a, to_a)?;
        udp::exchange(pod_b, self.a.namespace(), any_port(self.a.address()))?;
        for pod in [pod_a, pod_b] {
            let seen = udp::exchange(pod, &self.world, any_port(WORLD))?;
            anyhow::ensure!(!seen.same_address(), "not masqueraded: {seen:?}");
        }
        Ok(())
    }

    #[track_caller]
    pub(crate) fn expect_traffic(&self) {
        if let Err(error) = self.try_traffic() {
            panic!("{error:#}; the log of a:\n{}", self.a.log());
        }
    }

    /// Breaks something on node `a`, and waits until `whole` holds again, the log has said `said`, traffic passes, and the
    /// agent has come to rest.
    #[track_caller]
    pub(crate) fn heals(
        &self,
        limit: Duration,
        what: &str,
        break_it: impl FnOnce(),
        whole: impl Fn() -> bool,
        said: &str,
    ) {
        assert!(whole(), "before: {what}");
        let log = self.a.log_mark();
        break_it();
        let healed = within(limit, what, &whole);
        log.wait_for(said, limit);
        self.expect_traffic();
        assert!(whole(), "after: {what}");
        println!("{what}: healed within {} ms", healed.as_millis());
    }

    /// Streams of every kind between the pods.
    #[track_caller]
    pub(crate) fn streams(&self) -> [(Kind, Stream); 3] {
        let to = IpAddr::V4(self.pod_b.addr());
        Kind::ALL.map(|kind| {
            let stream = Stream::start(kind, self.pod_a.namespace(), self.pod_b.namespace(), to, RATE);
            (kind, stream.unwrap())
        })
    }
}

/// Stops the streams; nothing of them may have been lost.
#[track_caller]
pub(crate) fn expect_nothing_lost(streams: [(Kind, Stream); 3]) {
    for (kind, stream) in streams {
        let Outcome { sent, lost, error, max_gap, .. } = stream.stop();
        assert!(sent > 0, "{kind:?}");
        assert_eq!((lost, error), (0, None), "{kind:?}: {sent} sent, longest silence {max_gap:?}");
    }
}

/// An address with any port.
pub(crate) fn any_port(address: Ipv4Addr) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(address), 0)
}

/// The map of nodes, by the bytes that the kernel holds.
#[track_caller]
pub(crate) fn map(node: &Node) -> Vec<(Addr, Entry)> {
    let mut entries = Nodes::open(&Pins::new(node.pins())).unwrap().entries().unwrap();
    entries.sort_by_key(|(key, _)| *key);
    entries
}

/// The rows of `overlay nodes`: address, VTEP.
#[track_caller]
pub(crate) fn rows(node: &Node) -> Vec<(String, String)> {
    let rows = node.show("nodes");
    let text = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap().to_owned();
    rows.as_array()
        .unwrap()
        .iter()
        .map(|row| (format!("{}/{}", text(row, "address"), row["prefix_len"]), text(row, "vtep")))
        .collect()
}

/// Whether `overlay nodes` has exactly this answer for a key.
#[track_caller]
pub(crate) fn has(node: &Node, key: &str, vtep: Option<&str>) -> bool {
    let found = rows(node).into_iter().find(|(address, _)| address == key).map(|(_, vtep)| vtep);
    found.as_deref() == vtep
}

/// What a process has used of the CPU, in ticks of 10 ms: fields 14 to 17 of `/proc/<pid>/stat` (proc(5)), the children
/// that it has waited for included.
#[track_caller]
pub(crate) fn cpu_ticks(node: &Node) -> u64 {
    let pid = node.agent_pid().expect("the agent runs");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    rest.split(' ').skip(11).take(4).map(|field| field.parse::<u64>().unwrap()).sum()
}

/// The agent has nothing to do: it logs nothing and takes next to no CPU time while nobody touches anything.
#[track_caller]
pub(crate) fn expect_idle(node: &Node) {
    const WINDOW: Duration = Duration::from_secs(1);
    /// A periodic pass may fall into the window; a debug build, with the forks of `nft`, takes some hundredths of a second.
    const LIMIT: u64 = 15;
    // What is still under way, the second pass that the events of the first one ask for.
    std::thread::sleep(Duration::from_millis(400));
    let log: LogMark = node.log_mark();
    let before = cpu_ticks(node);
    std::thread::sleep(WINDOW);
    let used = cpu_ticks(node) - before;
    assert_eq!(log.lines(), Vec::<String>::new(), "{} says things while nothing happens", node.name());
    assert!(used <= LIMIT, "the agent of {} used {used} ticks in {WINDOW:?}", node.name());
}
