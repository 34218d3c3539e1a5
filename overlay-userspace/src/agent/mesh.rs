//! The agent's part of the health mesh: a task beside the run loop that asks peers and answers them.
//!
//! It answers whoever has the gateway address of a node that this agent knows, in the size of the question, and at a limited
//! rate; nobody else, pods least of all. Nothing that comes in costs more than one turn: a batch is read, then others run.
//! The run loop may hold it up for as long as a pass takes; the kernel's times of arrival keep that out of the latencies.

use std::{
    hash::{BuildHasher as _, DefaultHasher, Hash as _, Hasher as _, RandomState},
    io,
    net::{Ipv4Addr, SocketAddrV4},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use log::{Level, debug};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
    task::yield_now,
    time::sleep_until,
};

use super::Trouble;
use crate::{
    cluster::{NodeSpec, Snapshot},
    config,
    mesh::{
        ask::latency,
        packet::{self, ENTRY, HEADER, LONGEST, Packet, Request},
        socket::{Received, Returned, Socket, now},
        table::{Bucket, Table},
    },
};

/// Payload of a probe that asks for a part of the peer's row, in bytes, and of one that does not.
const WITH_ROW: usize = HEADER + 20 * ENTRY;
const WITHOUT_ROW: usize = HEADER + 24;
/// Datagrams that are read before others run, and how often before this node asks all the same.
const BATCH: usize = 32;
const BATCHES: usize = 16;
/// Answers per second, to all nodes together.
const ANSWERS: f64 = 400.0;
/// When the socket cannot be had, it is tried again after this.
const RETRY: Duration = Duration::from_secs(5);

/// What has been asked of this node since the start.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Asked {
    pub(super) answered: u64,
    /// Of senders that are no gateway of the cluster: not answered.
    pub(super) strangers: u64,
    /// More than the rate allows: not answered.
    pub(super) limited: u64,
    /// Not of the protocol.
    pub(super) malformed: u64,
    /// Dropped by the kernel before the socket: from no possible gateway, or more than the agent could read.
    pub(super) dropped: u64,
}

/// What the task knows.
#[derive(Debug)]
pub(super) struct State {
    pub(super) table: Table,
    pub(super) asked: Asked,
    /// A hash of the list of nodes.
    list: Option<u64>,
    /// Prefix length of the longest node subnet.
    prefix: u8,
    bucket: Bucket,
}

/// The mesh. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Mesh {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    settings: config::Mesh,
    state: Mutex<State>,
    changed: Notify,
}

impl Mesh {
    /// Begins as soon as there are nodes. Needs a tokio runtime.
    pub(super) fn spawn(settings: config::Mesh) -> Self {
        let now = Instant::now();
        let state = State {
            table: Table::new(now),
            asked: Asked::default(),
            list: None,
            prefix: 0,
            bucket: Bucket::full(ANSWERS, now),
        };
        let shared = Shared { settings, state: Mutex::new(state), changed: Notify::new() };
        let mesh = Self { shared: Arc::new(shared) };
        tokio::spawn(mesh.clone().run());
        mesh
    }

    /// What it knows, for as long as the guard lives; nothing may be awaited meanwhile.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // No holder leaves it half-written.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The port, and the probes a second that leave this node.
    pub(super) fn settings(&self) -> (u16, u32) {
        (self.shared.settings.port, self.shared.settings.rate)
    }

    /// Takes over the list of nodes, if it is another one.
    pub(super) fn set(&self, nodes: &Snapshot) {
        let mut hasher = DefaultHasher::new();
        for NodeSpec { name, addresses, subnets, vtep_macs } in nodes.nodes() {
            (name, addresses, subnets, vtep_macs).hash(&mut hasher);
        }
        nodes.own().addresses.hash(&mut hasher);
        let list = Some(hasher.finish());
        let mut state = self.state();
        if state.list == list {
            return;
        }
        state.list = list;
        state.prefix = nodes.node_prefixes().v4.unwrap_or_default();
        state.table.set(nodes, Instant::now());
        self.shared.changed.notify_one();
    }

    async fn run(self) {
        let mut trouble = Trouble::new(Level::Warn);
        loop {
            let (own, prefix) = {
                let state = self.state();
                (state.table.own(), state.prefix)
            };
            if own.is_unspecified() {
                self.shared.changed.notified().await;
                continue;
            }
            let address = SocketAddrV4::new(own, self.shared.settings.port);
            let result = match open(address, prefix) {
                Ok(socket) => {
                    trouble.over();
                    self.converse(&socket, (own, prefix)).await
                }
                Err(error) => Err(error),
            };
            if let Err(error) = result {
                trouble.is(format!(
                    "measure the ways to other nodes on UDP {address}: {error}; free the port, choose another one with \
                     agent.mesh.port, or write agent.mesh.enabled = false"
                ));
                let retry = tokio::time::sleep(RETRY);
                tokio::select! { () = retry => {}, () = self.shared.changed.notified() => {} }
            }
        }
    }

