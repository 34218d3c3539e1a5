//! The scene of all tests here: the default cluster, a pod on each node, somebody on the LAN who is no node, and a look
//! at every place where a forged packet could come out.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use overlay_tests::lab::{Cluster, Families, Link, Namespace, Network, Node, Pod};
use overlay_tests::traffic::drops::{Drops, Monitor};
use overlay_tests::traffic::inject::mac_of;
use overlay_tests::traffic::udp;
use overlay_tests::traffic::vxlan::{FLAG_VNI, Tunnel, udp_frame};
use overlay_tests::traffic::watch::Watch;
use overlay_userspace::family::{Family, OfFamily as _};
use serde_json::Value;

/// Packets per case: more than one, so that none is counted twice, or only once.
pub(crate) const COUNT: usize = 3;

/// Where forged datagrams are for.
pub(crate) const PORT: u16 = 7777;

/// The tunnel's port.
pub(crate) const TUNNEL: u16 = 8472;

/// How the payload of what must not arrive begins.
pub(crate) const MARK: &str = "forged";

/// Somebody's MAC; nobody looks at it.
pub(crate) const SOME_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x99];

/// An address on the LAN of `cp` and `w1` that is no node's.
pub(crate) const STRANGER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 50);

/// The same in IPv6.
pub(crate) const STRANGER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xa, 0, 0, 0, 0, 0x50);

/// A second address of `cp`'s underlay device, and of `w1`'s.
pub(crate) const SECOND: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 33), Ipv4Addr::new(192, 0, 2, 34)];

/// The address of `docker0` on every node.
pub(crate) const DOCKER: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 1);

/// A second underlay device of `cp`, without programs.
pub(crate) const SECOND_DEVICE: &str = "eth1";

/// An address in the cluster's range that belongs to no node.
pub(crate) const NO_NODE: Ipv4Addr = Ipv4Addr::new(10, 244, 99, 2);

/// The same in IPv6.
pub(crate) const NO_NODE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 0x99, 0, 0, 0, 2);

/// [`STRANGER`] of a family.
pub(crate) fn stranger(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => STRANGER.into(),
        Family::Ipv6 => STRANGER_V6.into(),
    }
}

/// [`NO_NODE`] of a family.
pub(crate) fn no_node(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => NO_NODE.into(),
        Family::Ipv6 => NO_NODE_V6.into(),
    }
}

pub(crate) struct Stage {
    /// Prints what `cp` drops.
    monitor: Monitor,
    /// A pod on `cp`, and another one there.
    pub(crate) pod: Pod,
    pub(crate) neighbour: Pod,
    /// A pod on `w1`, on the same LAN.
    pub(crate) peer: Pod,
    /// A pod on `w2`, behind the router.
    pub(crate) far: Pod,
    /// On the LAN with its `eth0`, and connected to `cp`'s second device with its `eth1`.
    pub(crate) stranger: Namespace,
    pub(crate) macs: Macs,
    pub(crate) cluster: Cluster,
    /// What the underlay devices have before `from_wire`: `network.xdp`.
    pub(crate) xdp: Option<&'static str>,
}

/// The MACs of `cp`.
pub(crate) struct Macs {
    /// The underlay device.
    pub(crate) underlay: [u8; 6],
    /// [`SECOND_DEVICE`].
    pub(crate) second: [u8; 6],
    /// The anchor device, and what pods take for their gateway.
    pub(crate) gateway: [u8; 6],
}

impl Stage {
    pub(crate) fn new() -> Self {
        Self::with(None)
    }

    /// As [`Stage::new`], with this setting of `network.xdp`.
    pub(crate) fn with(xdp: Option<&'static str>) -> Self {
        let network = Network { xdp: xdp.map(str::to_owned), ..Network::default() };
        Self::on(Cluster::builder().network(network).start(), xdp)
    }

    /// A dual-stack cluster whose nodes, which have addresses of both families, talk over `outer`.
    pub(crate) fn dual(outer: Family, xdp: Option<&'static str>) -> Self {
        let underlay = (outer == Family::Ipv6).then(|| "ipv6".to_owned());
        let network = Network { underlay, xdp: xdp.map(str::to_owned), ..Network::default() };
        Self::on(Cluster::builder().families(Families::Dual).network(network).start(), xdp)
    }

    /// A cluster with both families on the underlay, or with IPv4 alone.
    fn on(cluster: Cluster, xdp: Option<&'static str>) -> Self {
        let stranger = cluster.lab().namespace("stranger");
        cluster.lan_a().attach(&stranger, "eth0");
        stranger.ip(&format!("addr add {STRANGER}/26 dev eth0"));
        stranger.ip(&format!("addr add {STRANGER_V6}/64 dev eth0"));
        let (cp, w1) = (cluster.node("cp").namespace(), cluster.node("w1").namespace());
        Link::default().connect(&stranger, SECOND_DEVICE, cp, SECOND_DEVICE);
        cp.ip(&format!("addr add 203.0.113.1/24 dev {SECOND_DEVICE}"));
        for (node, address) in [cp, w1].into_iter().zip(SECOND) {
            node.ip(&format!("addr add {address}/26 dev {}", Node::DEVICE));
        }
        let add = |node, name| cluster.add_pod(node, name);
        let (pod, neighbour, peer, far) = (add("cp", "a"), add("cp", "b"), add("w1", "a"), add("w2", "a"));
        let macs = Macs {
            underlay: mac_of(cp, Node::DEVICE),
            second: mac_of(cp, SECOND_DEVICE),
            gateway: mac_of(cp, Node::ANCHOR),
        };
        let monitor = Monitor::start(cluster.node("cp"));
        Self { monitor, pod, neighbour, peer, far, stranger, macs, cluster, xdp }
    }

