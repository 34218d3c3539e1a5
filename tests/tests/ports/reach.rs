//! Who reaches a host port, and as whom the pod sees him.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};

use nix::sys::signal::Signal;
use overlay_tests::lab::{Cluster, Families, Namespace, Pod, exec};
use overlay_tests::traffic::inject::{inject, mac_of};
use overlay_tests::traffic::udp;
use overlay_tests::traffic::vxlan::udp_frame;
use overlay_userspace::family::Family;
use serde_json::json;

use crate::bed::{POD_PORT, Protocol, server};

const PORT: u16 = 8080;

/// A client, what it calls the server, and what address the server is to see.
struct Case<'a> {
    who: &'static str,
    client: &'a Namespace,
    dial: IpAddr,
    seen: IpAddr,
}

/// All ways to a host port of `w1` in one family.
fn cases<'a>(
    cluster: &'a Cluster,
    family: Family,
    server: &'a Pod,
    near: &'a Pod,
    far: &'a Pod,
) -> Vec<Case<'a>> {
    let [cp, w1, w2] = ["cp", "w1", "w2"].map(|name| cluster.node(name));
    let (node, gateway) = (w1.address_of(family), w1.gateway_of(family));
    let case = |who, client, dial, seen| Case { who, client, dial, seen };
    let world = cluster.world();
    let mut cases = vec![
        case("the world", world.namespace(), node, world.address_of(family)),
        case("a node of the same network", cp.namespace(), node, cp.address_of(family)),
        case("a node of another network", w2.namespace(), node, w2.address_of(family)),
        case("the node by its address", w1.namespace(), node, node),
        case("the node by its gateway address", w1.namespace(), gateway, gateway),
        case("a pod of the node", near.namespace(), node, near.addr_of(family)),
        case("a pod of the node by the gateway address", near.namespace(), gateway, near.addr_of(family)),
        case("a pod of another node", far.namespace(), node, far.addr_of(family)),
        case("a pod of another node by the gateway address", far.namespace(), gateway, far.addr_of(family)),
        case(
            "a node of another network by the gateway address",
            w2.namespace(),
            gateway,
            w2.gateway_of(family),
        ),
        case("the pod itself", server.namespace(), node, gateway),
        case("the pod itself by the gateway address", server.namespace(), gateway, gateway),
    ];
    if family == Family::Ipv4 {
        cases.extend([
            case("the node by 127.0.0.1", w1.namespace(), Ipv4Addr::LOCALHOST.into(), gateway),
            case("the node by another of 127.0.0.0/8", w1.namespace(), [127, 1, 2, 3].into(), gateway),
        ]);
    }
    cases
}

