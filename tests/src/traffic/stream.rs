//! Steady traffic in the background, for tests of outages: numbered requests at a fixed rate, each echoed, and an
//! account of what did not come back and of the longest silence.

use std::collections::HashSet;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use etherparse::{IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use super::{tcp, udp};
use crate::lab::{Namespace, exec::patient};

/// How long a thread may sleep in one read before it looks whether it is to stop.
const TICK: Duration = Duration::from_millis(20);

/// How long [`Stream::stop`] waits for what is under way. TCP may be in a retransmission time-out.
const GRACE: Duration = Duration::from_secs(2);

/// Requests per second that neither load two CPUs nor miss a short outage.
pub const RATE: u32 = 500;

/// ICMP identifier of the next ping stream: streams between the same two addresses tell their answers apart by it.
static NEXT_ID: AtomicU16 = AtomicU16::new(1);

/// What a stream is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Echo requests over one TCP connection: nothing is ever lost, an outage shows as silence.
    Tcp,
    /// One datagram per request, echoed by a socket of the server.
    Udp,
    /// ICMP echo, answered by the server's kernel.
    Ping,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Ping];
}

/// A running stream. Dropping it stops it.
#[derive(Debug)]
pub struct Stream {
    shared: Arc<Shared>,
    sender: Option<JoinHandle<()>>,
    others: Vec<JoinHandle<()>>,
}

/// What became of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Requests sent.
    pub sent: u64,
    /// Different requests answered.
    pub received: u64,
    /// Requests never answered.
    pub lost: u64,
    /// The longest time without an answer, from the first request to the stop.
    pub max_gap: Duration,
    /// The first error of a socket call, if any: a reset connection, say.
    pub error: Option<String>,
}

#[derive(Debug, Default)]
struct Shared {
    /// No more requests.
    stop: AtomicBool,
    /// No more answers: everybody go.
    done: AtomicBool,
    sent: AtomicU64,
    answers: Mutex<Answers>,
}

#[derive(Debug, Default)]
struct Answers {
    numbers: HashSet<u64>,
    last: Option<Instant>,
    max_gap: Duration,
    error: Option<String>,
}

impl Shared {
    fn answers(&self) -> std::sync::MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answered(&self, number: u64) {
        let mut answers = self.answers();
        if answers.numbers.insert(number) {
            answers.mark(Instant::now());
        }
    }

    fn failed(&self, what: &str, error: &std::io::Error) {
        self.answers().error.get_or_insert_with(|| format!("{what}: {error}"));
    }

    fn done(&self) -> bool {
        self.done.load(Ordering::Relaxed)
    }
}

impl Answers {
    fn mark(&mut self, now: Instant) {
        if let Some(last) = self.last {
            self.max_gap = self.max_gap.max(now - last);
        }
        self.last = Some(now);
    }
}

impl Stream {
    /// Starts `rate` requests per second from `client` to `server`, whose address is `at`.
    ///
    /// Errors: a socket cannot be made, or (TCP) the connection. Any later error is in the [`Outcome`].
    pub fn start(kind: Kind, client: &Namespace, server: &Namespace, at: IpAddr, rate: u32) -> Result<Self> {
        Self::start_through(kind, client, server, (at, at), rate)
    }

