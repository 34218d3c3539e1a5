//! Flows that last: idle ones, ones that stay with a backend, ones beside direct ones.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use overlay_tests::lab::services::Protocol;
use overlay_tests::traffic::serve::{Server, who_by_tcp, who_by_udp};
use overlay_tests::traffic::{self, step_limit, tcp, udp};

use super::Scenario;
use crate::bed::{Bed, Idle, NODES, Place, backend};

/// Before everything else.
pub(crate) const FIRST: &[Scenario] = &[Scenario::new("connections left open from the start", open_idle)];

pub(super) const ALL: &[Scenario] = &[
    Scenario::new("new connections go to every backend", balance),
    Scenario::new("session affinity", affinity),
    Scenario::new("backends move while connections are open", backends_move),
    Scenario::new("bulk data both ways", bulk),
    Scenario::new("direct and through a Service at once, TCP from one port", together_tcp),
    Scenario::new("direct and through a Service at once, UDP from one socket", together_udp),
];

/// After everything else.
pub(crate) const LAST: &[Scenario] =
    &[Scenario::new("backend speaks first on connections idle since the start", idle_speaks)];

/// Who calls which Service: from the backend's node, from others, from nodes, to a node's address.
fn idle_plan(bed: &Bed) -> Vec<(&Place, &'static str)> {
    vec![
        (bed.pod("cp", "a"), "cp"),
        (bed.pod("cp", "a"), "w1"),
        (bed.pod("w2", "a"), "cp"),
        (bed.pod("cp", "b"), "cp"),
        (bed.node("cp"), "cp"),
        (bed.node("cp"), "w2"),
        (bed.pod("w1", "a"), "host-cp"),
    ]
}

fn open_idle(bed: &mut Bed) -> Result<()> {
    let mut idle = Vec::new();
    for (client, service) in idle_plan(bed) {
        let (server, listen) = bed.backend(service, Protocol::Tcp);
        let name = format!("{} to {service}", client.name);
        let dial = bed.cluster_ip(service, Protocol::Tcp);
        let (near, far) = tcp::connect(&client.namespace, &server.namespace, listen, dial)?;
        tcp::say(&near, &far, b"hello").with_context(|| name.clone())?;
        idle.push(Idle { name, client: near, backend: far });
    }
    bed.idle = idle;
    Ok(())
}

fn idle_speaks(bed: &mut Bed) -> Result<()> {
    ensure!(!bed.idle.is_empty(), "no connection could be left open");
    for Idle { name, client, backend } in std::mem::take(&mut bed.idle) {
        tcp::say(&backend, &client, b"still there?").with_context(|| format!("backend of {name}"))?;
        tcp::say(&client, &backend, b"yes").with_context(|| name)?;
    }
    Ok(())
}

/// A server on every backend of a Service, named after the pod.
fn serve(bed: &Bed, service: &str, protocol: Protocol) -> Result<Vec<Server>> {
    let service = bed.proxy.service(service);
    let start = |node: &&str| {
        let pod = bed.pod(node, "b");
        let listen = SocketAddr::new(pod.addr, service.port(protocol).target);
        match protocol {
            Protocol::Tcp => Server::tcp(&pod.namespace, listen, &pod.name),
            Protocol::Udp => Server::udp(&pod.namespace, listen, &pod.name),
        }
    };
    NODES.iter().map(start).collect()
}

/// Who answers to `count` new flows of a client.
fn who(client: &Place, dial: SocketAddr, protocol: Protocol, count: usize) -> Result<BTreeSet<String>> {
    let one = |_| match protocol {
        Protocol::Tcp => who_by_tcp(&client.namespace, dial),
        Protocol::Udp => who_by_udp(&udp::unbound(&client.namespace, dial.ip())?, dial),
    };
    (0..count).map(one).collect()
}

fn balance(bed: &mut Bed) -> Result<()> {
    for protocol in Protocol::ALL {
        let _servers = serve(bed, "all", protocol)?;
        for client in [bed.pod("cp", "a"), bed.node("w2")] {
            // That one of three is never chosen in 60 times: once in ten billion runs.
            let seen = who(client, bed.cluster_ip("all", protocol), protocol, 60)?;
            ensure!(seen.len() == NODES.len(), "{protocol} from {} reached {seen:?} alone", client.name);
        }
    }
    Ok(())
}

fn affinity(bed: &mut Bed) -> Result<()> {
    for protocol in Protocol::ALL {
        let _servers = serve(bed, "sticky", protocol)?;
        for client in [bed.pod("cp", "a"), bed.pod("w2", "a"), bed.node("w1")] {
            let seen = who(client, bed.cluster_ip("sticky", protocol), protocol, 20)?;
            ensure!(seen.len() == 1, "{protocol} from {} reached {seen:?}", client.name);
        }
        let node_port = bed.node_port("sticky", "w1", protocol);
        let seen = who(&bed.world, node_port, protocol, 20)?;
        ensure!(seen.len() == 1, "{protocol} from the world reached {seen:?}");
    }
    Ok(())
}

