//! Senders of UDP that never fall silent, from one port: each of their flows is one to the kernel, whoever serves the port.

use std::net::{SocketAddr, UdpSocket};

use overlay_tests::lab::{Cluster, Pod};
use overlay_tests::traffic::udp;

use crate::bed::{POD_PORT, server};

const PORT: u16 = 8080;

/// What is sent from `client` arrives at `pod`, and is answered.
#[track_caller]
fn expect_answer(client: &UdpSocket, pod: &Pod, when: &str) {
    let far = udp::bind(pod.namespace(), SocketAddr::new(pod.addr().into(), POD_PORT)).unwrap();
    // An earlier datagram's refusal may be reported first.
    while client.send(b"question").is_err() {}
    let mut buffer = [0; 64];
    let (length, from) = far.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{when}: {error}"));
    far.send_to(&buffer[..length], from).unwrap();
    let length = client.recv(&mut buffer).unwrap_or_else(|error| panic!("the answer, {when}: {error}"));
    assert_eq!(&buffer[..length], b"question");
}

#[test]
fn a_flow_of_udp_follows_its_port_from_pod_to_pod() {
    let cluster = Cluster::builder().start();
    let node = cluster.node("w1");
    let near = cluster.add_pod("w1", "near");
    let dial = SocketAddr::new(node.address().into(), PORT);
    let clients =
        [cluster.world().namespace(), near.namespace(), node.namespace(), cluster.node("w2").namespace()]
            .map(|namespace| udp::connected(namespace, dial).unwrap());
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
    assert_ne!(first.addr(), second.addr());
    for client in &clients {
        expect_answer(client, &second, "after another pod has taken the port");
    }
}
