//! TCP: one exchange that tells what each end sees of the other, and bulk transfers checked by content.

use std::hash::{DefaultHasher, Hasher as _};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect as connect_socket, setsockopt, socket,
    sockopt::{ReuseAddr, SendTimeout},
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::{Pattern, Seen, step_limit};
use crate::lab::Namespace;
use crate::lab::exec::patient;

/// How long a bulk transfer may take; a lab moves a GiB in seconds, even in a debug build.
const BULK_LIMIT: Duration = Duration::from_mins(1);

/// Bytes per write and per digest step.
const CHUNK: usize = 64 * 1024;

/// Connects from `client` to `server` at address `at` (port 0: any), sends a payload and has it echoed.
///
/// Errors: no connection, no answer in time, or a payload that came back changed.
pub fn exchange(client: &Namespace, server: &Namespace, at: SocketAddr) -> Result<Seen> {
    exchange_through(client, server, at, at)
}

/// As [`exchange`], for a server that listens at `listen` but is dialled at `dial` (a service address, say). Port 0 in
/// `dial` means the port that the server got.
pub fn exchange_through(
    client: &Namespace,
    server: &Namespace,
    listen: SocketAddr,
    dial: SocketAddr,
) -> Result<Seen> {
    let mut payload = [0; 256];
    Pattern::new(u64::from(std::process::id())).fill(&mut payload);
    let (near, far) = connect(client, server, listen, dial)?;
    let seen = Seen { client: near.local_addr()?, server_saw: far.peer_addr()? };
    thread::scope(|scope| {
        let echo = scope.spawn(|| {
            let mut got = [0; 256];
            (&far).read_exact(&mut got).context("receive the request")?;
            (&far).write_all(&got).context("send the answer")
        });
        (&near).write_all(&payload).context("send the request")?;
        let mut got = [0; 256];
        let answer = (&near).read_exact(&mut got).context("receive the answer");
        echo.join().expect("the echo thread does not panic")?;
        answer?;
        ensure!(got == payload, "the echoed payload differs from what was sent");
        Ok(seen)
    })
}

/// Both ends of a new connection, with time-outs set.
pub fn connect(
    client: &Namespace,
    server: &Namespace,
    listen: SocketAddr,
    mut dial: SocketAddr,
) -> Result<(TcpStream, TcpStream)> {
    let listener = super::listen(server, listen).with_context(|| format!("listen on {listen}"))?;
    if dial.port() == 0 {
        dial.set_port(listener.local_addr()?.port());
    }
    let near = client.run(|| TcpStream::connect_timeout(&dial, step_limit()));
    let near = near.with_context(|| format!("connect from {} to {dial}", client.name()))?;
    let (far, _) = listener.accept().with_context(|| format!("accept in {}", server.name()))?;
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(step_limit()))?;
        stream.set_write_timeout(Some(step_limit()))?;
        stream.set_nodelay(true)?;
    }
    Ok((near, far))
}

/// A connection from `client` to `to` with a local port that may be in use for connections to other places (0: any), with
/// time-outs set.
pub fn connect_from_port(client: &Namespace, port: u16, to: SocketAddr) -> Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let own = SocketAddr::new(super::unspecified(to.ip()), port);
    let open = || {
        let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&socket, ReuseAddr, &true)?;
        // connect(2) honours SO_SNDTIMEO, see socket(7).
        setsockopt(&socket, SendTimeout, &TimeVal::milliseconds(step_limit().as_millis() as i64))?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(own))?;
        connect_socket(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
        nix::Result::Ok(TcpStream::from(socket))
    };
    let stream = client.run(open);
    let stream = stream.with_context(|| format!("connect from port {port} of {} to {to}", client.name()))?;
    stream.set_read_timeout(Some(step_limit()))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sends `message` one way over a connection.
///
/// Errors: it does not arrive in time, or changed.
pub fn say(from: &TcpStream, to: &TcpStream, message: &[u8]) -> Result<()> {
    let (mut from, mut to) = (from, to);
    from.write_all(message).context("send")?;
    let mut got = vec![0; message.len()];
    to.read_exact(&mut got).context("receive")?;
    ensure!(got == message, "what arrived differs from what was sent");
    Ok(())
}

