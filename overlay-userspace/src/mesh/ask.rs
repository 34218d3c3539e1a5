//! One probe from any process of the node: what the command line needs. The agent may run meanwhile; it has another port.

use std::{
    hash::{BuildHasher as _, RandomState},
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    packet::{self, Answer, Entry, HEADER, LONGEST, Packet, Request},
    socket::{Received, Socket, now},
};

/// IPv4 and UDP headers, in bytes: what a probe's packet has beside its payload.
pub const HEADERS: usize = 20 + 8;
/// The same over IPv6.
pub const HEADERS_IPV6: usize = 40 + 8;
/// The smallest packet that is a probe, in bytes; over IPv6 20 more.
pub const SMALLEST: usize = HEADERS + HEADER;

/// What came back.
#[derive(Clone, Debug)]
pub struct Answered {
    /// The round trip, without the time at the peer.
    pub latency: Duration,
    /// How many peers the answering node knows.
    pub total: u32,
    /// What it knows of them, as far as the size of the probe had room, from the first one asked for on.
    pub entries: Vec<Entry>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No socket, no route, no permission.
    #[error("send a probe from {from} to {to}: {cause}")]
    Send {
        /// The own gateway address.
        from: IpAddr,
        /// The peer.
        to: SocketAddr,
        /// The cause.
        cause: io::Error,
    },
    /// The way does not carry a packet of this size: the device refused it, or a router said so.
    #[error("a packet of {size} bytes is too long for the way to {to}{}", mtu.map(|mtu| format!(", which carries {mtu}")).unwrap_or_default())]
    TooLong {
        /// The peer.
        to: SocketAddr,
        /// Of the packet, in bytes.
        size: usize,
        /// What would fit, where somebody said so.
        mtu: Option<u32>,
    },
    /// The peer's kernel answers that nobody listens: the way is there and back.
    #[error("{to} is reached, but no agent answers there")]
    NoAgent {
        /// The peer.
        to: SocketAddr,
    },
    /// A router on the way, or the peer, answers that it cannot be reached.
    #[error("{to} is unreachable: {cause}")]
    Unreachable {
        /// The peer.
        to: SocketAddr,
        /// What was said.
        cause: io::Error,
    },
    /// Nothing came back.
    #[error("no answer from {to} to {size} bytes within {} ms", within.as_millis())]
    Lost {
        /// The peer.
        to: SocketAddr,
        /// Of the packet, in bytes.
        size: usize,
        /// How long it was waited for.
        within: Duration,
    },
}

/// Sends one probe through the tunnel and waits for the answer. `from` is this node's gateway address, `to` a peer's with the
/// port of the mesh; `size` is the length of the whole IP packet, at least [`SMALLEST`] or what it is over IPv6 (a shorter one is made that long). Don't
/// Fragment is set, and the answer has the same size, so that a size that comes back is one that the way carries in both
/// directions.
///
/// Blocks, for at most `timeout`. Needs no privileges.
///
/// # Errors
///
/// A [`ProbeError`] for each way to fail that has another remedy.
pub fn probe(
    from: impl Into<IpAddr>,
    to: impl Into<SocketAddr>,
    size: usize,
    timeout: Duration,
) -> Result<Answered, ProbeError> {
    part(from.into(), to.into(), size, 0, timeout)
}

/// All that a node knows of its peers: asks its agent, which may be the own one, as often as it takes.
///
/// # Errors
///
/// As [`probe`].
pub fn row(
    from: impl Into<IpAddr>,
    to: impl Into<SocketAddr>,
    timeout: Duration,
) -> Result<Vec<Entry>, ProbeError> {
    let (from, to) = (from.into(), to.into());
    // To the own agent it goes by the loopback device; others are asked in what every path carries.
    let size = if from == to.ip() { 16 * 1024 } else { 1280 };
    let mut entries = Vec::new();
    loop {
        let got = part(from, to, size, entries.len() as u32, timeout)?;
        let done = got.entries.is_empty();
        entries.extend(got.entries);
        if done || entries.len() >= got.total as usize {
            return Ok(entries);
        }
    }
}

fn part(
    from: IpAddr,
    to: SocketAddr,
    size: usize,
    offset: u32,
    timeout: Duration,
) -> Result<Answered, ProbeError> {
    let headers = if to.is_ipv4() { HEADERS } else { HEADERS_IPV6 };
    let size = size.clamp(headers + HEADER, headers + LONGEST);
    let failed = |cause| ProbeError::Send { from, to, cause };
    let socket = Socket::bind(SocketAddr::new(from, 0)).map_err(failed)?;
    let deadline = Instant::now() + timeout;
    let sent = now().map_err(failed)?;
    let request = Request { nonce: RandomState::new().hash_one(sent), sent: sent.as_nanos() as u64, offset };
    if let Err(cause) = socket.send(&packet::request(request, size - headers), to) {
        return Err(match cause.raw_os_error() {
            Some(libc::EMSGSIZE) => ProbeError::TooLong { to, size, mtu: None },
            _ => failed(cause),
        });
    }
    let mut buffer = vec![0; LONGEST];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ProbeError::Lost { to, size, within: timeout });
        }
        // Rounded up, or the last millisecond would be spent asking.
        let wait = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], wait) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(failed(error.into())),
        }
        while let Some(returned) = socket.returned().map_err(failed)? {
            match returned.errno {
                libc::ECONNREFUSED if returned.by == Some(to.ip()) => {
                    return Err(ProbeError::NoAgent { to });
                }
                // Whoever can reach this node can say so of another.
                libc::ECONNREFUSED => {}
                libc::EMSGSIZE => return Err(ProbeError::TooLong { to, size, mtu: returned.mtu }),
                errno => {
                    let cause = io::Error::from_raw_os_error(errno);
                    return Err(ProbeError::Unreachable { to, cause });
                }
            }
        }
        // An error is one that was in the queue as well.
        if let Ok(got) = socket.receive(&mut buffer)
            && got.from == to
            && let Some(Packet::Answer(answer)) = packet::parse(&buffer[..got.len])
            && answer.request == request
        {
            let latency = latency(sent, &got, &answer);
            return Ok(Answered { latency, total: answer.total, entries: answer.entries });
        }
    }
}

/// The time on the way: from sending to arrival, without what the request lay at the peer. 0 where a clock was set meanwhile.
pub(crate) fn latency(sent: Duration, got: &Received, answer: &Answer) -> Duration {
    got.at.saturating_sub(sent).saturating_sub(answer.held)
}
