//! A node with Flannel's data path (a kernel vxlan device and fixed entries) in one cluster with ours.

use std::net::{IpAddr, Ipv4Addr};

use overlay_tests::lab::{
    Cluster, FlannelNode, FlannelWire, Link, Namespace, Network, Node, NodeEntry, Pod, WireMode,
};
use overlay_tests::traffic::counters::Counters;
use overlay_tests::traffic::inject::mac_of;
use overlay_tests::traffic::paths::Volumes;
use overlay_tests::traffic::udp::Sending;
use overlay_tests::traffic::{ping, tcp, udp};

use crate::bed::{self, any_port};

/// A place that traffic comes from or goes to.
type Host<'a> = (&'a Namespace, Ipv4Addr);

/// TCP, UDP and ping, by the client under its own address.
#[track_caller]
fn expect_exchange(from: Host<'_>, to: Host<'_>) {
    let what = format!("{} to {}", from.0.name(), to.0.name());
    for seen in [tcp::exchange(from.0, to.0, any_port(to.1)), udp::exchange(from.0, to.0, any_port(to.1))] {
        let seen = seen.unwrap_or_else(|error| panic!("{what}: {error:#}"));
        assert!(seen.same_address() && seen.client.ip() == IpAddr::V4(from.1), "{what}: {seen:?}");
    }
    ping::ping(from.0, IpAddr::V4(to.1)).unwrap();
}

/// Bulk data and super-packets of datagrams.
#[track_caller]
fn expect_bulk(from: Host<'_>, to: Host<'_>) {
    let bulk = tcp::bulk(from.0, to.0, any_port(to.1), 4).unwrap();
    assert!(bulk.intact(), "{} to {}: {bulk:?}", from.0.name(), to.0.name());
    let burst = udp::burst(from.0, to.0, any_port(to.1), 100, Sending::Segmented).unwrap();
    assert!(burst.complete(), "{} to {}: {burst:?}", from.0.name(), to.0.name());
}

/// The default cluster with one more node, Flannel's, on LAN A.
fn mixed_cluster(link: Link, network: Network) -> (Cluster, FlannelNode) {
    let Network { vni, port, .. } = network;
    let cluster = Cluster::builder().link(link).network(network).build();
    let (underlay, subnet) = ("192.0.2.13/26".parse().unwrap(), "10.244.9.0/24".parse().unwrap());
    let wire = FlannelWire { vni, port };
    let theirs = FlannelNode::new(cluster.lab(), cluster.lan_a(), "flannel", underlay, subnet, wire);
    theirs.namespace().ip("route add default via 192.0.2.1");
    let entries: Vec<NodeEntry> = cluster.entries().into_iter().chain([theirs.entry()]).collect();
    cluster.write_nodes(&entries);
    cluster.start_agents();
    for node in cluster.nodes() {
        let mac = mac_of(node.namespace(), &format!("overlay.{vni}"));
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        theirs.add_peer(&node.entry(), &mac);
    }
    (cluster, theirs)
}

#[track_caller]
fn expect_mixed_cluster_to_work(link: Link, network: Network) {
    let (cluster, mut theirs) = mixed_cluster(link, network);
    let pod = theirs.add_pod(cluster.lab(), "a");
    let their_pod = (pod.namespace(), pod.addr());
    // What their node's own packets to our pods have as source: the address of the vxlan device.
    let their_node = (theirs.namespace(), theirs.subnet().network());
    let ours: Vec<(&Node, Pod)> =
        cluster.nodes().iter().map(|node| (node, node.add_pod(cluster.lab(), "a"))).collect();
    for (node, pod) in &ours {
        let our_pod = (pod.namespace(), pod.addr());
        expect_exchange(our_pod, their_pod);
        expect_exchange(their_pod, our_pod);
        expect_exchange((node.namespace(), node.gateway_address()), their_pod);
        expect_exchange(their_node, our_pod);
    }
    // On their LAN, and across the router.
    for (node, pod) in ours.iter().filter(|(node, _)| node.name() != "cp") {
        let our_pod = (pod.namespace(), pod.addr());
        let before = Volumes::read(node);
        expect_bulk(our_pod, their_pod);
        expect_bulk(their_pod, our_pod);
        let moved = Volumes::read(node).since(&before);
        for path in ["encap_native", "decap_native"] {
            assert!(moved.get(path).bytes > 4 << 20, "{path} of {}: {moved:?}", node.name());
        }
        assert_eq!(moved.get("encap_anchor").packets, 0, "{moved:?}");
    }
    let nodes = ours.iter().flat_map(|(node, pod)| [node.namespace(), pod.namespace()]);
    for namespace in nodes.chain([their_pod.0, their_node.0, cluster.router()]) {
        assert_eq!(Counters::read(namespace).checksum_errors(), 0, "in {}", namespace.name());
    }
}

#[test]
fn kernel_vxlan_node_works_with_ours_on_a_veth_wire() {
    let _traffic = bed::flood();
    expect_mixed_cluster_to_work(Link { checksums: true, ..Link::new(WireMode::Veth) }, Network::default());
    expect_mixed_cluster_to_work(Link::new(WireMode::Veth), Network::default());
}

#[test]
fn kernel_vxlan_node_works_with_ours_on_a_nic_wire_with_another_vni_and_port() {
    let _traffic = bed::flood();
    let network = Network { vni: 42, port: 4789, ..Network::default() };
    expect_mixed_cluster_to_work(Link { checksums: true, ..Link::new(WireMode::Nic) }, network);
}
