//! What the tests stand on: two nodes of both families with a pod each, whose `eth0` is made of whatever a test is about, and
//! traffic between them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use overlay_tests::lab::{
    AgentOptions, ClusterFile, Docker, Lab, Lan, Link, Listed, Namespace, Network, Node, Pod, exec,
    families::nets, within,
};
use overlay_tests::lab::{CIDR_V4, CIDR_V6};
use overlay_tests::traffic::counters::Counters;
use overlay_tests::traffic::drops::Drops;
use overlay_tests::traffic::inject::{inject, mac_of};
use overlay_tests::traffic::paths::Volumes;
use overlay_tests::traffic::vxlan::{FLAG_VNI, Tunnel, udp_frame};
use overlay_tests::traffic::{any_port, ping, tcp, udp};
use overlay_userspace::datapath::kernel;
use overlay_userspace::family::Family;
use serde_json::Value;

/// The NIC on the LAN, below `eth0`.
pub(crate) const NIC: &str = "nic0";

/// More than anything takes on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// For a run of `overlay doctor`, some of whose checks wait for answers.
const DOCTOR: Duration = Duration::from_mins(1);

/// Who takes tunnel packets off the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// `from_wire`.
    Native,
    /// The anchor device.
    Anchor,
}

/// Fields drop in order: pods first, the lab last.
pub(crate) struct Bed {
    pub(crate) pods: [Pod; 2],
    pub(crate) nodes: [Node; 2],
    /// Its switch.
    _lan: Lan,
    outer: Family,
    pub(crate) lab: Lab,
}

impl Bed {
    /// Two nodes that talk over `outer`, with a [`NIC`] each on one LAN of this kind, of which `dress` makes an `eth0`. Both agents
    /// are ready.
    #[track_caller]
    pub(crate) fn start(link: Link, outer: Family, dress: impl Fn(&Lab, &Lan, &Namespace)) -> Self {
        Self::attached(None, link, outer, dress)
    }

    /// The same with programs attached in this way.
    #[track_caller]
    pub(crate) fn attached(
        attach: Option<&str>,
        link: Link,
        outer: Family,
        dress: impl Fn(&Lab, &Lan, &Namespace),
    ) -> Self {
        let lab = Lab::new();
        let lan = Lan::new(&lab, "lan", link);
        let nodes = [("a", 1), ("b", 2)].map(|(name, number)| {
            let namespace = lab.namespace(name);
            lan.attach(&namespace, NIC);
            dress(&lab, &lan, &namespace);
            let addresses = nets(&[&format!("192.0.2.{number}/24"), &format!("2001:db8:a::{number}/64")]);
            let subnets = nets(&[&format!("10.244.{number}.0/24"), &format!("fd00:10:244:{number}::/64")]);
            Node::builder_of(name, addresses, subnets).docker(Docker::Absent).in_namespace(&lab, &namespace)
        });
        let network = Network {
            cidr: Listed::new([CIDR_V4.into(), CIDR_V6.into()]),
            underlay: Some(outer.name().to_lowercase()),
            // Where it costs something it must not be had.
            xdp: Some("auto".into()),
            attach: attach.map(str::to_owned),
            ..Network::default()
        };
        lab.write_cluster(&ClusterFile { network, nodes: nodes.iter().map(Node::entry).collect() });
        for node in &nodes {
            // Reports about several packets to one address are more than a kernel's default (icmp(7)).
            node.namespace().sysctl("net.ipv4.icmp_ratelimit", "0");
            node.namespace().sysctl("net.ipv6.icmp.ratelimit", "0");
            node.spawn_agent(&AgentOptions { mesh: true, ..AgentOptions::default() });
        }
        for node in &nodes {
            node.wait_agent_ready();
        }
        let pods = nodes.each_ref().map(|node| node.add_pod(&lab, "pod"));
        Self { pods, nodes, _lan: lan, outer, lab }
    }

    /// Counters of both nodes and pods, for messages.
    pub(crate) fn state(&self) -> String {
        let node = |node: &Node| {
            let status = node.status().unwrap_or_default();
            let moved = |what: &str| {
                let all = status[what].as_object().cloned().unwrap_or_default();
                let moved = all.into_iter().filter(|(_, counter)| counter["packets"] != 0);
                moved.map(|(name, counter)| format!("{name} {}", counter["packets"])).collect::<Vec<_>>()
            };
            let links = node.namespace().ip("-s link show");
            format!("{}: paths {:?}, drops {:?}\n{links}", node.name(), moved("paths"), moved("drops"))
        };
        self.nodes.each_ref().map(node).join("\n")
    }

