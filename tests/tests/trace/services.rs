//! Service addresses, and flows that came through the stack.

use std::net::{IpAddr, SocketAddr, TcpStream};

use overlay_tests::lab::services::{
    Backend, External, Protocol, Proxy, ProxyMode, ProxyNode, Service, ServicePort, cluster_ip,
};
use overlay_tests::lab::{Node, Pod};
use overlay_tests::traffic::{tcp, udp};
use overlay_userspace::family::Family;
use serde_json::json;

use crate::ask::{Answer, ask, go_on};
use crate::bed::{Bed, Counters, Live};

const TARGET: u16 = 8080;

fn service(name: &str, number: u8, backends: &[&Pod]) -> Service {
    Service {
        name: name.to_owned(),
        cluster_ip: cluster_ip(Family::Ipv4, number.into()),
        ports: vec![ServicePort {
            protocol: Protocol::Tcp,
            port: 80,
            target: TARGET,
            node_port: Some(30_000 + u16::from(number)),
        }],
        external: External::Cluster,
        affinity: None,
        backends: backends
            .iter()
            .map(|pod| Backend { addr: pod.addr().into(), node: pod.node().to_owned() })
            .collect(),
    }
}

fn start(bed: &Bed, mode: &ProxyMode, services: &[Service]) -> Proxy {
    let nodes = bed.cluster.nodes().iter().map(|node| ProxyNode {
        name: node.name().to_owned(),
        namespace: node.namespace().clone(),
        address: node.address().into(),
    });
    let api = (bed.cluster.world().namespace(), bed.cluster.world().address().into());
    let cluster = bed.cluster.network().cidr.expect(Family::Ipv4);
    let mut proxy = Proxy::start(bed.cluster.lab(), mode, nodes.collect(), cluster, api);
    proxy.apply(services);
    proxy
}

/// Asks about a TCP packet from one pod.
#[track_caller]
fn ask_tcp(node: &Node, from: (IpAddr, u16), to: (IpAddr, u16)) -> Answer {
    let texts = [from.0.to_string(), to.0.to_string(), from.1.to_string(), to.1.to_string()];
    let [pod, dst, source_port, port] = &texts;
    ask(node, &[pod, dst, "--protocol", "tcp", "--source-port", source_port, "--port", port])
}

#[track_caller]
fn explained(mode: &ProxyMode, place: &str) {
    let bed = Bed::new();
    let both = service("both", 10, &[&bed.neighbour, &bed.near]);
    let none = service("none", 11, &[]);
    let _proxy = start(&bed, mode, &[both.clone(), none.clone()]);
    let client = (bed.pod.addr().into(), 40_000);

    let answer = ask_tcp(bed.cp(), client, (both.cluster_ip, 80));
    answer.is("a Service", "stack");
    let translation = &answer.step("translation")["facts"];
    let targets = [&bed.neighbour, &bed.near].map(|pod| format!("{}:{TARGET}", pod.addr()));
    assert_eq!(translation["targets"], json!(targets), "{translation}");
    assert_eq!(translation["place"], place, "{translation}");
    for pod in [&bed.neighbour, &bed.near] {
        let backend = SocketAddr::from((pod.addr(), TARGET));
        // Chosen by chance: as often as it takes until this backend is the one.
        let met = (0..64).any(|_| {
            let dial = SocketAddr::new(both.cluster_ip, 80);
            tcp_reaches(bed.pod.namespace(), pod, backend, dial)
        });
        assert!(met, "no connection to the Service has reached {backend}");
    }

    let other = ask_tcp(bed.cp(), client, (both.cluster_ip, 81));
    assert!(other.steps("translation").is_empty(), "{:#}", other.report);
    let refused = ask_tcp(bed.cp(), client, (none.cluster_ip, 80));
    refused.is("a Service without endpoints", "refused");
    let node_port = ask_tcp(bed.cp(), client, (bed.cp().address().into(), 30_010));
    node_port.is("a node port", "stack");
    assert_eq!(node_port.step("translation")["facts"]["targets"], json!(targets));
}

/// Whether a connection to `dial` ends in `pod`, which listens at `backend`.
fn tcp_reaches(
    client: &overlay_tests::lab::Namespace,
    pod: &Pod,
    backend: SocketAddr,
    dial: SocketAddr,
) -> bool {
    let listener = overlay_tests::traffic::listen(pod.namespace(), backend).unwrap();
    // The other backend has no listener, and refuses.
    let met = tcp::connect_from_port(client, 0, dial).is_ok();
    drop(listener);
    met
}

