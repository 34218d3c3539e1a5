//! Who reaches a host port, and as whom the pod sees him.

use std::net::{Ipv4Addr, SocketAddrV4};

use nix::sys::signal::Signal;
use overlay_tests::lab::{Cluster, Namespace, Pod, exec};
use overlay_tests::traffic::inject::{inject, mac_of};
use overlay_tests::traffic::udp;
use overlay_tests::traffic::vxlan::udp_frame;
use serde_json::json;

use crate::bed::{POD_PORT, Protocol, server};

const PORT: u16 = 8080;

/// A client, what it calls the server, and what address the server is to see.
struct Case<'a> {
    who: &'static str,
    client: &'a Namespace,
    dial: Ipv4Addr,
    seen: Ipv4Addr,
}

/// All ways to a host port of `w1`.
fn cases<'a>(cluster: &'a Cluster, server: &'a Pod, near: &'a Pod, far: &'a Pod) -> Vec<Case<'a>> {
    let [cp, w1, w2] = ["cp", "w1", "w2"].map(|name| cluster.node(name));
    let (node, gateway) = (w1.address(), w1.gateway_address());
    let case = |who, client, dial, seen| Case { who, client, dial, seen };
    let world = cluster.world();
    vec![
        case("the world", world.namespace(), node, world.address()),
        case("a node of the same network", cp.namespace(), node, cp.address()),
        case("a node of another network", w2.namespace(), node, w2.address()),
        case("the node by its address", w1.namespace(), node, node),
        case("the node by its gateway address", w1.namespace(), gateway, gateway),
        case("the node by 127.0.0.1", w1.namespace(), Ipv4Addr::LOCALHOST, gateway),
        case("the node by another of 127.0.0.0/8", w1.namespace(), Ipv4Addr::new(127, 1, 2, 3), gateway),
        case("a pod of the node", near.namespace(), node, near.addr()),
        case("a pod of the node by the gateway address", near.namespace(), gateway, near.addr()),
        case("a pod of another node", far.namespace(), node, far.addr()),
        case("a pod of another node by the gateway address", far.namespace(), gateway, far.addr()),
        case(
            "a node of another network by the gateway address",
            w2.namespace(),
            gateway,
            w2.gateway_address(),
        ),
        case("the pod itself", server.namespace(), node, gateway),
        case("the pod itself by the gateway address", server.namespace(), gateway, gateway),
    ]
}

#[test]
fn everybody_reaches_a_port_and_is_seen_by_his_own_address() {
    let cluster = Cluster::builder().start();
    let pod = server(&cluster, "server", PORT);
    let (near, far) = (cluster.add_pod("w1", "near"), cluster.add_pod("w2", "far"));
    let mut failures = Vec::new();
    for case in cases(&cluster, &pod, &near, &far) {
        for protocol in Protocol::ALL {
            match protocol.exchange(case.client, &pod, case.dial, PORT) {
                Ok(seen) if seen.server_saw.ip() == case.seen => {}
                Ok(seen) => failures.push(format!(
                    "{} by {protocol:?} is seen as {} instead of {}",
                    case.who,
                    seen.server_saw.ip(),
                    case.seen
                )),
                Err(error) => failures.push(format!("{} by {protocol:?}: {error:#}", case.who)),
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    // The pod's own port is where it was.
    for client in [near.namespace(), far.namespace()] {
        for protocol in Protocol::ALL {
            let seen = protocol.exchange(client, &pod, pod.addr(), POD_PORT).unwrap();
            assert!(seen.same_address(), "{seen:?}");
        }
    }
}

#[test]
fn a_port_on_one_address_is_there_alone() {
    let cluster = Cluster::builder().start();
    let w1 = cluster.node("w1");
    let pod = |name: &str, host_ip: Ipv4Addr| {
        let list = Protocol::ALL.map(|protocol| {
            json!({
                "hostPort": PORT, "containerPort": POD_PORT, "protocol": protocol.name(), "hostIP": host_ip,
            })
        });
        w1.add_pod_with_ports(cluster.lab(), name, &json!(list))
    };
    let (outside, inside) = (pod("outside", w1.address()), pod("inside", Ipv4Addr::LOCALHOST));
    for protocol in Protocol::ALL {
        let world = cluster.world();
        let seen = protocol.exchange(world.namespace(), &outside, w1.address(), PORT).unwrap();
        assert_eq!(seen.server_saw.ip(), world.address());
        let seen = protocol.exchange(w1.namespace(), &outside, w1.address(), PORT).unwrap();
        assert_eq!(seen.server_saw.ip(), w1.address());
        let seen = protocol.exchange(w1.namespace(), &inside, Ipv4Addr::LOCALHOST, PORT).unwrap();
        assert_eq!(seen.server_saw.ip(), w1.gateway_address());
        // An address that nobody has taken.
        protocol.exchange(w1.namespace(), &outside, w1.gateway_address(), PORT).unwrap_err();
    }
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
