//! The nft program itself, and what the rules do to real packets between three namespaces.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};

use super::{
    source_nat::{Masquerade, SourceNat},
    *,
};
use crate::host::{
    netns::{
        NetNs,
        testing::{fresh_netns, in_fresh_netns, ip, run as sh, run_with_input},
    },
    sysctl,
};

#[test]
fn a_missing_program_names_its_package() {
    let error = run("overlay-test-no-such-nft", "nftables", &[], "", "list tables").unwrap_err();
    assert_eq!(error.to_string(), "overlay-test-no-such-nft not found in PATH; install the package nftables");
}

#[test]
fn a_refused_script_shows_the_action_and_nfts_first_line() {
    in_fresh_netns(|| {
        let error = apply("nonsense", "load the test table").unwrap_err().to_string();
        assert!(error.starts_with("load the test table: nft says: "), "{error}");
        assert!(error.contains("syntax error"), "{error}");
    });
}

/// A pod 10.244.1.2, the calling thread's namespace as its node 198.51.100.254, and the world 198.51.100.1,
/// which also has the addresses .2 (another node) and 10.244.2.2 (its pod). Where the pod is, there is also 10.244.3.3,
/// for a pod of a third node.
struct Wires {
    pod: NetNs,
    world: NetNs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Tcp,
    Udp,
}

/// Both ends of an exchange: what the client is bound to, and what the server sees of it.
#[derive(Debug)]
struct Seen {
    client: SocketAddr,
    server: SocketAddr,
}

impl Wires {
    fn new() -> Self {
        let wires = Self { pod: fresh_netns(), world: fresh_netns() };
        let leg = |inside: &NetNs, name: &str, own: &str, addresses: &[&str], gateway: &str| {
            ip(&format!("link add {name} type veth peer name {name}p"));
            ip(&format!("address add {own} dev {name}"));
            ip(&format!("link set {name} up"));
            move_link(&format!("{name}p"), inside);
            inside
                .run(|| {
                    for address in addresses {
                        ip(&format!("address add {address} dev {name}p"));
                    }
                    ip(&format!("link set {name}p up"));
                    ip(&format!("route add default via {gateway}"));
                })
                .unwrap();
        };
        leg(&wires.pod, "pod", "10.244.1.1/24", &["10.244.1.2/24", "10.244.3.3/32"], "10.244.1.1");
        let world = ["198.51.100.1/24", "198.51.100.2/24", "10.244.2.2/32"];
        leg(&wires.world, "world", "198.51.100.254/24", &world, "198.51.100.254");
        ip("route add 10.244.2.0/24 via 198.51.100.2");
        ip("route add 10.244.3.0/24 via 10.244.1.2");
        sysctl::set("net/ipv4/ip_forward", "1").unwrap();
        wires
    }

    /// Sends a datagram from the pod; the source address that arrives, if any does.
    fn source_seen(&self, to: &str) -> Option<Ipv4Addr> {
        let server = self.world.run(|| UdpSocket::bind(to).unwrap()).unwrap();
        server.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let client = self.pod.run(|| UdpSocket::bind("10.244.1.2:0").unwrap()).unwrap();
        client.send_to(b"x", to).unwrap();
        server.recv_from(&mut [0; 8]).ok().map(|(_, from)| match from.ip() {
            IpAddr::V4(v4) => v4,
            IpAddr::V6(_) => panic!("{from} is not IPv4"),
        })
    }

    /// Sends from an address, and an answer back; `called` is what the client calls, `server` where it gets to. On any
    /// port: a listener that was closed may still be held by a process that another test is just starting.
    fn exchange(&self, protocol: Protocol, [from, called, server]: [Ipv4Addr; 3]) -> Seen {
        let any = |address: Ipv4Addr| SocketAddr::from((address, 0));
        let called = |server: SocketAddr| SocketAddr::from((called, server.port()));
        match protocol {
            Protocol::Udp => {
                let server = self.world.run(|| UdpSocket::bind(any(server)).unwrap()).unwrap();
                let client = self.pod.run(|| UdpSocket::bind(any(from)).unwrap()).unwrap();
                for socket in [&server, &client] {
                    socket.set_read_timeout(Some(SOON)).unwrap();
                }
                // Connected: an answer from another address than the one called would not be taken.
                client.connect(called(server.local_addr().unwrap())).unwrap();
                client.send(b"x").unwrap();
                let (_, seen) = server.recv_from(&mut [0; 8]).unwrap();
                server.send_to(b"y", seen).unwrap();
                client.recv(&mut [0; 8]).unwrap();
                Seen { client: client.local_addr().unwrap(), server: seen }
            }
            Protocol::Tcp => {
                let server = self.world.run(|| TcpListener::bind(any(server)).unwrap()).unwrap();
                let called = called(server.local_addr().unwrap());
                let client = self.pod.run(|| connect_from(any(from), called)).unwrap();
                let (_, seen) = server.accept().unwrap();
                Seen { client: client.local_addr().unwrap(), server: seen }
            }
        }
    }
}

