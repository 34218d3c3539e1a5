//! One request at a time: over a connection, with a new connection each, and by datagrams.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow};
use overlay_tests::lab::Namespace;
use overlay_tests::traffic::STEP_LIMIT;

use super::{Latency, Sample, Turn};
use crate::placement::Role;

/// The first byte of a request.
const REQUEST: u8 = 1;
/// The first byte of the last request of a turn: the server answers it and is done.
const LAST: u8 = 2;

/// Bytes of a request and of an answer by UDP.
const DATAGRAM: usize = 64;

/// Round trips of a turn at most: what the times of which are kept for.
const LIMIT: usize = 1 << 18;
/// Connections of a turn at most: each leaves a port, and where connections are tracked an entry, for one or two minutes.
const CONNECTIONS: usize = 2000;

/// A byte there and back on a connection.
pub(super) fn tcp((client, server): &(TcpStream, TcpStream), turn: Turn) -> Result<Sample> {
    run(turn, LIMIT, None, |first| ask(client, first), || answer(server))
}

/// The same with a connection for each.
pub(super) fn connections((from, listener): &(Namespace, TcpListener), turn: Turn) -> Result<Sample> {
    let to = listener.local_addr().context("read the address of a listener")?;
    let exchange = |first| {
        let stream = TcpStream::connect(to)?;
        stream.set_read_timeout(Some(STEP_LIMIT))?;
        ask(&stream, first)
    };
    let serve = || answer(&listener.accept()?.0);
    run(turn, CONNECTIONS, Some(from), exchange, serve)
}

/// A datagram there and back.
pub(super) fn udp((client, server): &(UdpSocket, UdpSocket), turn: Turn) -> Result<Sample> {
    let exchange = |first| {
        let mut data = [0; DATAGRAM];
        data[0] = first;
        client.send(&data)?;
        client.recv(&mut data).map(drop)
    };
    let serve = || {
        let mut data = [0; DATAGRAM];
        let (len, from) = server.recv_from(&mut data)?;
        server.send_to(&data[..len], from)?;
        Ok(data[0])
    };
    run(turn, LIMIT, None, exchange, serve)
}

fn ask(mut stream: &TcpStream, first: u8) -> io::Result<()> {
    stream.write_all(&[first])?;
    stream.read_exact(&mut [0])
}

fn answer(mut stream: &TcpStream) -> io::Result<u8> {
    let mut request = [0];
    stream.read_exact(&mut request)?;
    stream.write_all(&request)?;
    Ok(request[0])
}

/// Runs `exchange` again and again, `serve` on another thread; `from`: the namespace that `exchange` makes sockets in.
fn run(
    turn: Turn,
    limit: usize,
    from: Option<&Namespace>,
    exchange: impl Fn(u8) -> io::Result<()> + Sync,
    serve: impl Fn() -> io::Result<u8> + Sync,
) -> Result<Sample> {
    let over = AtomicBool::new(false);
    let server = || -> Result<()> {
        turn.placement.pin(Role::Server)?;
        loop {
            match serve() {
                Ok(LAST) => return Ok(()),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    // The client has failed, and says why.
                    if over.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                }
                Err(error) => return Err(error).context("answer a request"),
            }
        }
    };
    let client = || -> Result<Sample> {
        turn.placement.pin(Role::Client)?;
        let mut times = Vec::with_capacity(limit);
        let start = Instant::now();
        let mut now = start;
        while now - start < turn.length && times.len() < limit {
            exchange(REQUEST).context("wait for the answer to a request")?;
            let then = std::mem::replace(&mut now, Instant::now());
            times.push(u32::try_from((now - then).as_nanos()).unwrap_or(u32::MAX));
        }
        let rate = times.len() as f64 / (now - start).as_secs_f64();
        exchange(LAST).context("wait for the last answer")?;
        Ok(Sample { rate, latency: Latency::of(&mut times), loss: 0.0 })
    };
    thread::scope(|scope| {
        let server = scope.spawn(server);
        let sample = match from {
            Some(namespace) => namespace.run(client),
            None => scope.spawn(client).join().unwrap_or_else(|_| Err(anyhow!("the client panicked"))),
        };
        over.store(true, Ordering::Relaxed);
        let ended = server.join().unwrap_or_else(|_| Err(anyhow!("the server panicked")));
        let sample = sample?;
        ended?;
        Ok(sample)
    })
}
