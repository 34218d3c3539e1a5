//! Traffic between namespaces, and what was seen of it. Every tool has a deadline: none hangs on a dead path.
//!
//! A socket stays in the namespace in which it was made, so the tools make their sockets by
//! [`Namespace::run`](crate::lab::Namespace::run) and then use them on ordinary threads.

pub mod capture;
pub mod conntrack;
pub mod counters;
pub mod decode;
pub mod drops;
pub mod forge;
pub mod http;
pub mod inject;
pub mod oneway;
pub mod packet;
pub mod paths;
pub mod ping;
pub mod pmtu;
pub mod serve;
pub mod steady;
pub mod stream;
pub mod tcp;
pub mod udp;
pub mod vxlan;
pub mod watch;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::lab::Namespace;
use crate::lab::exec::patient;

/// How long one step (connect, accept, one read) may take. A lab has no delay: what takes longer is lost.
pub fn step_limit() -> Duration {
    patient(Duration::from_secs(3))
}

/// A TCP socket that listens at `at` in `namespace`. It waits for a client as long as for any step.
///
/// Errors: it cannot be made; another one that has the address counts only if it keeps it.
pub fn listen(namespace: &Namespace, at: SocketAddr) -> io::Result<TcpListener> {
    namespace.run(|| listen_here(at))
}

/// As [`listen`], in the namespace of the calling thread.
pub fn listen_here(at: SocketAddr) -> io::Result<TcpListener> {
    let listener = bound(|| TcpListener::bind(at))?;
    // accept(2) honours SO_RCVTIMEO, see socket(7).
    setsockopt(&listener, ReceiveTimeout, &TimeVal::milliseconds(step_limit().as_millis() as i64))?;
    Ok(listener)
}

/// Binds as often as it takes while the port is in use, for as long as one step may take: a child of another thread that
/// has not come to its `exec` yet holds a copy of the socket that had the port before.
pub(crate) fn bound<T>(mut bind: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let start = Instant::now();
    loop {
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && start.elapsed() < step_limit() => {
                thread::sleep(Duration::from_millis(1));
            }
            result => return result,
        }
    }
}

/// "Any address", in the family of this one.
pub(crate) fn unspecified(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// An address with any port, as the tools take it.
pub fn any_port(address: impl Into<IpAddr>) -> SocketAddr {
    SocketAddr::new(address.into(), 0)
}

/// The two views of one exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The client's own address: its `getsockname`.
    pub client: SocketAddr,
    /// The client's address as the server sees it: its `getpeername`, or `recvfrom`.
    pub server_saw: SocketAddr,
}

impl Seen {
    /// Whether both agree: nothing on the way has translated the address.
    pub fn same_address(&self) -> bool {
        self.client == self.server_saw
    }
}

/// Numbers that look random and can be made again from the seed: splitmix64, public domain, by Sebastiano Vigna.
#[derive(Debug, Clone)]
pub(crate) struct Pattern(u64);

impl Pattern {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}
