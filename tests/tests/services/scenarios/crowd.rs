//! Very many connections at once.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use overlay_tests::lab::services::Protocol;
use overlay_tests::traffic::{listen_here, step_limit};

use super::Scenario;
use crate::bed::{Bed, Place};

pub(super) const ALL: &[Scenario] =
    &[Scenario::of_many("1 800 connections at once", |bed| connections(bed, 1_800))];

/// As many as the largest nodes have.
pub(crate) const LARGE: Scenario =
    Scenario::of_many("20 100 connections at once", |bed| connections(bed, 20_100));

/// Who calls which Service: a third of the connections each. Backends are on the client's node and on others.
const PLAN: [(&str, &str); 3] = [("cp", "w1"), ("w1", "w1"), ("w2", "cp")];

/// How long all connections together may take, on a busy machine.
const LIMIT: Duration = Duration::from_mins(1);

/// Opens `count` connections through Services, and uses them only when all are open: backends speak first, all of them,
/// then clients.
fn connections(bed: &mut Bed, count: usize) -> Result<()> {
    let each = count / PLAN.len();
    thread::scope(|scope| {
        let (mut threads, mut ready, mut go) = (Vec::new(), Vec::new(), Vec::new());
        for (index, (client, service)) in PLAN.into_iter().enumerate() {
            let client = bed.pod(client, "a");
            // Several clients of one backend each need a port there of their own.
            let service = if index == 1 { format!("local-{service}") } else { service.to_owned() };
            let (server, listen) = bed.backend(&service, Protocol::Tcp);
            let dial = bed.cluster_ip(&service, Protocol::Tcp);
            let (listening, listens) = channel();
            let [far, near] = [0, 1].map(|_| {
                let (done, is_done) = channel();
                let (start, starts) = channel();
                ready.push(is_done);
                go.push(start);
                Turn { done, starts }
            });
            threads.push(scope.spawn(move || alone(server, move || backend(listen, &listening, each, &far))));
            threads.push(scope.spawn(move || {
                alone(client, move || {
                    listens.recv_timeout(LIMIT).context("the backend does not listen")?;
                    clients(dial, each, &near)
                })
            }));
        }
        // A thread that failed has dropped its end: then nobody starts, and its error is the one to tell.
        let all = ready.iter().all(|ready| ready.recv_timeout(LIMIT).is_ok());
        if all {
            for start in &go {
                // One that has failed since tells so itself.
                let _ = start.send(());
            }
        }
        drop(go);
        let results = threads.into_iter().map(|thread| thread.join().expect("the thread does not panic"));
        let failed: Vec<String> = results.filter_map(|result| Some(format!("{:#}", result.err()?))).collect();
        ensure!(failed.is_empty(), "{}", failed.join("; "));
        Ok(())
    })
}

/// A thread's word that it has all connections, and its permission to use them.
struct Turn {
    done: Sender<()>,
    starts: Receiver<()>,
}

impl Turn {
    fn wait(&self) -> Result<()> {
        self.done.send(()).context("nobody waits for the connections")?;
        self.starts.recv_timeout(LIMIT).context("somebody else did not get their connections")
    }
}

/// Runs `work` in a place, on a thread with a table of open files of its own: the limit of open files (`RLIMIT_NOFILE`) is for
/// each table, and no process may raise its own beyond what it was given.
fn alone(place: &Place, work: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    place.namespace.run(|| {
        // SAFETY: only this thread's table is changed. What is closed in it is used by nobody on this thread, which from here on
        // runs `work` alone: that makes its own files.
        let result =
            unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE.cast_signed()) };
        ensure!(result == 0, "close_range: {}", std::io::Error::last_os_error());
        work().with_context(|| format!("in {}", place.name))
    })
}

fn backend(listen: SocketAddr, listening: &Sender<()>, count: usize, turn: &Turn) -> Result<()> {
    let listener = listen_here(listen)?;
    listening.send(()).context("the client is gone")?;
    let accept = |number| {
        let (stream, _) = listener.accept().with_context(|| format!("accept connection {number}"))?;
        stream.set_read_timeout(Some(step_limit()))?;
        anyhow::Ok(stream)
    };
    let open = (0..count).map(accept).collect::<Result<Vec<TcpStream>>>()?;
    turn.wait()?;
    for (number, mut stream) in (0_u64..).zip(&open) {
        stream.write_all(&number.to_be_bytes()).context("send")?;
    }
    for (number, mut stream) in (0_u64..).zip(open) {
        let mut got = [0; 8];
        stream.read_exact(&mut got).with_context(|| format!("connection {number}"))?;
        ensure!(u64::from_be_bytes(got) == !number, "connection {number} got another's data");
        ensure!(stream.read(&mut got).context("end a connection")? == 0, "connection {number} goes on");
    }
    Ok(())
}

fn clients(dial: SocketAddr, count: usize, turn: &Turn) -> Result<()> {
    let connect = |number| {
        let stream = TcpStream::connect_timeout(&dial, step_limit());
        let stream = stream.with_context(|| format!("connection {number} to {dial}"))?;
        stream.set_read_timeout(Some(step_limit()))?;
        anyhow::Ok(stream)
    };
    let open = (0..count).map(connect).collect::<Result<Vec<TcpStream>>>()?;
    turn.wait()?;
    for (number, mut stream) in open.iter().enumerate() {
        let mut got = [0; 8];
        stream.read_exact(&mut got).with_context(|| format!("connection {number} to {dial}"))?;
        // The backend knows which number it gave to whom.
        stream.write_all(&got.map(|byte| !byte)).context("answer")?;
        stream.shutdown(Shutdown::Write).context("end a connection")?;
    }
    for mut stream in &open {
        ensure!(stream.read(&mut [0]).context("end a connection")? == 0, "a connection to {dial} goes on");
    }
    Ok(())
}
