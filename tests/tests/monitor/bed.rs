//! The scene: the default cluster with a few pods, and somebody on the LAN who is no node.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Command;
use std::time::Duration;

use overlay_tests::lab::exec::{self, Output};
use overlay_tests::lab::{Cluster, Families, Namespace, Node, Pod};
use overlay_tests::traffic::inject::mac_of;
use overlay_tests::traffic::udp;
use overlay_tests::traffic::vxlan::{FLAG_VNI, Tunnel, udp_frame};

/// An address in the cluster's range that belongs to no node.
pub(crate) const NO_NODE: Ipv4Addr = Ipv4Addr::new(10, 244, 99, 2);
/// An address on the LAN of `cp` and `w1` that is no node's.
pub(crate) const STRANGER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 50);
/// Somebody's MAC.
pub(crate) const SOME_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x99];
/// The tunnel's port.
pub(crate) const TUNNEL: u16 = 8472;
/// Where forged datagrams are for.
pub(crate) const PORT: u16 = 7777;
/// How long a command may take.
const LIMIT: Duration = Duration::from_secs(10);

pub(crate) struct Bed {
    /// On `cp`.
    pub(crate) a: Pod,
    /// On `cp`.
    pub(crate) b: Pod,
    /// On `w1`.
    pub(crate) peer: Pod,
    pub(crate) stranger: Namespace,
    pub(crate) cluster: Cluster,
}

impl Bed {
    pub(crate) fn new() -> Self {
        Self::of(Families::Ipv4)
    }

    /// The same with pods and nodes of these families, IPv4 at least.
    pub(crate) fn of(families: Families) -> Self {
        let cluster = Cluster::builder().families(families).start();
        let stranger = cluster.lab().namespace("stranger");
        cluster.lan_a().attach(&stranger, "eth0");
        stranger.ip(&format!("addr add {STRANGER}/26 dev eth0"));
        let [a, b] = ["a", "b"].map(|name| cluster.add_pod("cp", name));
        let peer = cluster.add_pod("w1", "peer");
        Self { a, b, peer, stranger, cluster }
    }

    pub(crate) fn cp(&self) -> &Node {
        self.cluster.node("cp")
    }

    pub(crate) fn w1(&self) -> &Node {
        self.cluster.node("w1")
    }

    /// The MAC of `cp`'s gateway, which is that of its anchor device.
    pub(crate) fn gateway_mac(&self) -> [u8; 6] {
        mac_of(self.cp().namespace(), Node::ANCHOR)
    }

    /// A tunnel packet from the LAN to `cp`.
    pub(crate) fn tunnel(&self, outer: Ipv4Addr, from: Ipv4Addr, to: Ipv4Addr) -> Tunnel {
        let inner = (SOME_MAC, self.gateway_mac());
        Tunnel {
            macs: (SOME_MAC, mac_of(self.cp().namespace(), Node::DEVICE)),
            source: SocketAddrV4::new(outer, 50_000).into(),
            destination: SocketAddrV4::new(self.cp().address(), TUNNEL).into(),
            ttl: 64,
            tos: 0,
            dont_fragment: false,
            udp_checksum: 0,
            flags: FLAG_VNI,
            vni: 1,
            inner: udp_frame(inner, SocketAddrV4::new(from, 4000), SocketAddrV4::new(to, PORT), b"hello"),
        }
    }
}

/// Sends datagrams from a port of a pod.
#[track_caller]
pub(crate) fn send(pod: &Pod, from: u16, to: (Ipv4Addr, u16), count: usize) {
    let socket = udp::bind(pod.namespace(), (pod.addr(), from).into()).unwrap();
    for _ in 0..count {
        socket.send_to(b"anybody there", to).unwrap();
    }
}

/// Runs a command of `overlay` to its end.
#[track_caller]
pub(crate) fn run(node: &Node, arguments: &[&str]) -> Output {
    exec::output(&mut node.overlay(arguments), b"", LIMIT).unwrap()
}

/// What tcpdump reads in a capture file.
#[track_caller]
pub(crate) fn tcpdump(file: &std::path::Path) -> String {
    let mut command = Command::new("tcpdump");
    command.env("LC_ALL", "C").args(["-nn", "-v", "-T", "vxlan", "-r"]).arg(file);
    let out = exec::output(&mut command, b"", LIMIT).unwrap();
    assert!(out.status.success(), "{}", out.stderr);
    out.stdout
}
