//! What a node knows of its peers, whom it asks next, and whom it answers. Pure: time comes from the caller.
//!
//! The rule of asking: at most `rate` probes a second go out in all, and no peer is asked more often than once a second. A node
//! goes round its peers in the order of their addresses, beginning after its own, so that nodes that begin together ask
//! different peers. N nodes send N · rate probes a second, and a round takes (N − 1) / rate seconds; a peer whose last probe was
//! lost is asked again out of turn, in every second place at most, until it is known to be [`State::Lost`] or answers.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use overlay_common::maps::Addr;

use super::{
    latency::Histogram,
    packet::{Entry, State},
};
use crate::{
    cluster::{NodeSpec, Snapshot},
    family::{ByFamily, Family},
};

/// Up to this many nodes each peer is shown by itself, and its row is kept; beyond that there are sums only.
pub(crate) const DETAILED: usize = 64;
/// A probe is lost when no answer has come for so long. A pass of an agent with thousands of nodes keeps it busy for less.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(2);
/// Outcomes that the loss is of.
const WINDOW: u32 = 32;
/// Lost in a row before a peer is lost.
const LOST_AFTER: u8 = 3;
/// No peer is asked more often.
const PAUSE: Duration = Duration::from_secs(1);
/// Answers per second and sender: room for a peer that asks once a second, and for people at its command line.
const ANSWERS: f64 = 20.0;

/// A count of things that may happen, refilled with time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    level: f64,
    at: Instant,
}

impl Bucket {
    pub(crate) fn full(rate: f64, now: Instant) -> Self {
        Self { level: rate, at: now }
    }

    /// Takes one, of at most `rate` per second and as many at once.
    pub(crate) fn take(&mut self, rate: f64, now: Instant) -> bool {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * rate;
        self.level = (self.level + gained).min(rate);
        self.at = now;
        if self.level < 1.0 {
            return false;
        }
        self.level -= 1.0;
        true
    }
}

/// What a node's row says of one of its peers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cell {
    pub(crate) state: State,
    pub(crate) latency: Option<Duration>,
    pub(crate) loss: u16,
    /// When it was told.
    pub(crate) told: Instant,
}

/// One peer.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) name: String,
    /// Its tunnel address.
    pub(crate) address: IpAddr,
    /// Where it is asked.
    pub(crate) gateway: IpAddr,
    /// Its row, by tunnel address: what it has told of its own peers. Empty beyond [`DETAILED`].
    pub(crate) row: HashMap<Addr, Cell>,
    foreign: bool,
    /// The outcomes, the last one in the lowest bit; 1 is lost.
    history: u32,
    /// How many there are, at most [`WINDOW`].
    outcomes: u32,
    lost_in_row: u8,
    refused: bool,
    latency: Option<Duration>,
    answered: Option<Instant>,
    asked: Option<Instant>,
    /// Where its row goes on.
    offset: u32,
    bucket: Bucket,
}

impl Peer {
    fn new(name: String, address: IpAddr, gateway: IpAddr, foreign: bool, now: Instant) -> Self {
        Self {
            name,
            address,
            gateway,
            row: HashMap::new(),
            foreign,
            history: 0,
            outcomes: 0,
            lost_in_row: 0,
            refused: false,
            latency: None,
            answered: None,
            asked: None,
            offset: 0,
            bucket: Bucket::full(ANSWERS, now),
        }
    }

    pub(crate) fn state(&self) -> State {
        match self {
            Self { foreign: true, .. } => State::Foreign,
            Self { refused: true, .. } => State::NoAgent,
            Self { lost_in_row: LOST_AFTER.., .. } => State::Lost,
            Self { answered: Some(_), .. } => State::Up,
            _ => State::Unknown,
        }
    }

    /// Smoothed as TCP does (RFC 6298): an eighth of each new one.
    pub(crate) fn latency(&self) -> Option<Duration> {
        self.latency
    }

    /// Lost of the last [`WINDOW`] probes, in thousandths.
    pub(crate) fn loss(&self) -> u16 {
        (self.history.count_ones() * 1000).checked_div(self.outcomes).unwrap_or(0) as u16
    }

    /// Probes that the loss is of.
    pub(crate) fn outcomes(&self) -> u32 {
        self.outcomes
    }

    /// How long ago it answered.
    pub(crate) fn age(&self, now: Instant) -> Option<Duration> {
        self.answered.map(|at| now.saturating_duration_since(at))
    }

    fn outcome(&mut self, lost: bool) {
        self.history = self.history << 1 | u32::from(lost);
        self.outcomes = (self.outcomes + 1).min(WINDOW);
        self.lost_in_row = if lost { self.lost_in_row.saturating_add(1) } else { 0 };
        self.refused = false;
    }

    fn suspect(&self) -> bool {
        (1..LOST_AFTER).contains(&self.lost_in_row) && !self.foreign
    }

    fn rested(&self, now: Instant) -> bool {
        self.asked.is_none_or(|at| now.saturating_duration_since(at) >= PAUSE)
    }
}

