//! A node with Flannel's data path (a kernel vxlan device and fixed entries) in one cluster with ours.

use std::net::IpAddr;

use overlay_tests::lab::{
    Cluster, Families, FlannelNode, FlannelWire, Link, Namespace, Network, Node, NodeEntry, Pod, WireMode,
    nets,
};
use overlay_tests::traffic::counters::Counters;
use overlay_tests::traffic::inject::mac_of;
use overlay_tests::traffic::paths::Volumes;
use overlay_tests::traffic::udp::Sending;
use overlay_tests::traffic::{any_port, ping, tcp, udp};
use overlay_userspace::family::Family;

use crate::bed;

/// A place that traffic comes from or goes to.
type Host<'a> = (&'a Namespace, IpAddr);

/// TCP, UDP and ping, by the client under its own address.
#[track_caller]
fn expect_exchange(from: Host<'_>, to: Host<'_>) {
    let what = format!("{} to {}", from.0.name(), to.0.name());
    for seen in [tcp::exchange(from.0, to.0, any_port(to.1)), udp::exchange(from.0, to.0, any_port(to.1))] {
        let seen = seen.unwrap_or_else(|error| panic!("{what}: {error:#}"));
        assert!(seen.same_address() && seen.client.ip() == from.1, "{what}: {seen:?}");
    }
    ping::ping(from.0, to.1).unwrap();
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
fn mixed_cluster(link: Link, network: Network, families: Families) -> (Cluster, FlannelNode) {
    let Network { vni, port, .. } = network;
    let cluster = Cluster::builder().link(link).network(network).families(families).build();
    let both = [["192.0.2.13/26", "2001:db8:a::13/64"], ["10.244.9.0/24", "fd00:10:244:9::/64"]];
    let [underlay, subnets] = both.map(|both| {
        let both = nets(&both);
        families.map(|family| *both.get(family).unwrap())
    });
    let wire = FlannelWire { vni, port };
    let theirs = FlannelNode::new(cluster.lab(), cluster.lan_a(), "flannel", underlay, subnets, wire);
    for family in families.iter() {
        theirs
            .namespace()
            .ip(&format!("route add default via {}", ["192.0.2.1", "2001:db8:a::1"][family.index()]));
    }
    let entries: Vec<NodeEntry> = cluster.entries().into_iter().chain([theirs.entry()]).collect();
    cluster.write_nodes(&entries);
    cluster.start_agents();
    for node in cluster.nodes() {
        let mac = mac_of(node.namespace(), &format!("overlay.{vni}"));
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        // One device, whatever the family.
        theirs.add_peer(&node.entry(), &families.map(|_| mac.clone()));
    }
    (cluster, theirs)
}

#[track_caller]
fn expect_mixed_cluster_to_work(link: Link, network: Network, families: Families) {
    let (cluster, mut theirs) = mixed_cluster(link, network, families);
    let pod = theirs.add_pod(cluster.lab(), "a");
    let ours: Vec<(&Node, Pod)> =
        cluster.nodes().iter().map(|node| (node, node.add_pod(cluster.lab(), "a"))).collect();
    for family in families.iter() {
        expect_traffic_with(family, (&theirs, (pod.namespace(), pod.addr_of(family))), &ours);
    }
    let nodes = ours.iter().flat_map(|(node, pod)| [node.namespace(), pod.namespace()]);
    for namespace in nodes.chain([pod.namespace(), theirs.namespace(), cluster.router()]) {
        assert_eq!(Counters::read(namespace).checksum_errors(), 0, "in {}", namespace.name());
    }
}

#[track_caller]
fn expect_traffic_with(family: Family, (theirs, their_pod): (&FlannelNode, Host<'_>), ours: &[(&Node, Pod)]) {
    // What their node's own packets to our pods have as source: the address of the vxlan device.
    let their_node = (theirs.namespace(), theirs.subnet_of(family).network());
    for (node, pod) in ours {
        let our_pod = (pod.namespace(), pod.addr_of(family));
        expect_exchange(our_pod, their_pod);
        expect_exchange(their_pod, our_pod);
        expect_exchange((node.namespace(), node.gateway_of(family)), their_pod);
        expect_exchange(their_node, our_pod);
    }
    // On their LAN, and across the router.
    for (node, pod) in ours.iter().filter(|(node, _)| node.name() != "cp") {
        let our_pod = (pod.namespace(), pod.addr_of(family));
        let before = Volumes::read(node);
        expect_bulk(our_pod, their_pod);
        expect_bulk(their_pod, our_pod);
        let moved = Volumes::read(node).since(&before);
        // Over IPv6 a kernel wants a checksum, which the anchor device computes.
        let encap = ["encap_native", "encap_anchor"];
        let (used, unused) = (encap[family.index()], encap[1 - family.index()]);
        assert!(moved.get(used).bytes > 4 << 20, "{used} of {}: {moved:?}", node.name());
        assert_eq!(moved.get(unused).packets, 0, "{unused} of {}: {moved:?}", node.name());
        if family == Family::Ipv4 {
            assert!(moved.get("decap_native").bytes > 4 << 20, "decap_native of {}: {moved:?}", node.name());
        }
    }
}

#[test]
fn kernel_vxlan_node_works_with_ours_on_a_veth_wire() {
    let _traffic = bed::flood();
    let checked = Link { checksums: true, ..Link::new(WireMode::Veth) };
    expect_mixed_cluster_to_work(checked, Network::default(), Families::Ipv4);
    expect_mixed_cluster_to_work(Link::new(WireMode::Veth), Network::default(), Families::Ipv4);
}

#[test]
fn kernel_vxlan_node_works_with_ours_on_a_nic_wire_with_another_vni_and_port() {
    let _traffic = bed::flood();
    let network = Network { vni: 42, port: 4789, ..Network::default() };
    expect_mixed_cluster_to_work(
        Link { checksums: true, ..Link::new(WireMode::Nic) },
        network,
        Families::Ipv4,
    );
}

#[test]
fn kernel_vxlan_node_works_with_ours_in_ipv6_alone() {
    let _traffic = bed::flood();
    expect_mixed_cluster_to_work(Link::new(WireMode::Veth), Network::default(), Families::Ipv6);
    let link = Link { checksums: true, ..Link::new(WireMode::Nic) };
    expect_mixed_cluster_to_work(link, Network::default(), Families::Ipv6);
}

#[test]
fn kernel_vxlan_node_works_with_ours_in_both_families() {
    let _traffic = bed::flood();
    // Where our nodes talk over IPv4, their pods' MTU is more than the way to Flannel's has room for in IPv6.
    for underlay in [None, Some("ipv6".to_owned())] {
        let network = Network { underlay, ..Network::default() };
        expect_mixed_cluster_to_work(Link::new(WireMode::Veth), network, Families::Dual);
    }
}
