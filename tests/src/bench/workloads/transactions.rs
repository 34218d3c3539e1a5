//! One request at a time: over a connection, with a new connection each, and by datagrams.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow};
use overlay_tests::lab::Namespace;
use overlay_tests::traffic::step_limit;

use super::{Latency, Sample, Turn};
use crate::far::{Far, Task};
use crate::placement::Role;
use crate::sockets::{Connect, Ends};

/// The first byte of a request.
const REQUEST: u8 = 1;
/// The first byte of the last request of a turn: the server answers it and is done.
pub(crate) const LAST: u8 = 2;

/// Bytes of a request and of an answer by UDP.
const DATAGRAM: usize = 64;

/// Round trips of a turn at most: what the times of which are kept for.
const LIMIT: usize = 1 << 18;
/// Connections of a turn at most: each leaves a port, and where connections are tracked an entry, for one or two minutes.
const CONNECTIONS: usize = 2000;

/// A byte there and back on a connection.
pub(super) fn tcp(far: &Far, ends: &Ends<TcpStream>, turn: Turn) -> Result<Sample> {
    run(far, Task::Answer(ends.server), turn, LIMIT, None, |first| ask(&ends.client, first))
}

/// The same with a connection for each.
pub(super) fn connections(far: &Far, connect: &Connect, turn: Turn) -> Result<Sample> {
    let exchange = |first| {
        let stream = TcpStream::connect(connect.to)?;
        stream.set_read_timeout(Some(step_limit()))?;
        ask(&stream, first)
    };
    run(far, Task::Accept(connect.listener), turn, CONNECTIONS, Some(&connect.from), exchange)
}

/// A datagram there and back.
pub(super) fn udp(far: &Far, ends: &Ends<UdpSocket>, turn: Turn) -> Result<Sample> {
    let exchange = |first| {
        let mut data = [0; DATAGRAM];
        data[0] = first;
        ends.client.send(&data)?;
        ends.client.recv(&mut data).map(drop)
    };
    run(far, Task::Echo(ends.server), turn, LIMIT, None, exchange)
}

/// Sends a datagram back; gives its first byte.
pub(crate) fn echo(socket: &UdpSocket) -> io::Result<u8> {
    let mut data = [0; DATAGRAM];
    let (len, from) = socket.recv_from(&mut data)?;
    socket.send_to(&data[..len], from)?;
    Ok(data[0])
}

fn ask(mut stream: &TcpStream, first: u8) -> io::Result<()> {
    stream.write_all(&[first])?;
    stream.read_exact(&mut [0])
}

/// Runs `exchange` again and again beside the servers of `task`; `from`: the namespace that `exchange` makes sockets in.
fn run(
    far: &Far,
    task: Task,
    turn: Turn,
    limit: usize,
    from: Option<&Namespace>,
    exchange: impl Fn(u8) -> io::Result<()> + Sync,
) -> Result<Sample> {
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
    // On a thread of its own in any case: it is pinned for good.
    let client = |_| match from {
        Some(namespace) => namespace.run(client),
        None => thread::scope(|scope| {
            scope.spawn(client).join().unwrap_or_else(|_| Err(anyhow!("the client panicked")))
        }),
    };
    far.beside(task, turn.placement, client).map(|(sample, _)| sample)
}
