//! Senders of UDP that never fall silent, from one port: each of their flows is one to the kernel, whoever serves the port.

use std::net::{SocketAddr, UdpSocket};

use overlay_tests::lab::{Cluster, Families, Pod};
use overlay_tests::traffic::udp;
use overlay_userspace::family::OfFamily as _;

use crate::bed::{POD_PORT, server};

const PORT: u16 = 8080;

/// What is sent from `client` arrives at `pod`, and is answered.
#[track_caller]
fn expect_answer(client: &UdpSocket, pod: &Pod, when: &str) {
    let family = client.peer_addr().unwrap().ip().family();
    let far = udp::bind(pod.namespace(), SocketAddr::new(pod.addr_of(family), POD_PORT)).unwrap();
    // An earlier datagram's refusal may be reported first.
    while client.send(b"question").is_err() {}
    let mut buffer = [0; 64];
    let (length, from) = far.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{when}: {error}"));
    far.send_to(&buffer[..length], from).unwrap();
    let length = client.recv(&mut buffer).unwrap_or_else(|error| panic!("the answer, {when}: {error}"));
    assert_eq!(&buffer[..length], b"question");
}

#[track_caller]
fn expect_flows_to_follow(families: Families) {
    let cluster = Cluster::builder().families(families).start();
    let node = cluster.node("w1");
    let near = cluster.add_pod("w1", "near");
    let (world, far) = (cluster.world().namespace(), cluster.node("w2").namespace());
    let from = [world, near.namespace(), node.namespace(), far];
    let dials = families.iter().map(|family| SocketAddr::new(node.address_of(family), PORT));
    let clients: Vec<_> =
        dials.flat_map(|dial| from.map(|namespace| udp::connected(namespace, dial).unwrap())).collect();
    // To the node itself, as long as no pod has the port. The refusal shows that the kernel has seen it.
    for client in &clients {
        client.send(b"question").unwrap();
        client.recv(&mut [0; 64]).unwrap_err();
    }
    let first = server(&cluster, "first", PORT);
    for client in &clients {
        expect_answer(client, &first, "after a pod has taken the port");
        expect_answer(client, &first, "again");
    }
    first.del();
    let second = server(&cluster, "second", PORT);
    assert!(families.iter().all(|family| first.addr_of(family) != second.addr_of(family)));
    for client in &clients {
        expect_answer(client, &second, "after another pod has taken the port");
    }
}

#[test]
fn a_flow_of_udp_follows_its_port_from_pod_to_pod() {
    expect_flows_to_follow(Families::Ipv4);
}

#[test]
fn a_flow_of_udp_follows_its_port_in_both_families() {
    expect_flows_to_follow(Families::Dual);
}
