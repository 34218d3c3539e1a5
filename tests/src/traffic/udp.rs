//! UDP: one exchange that tells what each end sees of the other, and bursts of numbered datagrams, plain or as
//! `UDP_SEGMENT` super-packets (what QUIC stacks send).

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{
    setsockopt,
    sockopt::{RcvBufForce, UdpGsoSegment},
};

use super::{Pattern, Seen, bound, step_limit};
use crate::lab::Namespace;
use crate::lab::exec::patient;

/// Size of one datagram of a burst, in bytes: what QUIC starts with.
pub const SEGMENT: usize = 1200;

/// The most segments in one super-packet here: 48 × 1200 B fit into a UDP datagram of 65507 B.
pub const SEGMENTS_PER_SEND: usize = 48;

/// How long the receiver of a burst waits for the next datagram before it takes the rest for lost.
const QUIET: Duration = Duration::from_millis(500);

/// Sends a datagram from `client` to `server` at address `at` (port 0: any) and has it echoed.
///
/// One datagram, no second try: a lab loses nothing. Errors: no answer in time, or from somebody else, or changed.
pub fn exchange(client: &Namespace, server: &Namespace, at: SocketAddr) -> Result<Seen> {
    exchange_through(client, server, at, at)
}

/// As [`exchange`], for a server that listens at `listen` but is dialled at `dial` (a service address, say). Port 0 in
/// `dial` means the port that the server got.
pub fn exchange_through(
    client: &Namespace,
    server: &Namespace,
    listen: SocketAddr,
    mut dial: SocketAddr,
) -> Result<Seen> {
    let far = bind(server, listen)?;
    if dial.port() == 0 {
        dial.set_port(far.local_addr()?.port());
    }
    let near = connected(client, dial)?;
    let mut payload = [0; 256];
    Pattern::new(u64::from(dial.port())).fill(&mut payload);
    near.send(&payload).with_context(|| format!("send from {} to {dial}", client.name()))?;

    let mut got = [0; 2048];
    let (len, server_saw) =
        far.recv_from(&mut got).with_context(|| format!("receive the request in {}", server.name()))?;
    ensure!(got[..len] == payload, "the datagram that arrived differs from what was sent");
    far.send_to(&got[..len], server_saw).with_context(|| format!("answer to {server_saw}"))?;

    // A connected socket takes datagrams from the address it dialled alone.
    let len = near.recv(&mut got).with_context(|| format!("receive the answer in {}", client.name()))?;
    ensure!(got[..len] == payload, "the echoed datagram differs from what was sent");
    Ok(Seen { client: near.local_addr()?, server_saw })
}

/// As [`exchange_through`], with a client that takes datagrams from anybody, as many resolvers do: an answer from an address that
/// it did not call is an error here, where a connected socket would only never see it. Gives the client's port and the address that
/// the server saw.
pub fn exchange_unconnected(
    client: &Namespace,
    server: &Namespace,
    listen: SocketAddr,
    mut dial: SocketAddr,
    payload: &[u8],
) -> Result<(u16, SocketAddr)> {
    let far = bind(server, listen)?;
    if dial.port() == 0 {
        dial.set_port(far.local_addr()?.port());
    }
    let near = unbound(client, dial.ip())?;
    near.send_to(payload, dial).with_context(|| format!("send from {} to {dial}", client.name()))?;
    let mut got = vec![0; 65536];
    let (len, server_saw) =
        far.recv_from(&mut got).with_context(|| format!("receive the request in {}", server.name()))?;
    ensure!(got[..len] == *payload, "the datagram that arrived differs from what was sent");
    far.send_to(payload, server_saw).with_context(|| format!("answer to {server_saw}"))?;
    let (len, from) =
        near.recv_from(&mut got).with_context(|| format!("receive the answer in {}", client.name()))?;
    ensure!(from == dial, "{} called {dial} and was answered by {from}", client.name());
    ensure!(got[..len] == *payload, "the echoed datagram differs from what was sent");
    Ok((near.local_addr()?.port(), server_saw))
}

/// A socket of `namespace` bound to `at`, with a read time-out.
pub fn bind(namespace: &Namespace, at: SocketAddr) -> Result<UdpSocket> {
    let socket = namespace.run(|| bound(|| UdpSocket::bind(at))).with_context(|| format!("bind udp {at}"))?;
    socket.set_read_timeout(Some(step_limit()))?;
    Ok(socket)
}