fn backends_move(bed: &mut Bed) -> Result<()> {
    let clients = [bed.pod("cp", "a"), bed.pod("w1", "a"), bed.node("cp")].map(Place::clone);
    let dials = Protocol::ALL.map(|protocol| bed.cluster_ip("moving", protocol));
    let [tcp_dial, udp_dial] = dials;
    let _servers = serve(bed, "moving", Protocol::Udp)?;
    let mut open = Vec::new();
    let mut sockets = Vec::new();
    for client in &clients {
        sockets.push(udp::unbound(&client.namespace, udp_dial.ip())?);
    }
    // There and back.
    for node in ["w1", "w2", "w1"] {
        bed.proxy.move_backends("moving", vec![backend(bed.pod(node, "b"))]);
        for (client, socket) in clients.iter().zip(&sockets) {
            let (server, listen) = bed.backend("moving", Protocol::Tcp);
            let (near, far) = tcp::connect(&client.namespace, &server.namespace, listen, tcp_dial)
                .with_context(|| format!("new connection of {} after the move to {node}", client.name))?;
            open.push((client.name.clone(), node, near, far));
            let name = who_by_udp(socket, udp_dial)
                .with_context(|| format!("UDP of {} after the move to {node}", client.name))?;
            ensure!(name == server.name, "UDP of {} reached {name} after the move to {node}", client.name);
        }
        for (client, to, near, far) in &open {
            let what = || format!("connection of {client} to {to} after the move to {node}");
            tcp::say(near, far, b"are you").with_context(what)?;
            tcp::say(far, near, b"still there?").with_context(what)?;
        }
    }
    Ok(())
}

fn bulk(bed: &mut Bed) -> Result<()> {
    let cases = [(bed.pod("cp", "a"), "w2"), (bed.pod("cp", "a"), "cp"), (bed.node("cp"), "w1")];
    for (client, service) in cases {
        let (server, listen) = bed.backend(service, Protocol::Tcp);
        let dial = bed.cluster_ip(service, Protocol::Tcp);
        let (near, far) = tcp::connect(&client.namespace, &server.namespace, listen, dial)?;
        tcp::bulk_both_ways(&near, &far, 4).with_context(|| format!("{} to {service}", client.name))?;
    }
    Ok(())
}

/// The ways to a backend that a client takes at once: past the Service and through it.
fn both_ways(bed: &Bed, service: &str, protocol: Protocol) -> [SocketAddr; 2] {
    let service = bed.proxy.service(service);
    let direct = SocketAddr::new(service.backends[0].addr, service.port(protocol).target);
    [direct, service.dial(protocol)]
}

fn together_tcp(bed: &mut Bed) -> Result<()> {
    for (client, service) in [("cp", "cp"), ("cp", "w1"), ("w2", "w1")] {
        let client = bed.pod(client, "a");
        let (server, listen) = bed.backend(service, Protocol::Tcp);
        let [direct, through] = both_ways(bed, service, Protocol::Tcp);
        for order in [[direct, through], [through, direct]] {
            let listener = traffic::listen(&server.namespace, listen)?;
            let mut streams = Vec::new();
            let mut port = 0;
            for to in order {
                let near = tcp::connect_from_port(&client.namespace, port, to)?;
                port = near.local_addr()?.port();
                let (far, _) = listener.accept()?;
                far.set_read_timeout(Some(step_limit()))?;
                streams.push((to, near, far));
            }
            for round in 0..50_u8 {
                for (to, near, far) in &streams {
                    let what = || format!("{} port {port} to {to}, round {round}", client.name);
                    tcp::say(near, far, &[round; 1000]).with_context(what)?;
                    tcp::say(far, near, &[round; 3000]).with_context(what)?;
                }
            }
        }
    }
    Ok(())
}

fn together_udp(bed: &mut Bed) -> Result<()> {
    for (client, service) in [("cp", "cp"), ("cp", "w1"), ("w2", "w1")] {
        let client = bed.pod(client, "a");
        let (server, listen) = bed.backend(service, Protocol::Udp);
        let _server = Server::udp(&server.namespace, listen, &server.name)?;
        let [direct, through] = both_ways(bed, service, Protocol::Udp);
        for order in [[direct, through], [through, direct]] {
            let socket = udp::unbound(&client.namespace, through.ip())?;
            for round in 0..50 {
                for to in order {
                    who_by_udp(&socket, to)
                        .with_context(|| format!("{} to {to}, round {round}", client.name))?;
                }
            }
        }
    }
    Ok(())
}
