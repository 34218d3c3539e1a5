//! The nft program itself, and what the rules do to real packets between three namespaces.

use std::{
    collections::BTreeSet,
    net::{IpAddr, UdpSocket},
    time::Duration,
};

use super::{masquerade::Masquerade, *};
use crate::host::{
    netns::{
        NetNs,
        testing::{fresh_netns, in_fresh_netns, ip, run as sh},
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
/// which also has the addresses .2 (another node) and 10.244.2.2 (its pod).
struct Wires {
    pod: NetNs,
    world: NetNs,
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
        leg(&wires.pod, "pod", "10.244.1.1/24", &["10.244.1.2/24"], "10.244.1.1");
        let world = ["198.51.100.1/24", "198.51.100.2/24", "10.244.2.2/32"];
        leg(&wires.world, "world", "198.51.100.254/24", &world, "198.51.100.254");
        ip("route add 10.244.2.0/24 via 198.51.100.2");
        sysctl::set("net/ipv4/ip_forward", "1").unwrap();
        wires
    }

    /// Sends a datagram from the pod; the source address that arrives, if any does.
    fn source_seen(&self, to: &str) -> Option<IpAddr> {
        let server = self.world.run(|| UdpSocket::bind(to).unwrap()).unwrap();
        server.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let client = self.pod.run(|| UdpSocket::bind("10.244.1.2:0").unwrap()).unwrap();
        client.send_to(b"x", to).unwrap();
        server.recv_from(&mut [0; 8]).ok().map(|(_, from)| from.ip())
    }
}

/// Moves a link into a namespace that has no name.
fn move_link(link: &str, netns: &NetNs) {
    use std::os::fd::{AsFd as _, AsRawFd as _};
    let path = format!("/proc/{}/fd/{}", std::process::id(), netns.as_fd().as_raw_fd());
    ip(&format!("link set {link} netns {path}"));
}

#[test]
fn only_what_leaves_the_cluster_gets_the_nodes_address_and_tunnel_packets_never() {
    in_fresh_netns(|| {
        let wires = Wires::new();
        masquerade::ensure(&Masquerade {
            subnets: vec!["10.244.1.0/24".parse().unwrap()],
            cluster: "10.244.0.0/16".parse().unwrap(),
            nodes: BTreeSet::from(["198.51.100.254", "198.51.100.2"].map(|node| node.parse().unwrap())),
            port: 8472,
        })
        .unwrap();
        let node: Option<IpAddr> = Some([198, 51, 100, 254].into());
        let pod: Option<IpAddr> = Some([10, 244, 1, 2].into());
        assert_eq!(wires.source_seen("198.51.100.1:9000"), node, "to the world");
        assert_eq!(wires.source_seen("198.51.100.2:9000"), pod, "to another node");
        assert_eq!(wires.source_seen("10.244.2.2:9000"), pod, "to another pod");
        assert_eq!(wires.source_seen("198.51.100.1:8472"), pod, "to the tunnel port of a stranger");
        assert_eq!(wires.source_seen("198.51.100.2:8472"), pod, "to the tunnel port of a node");
    });
}

#[test]
fn dockers_policy_stops_pods_until_the_chain_is_opened() {
    in_fresh_netns(|| {
        let wires = Wires::new();
        sh("iptables-nft -P FORWARD DROP");
        assert_eq!(wires.source_seen("198.51.100.1:9000"), None);
        let cluster = "10.244.0.0/16".parse().unwrap();
        forward::ensure(cluster).unwrap();
        assert!(wires.source_seen("198.51.100.1:9000").is_some());
        forward::remove().unwrap();
        assert_eq!(wires.source_seen("198.51.100.1:9000"), None);
    });
}