/// Everybody reaches a port and is seen by his own address, in each of these families.
#[track_caller]
fn expect_reached_by_everybody(families: Families) {
    let cluster = Cluster::builder().families(families).start();
    let pod = server(&cluster, "server", PORT);
    let (near, far) = (cluster.add_pod("w1", "near"), cluster.add_pod("w2", "far"));
    let mut failures = Vec::new();
    for case in families.iter().flat_map(|family| cases(&cluster, family, &pod, &near, &far)) {
        for protocol in Protocol::ALL {
            let who = format!("{} by {protocol:?} to {}", case.who, case.dial);
            match protocol.exchange(case.client, &pod, case.dial, PORT) {
                Ok(seen) if seen.server_saw.ip() == case.seen => {}
                Ok(seen) => {
                    failures.push(format!(
                        "{who} is seen as {} instead of {}",
                        seen.server_saw.ip(),
                        case.seen
                    ));
                }
                Err(error) => failures.push(format!("{who}: {error:#}")),
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    // The pod's own port is where it was.
    for family in families.iter() {
        for client in [near.namespace(), far.namespace()] {
            for protocol in Protocol::ALL {
                let seen = protocol.exchange(client, &pod, pod.addr_of(family), POD_PORT).unwrap();
                assert!(seen.same_address(), "{seen:?}");
            }
        }
    }
}

#[test]
fn everybody_reaches_a_port_and_is_seen_by_his_own_address() {
    expect_reached_by_everybody(Families::Ipv4);
}

#[test]
fn everybody_reaches_a_port_in_ipv6_alone() {
    expect_reached_by_everybody(Families::Ipv6);
}

#[test]
fn everybody_reaches_a_port_in_both_families() {
    expect_reached_by_everybody(Families::Dual);
}

#[test]
fn a_port_on_one_address_is_there_alone() {
    let cluster = Cluster::builder().families(Families::Dual).start();
    let (w1, world) = (cluster.node("w1"), cluster.world());
    let pod = |name: &str, host_ip: IpAddr| {
        let list = Protocol::ALL.map(|protocol| {
            json!({
                "hostPort": PORT, "containerPort": POD_PORT, "protocol": protocol.name(), "hostIP": host_ip,
            })
        });
        w1.add_pod_with_ports(cluster.lab(), name, &json!(list))
    };
    let outside = Family::ALL.map(|family| pod(&format!("outside-{}", family.nft()), w1.address_of(family)));
    let inside = pod("inside", Ipv4Addr::LOCALHOST.into());
    for protocol in Protocol::ALL {
        for (family, outside) in Family::ALL.into_iter().zip(&outside) {
            let node = w1.address_of(family);
            let seen = protocol.exchange(world.namespace(), outside, node, PORT).unwrap();
            assert_eq!(seen.server_saw.ip(), world.address_of(family));
            let seen = protocol.exchange(w1.namespace(), outside, node, PORT).unwrap();
            assert_eq!(seen.server_saw.ip(), node);
            // An address that nobody has taken.
            protocol.exchange(w1.namespace(), outside, w1.gateway_of(family), PORT).unwrap_err();
        }
        let seen = protocol.exchange(w1.namespace(), &inside, Ipv4Addr::LOCALHOST.into(), PORT).unwrap();
        assert_eq!(seen.server_saw.ip(), w1.gateway_of(Family::Ipv4));
    }
}

#[test]
fn the_ipv6_loopback_address_stays_the_nodes_own() {
    let cluster = Cluster::builder().families(Families::Ipv6).start();
    let w1 = cluster.node("w1");
    let pod = server(&cluster, "server", PORT);
    let loopback = IpAddr::from(Ipv6Addr::LOCALHOST);
    Protocol::Tcp.exchange(w1.namespace(), &pod, w1.address_of(Family::Ipv6), PORT).unwrap();
    // Not the pod's, and whoever of the node listens there has it.
    Protocol::Tcp.exchange(w1.namespace(), &pod, loopback, PORT).unwrap_err();
    let own = udp::bind(w1.namespace(), SocketAddr::new(loopback, PORT)).unwrap();
    let client = udp::connected(w1.namespace(), SocketAddr::new(loopback, PORT)).unwrap();
    client.send(b"question").unwrap();
    let mut buffer = [0; 16];
    let (length, from) = own.recv_from(&mut buffer).expect("what is sent to ::1 stays there");
    assert_eq!((&buffer[..length], from.ip()), (b"question".as_slice(), loopback));
}

#[test]
fn a_pod_with_host_ports_gets_no_way_to_the_nodes_loopback() {
    let cluster = Cluster::builder().start();
    let w1 = cluster.node("w1");
    let pod = server(&cluster, "server", PORT);
    // It would restore the rule.
    w1.kill_agent(Signal::SIGKILL);
    let setting = format!("net/ipv4/conf/{}/route_localnet", pod.host_device());
    assert_eq!(w1.namespace().read_sysctl(&setting), "1");
    for device in ["all", "default", "overlay.1", "eth0"] {
        assert_eq!(w1.namespace().read_sysctl(&format!("net/ipv4/conf/{device}/route_localnet")), "0");
    }
    let inside = pod.namespace();
    let listener = udp::bind(w1.namespace(), (Ipv4Addr::LOCALHOST, 7777).into()).unwrap();
    let to = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 7777);
    let macs = (mac_of(inside, "eth0"), mac_of(w1.namespace(), &pod.host_device()));
    inject(inside, "eth0", &[udp_frame(macs, SocketAddrV4::new(pod.addr(), 7), to, b"let me in")]);
    listener.recv(&mut [0; 16]).unwrap_err();
    // The rule is what keeps it away.
    let mut nft = w1.namespace().command("nft");
    exec::must(nft.args(["flush", "chain", "ip", "overlay-ports", "guard"]), "");
    inject(inside, "eth0", &[udp_frame(macs, SocketAddrV4::new(pod.addr(), 7), to, b"let me in")]);
    listener.recv(&mut [0; 16]).expect("nothing but the rule keeps a pod from the node's loopback");
}