#[test]
fn a_service_of_the_iptables_mode_is_found_with_its_backends() {
    explained(&ProxyMode::Iptables, "iptables nat KUBE-SERVICES");
}

#[test]
fn a_service_of_the_nftables_mode_is_found_with_its_backends() {
    explained(&ProxyMode::Nft, "ip kube-proxy service-ips");
}

/// A connection from the pod on `cp` to a Service, and both ends of it.
#[track_caller]
fn connected(bed: &Bed, service: &Service, backend: &Pod) -> (TcpStream, TcpStream) {
    let dial = SocketAddr::new(service.cluster_ip, 80);
    tcp::connect(bed.pod.namespace(), backend.namespace(), (backend.addr(), TARGET).into(), dial).unwrap()
}

fn parts(address: SocketAddr) -> (IpAddr, u16) {
    (address.ip(), address.port())
}

/// An answer of a backend is left to the stack, and conntrack says whose it is.
#[track_caller]
fn returns(answer: &Answer, service: &Service, client: (IpAddr, u16)) {
    answer.is("an answer", "stack");
    let original = &answer.step("conntrack")["facts"]["original"];
    let wanted = json!({ "src": client.0, "src_port": client.1, "dst": service.cluster_ip, "dst_port": 80 });
    assert_eq!(original, &wanted);
    assert!(answer.counted().contains_key("returns_to_stack"), "{:#}", answer.report);
}

#[test]
fn answers_of_backends_return_through_the_stack_by_which_the_flow_left() {
    let bed = Bed::new();
    let [here, there] = [service("here", 10, &[&bed.neighbour]), service("there", 11, &[&bed.near])];
    let _proxy = start(&bed, &ProxyMode::Nft, &[here.clone(), there.clone()]);

    let (near, far) = connected(&bed, &here, &bed.neighbour);
    let (seen, client) = (parts(far.peer_addr().unwrap()), parts(near.local_addr().unwrap()));
    let answer = ask_tcp(bed.cp(), (bed.neighbour.addr().into(), TARGET), seen);
    returns(&answer, &here, client);
    let before = Counters::read(bed.cp());
    tcp::say(&far, &near, b"an answer").unwrap();
    let counted = before.since(bed.cp(), &answer.counted());
    assert!(answer.counted().keys().all(|path| counted.contains_key(path)), "{counted:?}");

    let (near, far) = connected(&bed, &there, &bed.near);
    let (seen, client) = (parts(far.peer_addr().unwrap()), parts(near.local_addr().unwrap()));
    tcp::say(&far, &near, b"so that nothing is under way").unwrap();
    let live = Live::read(bed.cp());
    let first = ask_tcp(bed.w1(), (bed.near.addr().into(), TARGET), seen);
    first.is("an answer of another node", "sent");
    let answer = go_on(bed.cp(), &first);
    returns(&answer, &there, client);
    assert_eq!(Live::read(bed.cp()).flows(), live.flows(), "asking records nothing");
    let before = Counters::read(bed.cp());
    tcp::say(&far, &near, b"an answer").unwrap();
    let counted = before.since(bed.cp(), &answer.counted());
    assert!(answer.counted().keys().all(|path| counted.contains_key(path)), "{counted:?}");

    // The same pods, not by the Service.
    let direct = go_on(bed.cp(), &ask_tcp(bed.w1(), (bed.near.addr().into(), TARGET), (seen.0, 40_000)));
    direct.is("a direct flow", "delivered");
}

#[test]
fn a_host_port_is_found_with_its_pod() {
    let bed = Bed::new();
    let ports = json!([{ "hostPort": 8053, "containerPort": 53, "protocol": "udp" }]);
    let served = bed.cp().add_pod_with_ports(bed.cluster.lab(), "served", &ports);
    let at = bed.cp().address();
    let asked = |port| {
        ask(bed.cp(), &[&bed.pod.addr().to_string(), &at.to_string(), "--protocol", "udp", "--port", port])
    };
    let answer = asked("8053");
    answer.is("a host port", "stack");
    assert_eq!(answer.step("host port")["facts"]["to"], format!("{}:53", served.addr()));
    let (listen, dial) = ((served.addr(), 53).into(), (at, 8053).into());
    udp::exchange_through(bed.pod.namespace(), served.namespace(), listen, dial).unwrap();
    assert!(asked("8054").steps("host port").is_empty());
}