    pub(crate) fn node(&self, name: &str) -> &Node {
        self.cluster.node(name)
    }

    /// The node under attack.
    pub(crate) fn cp(&self) -> &Node {
        self.node("cp")
    }

    /// The program that sees first what comes by the underlay device and is not odd.
    pub(crate) fn first_hook(&self) -> &'static str {
        if self.xdp.is_some() { "xdp_wire" } else { "from_wire" }
    }

    pub(crate) fn world(&self) -> Ipv4Addr {
        self.cluster.world().address()
    }

    /// A tunnel packet to `cp` with a datagram in it, as a peer would send it but for what is changed afterwards.
    pub(crate) fn tunnel(
        &self,
        outer_source: impl Into<IpAddr>,
        inner_source: impl Into<IpAddr>,
        to: impl Into<IpAddr>,
        text: &str,
    ) -> Tunnel {
        let outer_source = outer_source.into();
        Tunnel {
            macs: (SOME_MAC, self.macs.underlay),
            source: SocketAddr::new(outer_source, 50_000),
            destination: SocketAddr::new(self.cp().address_of(outer_source.family()), TUNNEL),
            ttl: 64,
            tos: 0,
            dont_fragment: false,
            udp_checksum: 0,
            flags: FLAG_VNI,
            vni: 1,
            inner: udp_frame(
                (SOME_MAC, self.macs.gateway),
                SocketAddr::new(inner_source.into(), 1),
                SocketAddr::new(to.into(), PORT),
                text.as_bytes(),
            ),
        }
    }

    /// Looks at everything that pods and the world receive, and at what nodes send to each other and to them; and at
    /// what arrives at the sockets of [`PORT`] everywhere.
    pub(crate) fn watch(&self) -> Lookout {
        let pods = [&self.pod, &self.neighbour, &self.peer, &self.far];
        let world = self.cluster.world().namespace();
        let mut watch = Watch::default().received(world, "eth0");
        for pod in pods {
            watch = watch.received(pod.namespace(), "eth0");
        }
        for node in self.cluster.nodes() {
            watch = watch.sent(node.namespace(), Node::DEVICE);
        }
        let places = pods.map(Pod::namespace).into_iter().chain([world]);
        let places = places.chain(self.cluster.nodes().iter().map(Node::namespace));
        let sockets = places.map(|place| (place.name().to_owned(), listen(place))).collect();
        Lookout { watch, sockets }
    }

    /// Runs `send`, which sends `count` packets that `cp` has to drop for `reason`; gives the records of them.
    #[track_caller]
    pub(crate) fn dropped(&self, what: &str, reason: &str, count: usize, send: impl FnOnce()) -> Vec<Value> {
        let before = Drops::read(self.cp());
        send();
        let count_since = || Drops::read(self.cp()).since(&before);
        let counted = eventually(count_since, |counted| counted.values().sum::<u64>() >= count as u64);
        assert_eq!(counted, BTreeMap::from([(reason.to_owned(), count as u64)]), "{what}");
        let records = self.monitor.take(count);
        assert_eq!(records.len(), count, "{what}: {records:?}");
        for record in &records {
            assert_eq!(record["reason"], reason, "{what}: {record}");
        }
        records
    }
}

/// Places under observation until [`Lookout::saw_nothing`].
pub(crate) struct Lookout {
    watch: Watch,
    sockets: Vec<(String, UdpSocket)>,
}

impl Lookout {
    /// Waits for `count` datagrams at [`PORT`] in `place` with exactly this text.
    #[track_caller]
    pub(crate) fn receives(&self, place: &Namespace, text: &str, count: usize) {
        let (_, socket) = self.sockets.iter().find(|(name, _)| name == place.name()).expect("a known place");
        for _ in 0..count {
            let mut got = [0; 2048];
            let len = socket.recv(&mut got);
            let len = len.unwrap_or_else(|error| panic!("{} did not get {text:?}: {error}", place.name()));
            assert_eq!(String::from_utf8_lossy(&got[..len]), text, "{}", place.name());
        }
    }

    /// No frame with [`MARK`] has been seen, and no socket has got anything else than what was waited for.
    #[track_caller]
    pub(crate) fn saw_nothing(self) {
        assert_eq!(self.watch.seen(MARK), Vec::<String>::new());
        for (name, socket) in self.sockets {
            socket.set_nonblocking(true).unwrap();
            let mut got = [0; 2048];
            if let Ok(len) = socket.recv(&mut got) {
                panic!("{name} got {:?}", String::from_utf8_lossy(&got[..len]));
            }
        }
    }
}

fn listen(place: &Namespace) -> UdpSocket {
    // Of both families.
    udp::bind(place, SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT))).unwrap()
}

/// Reads until `enough` says yes, or a second has passed; gives what was read last.
pub(crate) fn eventually<T>(mut read: impl FnMut() -> T, enough: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + Duration::from_secs(1);
    loop {
        let value = read();
        if enough(&value) || Instant::now() >= deadline {
            return value;
        }
        thread::sleep(Duration::from_millis(5));
    }
}
