//! The nft program itself, and what the rules do to real packets between three namespaces.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use ipnet::IpNet;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};

use super::{
    source_nat::{Masquerade, SourceNat},
    *,
};
use crate::{
    family::ByFamily,
    host::{
        netns::{
            NetNs,
            testing::{fresh_netns, in_fresh_netns, ip, run as sh, run_with_input},
        },
        sysctl,
    },
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

/// An address, in the family that a test is about: IPv6 has those of IPv4 at the end of one prefix, so that both families
/// have one topology.
fn of(family: Family, v4: Ipv4Addr) -> IpAddr {
    match family {
        Family::Ipv4 => v4.into(),
        Family::Ipv6 => Ipv6Addr::from_bits(0xfd00_0079 << 96 | u128::from(v4.to_bits())).into(),
    }
}

/// The same of a network.
fn net(family: Family, v4: &str) -> IpNet {
    let v4: ipnet::Ipv4Net = v4.parse().unwrap();
    let more = if family == Family::Ipv6 { 96 } else { 0 };
    IpNet::new(of(family, v4.addr()), v4.prefix_len() + more).unwrap()
}

/// A pod 10.244.1.2, the calling thread's namespace as its node 198.51.100.254, and the world 198.51.100.1,
/// which also has the addresses .2 (another node) and 10.244.2.2 (its pod). Where the pod is, there is also 10.244.3.3,
/// for a pod of a third node.
struct Wires {
    family: Family,
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
    fn new(family: Family) -> Self {
        let wires = Self { family, pod: fresh_netns(), world: fresh_netns() };
        let nodad = if family == Family::Ipv6 { "nodad" } else { "" };
        // Nobody is asked for a neighbour from a link-local address that is still tentative.
        let settle_at_once = || {
            for device in ["all", "default"] {
                sysctl::set(&sysctl::interface(Family::Ipv6, device, "accept_dad"), "0").unwrap();
            }
        };
        settle_at_once();
        for namespace in [&wires.pod, &wires.world] {
            namespace.run(settle_at_once).unwrap();
        }
        let net = |text: &str| net(family, text);
        let add = |address: &str, device: &str| {
            ip(&format!("address add {} dev {device} {nodad}", net(address)));
        };
        let leg = |inside: &NetNs, name: &str, own: &str, addresses: &[&str], gateway: Ipv4Addr| {
            ip(&format!("link add {name} type veth peer name {name}p"));
            add(own, name);
            ip(&format!("link set {name} up"));
            move_link(&format!("{name}p"), inside);
            inside
                .run(|| {
                    for address in addresses {
                        add(address, &format!("{name}p"));
                    }
                    ip(&format!("link set {name}p up"));
                    ip(&format!("route add default via {}", of(family, gateway)));
                })
                .unwrap();
        };
        let gateway = Ipv4Addr::new(10, 244, 1, 1);
        leg(&wires.pod, "pod", "10.244.1.1/24", &["10.244.1.2/24", "10.244.3.3/32"], gateway);
        let world = ["198.51.100.1/24", "198.51.100.2/24", "10.244.2.2/32"];
        leg(&wires.world, "world", "198.51.100.254/24", &world, THIS_NODE);
        ip(&format!("route add {} via {}", net("10.244.2.0/24"), of(family, OTHER_NODE)));
        ip(&format!("route add {} via {}", net("10.244.3.0/24"), of(family, POD)));
        let forwarding = match family {
            Family::Ipv4 => "net/ipv4/ip_forward",
            Family::Ipv6 => "net/ipv6/conf/all/forwarding",
        };
        sysctl::set(forwarding, "1").unwrap();
        wires
    }

    fn of(&self, v4: Ipv4Addr) -> IpAddr {
        of(self.family, v4)
    }

    /// Sends a datagram from the pod; the source address that arrives, if any does.
    fn source_seen(&self, to: Ipv4Addr, port: u16) -> Option<IpAddr> {
        let to = (self.of(to), port);
        let server = self.world.run(|| UdpSocket::bind(to).unwrap()).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let client = self.pod.run(|| UdpSocket::bind((self.of(POD), 0)).unwrap()).unwrap();
        client.send_to(b"x", to).unwrap();
        server.recv_from(&mut [0; 8]).ok().map(|(_, from)| from.ip())
    }

    /// Sends from an address, and an answer back; `called` is what the client calls, `server` where it gets to. On any
    /// port: a listener that was closed may still be held by a process that another test is just starting.
    fn exchange(&self, protocol: Protocol, [from, called, server]: [Ipv4Addr; 3]) -> Seen {
        let any = |address: Ipv4Addr| SocketAddr::from((self.of(address), 0));
        let called = |server: SocketAddr| SocketAddr::from((self.of(called), server.port()));
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
    let family = if from.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let address = SockaddrStorage::from;
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
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
fn nat(family: Family, anchor: &str) -> SourceNat {
    SourceNat {
        subnets: vec![net(family, "10.244.1.0/24")],
        cluster: net(family, "10.244.0.0/16"),
        anchor: anchor.into(),
        masquerade: Some(Masquerade {
            nodes: BTreeSet::from([THIS_NODE, OTHER_NODE].map(|node| of(family, node))),
            never: vec![],
            port: 8472,
        }),
    }
}

/// Runs a test in each family, in a namespace of its own.
fn in_each_family(test: impl Fn(Family) + Sync) {
    for family in Family::ALL {
        in_fresh_netns(|| test(family));
    }
}

#[test]
fn only_what_leaves_the_cluster_gets_the_nodes_address_and_tunnel_packets_never() {
    in_each_family(|family| {
        let wires = Wires::new(family);
        let seen = |to, port| wires.source_seen(to, port);
        let (node, pod) = (Some(of(family, THIS_NODE)), Some(of(family, POD)));
        source_nat::ensure(&nat(family, "overlay.1")).unwrap();
        assert_eq!(seen(WORLD, 9000), node, "{family}: to the world");
        assert_eq!(seen(OTHER_NODE, 9000), node, "{family}: to a node, past the tunnel");
        assert_eq!(seen(BACKEND, 9000), pod, "{family}: to another pod");
        assert_eq!(seen(WORLD, 8472), pod, "{family}: to the tunnel port of a stranger");
        assert_eq!(seen(OTHER_NODE, 8472), pod, "{family}: to the tunnel port of a node");
        source_nat::ensure(&nat(family, "world")).unwrap();
        assert_eq!(seen(OTHER_NODE, 9000), pod, "{family}: to a node, through the tunnel");
    });
}

#[test]
fn destinations_on_the_list_see_the_pod_unless_they_are_nodes() {
    in_each_family(|family| {
        let wires = Wires::new(family);
        let mut nat = nat(family, "overlay.1");
        nat.masquerade.as_mut().unwrap().never = vec![net(family, "198.51.100.0/30")];
        source_nat::ensure(&nat).unwrap();
        assert_eq!(wires.source_seen(WORLD, 9000), Some(of(family, POD)), "{family}: on the list");
        let node = Some(of(family, THIS_NODE));
        assert_eq!(wires.source_seen(OTHER_NODE, 9000), node, "{family}: a node, past the tunnel");
    });
}

const WORLD: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
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
fn kube_proxy(family: Family) {
    let ip = family.nft();
    let [service, masqueraded, nodes] =
        [SERVICE, MASQUERADED_SERVICE, NODES_SERVICE].map(|v4| of(family, v4));
    let [backend, node] = [BACKEND, OTHER_NODE].map(|v4| of(family, v4));
    run_with_input(
        "nft -f -",
        &format!(
            "table {ip} kube-proxy {{
                chain prerouting {{
                    type nat hook prerouting priority dstnat;
                    {ip} daddr {masqueraded} meta mark set mark or 0x4000
                    {ip} daddr {{ {service}, {masqueraded} }} dnat to {backend}
                    {ip} daddr {nodes} dnat to {node}
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
    in_each_family(|family| {
        let wires = Wires::new(family);
        kube_proxy(family);
        for masquerade in [true, false] {
            let mut nat = nat(family, "overlay.1");
            nat.masquerade = nat.masquerade.filter(|_| masquerade);
            source_nat::ensure(&nat).unwrap();
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                for _ in 0..10 {
                    let seen = wires.exchange(protocol, [POD, SERVICE, BACKEND]);
                    assert_eq!(seen.server.ip(), wires.of(POD), "{protocol:?}: {seen:?}");
                    assert!((1024..=32767).contains(&seen.server.port()), "{protocol:?}: {seen:?}");
                }
                let seen = wires.exchange(protocol, [POD, BACKEND, BACKEND]);
                assert_eq!(seen.server, seen.client, "{protocol:?}: untouched without a Service");
                let seen = wires.exchange(protocol, [POD, MASQUERADED_SERVICE, BACKEND]);
                assert_eq!(
                    seen.server.ip(),
                    wires.of(THIS_NODE),
                    "{protocol:?}: kube-proxy's masquerade wins"
                );
            }
        }
    });
}

#[test]
fn what_another_nodes_pod_sends_on_into_the_tunnel_gets_an_address_of_this_node() {
    in_each_family(|family| {
        let wires = Wires::new(family);
        kube_proxy(family);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let relayed = || wires.exchange(protocol, [THIRD_NODES_POD, SERVICE, BACKEND]).server.ip();
            source_nat::ensure(&nat(family, "world")).unwrap();
            assert_eq!(relayed(), wires.of(THIS_NODE), "{protocol:?} into the tunnel");
            let direct = wires.exchange(protocol, [THIRD_NODES_POD, BACKEND, BACKEND]);
            assert_eq!(direct.server, direct.client, "{protocol:?}: untouched without a Service");
            let own = wires.exchange(protocol, [POD, SERVICE, BACKEND]);
            assert_eq!(own.server.ip(), wires.of(POD), "{protocol:?}: the node's own pod");
            source_nat::ensure(&nat(family, "overlay.1")).unwrap();
            assert_eq!(relayed(), wires.of(THIRD_NODES_POD), "{protocol:?} to a pod of this node");
        }
    });
}

#[test]
fn a_pods_address_reaches_a_node_behind_a_service_through_the_tunnel_only() {
    in_each_family(|family| {
        let wires = Wires::new(family);
        kube_proxy(family);
        for (anchor, expected) in [("world", POD), ("overlay.1", THIS_NODE)] {
            source_nat::ensure(&nat(family, anchor)).unwrap();
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let seen = wires.exchange(protocol, [POD, NODES_SERVICE, OTHER_NODE]);
                assert_eq!(seen.server.ip(), wires.of(expected), "{protocol:?} by {anchor}");
            }
        }
    });
}

#[test]
fn dockers_policy_stops_pods_until_the_chain_is_opened() {
    for (family, iptables) in [(Family::Ipv4, "iptables-nft"), (Family::Ipv6, "ip6tables-nft")] {
        in_fresh_netns(|| {
            let wires = Wires::new(family);
            sh(&format!("{iptables} -P FORWARD DROP"));
            assert_eq!(wires.source_seen(WORLD, 9000), None);
            let mut carried =
                foreign::Carried { clusters: ByFamily::default(), vteps: ByFamily::default(), port: 8472 };
            carried.clusters.set(family, net(family, "10.244.0.0/16"));
            foreign::ensure(&carried).unwrap();
            assert!(wires.source_seen(WORLD, 9000).is_some(), "{family}");
            foreign::remove().unwrap();
            assert_eq!(wires.source_seen(WORLD, 9000), None);
        });
    }
}