/// What has happened since the start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outcomes {
    pub(crate) answered: u64,
    pub(crate) lost: u64,
    /// The peer's kernel answered that nobody listens.
    pub(crate) refused: u64,
    /// Not sent, because of an error of the own node.
    pub(crate) unsent: u64,
}

#[derive(Debug)]
struct Flight {
    nonce: u64,
    gateway: IpAddr,
    until: Instant,
}

/// A node and its peers.
#[derive(Debug)]
pub(crate) struct Table {
    /// The own gateway addresses.
    own: ByFamily<IpAddr>,
    own_bucket: Bucket,
    /// Tunnel addresses of all nodes, where each is shown: what rows may speak of. A node with two is one, called by the one
    /// that this node reaches it at.
    shown: HashMap<Addr, Addr>,
    /// By gateway address, beginning after the own one.
    peers: Vec<Peer>,
    /// Of a peer with two gateway addresses, both.
    by_gateway: HashMap<IpAddr, usize>,
    next: usize,
    turn: bool,
    suspects: VecDeque<IpAddr>,
    flights: VecDeque<Flight>,
    pub(crate) outcomes: Outcomes,
    pub(crate) latencies: Histogram,
}

impl Table {
    /// Nobody yet.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            own: ByFamily::default(),
            own_bucket: Bucket::full(ANSWERS, now),
            shown: HashMap::new(),
            peers: Vec::new(),
            by_gateway: HashMap::new(),
            next: 0,
            turn: false,
            suspects: VecDeque::new(),
            flights: VecDeque::new(),
            outcomes: Outcomes::default(),
            latencies: Histogram::default(),
        }
    }

    /// Takes over a list of nodes, of which those that can are asked in the first family of `order`; the tunnel goes over
    /// `preferred` where there is a choice. What is known of a peer that has kept its addresses stays.
    pub(crate) fn set(&mut self, nodes: &Snapshot, order: [Family; 2], preferred: Family, now: Instant) {
        let mut known: HashMap<(IpAddr, IpAddr), Peer> =
            self.peers.drain(..).map(|peer| ((peer.address, peer.gateway), peer)).collect();
        let own = nodes.own().gateways();
        // The tunnel address is what the map of nodes says of the way to this gateway.
        let vtep = |node: &NodeSpec, family| Some(node.tunnel(family, nodes.own(), preferred)?.vtep);
        let mut gateways = Vec::new();
        let mut peers = Vec::new();
        for node in nodes.peers() {
            let theirs = node.gateways();
            let Some(family) = order.into_iter().find(|f| own.get(*f).is_some() && theirs.get(*f).is_some())
            else {
                continue;
            };
            let (Some(gateway), Some(address)) = (theirs.get(family).copied(), vtep(node, family)) else {
                continue;
            };
            let foreign = !node.is_overlay();
            let fresh = || Peer::new(String::new(), address, gateway, foreign, now);
            let peer = known.remove(&(address, gateway)).unwrap_or_else(fresh);
            gateways.extend(theirs.values().map(|theirs| (*theirs, gateway)));
            peers.push(Peer { name: node.name.clone(), foreign, ..peer });
        }
        let before =
            |gateway: IpAddr| own.values().any(|own| own.is_ipv4() == gateway.is_ipv4() && gateway < *own);
        peers.sort_by_key(|peer| (before(peer.gateway), peer.gateway));
        self.own = own;
        self.by_gateway = peers.iter().enumerate().map(|(index, peer)| (peer.gateway, index)).collect();
        for (gateway, asked) in gateways {
            if let Some(index) = self.by_gateway.get(&asked).copied() {
                self.by_gateway.insert(gateway, index);
            }
        }
        self.peers = peers;
        self.next = 0;
        self.flights.retain(|flight| self.by_gateway.contains_key(&flight.gateway));
        self.suspects.retain(|gateway| self.by_gateway.contains_key(gateway));
        self.shown.clear();
        if self.detailed() {
            // Each node speaks of others by the addresses that it reaches them at.
            for node in nodes.nodes() {
                let reached = order.into_iter().find_map(|family| vtep(node, family));
                let Some(shown) = reached.or_else(|| node.address(preferred)) else { continue };
                self.shown
                    .extend(node.addresses.values().map(|address| (Addr::from(*address), Addr::from(shown))));
            }
        }
        for peer in &mut self.peers {
            peer.row.retain(|address, _| self.shown.get(address) == Some(address));
        }
    }

    /// The own gateway addresses; none before there are nodes.
    pub(crate) fn own(&self) -> ByFamily<IpAddr> {
        self.own
    }

    /// The peers.
    pub(crate) fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// Few enough to show each.
    pub(crate) fn detailed(&self) -> bool {
        self.peers.len() < DETAILED
    }

    /// The time between two probes.
    pub(crate) fn interval(&self, rate: u32) -> Duration {
        let asked = self.peers.iter().filter(|peer| !peer.foreign).count();
        // Rounded up: a round of few peers shall take a second, not a nanosecond less.
        let probes = u64::from(rate).min(asked as u64).max(1);
        Duration::from_nanos((PAUSE.as_nanos() as u64).div_ceil(probes))
    }

    /// Whom to ask now: gateway address, and where its row goes on. Counted as asked under `nonce`.
    pub(crate) fn ask(&mut self, nonce: u64, now: Instant) -> Option<(IpAddr, u32)> {
        let index = self.suspect(now).or_else(|| self.round(now))?;
        let peer = self.peers.get_mut(index)?;
        peer.asked = Some(now);
        let gateway = peer.gateway;
        self.flights.push_back(Flight { nonce, gateway, until: now + TIMEOUT });
        Some((gateway, peer.offset))
    }

    fn suspect(&mut self, now: Instant) -> Option<usize> {
        self.turn = !self.turn;
        if !self.turn {
            return None;
        }
        // Those that are not due stay; each is looked at once.
        for _ in 0..self.suspects.len() {
            let gateway = self.suspects.pop_front()?;
            let Some(index) = self.by_gateway.get(&gateway).copied() else { continue };
            let Some(peer) = self.peers.get(index).filter(|peer| peer.suspect()) else { continue };
            if peer.rested(now) && !self.flights.iter().any(|flight| flight.gateway == gateway) {
                return Some(index);
            }
            self.suspects.push_back(gateway);
        }
        None
    }

    fn round(&mut self, now: Instant) -> Option<usize> {
        for _ in 0..self.peers.len() {
            let index = self.next % self.peers.len();
            let peer = self.peers.get(index)?;
            // Not yet: the round is shorter than a second.
            if !peer.foreign && !peer.rested(now) {
                return None;
            }
            self.next = (index + 1) % self.peers.len();
            if !peer.foreign {
                return Some(index);
            }
        }
        None
    }

    /// The probe has not left this node.
    pub(crate) fn unsent(&mut self, nonce: u64) {
        self.flights.retain(|flight| flight.nonce != nonce);
        self.outcomes.unsent += 1;
    }

    /// An answer came from this gateway address; `false` when nobody waits for it.
    pub(crate) fn answered(
        &mut self,
        from: IpAddr,
        nonce: u64,
        latency: Duration,
        row: (u32, u32, &[Entry]),
        now: Instant,
    ) -> bool {
        let Some(at) = self.flights.iter().position(|f| f.nonce == nonce && f.gateway == from) else {
            return false;
        };
        self.flights.remove(at);
        let index = self.by_gateway.get(&from).copied();
        let Some(peer) = index.and_then(|index| self.peers.get_mut(index)) else { return false };
        self.outcomes.answered += 1;
        self.latencies.add(latency);
        peer.outcome(false);
        peer.answered = Some(now);
        peer.latency = Some(peer.latency.map_or(latency, |smoothed| (smoothed * 7 + latency) / 8));
        let (offset, total, entries) = row;
        let next = offset.saturating_add(entries.len() as u32);
        peer.offset = if entries.is_empty() || next >= total { 0 } else { next };
        for Entry { node, state, latency, loss, .. } in entries {
            // What it may say of others is not kept: the size of the matrix is not a peer's to choose.
            if let Some(node) = self.shown.get(node) {
                peer.row.insert(*node, Cell { state: *state, latency: *latency, loss: *loss, told: now });
            }
        }
        true
    }

    /// The kernel of the node with this gateway address says that nobody listens there.
    pub(crate) fn refused(&mut self, gateway: IpAddr) {
        let Some(at) = self.flights.iter().position(|flight| flight.gateway == gateway) else { return };
        self.flights.remove(at);
        self.outcomes.refused += 1;
        if let Some(peer) = self.by_gateway.get(&gateway).and_then(|index| self.peers.get_mut(*index)) {
            peer.outcome(false);
            peer.refused = true;
        }
    }

    /// Counts what has not been answered in time.
    pub(crate) fn expire(&mut self, now: Instant) {
        while self.flights.front().is_some_and(|flight| flight.until <= now) {
            let Some(flight) = self.flights.pop_front() else { return };
            self.outcomes.lost += 1;
            let Some(index) = self.by_gateway.get(&flight.gateway) else { continue };
            let Some(peer) = self.peers.get_mut(*index) else { continue };
            peer.outcome(true);
            if peer.suspect() && !self.suspects.contains(&flight.gateway) {
                self.suspects.push_back(flight.gateway);
            }
        }
    }

    /// May the sender with this address have an answer? `None` where it is no gateway of the cluster.
    pub(crate) fn may_ask(&mut self, from: IpAddr, now: Instant) -> Option<bool> {
        let bucket = if self.own.values().any(|own| *own == from) {
            &mut self.own_bucket
        } else {
            &mut self.peers.get_mut(*self.by_gateway.get(&from)?)?.bucket
        };
        Some(bucket.take(ANSWERS, now))
    }

    /// The own row from `offset` on.
    pub(crate) fn row(&self, offset: u32, now: Instant) -> impl Iterator<Item = Entry> {
        self.peers.iter().skip(offset as usize).map(move |peer| Entry {
            node: peer.address.into(),
            state: peer.state(),
            latency: peer.latency(),
            loss: peer.loss(),
            age: peer.age(now),
        })
    }
}

#[cfg(test)]
mod tests;