/// Long enough on a busy machine.
const SOON: Duration = Duration::from_secs(10);

fn connect_from(from: SocketAddr, to: SocketAddr) -> TcpStream {
    use std::os::fd::AsRawFd as _;
    let address = |address: SocketAddr| match address {
        SocketAddr::V4(v4) => SockaddrIn::from(v4),
        SocketAddr::V6(_) => panic!("{address} is not IPv4"),
    };
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let timeout = nix::sys::time::TimeVal::new(SOON.as_secs().try_into().unwrap(), 0);
    setsockopt(&socket, sockopt::SendTimeout, &timeout).unwrap();
    bind(socket.as_raw_fd(), &address(from)).unwrap();
    connect(socket.as_raw_fd(), &address(to)).unwrap();
    socket.into()
}

/// Moves a link into a namespace that has no name.
fn move_link(link: &str, netns: &NetNs) {
    use std::os::fd::{AsFd as _, AsRawFd as _};
    let path = format!("/proc/{}/fd/{}", std::process::id(), netns.as_fd().as_raw_fd());
    ip(&format!("link set {link} netns {path}"));
}

/// What the node translates, with the device to the world as the way into the tunnel or not.
fn nat(anchor: &str) -> SourceNat {
    SourceNat {
        subnets: vec!["10.244.1.0/24".parse().unwrap()],
        cluster: "10.244.0.0/16".parse().unwrap(),
        anchor: anchor.into(),
        masquerade: Some(Masquerade {
            nodes: BTreeSet::from(["198.51.100.254", "198.51.100.2"].map(|node| node.parse().unwrap())),
            to_nodes: false,
            never: vec![],
            port: 8472,
        }),
    }
}

#[test]
fn only_what_leaves_the_cluster_gets_the_nodes_address_and_tunnel_packets_never() {
    in_fresh_netns(|| {
        let wires = Wires::new();
        source_nat::ensure(&nat("world")).unwrap();
        assert_eq!(wires.source_seen("198.51.100.1:9000"), Some(THIS_NODE), "to the world");
        assert_eq!(wires.source_seen("198.51.100.2:9000"), Some(POD), "to another node");
        assert_eq!(wires.source_seen("10.244.2.2:9000"), Some(POD), "to another pod");
        assert_eq!(wires.source_seen("198.51.100.1:8472"), Some(POD), "to the tunnel port of a stranger");
        assert_eq!(wires.source_seen("198.51.100.2:8472"), Some(POD), "to the tunnel port of a node");
    });
}

#[test]
fn destinations_on_the_list_see_the_pod_unless_they_are_nodes() {
    in_fresh_netns(|| {
        let wires = Wires::new();
        let with = |anchor: &str, to_nodes: bool| {
            let mut nat = nat(anchor);
            let masquerade = nat.masquerade.as_mut().unwrap();
            masquerade.never = vec!["198.51.100.0/30".parse().unwrap()];
            masquerade.to_nodes = to_nodes;
            source_nat::ensure(&nat).unwrap();
        };
        with("world", false);
        assert_eq!(wires.source_seen("198.51.100.1:9000"), Some(POD), "on the list");
        assert_eq!(wires.source_seen("198.51.100.2:9000"), Some(POD), "a node, through the tunnel");
        with("overlay.1", false);
        assert_eq!(wires.source_seen("198.51.100.2:9000"), Some(THIS_NODE), "a node, past the tunnel");
        with("world", true);
        assert_eq!(wires.source_seen("198.51.100.1:9000"), Some(POD), "on the list");
        assert_eq!(
            wires.source_seen("198.51.100.2:9000"),
            Some(THIS_NODE),
            "a node, where nodes are like the world"
        );
    });
}

