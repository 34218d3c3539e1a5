//! Bulk: each stream writes as much as the connection takes until the turn is over; what counts is what has arrived.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, ensure};

use super::{Sample, Turn};
use crate::far::{self, Far, Shared, Taken, Task};
use crate::placement::Role;
use crate::sockets::Ends;

/// Bytes of a write, and of a read at most.
const BLOCK: usize = 128 * 1024;

/// Runs these streams side by side.
pub(super) fn run(far: &Far, streams: &[Ends<TcpStream>], turn: Turn) -> Result<Sample> {
    let task = Task::Take(streams.iter().map(|ends| ends.server).collect());
    let (starts, taken) = far.beside(task, turn.placement, |shared| send_all(streams, shared, turn))?;
    let start = starts.into_iter().min().context("no stream")?;
    let end = taken.iter().map(|taken| taken.end).max().context("no stream")?;
    let bytes: u64 = taken.iter().map(|taken| taken.bytes).sum();
    ensure!(end > start, "the last byte came before the first");
    // Bits in a nanosecond are gigabits in a second.
    Ok(Sample { rate: bytes as f64 * 8.0 / (end - start) as f64, latency: None, loss: 0.0 })
}

/// When each stream began.
fn send_all(streams: &[Ends<TcpStream>], shared: Shared, turn: Turn) -> Result<Vec<u64>> {
    thread::scope(|scope| {
        let threads: Vec<_> = streams
            .iter()
            .enumerate()
            .map(|(index, ends)| scope.spawn(move || send(&ends.client, shared.word(index), turn)))
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Result<u64>>| {
            thread.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked")))
        };
        threads.into_iter().map(join).collect()
    })
}

/// `goal`: bytes of the whole turn, 0 until they are known.
fn send(mut stream: &TcpStream, goal: &AtomicU64, turn: Turn) -> Result<u64> {
    turn.placement.pin(Role::Client)?;
    let block = vec![0_u8; BLOCK];
    let (begin, start) = (far::now()?, Instant::now());
    let mut sent = 0;
    loop {
        let last = start.elapsed() >= turn.length;
        if last {
            // Before the last byte leaves: when it arrives the receiver knows that it is the last.
            goal.store(sent + BLOCK as u64, Ordering::SeqCst);
        }
        stream.write_all(&block).context("write to a stream")?;
        sent += BLOCK as u64;
        if last {
            return Ok(begin);
        }
    }
}

/// The far end of [`send`]; leaves `goal` as it has to be for the next turn.
pub(crate) fn receive(mut stream: &TcpStream, goal: &AtomicU64) -> Result<Taken> {
    let mut block = vec![0_u8; BLOCK];
    let mut bytes = 0;
    loop {
        let len = stream.read(&mut block).context("read from a stream")?;
        ensure!(len > 0, "a stream was closed");
        bytes += len as u64;
        if bytes == goal.load(Ordering::SeqCst) {
            goal.store(0, Ordering::SeqCst);
            return Ok(Taken { bytes, end: far::now()? });
        }
    }
}
