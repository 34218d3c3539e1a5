//! The part of `overlay status` that needs the agent: what it has measured of the ways to other nodes. It is asked by a probe to
//! this node's own gateway address, so nothing else has to be open.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use serde::Serialize;

use crate::{
    cli::output::{Cell, Row, Text},
    mesh::{self, Entry, ProbeError, State, table::DETAILED},
};

/// The agent answers at once, or when a pass has ended.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the agent knows of the other nodes.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Mesh {
    up: usize,
    lost: usize,
    no_agent: usize,
    peers: Vec<Peer>,
}

/// One of them: a cell of the matrix.
#[derive(Clone, Debug, Serialize)]
struct Peer {
    /// Its tunnel address.
    address: IpAddr,
    state: State,
    latency_seconds: Option<f64>,
    /// Of the last probes, 0 to 1.
    loss: f64,
    /// Since the last answer.
    age_seconds: Option<u64>,
}

impl From<Entry> for Peer {
    fn from(Entry { node, state, latency, loss, age }: Entry) -> Self {
        Self {
            address: node.to_ip(),
            state,
            latency_seconds: latency.map(|latency| latency.as_secs_f64()),
            loss: f64::from(loss) / 1000.0,
            age_seconds: age.map(|age| age.as_secs()),
        }
    }
}

impl Row for Peer {
    const COLUMNS: &'static [&'static str] = &["PEER", "STATE", "LATENCY", "LOSS", "LAST ANSWER"];

    fn cells(&self) -> Vec<Cell> {
        let state = match self.state {
            State::Up => Cell::good("up"),
            State::Lost => Cell::bad("lost"),
            State::NoAgent => Cell::bad("no agent"),
            State::Unknown => "unknown".into(),
            State::Foreign => "not overlay".into(),
        };
        let latency = self.latency_seconds.map(|seconds| format!("{:.2} ms", seconds * 1000.0));
        let age = self.age_seconds.map_or_else(|| "never".to_owned(), |age| format!("{age} s ago"));
        vec![
            self.address.into(),
            state,
            latency.unwrap_or_default().into(),
            format!("{:.1} %", self.loss * 100.0).into(),
            age.into(),
        ]
    }
}

/// Whether a socket takes what is sent there, by the table of proc_pid_net(5): addresses in hexadecimal, in words as they lie
/// in memory.
fn is_bound(sockets: &str, at: SocketAddr) -> bool {
    let local = |line: &str| {
        let (address, port) = line.split_whitespace().nth(1)?.split_once(':')?;
        let mut bytes = Vec::new();
        for word in address.as_bytes().chunks(8) {
            let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
            bytes.extend(word.to_ne_bytes());
        }
        let v4 = || <[u8; 4]>::try_from(bytes.as_slice()).ok().map(IpAddr::from);
        let v6 = || <[u8; 16]>::try_from(bytes.as_slice()).ok().map(IpAddr::from);
        Some((v4().or_else(v6)?, u16::from_str_radix(port, 16).ok()?))
    };
    let takes = |(address, port): (IpAddr, u16)| {
        port == at.port() && (address == at.ip() || address.is_unspecified())
    };
    sockets.lines().filter_map(local).any(takes)
}

impl Mesh {
    /// Asks the agent of this node; `None` where it does not answer, or takes no part.
    pub(super) fn read(gateway: IpAddr, port: u16) -> Option<Self> {
        let at = SocketAddr::new(gateway, port);
        // A question that nobody hears would be counted by the node as one for a closed port.
        let table =
            if gateway.is_ipv4() { "/proc/thread-self/net/udp" } else { "/proc/thread-self/net/udp6" };
        if std::fs::read_to_string(table).is_ok_and(|sockets| !is_bound(&sockets, at)) {
            return None;
        }
        let row: Result<Vec<Entry>, ProbeError> = mesh::row(gateway, at, PATIENCE);
        let peers: Vec<Peer> = row.ok()?.into_iter().map(Peer::from).collect();
        let count = |state| peers.iter().filter(|peer| peer.state == state).count();
        let (up, lost, no_agent) = (count(State::Up), count(State::Lost), count(State::NoAgent));
        Some(Self { up, lost, no_agent, peers })
    }

    /// In one line.
    pub(super) fn summary(mesh: Option<&Self>) -> Cell {
        match mesh {
            None => "unknown: no agent with agent.mesh answers on this node".into(),
            Some(Self { up, lost, no_agent, peers }) => {
                let text = format!(
                    "{up} of {} peers answer, {lost} are lost, {no_agent} have no agent",
                    peers.len()
                );
                if *lost > 0 { Cell::bad(text) } else { text.into() }
            }
        }
    }

    /// This node's row of the matrix; in a large cluster only what is not up.
    pub(super) fn print(&self, text: &mut Text<'_>) -> std::io::Result<()> {
        let all = self.peers.len() < DETAILED;
        let shown = self.peers.iter().filter(|peer| all || peer.state != State::Up).take(DETAILED);
        let shown: Vec<Peer> = shown.cloned().collect();
        if shown.is_empty() {
            return Ok(());
        }
        text.gap()?;
        text.rows(&shown)
    }
}

#[cfg(test)]
mod tests {
    use overlay_common::maps::Addr;

    use super::*;

    #[test]
    fn a_row_says_what_is_known_and_no_more() {
        let entry =
            Entry { node: Addr::v4([192, 0, 2, 7]), state: State::Lost, latency: None, loss: 125, age: None };
        let cells = Peer::from(entry).cells();
        assert_eq!(cells[0], "192.0.2.7".into());
        assert_eq!(cells[1], Cell::bad("lost"));
        assert_eq!(cells[2..], ["".into(), "12.5 %".into(), "never".into()]);
    }

    #[test]
    fn a_socket_is_found_where_it_is_bound_and_nowhere_else() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let at = |address: [u8; 4]| SocketAddr::new(address.into(), port);
        let sockets = std::fs::read_to_string("/proc/thread-self/net/udp").unwrap();
        assert!(is_bound(&sockets, at([127, 0, 0, 1])));
        assert!(!is_bound(&sockets, at([127, 0, 0, 2])));
        let any = format!("   1: 00000000:{port:04X} 00000000:0000 07");
        assert!(is_bound(&any, at([127, 0, 0, 2])) && !is_bound("", at([127, 0, 0, 1])));

        let socket = std::net::UdpSocket::bind("[::1]:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let at = |address: &str| SocketAddr::new(address.parse().unwrap(), port);
        let sockets = std::fs::read_to_string("/proc/thread-self/net/udp6").unwrap();
        assert!(is_bound(&sockets, at("::1")) && !is_bound(&sockets, at("::2")));
    }
}