    /// As [`Stream::start`], but that the client calls `dial` and somebody on the way leads that to `listen`.
    pub fn start_through(
        kind: Kind,
        client: &Namespace,
        server: &Namespace,
        (listen, dial): (IpAddr, IpAddr),
        rate: u32,
    ) -> Result<Self> {
        let any_port = |at| SocketAddr::new(at, 0);
        match kind {
            Kind::Tcp => {
                let (near, far) = tcp::connect(client, server, any_port(listen), any_port(dial))?;
                for stream in [&near, &far] {
                    stream.set_read_timeout(Some(TICK))?;
                }
                let writer = near.try_clone()?;
                let mut stream =
                    Self::sending(rate, move |number| (&writer).write_all(&number.to_be_bytes()));
                stream.thread(move |shared| {
                    each_number(&near, shared, "receive", |number| {
                        shared.answered(number);
                        Ok(())
                    });
                });
                stream.thread(move |shared| {
                    each_number(&far, shared, "echo", |number| (&far).write_all(&number.to_be_bytes()));
                });
                Ok(stream)
            }
            Kind::Udp => {
                let far = udp::bind(server, any_port(listen))?;
                let near = udp::connected(client, SocketAddr::new(dial, far.local_addr()?.port()))?;
                far.set_read_timeout(Some(TICK))?;
                let mut stream = Self::datagrams(
                    near,
                    rate,
                    |number| number.to_be_bytes().to_vec(),
                    |packet| packet.first_chunk().map(|bytes| u64::from_be_bytes(*bytes)),
                )?;
                stream.thread(move |shared| echo_datagrams(&far, shared));
                Ok(stream)
            }
            Kind::Ping => {
                let near = icmp_socket(client, dial)?;
                let id = NEXT_ID.fetch_add(1, Ordering::Relaxed) ^ std::process::id() as u16;
                let v6 = dial.is_ipv6();
                Self::datagrams(
                    near,
                    rate,
                    move |number| if v6 { echo_request_v6(id, number) } else { echo_request(id, number) },
                    move |packet| if v6 { echo_reply_v6(id, packet) } else { echo_reply(id, packet) },
                )
            }
        }
    }

    /// A stream whose requests and answers are packets of one connected socket.
    fn datagrams(
        near: UdpSocket,
        rate: u32,
        request: impl Fn(u64) -> Vec<u8> + Send + 'static,
        answer: impl Fn(&[u8]) -> Option<u64> + Send + 'static,
    ) -> Result<Self> {
        near.set_read_timeout(Some(TICK))?;
        let writer = near.try_clone()?;
        let mut stream = Self::sending(rate, move |number| writer.send(&request(number)).map(drop));
        stream.thread(move |shared| {
            let mut packet = [0; 2048];
            while !shared.done() {
                match near.recv(&mut packet) {
                    Ok(len) => {
                        if let Some(number) = answer(&packet[..len]) {
                            shared.answered(number);
                        }
                    }
                    Err(error) if udp::is_timeout(&error) => {}
                    // An ICMP error that came in; the next read works.
                    Err(error) => shared.failed("receive", &error),
                }
            }
        });
        Ok(stream)
    }

    /// A stream with its sender running.
    fn sending(rate: u32, send: impl Fn(u64) -> std::io::Result<()> + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        shared.answers().mark(Instant::now());
        let own = Arc::clone(&shared);
        let sender = thread::spawn(move || {
            let (start, period) = (Instant::now(), Duration::from_secs(1) / rate);
            // Requests keep their place in time: after a stall the missed ones follow at once.
            for number in 0..u32::MAX {
                thread::sleep((start + period * number).saturating_duration_since(Instant::now()));
                if own.stop.load(Ordering::Relaxed) {
                    break;
                }
                own.sent.fetch_add(1, Ordering::Relaxed);
                if let Err(error) = send(u64::from(number)) {
                    own.failed("send", &error);
                }
            }
        });
        Self { shared, sender: Some(sender), others: Vec::new() }
    }

    fn thread(&mut self, work: impl FnOnce(&Shared) + Send + 'static) {
        let shared = Arc::clone(&self.shared);
        self.others.push(thread::spawn(move || work(&shared)));
    }

    /// Requests answered so far.
    pub fn received(&self) -> u64 {
        self.shared.answers().numbers.len() as u64
    }

    /// Stops sending, waits (at most 2 s) for the answers that are still under way, and gives the account.
    pub fn stop(mut self) -> Outcome {
        self.end()
    }

