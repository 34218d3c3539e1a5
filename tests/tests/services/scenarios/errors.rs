//! What comes back instead of an answer: resets and ICMP errors, which have to find their flow too.

use std::io::ErrorKind;
use std::net::TcpStream;

use anyhow::{Context as _, Result, bail, ensure};
use overlay_tests::lab::services::Protocol;
use overlay_tests::traffic::{STEP_LIMIT, tcp, udp};

use super::Scenario;
use crate::bed::{Bed, Place};

pub(super) const ALL: &[Scenario] = &[
    Scenario::with_refusals("closed port of a backend, UDP: refused", refused_udp),
    Scenario::with_refusals("closed port of a backend, TCP: refused", refused_tcp),
    Scenario::new("path to the backend becomes too narrow", narrow),
];

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
        socket.send(b"anybody?")?;
        // A connected socket hears only of errors about what it sent.
        match socket.recv(&mut [0; 64]) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            result => bail!("{} to closed {service}: {result:?}", client.name),
        }
    }
    Ok(())
}

fn refused_tcp(bed: &mut Bed) -> Result<()> {
    for (client, service) in plan(bed) {
        let dial = bed.cluster_ip(service, Protocol::Tcp);
        match client.namespace.run(|| TcpStream::connect_timeout(&dial, STEP_LIMIT)) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            result => bail!("{} to closed {service}: {result:?}", client.name),
        }
    }
    Ok(())
}

fn narrow(bed: &mut Bed) -> Result<()> {
    let client = bed.pod("cp", "a");
    let (server, listen) = bed.backend("w2", Protocol::Tcp);
    let dial = bed.cluster_ip("w2", Protocol::Tcp);
    let (near, far) = tcp::connect(&client.namespace, &server.namespace, listen, dial)?;
    tcp::say(&near, &far, b"hello")?;
    let (here, there) = (bed.node("cp"), bed.node("w2"));
    let route = format!("{}/32 via 192.0.2.1", there.addr);
    here.namespace.ip(&format!("route add {route} mtu 1400"));
    let result = tcp::bulk_both_ways(&near, &far, 1).context("over the narrow path");
    let known = client.namespace.ip_json(&format!("route get {}", dial.ip()));
    here.namespace.ip(&format!("route del {route}"));
    result?;
    // Flannel's device lets the underlay fragment instead.
    let mtu = known[0]["metrics"][0]["mtu"].as_u64();
    let told = bed.overlay_nodes().is_empty() || mtu == Some(1350);
    ensure!(told, "the client learned {mtu:?} for {}: {known}", dial.ip());
    Ok(())
}
