//! The sockets of one way, opened once: a turn measures packets, not the making of sockets (but for connect/request/response, whose
//! subject that is).

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use anyhow::{Context as _, Result};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use overlay_tests::lab::Namespace;
use overlay_tests::traffic::{self, tcp, udp};

use crate::contenders::Way;

/// TCP connections for bulk; the first is also that of one stream.
pub(crate) const STREAMS: usize = 4;

/// Room for a window of large datagrams, whatever the kernel counts for the buffer of each (bytes).
const RECEIVE_BUFFER: usize = 4 << 20;

/// The source port of the first of many flows; the others follow, below those that sockets get by themselves (see
/// `contenders::settle`).
const FIRST_PORT: u16 = 10_000;

/// All sockets of one way.
pub(crate) struct Sockets {
    /// Bulk: sender, receiver.
    pub(crate) bulk: Vec<(TcpStream, TcpStream)>,
    /// Request/response: client, server.
    pub(crate) tcp: (TcpStream, TcpStream),
    /// Where connections are made from, and where they are accepted.
    pub(crate) connect: (Namespace, TcpListener),
    /// Request/response: a connected client, and a server that answers anybody.
    pub(crate) udp: (UdpSocket, UdpSocket),
    /// One-way datagrams.
    pub(crate) one_way: OneWay,
}

/// Sockets for datagrams of several flows, told apart by the source port.
pub(crate) struct OneWay {
    /// One for each flow.
    pub(crate) senders: Vec<UdpSocket>,
    /// Takes them all.
    pub(crate) receiver: UdpSocket,
}

impl Sockets {
    /// Opens all; every socket has a time-out, so that nothing hangs on a path that is dead.
    pub(crate) fn open(way: &Way) -> Result<Self> {
        let Way { client, server, at } = way;
        let any = SocketAddr::new(IpAddr::V4(*at), 0);
        let pair = || tcp::connect(client, server, any, any);
        let bulk = (0..STREAMS).map(|_| pair()).collect::<Result<Vec<_>>>()?;
        let echo = udp::bind(server, any)?;
        let asking = udp::connected(client, echo.local_addr()?)?;
        let listener = traffic::listen(server, any).with_context(|| format!("listen on {any}"))?;
        Ok(Self {
            bulk,
            tcp: pair()?,
            connect: (client.clone(), listener),
            udp: (asking, echo),
            one_way: OneWay::one(way)?,
        })
    }
}

impl OneWay {
    /// Sockets for one flow.
    fn one(way: &Way) -> Result<Self> {
        let receiver = receiver(way)?;
        let sender = udp::connected(&way.client, receiver.local_addr()?)?;
        Ok(Self { senders: vec![sender], receiver })
    }

    /// Sockets for many flows to a receiver that is there: the same flows each time, so that who tracks connections has seen them.
    pub(crate) fn many(way: &Way, receiver: &UdpSocket, flows: usize) -> Result<Self> {
        let to = receiver.local_addr()?;
        // In one visit to the namespace: there may be thousands.
        let senders = way.client.run(|| {
            let connected = |port| {
                let socket = UdpSocket::bind(("0.0.0.0", port))?;
                socket.connect(to)?;
                Ok(socket)
            };
            (FIRST_PORT..).take(flows).map(connected).collect::<io::Result<Vec<_>>>()
        });
        let senders = senders.with_context(|| format!("open {flows} sockets in {}", way.client.name()))?;
        Ok(Self { senders, receiver: receiver.try_clone().context("duplicate a socket")? })
    }
}

/// A socket for one-way datagrams.
pub(crate) fn receiver(way: &Way) -> Result<UdpSocket> {
    let receiver = udp::bind(&way.server, SocketAddr::new(IpAddr::V4(way.at), 0))?;
    setsockopt(&receiver, RcvBufForce, &RECEIVE_BUFFER).context("enlarge a receive buffer")?;
    Ok(receiver)
}
