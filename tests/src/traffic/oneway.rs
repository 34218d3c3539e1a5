//! A steady stream of datagrams that nobody answers. With traffic in one direction only, nobody but the sender can find
//! out that its next hop has changed: an answer that passes the next hop would tell the sender's kernel.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::udp;
use crate::lab::Namespace;

/// How long a read waits before it looks whether to stop; also how long a stop waits for what is under way.
const TICK: Duration = Duration::from_millis(50);

/// One datagram that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Its number: 0, 1, … as sent.
    pub number: u64,
    /// When it was read.
    pub at: Instant,
}

/// A running stream. Dropping it stops it.
#[derive(Debug)]
pub struct Oneway {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    sender: Option<JoinHandle<u64>>,
    receiver: Option<JoinHandle<Vec<Arrival>>>,
}

impl Oneway {
    /// Starts `rate` datagrams per second from `client` to `server`, whose address is `at`.
    ///
    /// Errors: a socket cannot be made. A datagram that cannot be sent counts as sent, and lost.
    pub fn start(client: &Namespace, server: &Namespace, at: IpAddr, rate: u32) -> Result<Self> {
        let far = udp::bind(server, SocketAddr::new(at, 0))?;
        let near = udp::connected(client, far.local_addr()?)?;
        far.set_read_timeout(Some(TICK))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (sender_stop, receiver_stop) = (Arc::clone(&stop), Arc::clone(&stop));
        let received = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&received);
        let sender = thread::spawn(move || {
            let mut sent = 0_u64;
            while !sender_stop.load(Ordering::Relaxed) {
                // The number says that it is missing; why does not matter.
                let _ = near.send(&sent.to_be_bytes());
                sent += 1;
                thread::sleep(Duration::from_secs(1) / rate);
            }
            sent
        });
        let reader = thread::spawn(move || {
            let mut arrivals = Vec::new();
            let mut packet = [0; 8];
            loop {
                // Looked at before the read: after a stop the socket is emptied until one read finds nothing.
                let last = receiver_stop.load(Ordering::Relaxed);
                match far.recv(&mut packet) {
                    Ok(_) => {
                        arrivals.push(Arrival { number: u64::from_be_bytes(packet), at: Instant::now() });
                        counter.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(_) if last => return arrivals,
                    Err(_) => {}
                }
            }
        });
        Ok(Self { stop, received, sender: Some(sender), receiver: Some(reader) })
    }

    /// Datagrams that have arrived so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Stops; gives the number of datagrams sent and those that arrived, in order of arrival.
    pub fn stop(mut self) -> (u64, Vec<Arrival>) {
        self.end()
    }

    fn end(&mut self) -> (u64, Vec<Arrival>) {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.take().and_then(|thread| thread.join().ok());
        let arrivals = self.receiver.take().and_then(|thread| thread.join().ok());
        (sent.unwrap_or_default(), arrivals.unwrap_or_default())
    }
}

impl Drop for Oneway {
    fn drop(&mut self) {
        self.end();
    }
}