/// Sends `mebibytes` MiB of pseudo-random payload over a connection in each direction at once.
///
/// Errors: a transfer stalls, ends early, or its content arrives changed.
pub fn bulk_both_ways(one: &TcpStream, other: &TcpStream, mebibytes: u32) -> Result<()> {
    let chunks = (u64::from(mebibytes) << 20) / CHUNK as u64;
    let start = Instant::now();
    let send = |stream: &TcpStream, seed: u64| {
        let (mut stream, mut pattern) = (stream, Pattern::new(seed));
        transfer(chunks, start, |buffer| {
            pattern.fill(buffer);
            stream.write_all(buffer)
        })
    };
    let receive = |stream: &TcpStream| {
        let mut stream = stream;
        transfer(chunks, start, |buffer| stream.read_exact(buffer))
    };
    thread::scope(|scope| {
        let readers = [other, one].map(|stream| scope.spawn(move || receive(stream)));
        let writers = [(one, 1), (other, 2)].map(|(stream, seed)| scope.spawn(move || send(stream, seed)));
        for (reader, writer) in readers.into_iter().zip(writers) {
            let received =
                reader.join().expect("the receiver does not panic").context("receive bulk data")?;
            let written = writer.join().expect("the sender does not panic").context("send bulk data")?;
            ensure!(written == received, "bulk data arrived changed");
        }
        Ok(())
    })
}

/// A finished bulk transfer.
#[derive(Debug, Clone, Copy)]
pub struct Bulk {
    /// Payload bytes.
    pub bytes: u64,
    /// From the first byte sent to the last one received.
    pub elapsed: Duration,
    /// Digest of what the client sent.
    pub sent: u64,
    /// Digest of what the server received.
    pub received: u64,
}

impl Bulk {
    /// Whether the server received exactly what the client sent.
    pub fn intact(&self) -> bool {
        self.sent == self.received
    }

    /// Payload rate in Mbit/s.
    pub fn megabits_per_second(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let bits = self.bytes as f64 * 8.0;
        bits / self.elapsed.as_secs_f64() / 1e6
    }
}

/// Sends `mebibytes` MiB of pseudo-random payload from `client` to `server` at address `at` (port 0: any), in large
/// writes, so that the kernel makes GSO packets of them. The other direction: swap the namespaces.
///
/// Errors: the transfer stalls, or ends early. Changed content is no error but in the result, [`Bulk::intact`].
pub fn bulk(client: &Namespace, server: &Namespace, at: SocketAddr, mebibytes: u32) -> Result<Bulk> {
    let bytes = u64::from(mebibytes) << 20;
    let (near, far) = connect(client, server, at, at)?;
    let start = Instant::now();
    let chunks = bytes / CHUNK as u64;
    let (sent, received) = thread::scope(|scope| {
        let reader = scope.spawn(|| transfer(chunks, start, |buffer| (&far).read_exact(buffer)));
        let mut pattern = Pattern::new(bytes);
        let sent = transfer(chunks, start, |buffer| {
            pattern.fill(buffer);
            (&near).write_all(buffer)
        });
        // The receiver's error says more: the sender often only finds the connection closed.
        let received = reader.join().expect("the receiver does not panic").context("receive bulk data")?;
        anyhow::Ok((sent.context("send bulk data")?, received))
    })?;
    Ok(Bulk { bytes, elapsed: start.elapsed(), sent, received })
}

/// Moves `chunks` chunks by `step`; gives the digest of them all.
fn transfer(
    chunks: u64,
    start: Instant,
    mut step: impl FnMut(&mut [u8]) -> std::io::Result<()>,
) -> Result<u64> {
    let mut digest = DefaultHasher::new();
    let mut buffer = vec![0; CHUNK];
    for index in 0..chunks {
        ensure!(start.elapsed() < patient(BULK_LIMIT), "{index} of {chunks} chunks after {BULK_LIMIT:?}");
        step(&mut buffer).with_context(|| format!("chunk {index} of {chunks}"))?;
        digest.write(&buffer);
    }
    Ok(digest.finish())
}
