//! UDP as resolvers use it, and datagrams that are larger than a packet.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use overlay_tests::lab::services::Protocol;
use overlay_tests::traffic::serve::Server;
use overlay_tests::traffic::udp;

use super::Scenario;
use crate::bed::{Bed, Place};

pub(super) const ALL: &[Scenario] = &[
    Scenario::new("10 000 queries, 20 at once on one socket, backend on another node", queries_elsewhere),
    Scenario::new("10 000 queries, 20 at once on one socket, backend on the same node", queries_here),
    Scenario::new("20 first queries at once on each of 100 sockets", first_queries),
    Scenario::new("fragmented datagrams both ways", fragments),
];

/// Queries under way.
const AT_ONCE: u32 = 20;

/// Queries in all.
const QUERIES: u32 = 10_000;

/// How late an answer may be: far below what a resolver waits for (5 s), far above what a busy machine needs.
const LATE: Duration = Duration::from_secs(1);

/// Bytes of a datagram that takes six packets.
const LARGE: usize = 8000;

/// Exchanges after which both ends know what fits the path.
const FINDS_OUT: usize = 2;

/// A socket whose answers all come from `dial`, in any order.
struct Resolver<'a> {
    socket: &'a UdpSocket,
    dial: SocketAddr,
    /// When each query was sent that is not answered yet.
    sent: Vec<Option<Instant>>,
    slowest: Duration,
}

impl Resolver<'_> {
    fn ask(&mut self) -> Result<()> {
        let number = u32::try_from(self.sent.len())?;
        self.sent.push(Some(Instant::now()));
        self.socket.send_to(&number.to_be_bytes(), self.dial).context("send a query").map(drop)
    }

    fn hear(&mut self) -> Result<()> {
        let mut answer = [0; 64];
        let (len, from) = self.socket.recv_from(&mut answer).with_context(|| {
            let open = self.sent.iter().filter(|sent| sent.is_some()).count();
            format!("{open} of {} queries unanswered", self.sent.len())
        })?;
        ensure!(from == self.dial, "called {} and was answered by {from}", self.dial);
        let number = answer[..len].last_chunk().map(|bytes| u32::from_be_bytes(*bytes));
        let sent = number.and_then(|number| self.sent.get_mut(number as usize)).and_then(Option::take);
        let sent = sent.with_context(|| format!("an answer to no query: {:?}", &answer[..len]))?;
        self.slowest = self.slowest.max(sent.elapsed());
        Ok(())
    }
}

fn resolver(socket: &UdpSocket, dial: SocketAddr) -> Resolver<'_> {
    Resolver { socket, dial, sent: Vec::new(), slowest: Duration::ZERO }
}

fn queries(bed: &Bed, client: &Place, service: &str) -> Result<()> {
    let (server, listen) = bed.backend(service, Protocol::Udp);
    let _server = Server::udp(&server.namespace, listen, "")?;
    let dial = bed.cluster_ip(service, Protocol::Udp);
    let socket = udp::unbound(&client.namespace, dial.ip())?;
    let mut resolver = resolver(&socket, dial);
    for number in 0..QUERIES + AT_ONCE {
        if number >= AT_ONCE {
            resolver.hear()?;
        }
        if number < QUERIES {
            resolver.ask()?;
        }
    }
    ensure!(resolver.slowest < LATE, "an answer took {:?}", resolver.slowest);
    Ok(())
}

fn queries_elsewhere(bed: &mut Bed) -> Result<()> {
    queries(bed, bed.pod("cp", "a"), "w1")
}

fn queries_here(bed: &mut Bed) -> Result<()> {
    queries(bed, bed.pod("w1", "a"), "w1")
}

fn first_queries(bed: &mut Bed) -> Result<()> {
    for service in ["cp", "w2"] {
        let (server, listen) = bed.backend(service, Protocol::Udp);
        let _server = Server::udp(&server.namespace, listen, "")?;
        let dial = bed.cluster_ip(service, Protocol::Udp);
        for _ in 0..100 {
            let socket = udp::unbound(&bed.pod("cp", "a").namespace, dial.ip())?;
            let mut resolver = resolver(&socket, dial);
            (0..AT_ONCE).try_for_each(|_| resolver.ask())?;
            (0..AT_ONCE).try_for_each(|_| resolver.hear())?;
            ensure!(resolver.slowest < LATE, "an answer took {:?}", resolver.slowest);
        }
    }
    Ok(())
}

fn fragments(bed: &mut Bed) -> Result<()> {
    let payload: Vec<u8> = (0..LARGE).map(|index| index as u8).collect();
    let cluster_ip = |service| bed.cluster_ip(service, Protocol::Udp);
    let node_port = |service, node| bed.node_port(service, node, Protocol::Udp);
    for (client, service, dial) in [
        (bed.pod("cp", "a"), "cp", cluster_ip("cp")),
        (bed.pod("cp", "a"), "w1", cluster_ip("w1")),
        (bed.pod("w2", "a"), "cp", cluster_ip("cp")),
        (bed.pod("cp", "b"), "cp", cluster_ip("cp")),
        (bed.node("w1"), "w2", cluster_ip("w2")),
        (bed.pod("cp", "a"), "host-w2", cluster_ip("host-w2")),
        (bed.pod("cp", "a"), "w1", node_port("w1", "w1")),
        (bed.pod("cp", "a"), "w2", node_port("w2", "w1")),
        (&bed.world, "w1", node_port("w1", "w1")),
        (&bed.world, "w1", node_port("w1", "w2")),
    ] {
        let (server, listen) = bed.backend(service, Protocol::Udp);
        let what = || format!("{} to {service} at {dial}", client.name);
        // No router cuts up what is IPv6's: a sender whose device carries more than a pod's is told once, in either direction.
        for _ in 0..if dial.is_ipv6() { FINDS_OUT } else { 0 } {
            let found =
                udp::exchange_unconnected(&client.namespace, &server.namespace, listen, dial, &payload);
            if found.is_ok() {
                break;
            }
        }
        // Twice: the second one meets a flow that is known, and other fragments of the same addresses.
        for _ in 0..2 {
            udp::exchange_unconnected(&client.namespace, &server.namespace, listen, dial, &payload)
                .with_context(what)?;
        }
        udp::exchange_unconnected(&client.namespace, &server.namespace, listen, dial, b"small")
            .with_context(what)?;
    }
    Ok(())
}
