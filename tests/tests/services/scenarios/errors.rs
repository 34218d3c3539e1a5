//! What comes back instead of an answer: resets and ICMP errors, which have to find their flow too.

use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use overlay_tests::lab::services::Protocol;
use overlay_tests::traffic::{pmtu, step_limit, tcp, udp};

use super::Scenario;
use crate::bed::{Bed, Place};

pub(super) const ALL: &[Scenario] = &[
    Scenario::with_refusals("closed port of a backend, UDP: refused", refused_udp),
    Scenario::with_refusals("closed port of a backend, TCP: refused", refused_tcp),
    Scenario {
        moves: &["path_mtu"],
        ..Scenario::new("path of the tunnel becomes too narrow", narrow_tunnel)
    },
    Scenario::new("packets from the world too long for the cluster", too_long_for_the_cluster),
    Scenario::new("answers too long for the path to the client", too_long_for_the_client),
];

/// How long to wait for an error, and how often.
const PATIENCE: Duration = Duration::from_millis(400);
const TRIES: usize = 8;

/// Who calls which Service.
fn plan(bed: &Bed) -> Vec<(&Place, &'static str)> {
    vec![
        (bed.pod("cp", "a"), "cp"),
        (bed.pod("cp", "a"), "w1"),
        (bed.pod("w2", "a"), "cp"),
        (bed.pod("cp", "b"), "cp"),
        (bed.node("cp"), "w2"),
        (bed.pod("cp", "a"), "host-w1"),
    ]
}

fn refused_udp(bed: &mut Bed) -> Result<()> {
    for (client, service) in plan(bed) {
        let dial = bed.cluster_ip(service, Protocol::Udp);
        let socket = udp::connected(&client.namespace, dial)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        // A kernel sends one error per second to the same address (`icmp_ratelimit`), and sent some in other scenarios.
        let mut results = (0..TRIES).map(|_| {
            socket.send(b"anybody?")?;
            // A connected socket hears only of errors about what it sent.
            socket.recv(&mut [0; 64])
        });
        let refused = |result: &io::Result<usize>| {
            result.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
        };
        let silent = |result: &io::Result<usize>| {
            result.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
        };
        match results.find(|result| !silent(result)) {
            Some(result) if refused(&result) => {}
            result => bail!("{} to closed {service}: {result:?}", client.name),
        }
    }
    Ok(())
}

fn refused_tcp(bed: &mut Bed) -> Result<()> {
    for (client, service) in plan(bed) {
        let dial = bed.cluster_ip(service, Protocol::Tcp);
        match client.namespace.run(|| TcpStream::connect_timeout(&dial, step_limit())) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            result => bail!("{} to closed {service}: {result:?}", client.name),
        }
    }
    Ok(())
}

/// A path that is too narrow for the tunnel: who sends too much through the Service is told.
fn narrow_tunnel(bed: &mut Bed) -> Result<()> {
    let client = bed.pod("cp", "a");
    let (server, listen) = bed.backend("w2", Protocol::Tcp);
    let dial = bed.cluster_ip("w2", Protocol::Tcp);
    let (near, far) = tcp::connect(&client.namespace, &server.namespace, listen, dial)?;
    tcp::say(&near, &far, b"hello")?;
    let (here, there) = (bed.node("cp"), bed.node("w2"));
    let route = format!("{} via {}", there.addr, bed.router_of("cp"));
    here.namespace.ip(&format!("route add {route} mtu lock 1400"));
    let result = tcp::bulk_both_ways(&near, &far, 1);
    here.namespace.ip(&format!("route del {route}"));
    result.context("over the narrow path")
}

/// The tunnel and pods' devices are narrower than the path from the world to the node.
fn too_long_for_the_cluster(bed: &mut Bed) -> Result<()> {
    for node in ["w1", "cp"] {
        let (server, listen) = bed.backend("w1", Protocol::Udp);
        let dial = bed.node_port("w1", node, Protocol::Udp);
        let far = udp::bind(&server.namespace, listen)?;
        let near = udp::connected(&bed.world.namespace, dial)?;
        let what = || format!("world to {dial}, backend on w1");
        let mtu = pmtu::told_mtu(&near, 1500).with_context(what)?;
        ensure!(mtu == bed.pod_mtu(), "{}: told {mtu}", what());
        // A socket of its own, which has no errors to hear of any more. The kernel knows the path by its destination.
        let near = udp::connected(&bed.world.namespace, dial)?;
        pmtu::never_fragment(&near)?;
        let payload = vec![1; mtu as usize - pmtu::overhead(dial)];
        near.send(&payload).with_context(what)?;
        let mut got = [0; 2048];
        // What was too long has not arrived.
        let (len, _) = far.recv_from(&mut got).with_context(what)?;
        ensure!(got[..len] == payload, "{}: {len} other bytes arrived", what());
    }
    Ok(())
}

/// The path to the client is narrower than the backend's device.
fn too_long_for_the_client(bed: &mut Bed) -> Result<()> {
    let (server, listen) = bed.backend("local-w1", Protocol::Udp);
    let far = udp::bind(&server.namespace, listen)?;
    let near = udp::connected(&bed.world.namespace, bed.node_port("local-w1", "w1", Protocol::Udp))?;
    near.send(b"a question")?;
    let (_, client) = far.recv_from(&mut [0; 64]).context("receive the question")?;
    far.connect(client)?;
    bed.router().ip("link set dev world mtu 1400");
    let told = pmtu::told_mtu(&far, bed.pod_mtu() as usize);
    bed.router().ip("link set dev world mtu 1500");
    let mtu = told.context("backend on w1 to the world")?;
    ensure!(mtu == 1400, "the backend was told {mtu}");
    drop(far);
    let far = udp::bind(&server.namespace, listen)?;
    pmtu::never_fragment(&far)?;
    let payload = vec![1; 1400 - pmtu::overhead(listen)];
    far.send_to(&payload, client).context("answer")?;
    let len = near.recv(&mut [0; 2048]).context("receive the answer")?;
    ensure!(len == payload.len(), "{len} bytes arrived");
    Ok(())
}