const THIS_NODE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 254);
const OTHER_NODE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 2);
const BACKEND: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 2);
const THIRD_NODES_POD: Ipv4Addr = Ipv4Addr::new(10, 244, 3, 3);
/// Services: of the backend, of the backend with masquerade, of the other node.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const MASQUERADED_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 2);
const NODES_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 3);

/// Sends Services to their backends and masquerades what has its mark, as kube-proxy does.
fn kube_proxy() {
    run_with_input(
        "nft -f -",
        &format!(
            "table ip kube-proxy {{
                chain prerouting {{
                    type nat hook prerouting priority dstnat;
                    ip daddr {MASQUERADED_SERVICE} meta mark set mark or 0x4000
                    ip daddr {{ {SERVICE}, {MASQUERADED_SERVICE} }} dnat to {BACKEND}
                    ip daddr {NODES_SERVICE} dnat to {OTHER_NODE}
                }}
                chain postrouting {{
                    type nat hook postrouting priority srcnat;
                    meta mark and 0x4000 != 0 masquerade fully-random
                }}
            }}"
        ),
    );
}

#[test]
fn a_services_flow_keeps_the_pods_address_and_never_has_a_port_that_a_direct_flow_has() {
    in_fresh_netns(|| {
        let wires = Wires::new();
        kube_proxy();
        for masquerade in [true, false] {
            let mut nat = nat("overlay.1");
            nat.masquerade = nat.masquerade.filter(|_| masquerade);
            source_nat::ensure(&nat).unwrap();
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                for _ in 0..10 {
                    let seen = wires.exchange(protocol, [POD, SERVICE, BACKEND]);
                    assert_eq!(seen.server.ip(), POD, "{protocol:?}: {seen:?}");
                    assert!((1024..=32767).contains(&seen.server.port()), "{protocol:?}: {seen:?}");
                }
                let seen = wires.exchange(protocol, [POD, BACKEND, BACKEND]);
                assert_eq!(seen.server, seen.client, "{protocol:?}: untouched without a Service");
                let seen = wires.exchange(protocol, [POD, MASQUERADED_SERVICE, BACKEND]);
                assert_eq!(seen.server.ip(), THIS_NODE, "{protocol:?}: kube-proxy's masquerade wins");
            }
        }
    });
}

#[test]
fn what_another_nodes_pod_sends_on_into_the_tunnel_gets_an_address_of_this_node() {
    in_fresh_netns(|| {
        let wires = Wires::new();
        kube_proxy();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let relayed = || wires.exchange(protocol, [THIRD_NODES_POD, SERVICE, BACKEND]).server.ip();
            source_nat::ensure(&nat("world")).unwrap();
            assert_eq!(relayed(), THIS_NODE, "{protocol:?} into the tunnel");
            let direct = wires.exchange(protocol, [THIRD_NODES_POD, BACKEND, BACKEND]);
            assert_eq!(direct.server, direct.client, "{protocol:?}: untouched without a Service");
            let own = wires.exchange(protocol, [POD, SERVICE, BACKEND]);
            assert_eq!(own.server.ip(), POD, "{protocol:?}: the node's own pod");
            source_nat::ensure(&nat("overlay.1")).unwrap();
            assert_eq!(relayed(), THIRD_NODES_POD, "{protocol:?} to a pod of this node");
        }
    });
}

#[test]
fn a_pods_address_reaches_a_node_behind_a_service_through_the_tunnel_only() {
    in_fresh_netns(|| {
        let wires = Wires::new();
        kube_proxy();
        for (anchor, expected) in [("world", POD), ("overlay.1", THIS_NODE)] {
            source_nat::ensure(&nat(anchor)).unwrap();
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let seen = wires.exchange(protocol, [POD, NODES_SERVICE, OTHER_NODE]);
                assert_eq!(seen.server.ip(), expected, "{protocol:?} by {anchor}");
            }
        }
    });
}

#[test]
fn dockers_policy_stops_pods_until_the_chain_is_opened() {
    in_fresh_netns(|| {
        let wires = Wires::new();
        sh("iptables-nft -P FORWARD DROP");
        assert_eq!(wires.source_seen("198.51.100.1:9000"), None);
        let cluster = "10.244.0.0/16".parse().unwrap();
        foreign::ensure(cluster, 8472).unwrap();
        assert!(wires.source_seen("198.51.100.1:9000").is_some());
        foreign::remove().unwrap();
        assert_eq!(wires.source_seen("198.51.100.1:9000"), None);
    });
}