    pub(crate) fn outer(&self) -> Family {
        self.outer
    }

    /// The devices of a node that have `from_wire`.
    #[track_caller]
    pub(crate) fn wires(&self, node: usize) -> Vec<String> {
        let programs = self.nodes[node].show("programs");
        let rows = programs.as_array().expect("a list").iter();
        let wires = rows.filter(|row| row["program"] == "from_wire");
        let mut names: Vec<_> = wires.filter_map(|row| row["device"].as_str()).map(str::to_owned).collect();
        names.sort();
        names
    }

    /// Waits until exactly these devices of a node have `from_wire`.
    #[track_caller]
    pub(crate) fn expect_wires(&self, node: usize, wanted: &[&str]) {
        within(LIMIT, &format!("from_wire is on {wanted:?}"), || self.wires(node) == wanted);
    }

    /// No device of a node runs XDP.
    #[track_caller]
    pub(crate) fn expect_no_xdp(&self, node: usize) {
        for link in self.nodes[node].namespace().ip_json("-d link show").as_array().expect("a list") {
            assert!(link["xdp"].is_null(), "{link}");
        }
    }

    /// Pods and nodes reach each other in both families and both directions: datagrams, bulk, errors about packets. `ways` is
    /// who takes them off the wire at each node. Nothing is dropped, no checksum is wrong.
    #[track_caller]
    pub(crate) fn expect_traffic(&self, ways: [Way; 2]) {
        let before_all = self.nodes.each_ref().map(Drops::read);
        for inner in Family::ALL {
            let before = self.nodes.each_ref().map(Volumes::read);
            for (from, to) in [(0, 1), (1, 0)] {
                self.exchange(inner, from, to);
            }
            for (number, way) in ways.into_iter().enumerate() {
                let moved = Volumes::read(&self.nodes[number]).since(&before[number]);
                let (native, anchor) = (moved.get("decap_native").packets, moved.get("decap_anchor").packets);
                let what =
                    format!("{inner} at {}: {native} natively, {anchor} by the anchor", ["a", "b"][number]);
                match way {
                    // A first packet may have found no neighbour and been left to the kernel at either end.
                    Way::Native if inner == self.outer || kernel::has_decap_across_families() => {
                        assert!(native > 20 && anchor == 0, "{what}");
                    }
                    Way::Native | Way::Anchor => assert!(native == 0 && anchor > 20, "{what}"),
                }
            }
        }
        for (node, before) in self.nodes.iter().zip(&before_all) {
            assert_eq!(Drops::read(node).since(before), BTreeMap::new(), "{}", node.name());
        }
        for place in self.pods.iter().map(Pod::namespace).chain(self.nodes.iter().map(Node::namespace)) {
            assert_eq!(Counters::read(place).checksum_errors(), 0, "InCsumErrors in {}", place.name());
        }
    }

    #[track_caller]
    fn exchange(&self, family: Family, from: usize, to: usize) {
        let what = format!("{family} {} to {}", self.nodes[from].name(), self.nodes[to].name());
        let [near, far] = [from, to].map(|number| &self.pods[number]);
        let [near_node, far_node] = [from, to].map(|number| &self.nodes[number]);
        let pod = any_port(far.addr_of(family));
        let arrived = |error| panic!("{what}: {error:#}\n{}", self.state());
        // Pod to pod, node to pod, pod to node.
        let node = any_port(far_node.address_of(family));
        for (from, to, at) in [
            (near.namespace(), far.namespace(), pod),
            (near_node.namespace(), far.namespace(), pod),
            (near.namespace(), far_node.namespace(), node),
        ] {
            udp::exchange(from, to, at).unwrap_or_else(arrived);
            tcp::exchange(from, to, at).unwrap_or_else(arrived);
        }
        let burst = udp::burst(near.namespace(), far.namespace(), pod, 50, udp::Sending::Plain).unwrap();
        assert!(burst.complete(), "{what}: {burst:?}");
        let bulk = tcp::bulk(near.namespace(), far.namespace(), pod, 2).unwrap();
        assert!(bulk.intact(), "{what}: {bulk:?}");
        // Errors come from the gateways of both ends.
        for (ttl, node) in [(1, near_node), (2, far_node)] {
            let router = ping::expired_at(near.namespace(), far.addr_of(family), ttl, &[]).unwrap();
            assert_eq!(router, Some(node.gateway_of(family)), "{what}");
        }
    }