    /// Asks and answers until this node has another address.
    async fn converse(&self, socket: &AsyncFd<Socket>, address: (Ipv4Addr, u8)) -> io::Result<()> {
        let random = RandomState::new();
        let mut buffer = vec![0; LONGEST];
        let mut drops = 0;
        let mut count = 0_u64;
        let mut next = Instant::now();
        loop {
            tokio::select! {
                ready = socket.ready(Interest::READABLE | Interest::ERROR) => {
                    let mut ready = ready?;
                    if self.read(socket.get_ref(), &mut buffer)? {
                        ready.clear_ready();
                    } else {
                        drop(ready);
                        yield_now().await;
                    }
                }
                () = sleep_until(next.into()) => {
                    // What has come in time must not be taken for lost because the run loop was busy.
                    for _ in 0..BATCHES {
                        if self.read(socket.get_ref(), &mut buffer)? {
                            break;
                        }
                        yield_now().await;
                    }
                    let now = socket.get_ref().drops()?;
                    self.state().asked.dropped += u64::from(now.wrapping_sub(drops));
                    drops = now;
                    count += 1;
                    next = self.ask(socket.get_ref(), random.hash_one(count))?;
                }
                () = self.shared.changed.notified() => {
                    let state = self.state();
                    if (state.table.own(), state.prefix) != address {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Asks whoever is due; says when the next one is.
    fn ask(&self, socket: &Socket, nonce: u64) -> io::Result<Instant> {
        let mut state = self.state();
        let at = Instant::now();
        state.table.expire(at);
        let next = at + state.table.interval(self.shared.settings.rate);
        let Some((gateway, offset)) = state.table.ask(nonce, at) else { return Ok(next) };
        let size = if state.table.detailed() { WITH_ROW } else { WITHOUT_ROW };
        let request = Request { nonce, sent: now()?.as_nanos() as u64, offset };
        let to = SocketAddrV4::new(gateway, self.shared.settings.port);
        if let Err(error) = socket.send(&packet::request(request, size), to) {
            debug!("probe {to}: {error}");
            state.table.unsent(nonce);
        }
        Ok(next)
    }

    /// Reads a batch; `true` when nothing is left.
    fn read(&self, socket: &Socket, buffer: &mut [u8]) -> io::Result<bool> {
        let mut state = self.state();
        while let Some(Returned { to, by, errno, .. }) = socket.returned()? {
            // What people's probes asked from, and were gone, does not count.
            let refused = errno == libc::ECONNREFUSED && by == Some(*to.ip());
            if refused && to.port() == self.shared.settings.port {
                state.table.refused(*to.ip());
            }
        }
        for _ in 0..BATCH {
            match socket.receive(buffer) {
                Ok(got) => {
                    let datagram = buffer.get(..got.len).unwrap_or_default();
                    match packet::parse(datagram) {
                        None => state.asked.malformed += 1,
                        Some(Packet::Request(request)) => state.answer(socket, request, &got)?,
                        Some(Packet::Answer(answer)) => {
                            let sent = Duration::from_nanos(answer.request.sent);
                            let latency = latency(sent, &got, &answer);
                            let row = (answer.request.offset, answer.total, answer.entries.as_slice());
                            let (from, nonce) = (*got.from.ip(), answer.request.nonce);
                            state.table.answered(from, nonce, latency, row, Instant::now());
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                // What an ICMP error says; it is in the queue of errors as well.
                Err(error) => debug!("read a probe: {error}"),
            }
        }
        Ok(false)
    }
}

impl State {
    fn answer(&mut self, socket: &Socket, request: Request, got: &Received) -> io::Result<()> {
        let at = Instant::now();
        match self.table.may_ask(*got.from.ip(), at) {
            None => {
                self.asked.strangers += 1;
                return Ok(());
            }
            Some(true) if self.bucket.take(ANSWERS, at) => {}
            Some(_) => {
                self.asked.limited += 1;
                return Ok(());
            }
        }
        let total = self.table.peers().len() as u32;
        let held = now()?.saturating_sub(got.at);
        let bytes = packet::answer(request, got.len, held, self.table.row(request.offset, at), total);
        match socket.send(&bytes, got.from) {
            Ok(()) => self.asked.answered += 1,
            Err(error) => debug!("answer the probe of {}: {error}", got.from),
        }
        Ok(())
    }
}

fn open(address: SocketAddrV4, prefix: u8) -> io::Result<AsyncFd<Socket>> {
    let socket = Socket::bind(address)?;
    socket.only_gateways(prefix)?;
    // SAFETY: the socket owns its descriptor and does not close it before it is dropped, with its registration.
    unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE | Interest::ERROR) }
        .map_err(Into::into)
}
