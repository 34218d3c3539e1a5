//! One call of a client to a backend through a Service, over TCP and over UDP, and whose address the backend has to see.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use overlay_tests::lab::services::Protocol;
use overlay_tests::traffic::{tcp, udp};

use crate::bed::{Bed, Place};

/// How long nobody may answer what must not be answered.
const SILENCE: Duration = Duration::from_millis(700);

/// Whose address a backend sees.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Seen<'a> {
    /// The client's own.
    Client,
    /// One of this node's.
    Node(&'a str),
    /// The client's, which is a node with several.
    ClientNode,
}

/// Calls the Service's backend at `dial`, over both protocols.
///
/// Errors: no answer, or one from somebody else; the backend saw another address than it should have.
pub(crate) fn call(
    bed: &Bed,
    client: &Place,
    service: &str,
    dial: impl Fn(Protocol) -> SocketAddr,
    seen: Seen<'_>,
) -> Result<()> {
    for protocol in Protocol::ALL {
        let (server, listen) = bed.backend(service, protocol);
        let dial = dial(protocol);
        let what =
            || format!("{protocol} from {} to {service} at {dial}, backend {}", client.name, server.name);
        let saw = match protocol {
            Protocol::Tcp => tcp::exchange_through(&client.namespace, &server.namespace, listen, dial)
                .map(|seen| seen.server_saw.ip()),
            Protocol::Udp => {
                udp::exchange_unconnected(&client.namespace, &server.namespace, listen, dial, b"a question")
                    .map(|(_, saw)| saw.ip())
            }
        };
        let saw = saw.with_context(what)?;
        expect_seen(bed, client, saw, seen).with_context(what)?;
    }
    Ok(())
}

fn expect_seen(bed: &Bed, client: &Place, saw: IpAddr, seen: Seen<'_>) -> Result<()> {
    let node = match seen {
        Seen::Client => {
            ensure!(saw == client.addr, "the backend saw {saw}, not {}", client.addr);
            return Ok(());
        }
        Seen::Node(node) => node,
        Seen::ClientNode => &client.name,
    };
    ensure!(bed.addresses_of_node(node).contains(&saw), "the backend saw {saw}, which is not {node}'s");
    Ok(())
}

/// As [`call`], at the ClusterIP.
pub(crate) fn call_cluster_ip(bed: &Bed, client: &Place, service: &str, seen: Seen<'_>) -> Result<()> {
    call(bed, client, service, |protocol| bed.cluster_ip(service, protocol), seen)
}

/// As [`call`], at the node port of `node`.
pub(crate) fn call_node_port(
    bed: &Bed,
    client: &Place,
    (service, node): (&str, &str),
    seen: Seen<'_>,
) -> Result<()> {
    call(bed, client, service, |protocol| bed.node_port(service, node, protocol), seen)
}

/// Nobody answers at the node port of `node`, over either protocol, and nothing is refused.
pub(crate) fn expect_silence(bed: &Bed, client: &Place, (service, node): (&str, &str)) -> Result<()> {
    thread::scope(|scope| {
        let tcp = scope.spawn(|| {
            let dial = bed.node_port(service, node, Protocol::Tcp);
            let result = client.namespace.run(|| std::net::TcpStream::connect_timeout(&dial, SILENCE));
            match result {
                Err(error) if error.kind() == std::io::ErrorKind::TimedOut => Ok(()),
                result => bail!("TCP to {service} at {dial}: {result:?}"),
            }
        });
        let dial = bed.node_port(service, node, Protocol::Udp);
        let socket = udp::connected(&client.namespace, dial)?;
        socket.set_read_timeout(Some(SILENCE))?;
        socket.send(b"a question")?;
        match socket.recv(&mut [0; 64]) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            result => bail!("UDP to {service} at {dial}: {result:?}"),
        }
        tcp.join().expect("the thread does not panic")
    })
}