    /// `overlay doctor` finds nothing worth a warning on a node.
    ///
    /// Where processors are emulated, agents answer its probes of peers later than it waits; that traffic flows is tested by
    /// itself.
    #[track_caller]
    pub(crate) fn expect_doctor_is_quiet(&self, node: usize) {
        let quiet = || {
            let mut command = self.nodes[node].overlay(&["doctor", "-o", "json"]);
            command.env("OVERLAY_CONFIG", self.lab.cluster_file());
            let out = exec::output(&mut command, b"", DOCTOR).unwrap();
            let rows: Vec<Value> =
                serde_json::from_str(&out.stdout).unwrap_or_else(|error| panic!("{error}: {out:?}"));
            let slow = exec::patience() > 1;
            let wrong = rows.iter().any(|row| {
                let is_wrong = row["severity"] == "warning" || row["severity"] == "error";
                is_wrong && !(slow && row["check"] == "peers")
            });
            let quiet = !rows.is_empty() && !wrong && (slow || out.status.success());
            if !quiet {
                println!("{}", out.stdout);
            }
            quiet
        };
        within(LIMIT, "doctor finds nothing", quiet);
    }

    /// A tunnel packet from `outer_source` to node `to` by its device `device`, with a datagram of the pod of the other node in it.
    #[track_caller]
    pub(crate) fn tunnel(
        &self,
        to: usize,
        device: &str,
        outer_source: IpAddr,
        family: Family,
        port: u16,
    ) -> Tunnel {
        const SOME_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x99];
        let node = &self.nodes[to];
        Tunnel {
            macs: (SOME_MAC, mac_of(node.namespace(), device)),
            source: (outer_source, 50_000).into(),
            destination: (node.address_of(self.outer), 8472).into(),
            ttl: 64,
            tos: 0,
            dont_fragment: false,
            udp_checksum: 0,
            flags: FLAG_VNI,
            vni: 1,
            inner: udp_frame(
                (SOME_MAC, mac_of(node.namespace(), Node::ANCHOR)),
                SocketAddr::new(self.pods[1 - to].addr_of(family), 1),
                SocketAddr::new(self.pods[to].addr_of(family), port),
                b"by a strange way",
            ),
        }
    }

    /// What `change` makes of tunnel packets arrives by `device` of node `b`, in both families, decapsulated by the anchor; what it makes
    /// of those of somebody who is no node is dropped there. Frames leave `a` by its device `out`.
    #[track_caller]
    pub(crate) fn anchor_takes(&self, out: &str, device: &str, change: impl Fn(Vec<u8>) -> Vec<u8>) {
        const COUNT: u64 = 3;
        let (a, b) = (&self.nodes[0], &self.nodes[1]);
        let stranger: IpAddr = match self.outer {
            Family::Ipv4 => "192.0.2.99".parse().unwrap(),
            Family::Ipv6 => "2001:db8:a::99".parse().unwrap(),
        };
        for family in Family::ALL {
            let socket = udp::bind(self.pods[1].namespace(), any_port(self.pods[1].addr_of(family))).unwrap();
            let port = socket.local_addr().unwrap().port();
            let (dropped, before) = (Drops::read(b), Volumes::read(b));
            let frames = |source| {
                let frame = change(self.tunnel(1, device, source, family, port).encode());
                vec![frame; COUNT as usize]
            };
            inject(a.namespace(), out, &[frames(stranger), frames(a.address_of(self.outer))].concat());
            for _ in 0..COUNT {
                let mut got = [0; 64];
                let len = socket.recv(&mut got).unwrap_or_else(|error| panic!("{family}: {error}"));
                assert_eq!(&got[..len], b"by a strange way", "{family}");
            }
            let wanted = BTreeMap::from([("unknown_vtep".to_owned(), COUNT)]);
            within(LIMIT, "the stranger's packets are dropped", || Drops::read(b).since(&dropped) == wanted);
            let moved = Volumes::read(b).since(&before);
            assert_eq!(moved.get("decap_anchor").packets, COUNT, "{family}: {moved:?}");
            assert_eq!(moved.get("decap_native").packets, 0, "{family}: {moved:?}");
            socket.set_nonblocking(true).unwrap();
            assert!(socket.recv(&mut [0; 64]).is_err(), "{family}: a stranger's packet arrived");
        }
    }
}
