//! Bulk: each stream writes as much as the connection takes until the turn is over; what counts is what has arrived.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, ensure};

use super::{Sample, Turn};
use crate::placement::Role;

/// Bytes of a write, and of a read at most.
const BLOCK: usize = 128 * 1024;

/// Runs these streams side by side.
pub(super) fn run(streams: &[(TcpStream, TcpStream)], turn: Turn) -> Result<Sample> {
    let transfers = thread::scope(|scope| {
        let threads: Vec<_> = streams
            .iter()
            .map(|(near, far)| {
                // Bytes of the whole turn, once they are known.
                let goal = Arc::new(AtomicU64::new(u64::MAX));
                let told = Arc::clone(&goal);
                let arriving = scope.spawn(move || receive(far, &told, turn));
                (scope.spawn(move || send(near, &goal, turn)), arriving)
            })
            .collect();
        let panicked = || anyhow!("a thread panicked");
        let mut transfers = Vec::new();
        for (leaving, arriving) in threads {
            let start = leaving.join().map_err(|_| panicked())?;
            let (bytes, end) = arriving.join().map_err(|_| panicked())??;
            transfers.push(Transfer { start: start?, end, bytes });
        }
        anyhow::Ok(transfers)
    })?;
    let start = transfers.iter().map(|transfer| transfer.start).min().context("no stream")?;
    let end = transfers.iter().map(|transfer| transfer.end).max().context("no stream")?;
    let bytes: u64 = transfers.iter().map(|transfer| transfer.bytes).sum();
    let gigabits = bytes as f64 * 8.0 / 1e9;
    Ok(Sample { rate: gigabits / (end - start).as_secs_f64(), latency: None, loss: 0.0 })
}

/// What one stream did in a turn.
struct Transfer {
    start: Instant,
    end: Instant,
    bytes: u64,
}

fn send(mut stream: &TcpStream, goal: &AtomicU64, turn: Turn) -> Result<Instant> {
    turn.placement.pin(Role::Client)?;
    let block = vec![0_u8; BLOCK];
    let start = Instant::now();
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
            return Ok(start);
        }
    }
}

fn receive(mut stream: &TcpStream, goal: &AtomicU64, turn: Turn) -> Result<(u64, Instant)> {
    turn.placement.pin(Role::Server)?;
    let mut block = vec![0_u8; BLOCK];
    let mut received = 0;
    while received < goal.load(Ordering::SeqCst) {
        let len = stream.read(&mut block).context("read from a stream")?;
        ensure!(len > 0, "a stream was closed");
        received += len as u64;
    }
    Ok((received, Instant::now()))
}
