//! Single probes: sizes, who is answered, and how each failure is told apart.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use overlay_tests::lab::{Namespace, within};
use overlay_tests::traffic::paths::Volumes;
use overlay_userspace::datapath::pins::Pins;
use overlay_userspace::datapath::tables::Nodes;
use overlay_userspace::family::Family;
use overlay_userspace::mesh::{self, ProbeError, packet};

use crate::bed::{LIMIT, port_of, probe, start};

#[test]
fn a_probe_of_any_size_that_fits_goes_through_the_tunnel_and_back() {
    let cluster = start();
    let (cp, w2) = (cluster.node("cp"), cluster.node("w2"));
    // 1450 is the MTU of pods: the longest packet there is in the tunnel.
    for size in [mesh::ask::SMALLEST, 500, 1450] {
        let answered = probe(cp, w2, size).unwrap_or_else(|error| panic!("{size}: {error}"));
        assert_eq!(answered.total, 2, "{answered:?}");
        assert_eq!(answered.entries.len(), 2.min(packet::room(size - mesh::ask::HEADERS)));
        assert!(!answered.latency.is_zero() && answered.latency < Duration::from_secs(1), "{answered:?}");
    }
    let error = probe(cp, w2, 1451).unwrap_err();
    assert!(matches!(error, ProbeError::TooLong { size: 1451, .. }), "{error}");
    // Where a command line finds the addresses.
    let entries = Nodes::open(&Pins::new(cp.pins())).unwrap().entries().unwrap();
    let peers = mesh::peers(&entries, Family::ALL);
    assert_eq!(peers.len(), 2);
    assert_eq!(peers.get(&w2.address().into()), Some(&w2.gateway_address().into()));
}

#[test]
fn a_way_that_is_too_narrow_a_missing_agent_and_a_dead_way_are_told_apart() {
    let cluster = start();
    let (cp, w1) = (cluster.node("cp"), cluster.node("w1"));
    let w2 = cluster.node("w2");
    probe(cp, w2, 1450).unwrap();

    // The router's way to w2 carries less than both nodes believe.
    cluster.router().ip("link set dev lan-b mtu 1400");
    let error = probe(cp, w2, 1450).unwrap_err();
    assert!(matches!(error, ProbeError::TooLong { .. } | ProbeError::Lost { .. }), "{error}");
    probe(cp, w2, 1000).unwrap();
    probe(cp, w1, 1450).unwrap();

    w1.stop_agent();
    let error = probe(cp, w1, 500).unwrap_err();
    assert!(matches!(error, ProbeError::NoAgent { .. }), "{error}");

    cluster.router().ip("link set dev lan-b down");
    let error = probe(cp, w2, 500).unwrap_err();
    assert!(matches!(error, ProbeError::Lost { .. } | ProbeError::Unreachable { .. }), "{error}");
}

/// What comes back for a well-formed request from `from`.
fn asked_from(namespace: &Namespace, from: SocketAddr, to: SocketAddr) -> io::Result<usize> {
    let socket = namespace.run(|| UdpSocket::bind(from))?;
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    socket.send_to(&packet::request(packet::Request { nonce: 7, sent: 7, offset: 0 }, 200), to)?;
    socket.recv(&mut [0; 2048])
}

#[test]
fn only_gateways_are_answered_and_never_with_more_than_was_asked() {
    let cluster = start();
    let (cp, w1) = (cluster.node("cp"), cluster.node("w1"));
    let (own, far) = (cluster.add_pod("cp", "own"), cluster.add_pod("w1", "far"));
    let to = SocketAddr::V4(port_of(cp));
    let any_port = |address: std::net::Ipv4Addr| SocketAddr::new(address.into(), 0);

    assert_eq!(asked_from(w1.namespace(), any_port(w1.gateway_address()), to).unwrap(), 200);
    assert_eq!(asked_from(cp.namespace(), any_port(cp.gateway_address()), to).unwrap(), 200);
    for (who, namespace, from) in [
        ("a pod of the node", own.namespace(), own.addr()),
        ("a pod of another node", far.namespace(), far.addr()),
        // As it leaves the node: by the underlay address, through the tunnel.
        ("another node by its own address", w1.namespace(), w1.address()),
    ] {
        let result = asked_from(namespace, any_port(from), to);
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::WouldBlock, "{who} has an answer");
    }
}

#[test]
fn a_flood_of_a_pod_costs_the_agent_nothing_and_peers_nothing() {
    let cluster = start();
    let (cp, w1) = (cluster.node("cp"), cluster.node("w1"));
    let pod = cluster.add_pod("cp", "a");
    let before = Volumes::read(cp);
    let socket = pod.namespace().run(|| UdpSocket::bind((pod.addr(), 0))).unwrap();
    let request = packet::request(packet::Request { nonce: 7, sent: 7, offset: 0 }, 200);
    for _ in 0..20_000 {
        socket.send_to(&request, port_of(cp)).unwrap();
    }
    // Not a hope: with the socket full of the flood, this probe would have had no room.
    probe(w1, cp, 500).unwrap();
    within(LIMIT, "the flood is counted where it came in", || {
        Volumes::read(cp).since(&before).get("pod_to_stack").packets >= 20_000
    });
    socket.set_nonblocking(true).unwrap();
    assert_eq!(socket.recv(&mut [0; 64]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
}