    fn end(&mut self) -> Outcome {
        self.shared.stop.store(true, Ordering::Relaxed);
        let stopped = Instant::now();
        if let Some(sender) = self.sender.take() {
            let _ = sender.join();
        }
        let sent = self.shared.sent.load(Ordering::Relaxed);
        while self.received() < sent && stopped.elapsed() < patient(GRACE) {
            thread::sleep(Duration::from_millis(1));
        }
        self.shared.done.store(true, Ordering::Relaxed);
        for thread in self.others.drain(..) {
            let _ = thread.join();
        }
        let answers = self.shared.answers();
        let received = answers.numbers.len() as u64;
        // A silence at the end that goes on when the stream is stopped counts up to the stop.
        let silence = answers.last.map_or(Duration::ZERO, |last| stopped.saturating_duration_since(last));
        let max_gap = answers.max_gap.max(silence);
        Outcome { sent, received, lost: sent.saturating_sub(received), max_gap, error: answers.error.clone() }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.sender.is_some() {
            self.end();
        }
    }
}

/// Reads 8-byte numbers from a TCP stream and hands each to `act`, until the stream is done or breaks.
fn each_number(from: &TcpStream, shared: &Shared, what: &str, act: impl Fn(u64) -> std::io::Result<()>) {
    let mut from = from;
    let (mut bytes, mut have) = ([0; 8], 0);
    while !shared.done() {
        let result = match from.read(&mut bytes[have..]) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(len) => {
                have += len;
                if have < bytes.len() {
                    continue;
                }
                have = 0;
                act(u64::from_be_bytes(bytes))
            }
            Err(error) if udp::is_timeout(&error) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            // The other end of a stream that is done may have gone first.
            if !shared.done() {
                shared.failed(what, &error);
            }
            return;
        }
    }
}

fn echo_datagrams(socket: &UdpSocket, shared: &Shared) {
    let mut packet = [0; 2048];
    while !shared.done() {
        match socket.recv_from(&mut packet) {
            Ok((len, from)) => {
                if let Err(error) = socket.send_to(&packet[..len], from) {
                    shared.failed("echo", &error);
                }
            }
            Err(error) if udp::is_timeout(&error) => {}
            Err(error) => shared.failed("echo", &error),
        }
    }
}

/// A raw ICMP socket connected to `to`. `UdpSocket` is only the owner: its calls are those of any datagram socket.
fn icmp_socket(namespace: &Namespace, to: IpAddr) -> Result<UdpSocket> {
    let (family, protocol) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let open = || socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol);
    let socket = UdpSocket::from(namespace.run(open).context("open raw icmp socket")?);
    socket.connect((to, 0)).with_context(|| format!("connect raw icmp socket to {to}"))?;
    Ok(socket)
}

fn echo_request(id: u16, number: u64) -> Vec<u8> {
    let payload = number.to_be_bytes();
    let kind = Icmpv4Type::EchoRequest(IcmpEchoHeader { id, seq: number as u16 });
    [&Icmpv4Header::with_checksum(kind, &payload).to_bytes()[..], &payload].concat()
}

/// The number in an echo reply with this identifier; `packet` starts with the IPv4 header (raw(7)).
fn echo_reply(id: u16, packet: &[u8]) -> Option<u64> {
    let icmp = packet.get(usize::from(packet.first()? & 0x0f) * 4..)?;
    let (header, payload) = Icmpv4Header::from_slice(icmp).ok()?;
    match header.icmp_type {
        Icmpv4Type::EchoReply(echo) if echo.id == id => Some(u64::from_be_bytes(*payload.first_chunk()?)),
        _ => None,
    }
}

/// As [`echo_request`]; the kernel computes the checksum (raw(7): of ICMPv6 always).
fn echo_request_v6(id: u16, number: u64) -> Vec<u8> {
    let payload = number.to_be_bytes();
    let kind = Icmpv6Type::EchoRequest(IcmpEchoHeader { id, seq: number as u16 });
    [&Icmpv6Header::new(kind).to_bytes()[..], &payload].concat()
}

/// As [`echo_reply`]; `packet` starts with the ICMPv6 header (ipv6(7)).
fn echo_reply_v6(id: u16, packet: &[u8]) -> Option<u64> {
    let (header, payload) = Icmpv6Header::from_slice(packet).ok()?;
    match header.icmp_type {
        Icmpv6Type::EchoReply(echo) if echo.id == id => Some(u64::from_be_bytes(*payload.first_chunk()?)),
        _ => None,
    }
}