/// A socket of `namespace` that can send to addresses of the family of `to`, with a read time-out.
pub fn unbound(namespace: &Namespace, to: IpAddr) -> Result<UdpSocket> {
    bind(namespace, SocketAddr::new(super::unspecified(to), 0))
}

/// A socket of `namespace` connected to `to`, with a read time-out.
pub fn connected(namespace: &Namespace, to: SocketAddr) -> Result<UdpSocket> {
    let socket = unbound(namespace, to.ip())?;
    socket.connect(to).with_context(|| format!("connect udp from {} to {to}", namespace.name()))?;
    Ok(socket)
}

/// How a burst is handed to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sending {
    /// One `send` per datagram.
    Plain,
    /// Super-packets of up to [`SEGMENTS_PER_SEND`] datagrams by `UDP_SEGMENT` (Linux 4.18, udp(7)).
    Segmented,
}

/// What came of a burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Burst {
    /// Datagrams sent.
    pub sent: usize,
    /// Different datagrams received, each of the right size and content.
    pub received: usize,
    /// Datagrams received again.
    pub duplicates: usize,
    /// Datagrams received with a wrong size or content.
    pub corrupted: usize,
}

impl Burst {
    /// Whether each datagram arrived once, unchanged.
    pub fn complete(&self) -> bool {
        self.received == self.sent && self.duplicates == 0 && self.corrupted == 0
    }
}

/// How large the parts of a burst are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Datagrams.
    pub count: usize,
    /// Bytes of each, at least 8.
    pub size: usize,
    /// Datagrams of one super-packet, with [`Sending::Segmented`].
    pub per_send: usize,
}

/// Sends `count` datagrams of [`SEGMENT`] bytes from `client` to a plain receiver (no `UDP_GRO`) in `server` at address
/// `at` (port 0: any).
///
/// Errors: a socket call fails. Lost or changed datagrams are no error but in the result.
pub fn burst(
    client: &Namespace,
    server: &Namespace,
    at: SocketAddr,
    count: usize,
    sending: Sending,
) -> Result<Burst> {
    burst_of(client, server, at, Shape { count, size: SEGMENT, per_send: SEGMENTS_PER_SEND }, sending)
}

/// As [`burst`], with datagrams and super-packets of other sizes.
pub fn burst_of(
    client: &Namespace,
    server: &Namespace,
    at: SocketAddr,
    shape: Shape,
    sending: Sending,
) -> Result<Burst> {
    let Shape { count, size, per_send } = shape;
    ensure!(size >= 8, "a datagram of {size} bytes has no room for its number");
    let far = bind(server, at)?;
    // Room for all: this measures the path, not the receiver's speed. (The kernel counts ~2.3 KiB per datagram.)
    setsockopt(&far, RcvBufForce, &(count * 4096))?;
    far.set_read_timeout(Some(patient(QUIET)))?;
    let near = connected(client, far.local_addr()?)?;
    let per_send = match sending {
        Sending::Plain => 1,
        Sending::Segmented => {
            setsockopt(&near, UdpGsoSegment, &size.try_into()?)?;
            per_send
        }
    };
    thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(&far, count, size));
        let payload: Vec<u8> = (0..count).flat_map(|index| datagram(index, size)).collect();
        for part in payload.chunks(per_send * size) {
            near.send(part).with_context(|| format!("send {} bytes", part.len()))?;
        }
        receiver.join().expect("the receiver does not panic")
    })
}

/// Datagram `index` of a burst: its number, then a pattern that depends on it.
fn datagram(index: usize, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    let number = index as u64;
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    Pattern::new(number).fill(&mut bytes[8..]);
    bytes
}

fn receive(socket: &UdpSocket, count: usize, size: usize) -> Result<Burst> {
    let mut seen = HashSet::new();
    let mut burst = Burst { sent: count, received: 0, duplicates: 0, corrupted: 0 };
    let mut buffer = vec![0; 65536];
    while seen.len() < count {
        let len = match socket.recv(&mut buffer) {
            Ok(len) => len,
            Err(error) if is_timeout(&error) => break,
            Err(error) => return Err(error).context("receive a burst"),
        };
        let number = buffer[..len].first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
        let index = number.and_then(|number| usize::try_from(number).ok()).filter(|index| *index < count);
        match index {
            Some(index) if buffer[..len] == datagram(index, size) => {
                if !seen.insert(index) {
                    burst.duplicates += 1;
                }
            }
            _ => burst.corrupted += 1,
        }
    }
    burst.received = seen.len();
    Ok(burst)
}

/// Whether a read ended by its time-out.
pub(crate) fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}
