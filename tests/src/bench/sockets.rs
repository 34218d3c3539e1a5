//! The sockets of one way, opened once: a turn measures packets, not the making of sockets (but for connect/request/response, whose
//! subject that is).

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::rc::Rc;

use anyhow::{Context as _, Result};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use overlay_tests::lab::Namespace;
use overlay_tests::traffic::{self, tcp, udp};

use crate::contenders::Way;
use crate::far::{Far, Kind, Seat};

/// TCP connections for bulk; the first is also that of one stream.
pub(crate) const STREAMS: usize = 4;

/// Room for a window of large datagrams, whatever the kernel counts for the buffer of each (bytes).
const RECEIVE_BUFFER: usize = 4 << 20;

/// The source port of the first of many flows; the others follow, below those that sockets get by themselves (see
/// `contenders::settle`).
const FIRST_PORT: u16 = 10_000;

/// All sockets of one way: the clients' here, the servers' at the far end.
pub(crate) struct Sockets {
    /// Where the servers are.
    pub(crate) far: Rc<Far>,
    /// Bulk, from client to server.
    pub(crate) bulk: Vec<Ends<TcpStream>>,
    /// Request/response.
    pub(crate) tcp: Ends<TcpStream>,
    /// A connection for each request.
    pub(crate) connect: Connect,
    /// Request/response: a connected client, and a server that answers anybody.
    pub(crate) udp: Ends<UdpSocket>,
    /// One-way datagrams.
    pub(crate) one_way: OneWay,
}

/// A client's socket, and the server's.
pub(crate) struct Ends<T> {
    /// Here.
    pub(crate) client: T,
    /// At the far end.
    pub(crate) server: Seat,
}

/// Where connections are made from and to.
pub(crate) struct Connect {
    /// The client's namespace.
    pub(crate) from: Namespace,
    /// Where the server listens.
    pub(crate) to: SocketAddr,
    /// By this socket.
    pub(crate) listener: Seat,
}

/// Sockets for datagrams of several flows, told apart by the source port.
pub(crate) struct OneWay {
    /// One for each flow.
    pub(crate) senders: Vec<UdpSocket>,
    /// Takes them all.
    pub(crate) receiver: Seat,
}

impl Sockets {
    /// Opens all; every socket has a time-out, so that nothing hangs on a path that is dead.
    pub(crate) fn open(far: &Rc<Far>, way: &Way) -> Result<Self> {
        let Way { client, server, at } = way;
        let any = SocketAddr::new(IpAddr::V4(*at), 0);
        let pair = || {
            let (client, server) = tcp::connect(client, server, any, any)?;
            anyhow::Ok(Ends { client, server: far.hand_over(Kind::Stream, server)? })
        };
        let bulk = (0..STREAMS).map(|_| pair()).collect::<Result<Vec<_>>>()?;
        let echo = udp::bind(server, any)?;
        let asking = udp::connected(client, echo.local_addr()?)?;
        let listener = traffic::listen(server, any).with_context(|| format!("listen on {any}"))?;
        let to = listener.local_addr().context("read the address of a listener")?;
        let listener = far.hand_over(Kind::Listener, listener)?;
        Ok(Self {
            far: Rc::clone(far),
            bulk,
            tcp: pair()?,
            connect: Connect { from: client.clone(), to, listener },
            udp: Ends { client: asking, server: far.hand_over(Kind::Datagrams, echo)? },
            one_way: OneWay::one(far, way)?,
        })
    }
}

impl OneWay {
    /// Sockets for one flow.
    fn one(far: &Far, way: &Way) -> Result<Self> {
        let receiver = Receiver::open(far, way)?;
        let sender = udp::connected(&way.client, receiver.at)?;
        Ok(Self { senders: vec![sender], receiver: receiver.seat })
    }

    /// Sockets for many flows to a receiver that is there: the same flows each time, so that who tracks connections has seen them.
    pub(crate) fn many(way: &Way, receiver: Receiver, flows: usize) -> Result<Self> {
        // In one visit to the namespace: there may be thousands.
        let senders = way.client.run(|| {
            let connected = |port| {
                let socket = UdpSocket::bind(("0.0.0.0", port))?;
                socket.connect(receiver.at)?;
                Ok(socket)
            };
            (FIRST_PORT..).take(flows).map(connected).collect::<io::Result<Vec<_>>>()
        });
        let senders = senders.with_context(|| format!("open {flows} sockets in {}", way.client.name()))?;
        Ok(Self { senders, receiver: receiver.seat })
    }
}

/// A socket for one-way datagrams, at the far end.
#[derive(Clone, Copy)]
pub(crate) struct Receiver {
    at: SocketAddr,
    seat: Seat,
}

impl Receiver {
    /// Opens one.
    pub(crate) fn open(far: &Far, way: &Way) -> Result<Self> {
        let socket = udp::bind(&way.server, SocketAddr::new(IpAddr::V4(way.at), 0))?;
        setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER).context("enlarge a receive buffer")?;
        let at = socket.local_addr().context("read the address of a socket")?;
        Ok(Self { at, seat: far.hand_over(Kind::Datagrams, socket)? })
    }
}
