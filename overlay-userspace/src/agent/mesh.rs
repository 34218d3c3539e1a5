//! The agent's part of the health mesh: a task beside the run loop that asks peers and answers them.
//!
//! It answers whoever has the gateway address of a node that this agent knows, in the size of the question, and at a limited
//! rate; nobody else, pods least of all. Nothing that comes in costs more than one turn: a batch is read, then others run.
//! The run loop may hold it up for as long as a pass takes; the kernel's times of arrival keep that out of the latencies.

use std::{
    hash::{BuildHasher as _, DefaultHasher, Hash as _, Hasher as _, RandomState},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use log::{Level, debug};
use tokio::{
    io::{
        Interest,
        unix::{AsyncFd, AsyncFdReadyGuard},
    },
    sync::Notify,
    task::yield_now,
    time::sleep_until,
};

use super::Trouble;
use crate::{
    cluster::{NodeSpec, Snapshot},
    config,
    family::{ByFamily, Family, OfFamily as _},
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
    /// Prefix lengths of the longest node subnets.
    prefixes: ByFamily<u8>,
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
            prefixes: ByFamily::default(),
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
    pub(super) fn set(&self, nodes: &Snapshot, network: &config::Network) {
        let (order, preferred) = (network.cidrs.order(), network.underlay.preferred());
        let mut hasher = DefaultHasher::new();
        for NodeSpec { name, addresses, subnets, vtep_macs } in nodes.nodes() {
            (name, addresses, subnets, vtep_macs).hash(&mut hasher);
        }
        (nodes.own().addresses, order, preferred).hash(&mut hasher);
        let list = Some(hasher.finish());
        let mut state = self.state();
        if state.list == list {
            return;
        }
        state.list = list;
        state.prefixes = nodes.node_prefixes();
        state.table.set(nodes, order, preferred, Instant::now());
        self.shared.changed.notify_one();
    }

    async fn run(self) {
        let mut trouble = Trouble::new(Level::Warn);
        loop {
            let places = self.state().places();
            if places.is_empty() {
                self.shared.changed.notified().await;
                continue;
            }
            // Of two families one is as good as none lost: the other goes on.
            let (mut sockets, mut failed) = (Sockets::default(), None);
            for (family, (own, prefix)) in places.iter() {
                let address = SocketAddr::new(*own, self.shared.settings.port);
                match open(address, *prefix) {
                    Ok(socket) => drop(sockets.set(family, socket)),
                    Err(error) => failed = Some((address, error)),
                }
            }
            let retry = failed.is_some().then(|| Instant::now() + RETRY);
            if let Some((address, error)) = failed {
                trouble.is(cannot(address, &error));
            } else {
                trouble.over();
            }
            let result =
                if sockets.is_empty() { None } else { Some(self.converse(&sockets, &places, retry).await) };
            if let Some(Err((address, error))) = &result {
                trouble.is(cannot(*address, error));
            }
            if !matches!(result, Some(Ok(()))) {
                let retry = tokio::time::sleep(RETRY);
                tokio::select! { () = retry => {}, () = self.shared.changed.notified() => {} }
            }
        }
    }

    /// Asks and answers until this node has other addresses, or until `retry`.
    async fn converse(
        &self,
        sockets: &Sockets,
        places: &Places,
        retry: Option<Instant>,
    ) -> Result<(), (SocketAddr, io::Error)> {
        let random = RandomState::new();
        let mut buffer = vec![0; LONGEST];
        let mut drops = ByFamily { v4: Some(0), v6: Some(0) };
        let mut count = 0_u64;
        let mut next = Instant::now();
        let at = |family| {
            let own = places.get(family).map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |(own, _)| *own);
            move |error| (SocketAddr::new(own, self.shared.settings.port), error)
        };
        loop {
            tokio::select! {
                (family, ready) = readable(sockets) => {
                    let (socket, mut ready) = ready.map_err(at(family))?;
                    if self.read(socket, &mut buffer).map_err(at(family))? {
                        ready.clear_ready();
                    } else {
                        drop(ready);
                        yield_now().await;
                    }
                }
                () = sleep_until(next.into()) => {
                    for (family, socket) in sockets.iter() {
                        // What has come in time must not be taken for lost because the run loop was busy.
                        for _ in 0..BATCHES {
                            if self.read(socket.get_ref(), &mut buffer).map_err(at(family))? {
                                break;
                            }
                            yield_now().await;
                        }
                        let now = socket.get_ref().drops().map_err(at(family))?;
                        let before = drops.set(family, now).unwrap_or_default();
                        self.state().asked.dropped += u64::from(now.wrapping_sub(before));
                    }
                    count += 1;
                    next = self.ask(sockets, random.hash_one(count)).map_err(at(Family::Ipv4))?;
                }
                () = super::life::sleep_until(retry.map(Into::into)) => return Ok(()),
                () = self.shared.changed.notified() => {
                    if self.state().places() != *places {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Asks whoever is due; says when the next one is.
    fn ask(&self, sockets: &Sockets, nonce: u64) -> io::Result<Instant> {
        let mut state = self.state();
        let at = Instant::now();
        state.table.expire(at);
        let next = at + state.table.interval(self.shared.settings.rate);
        let Some((gateway, offset)) = state.table.ask(nonce, at) else { return Ok(next) };
        let size = if state.table.detailed() { WITH_ROW } else { WITHOUT_ROW };
        let request = Request { nonce, sent: now()?.as_nanos() as u64, offset };
        let to = SocketAddr::new(gateway, self.shared.settings.port);
        let sent = match sockets.get(gateway.family()) {
            Some(socket) => socket.get_ref().send(&packet::request(request, size), to),
            None => Err(io::ErrorKind::NotConnected.into()),
        };
        if let Err(error) = sent {
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
            let refused = errno == libc::ECONNREFUSED && by == Some(to.ip());
            if refused && to.port() == self.shared.settings.port {
                state.table.refused(to.ip());
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
                            let (from, nonce) = (got.from.ip(), answer.request.nonce);
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

/// Where this node asks and answers: its gateway address, and the prefix length of the longest node subnet.
type Places = ByFamily<(IpAddr, u8)>;

type Sockets = ByFamily<AsyncFd<Socket>>;

/// Waits until one of the sockets has something to read. Cancel-safe.
async fn readable(sockets: &Sockets) -> (Family, io::Result<(&Socket, AsyncFdReadyGuard<'_, Socket>)>) {
    let ready = async |family| {
        let Some(socket) = sockets.get(family) else { return std::future::pending().await };
        let ready = socket.ready(Interest::READABLE | Interest::ERROR).await;
        (family, ready.map(|ready| (socket.get_ref(), ready)))
    };
    tokio::select! {
        ready = ready(Family::Ipv4) => ready,
        ready = ready(Family::Ipv6) => ready,
    }
}

fn cannot(address: SocketAddr, error: &io::Error) -> String {
    format!(
        "measure the ways to other nodes on UDP {address}: {error}; free the port, choose another one with agent.mesh.port, \
         or write agent.mesh.enabled = false"
    )
}

impl State {
    fn places(&self) -> Places {
        let own = self.table.own();
        own.map(|family, own| (*own, self.prefixes.get(family).copied().unwrap_or_default()))
    }

    fn answer(&mut self, socket: &Socket, request: Request, got: &Received) -> io::Result<()> {
        let at = Instant::now();
        match self.table.may_ask(got.from.ip(), at) {
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

fn open(address: SocketAddr, prefix: u8) -> io::Result<AsyncFd<Socket>> {
    let socket = Socket::bind(address)?;
    socket.only_gateways(prefix)?;
    // SAFETY: the socket owns its descriptor and does not close it before it is dropped, with its registration.
    unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE | Interest::ERROR) }
        .map_err(Into::into)
}
