//! Servers that say who they are, for clients that do not know where a call will go.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::socket::{
    setsockopt,
    sockopt::{RcvBufForce, ReceiveTimeout},
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::{step_limit, udp};
use crate::lab::Namespace;

/// How long a thread may wait before it looks whether it is to stop.
const TICK: Duration = Duration::from_millis(20);

/// Room for requests that arrive while the server does not run, in bytes.
const BUFFER: usize = 8 << 20;

/// A running server. Dropping it ends it.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// A TCP server in `namespace` that tells each client `name` and hangs up.
    pub fn tcp(namespace: &Namespace, listen: SocketAddr, name: &str) -> Result<Self> {
        let listener = super::listen(namespace, listen)
            .with_context(|| format!("listen on {listen} in {}", namespace.name()))?;
        // accept(2) honours SO_RCVTIMEO, see socket(7).
        setsockopt(&listener, ReceiveTimeout, &TimeVal::milliseconds(TICK.as_millis() as i64))?;
        let name = name.to_owned();
        Ok(Self::run(move |stop| {
            while !stop.load(Ordering::Relaxed) {
                // A client that is gone already does not hear its answer.
                let _ = listener.accept().and_then(|(mut client, _)| client.write_all(name.as_bytes()));
            }
        }))
    }

    /// A UDP server in `namespace` that sends each datagram back with `name` in front of it.
    pub fn udp(namespace: &Namespace, listen: SocketAddr, name: &str) -> Result<Self> {
        let socket = udp::bind(namespace, listen)?;
        setsockopt(&socket, RcvBufForce, &BUFFER)?;
        socket.set_read_timeout(Some(TICK))?;
        let name = name.to_owned();
        Ok(Self::run(move |stop| {
            let mut buffer = vec![0; 65536];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((len, from)) = socket.recv_from(&mut buffer) {
                    let answer = [name.as_bytes(), &buffer[..len]].concat();
                    // An ICMP error of an earlier answer; the client knows what it misses.
                    let _ = socket.send_to(&answer, from);
                }
            }
        }))
    }

    fn run(work: impl FnOnce(&AtomicBool) + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let own = Arc::clone(&stop);
        Self { stop, thread: Some(thread::spawn(move || work(&own))) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Which [`Server`] answers at `dial`.
///
/// Errors: none does in time.
pub fn who_by_tcp(client: &Namespace, dial: SocketAddr) -> Result<String> {
    let stream = client.run(|| TcpStream::connect_timeout(&dial, step_limit()));
    let mut stream = stream.with_context(|| format!("connect from {} to {dial}", client.name()))?;
    stream.set_read_timeout(Some(step_limit()))?;
    let mut name = String::new();
    stream.read_to_string(&mut name).with_context(|| format!("hear who {dial} is"))?;
    Ok(name)
}

/// Which [`Server`] answers to a datagram that `socket` sends to `dial`.
///
/// Errors: none does in time, or it does under another address.
pub fn who_by_udp(socket: &UdpSocket, dial: SocketAddr) -> Result<String> {
    socket.send_to(b"", dial).with_context(|| format!("send to {dial}"))?;
    let mut name = [0; 256];
    let (len, from) = socket.recv_from(&mut name).with_context(|| format!("hear who {dial} is"))?;
    anyhow::ensure!(from == dial, "called {dial} and was answered by {from}");
    Ok(String::from_utf8_lossy(&name[..len]).into_owned())
}
