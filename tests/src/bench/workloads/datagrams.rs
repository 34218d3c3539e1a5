//! One-way datagrams at the highest rate that loses none.
//!
//! Not a search among fixed rates but flow control: no more than [`WINDOW`] datagrams are under way, by a counter that both ends see
//! (not by packets). So the sender goes as fast as the whole path, and no queue on the way overflows: what is measured is what a
//! datagram costs. What is lost nevertheless is reported.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

use super::{Latency, Sample, Turn};
use crate::far::{Far, Shared, Task};
use crate::placement::Role;
use crate::sockets::OneWay;

/// Datagrams under way: fewer than any queue on the way holds (the backlog of a CPU, `netdev_max_backlog`, is 1000).
const WINDOW: u64 = 64;

/// Half windows whose times are kept.
const WINDOWS: usize = 1 << 16;

/// A datagram that has not arrived after this time never will, unless the receiver was kept from running.
const PATIENCE: Duration = Duration::from_millis(20);

/// How many datagrams are sent between two looks at the clock.
const LOOK: u64 = 16;

/// The first byte of a datagram.
const DATA: u8 = 1;
/// The first byte of one that is not counted and ends the turn.
const END: u8 = 2;

/// Sends datagrams with `size` bytes of payload, of all flows in turn.
pub(super) fn run(far: &Far, sockets: &OneWay, size: usize, turn: Turn) -> Result<Sample> {
    let client = |shared: Shared| {
        let received = shared.word(0);
        received.store(0, Ordering::SeqCst);
        // On a thread of its own: it is pinned for good.
        let sent = thread::scope(|scope| {
            let sending = scope.spawn(|| send(&sockets.senders, size, received, turn));
            sending.join().unwrap_or_else(|_| Err(anyhow!("the sender panicked")))
        })?;
        Ok((sent, received))
    };
    let task = Task::Count(sockets.receiver);
    let ((Sent { datagrams: sent, time, mut windows }, received), _) =
        far.beside(task, turn.placement, client)?;
    let arrived = received.swap(0, Ordering::SeqCst).min(sent);
    let loss = (sent - arrived) as f64 / sent as f64;
    Ok(Sample { rate: arrived as f64 / time.as_secs_f64(), latency: Latency::of(&mut windows), loss })
}

/// What the sender did in a turn.
struct Sent {
    /// How many.
    datagrams: u64,
    /// Until the last one had arrived.
    time: Duration,
    /// Nanoseconds for each half window, sent and received.
    windows: Vec<u32>,
}

fn send(flows: &[UdpSocket], size: usize, received: &AtomicU64, turn: Turn) -> Result<Sent> {
    turn.placement.pin(Role::Client)?;
    let mut data = vec![0; size];
    data[0] = DATA;
    let (mut sent, mut given_up) = (0_u64, 0_u64);
    let mut flows = flows.iter().cycle();
    let mut windows = Vec::with_capacity(WINDOWS);
    let start = Instant::now();
    let mut last = start;
    while !sent.is_multiple_of(LOOK) || start.elapsed() < turn.length {
        if sent - given_up - received.load(Ordering::Acquire).min(sent - given_up) >= WINDOW {
            given_up += wait(received, sent - given_up, WINDOW / 2);
            let then = std::mem::replace(&mut last, Instant::now());
            if windows.len() < WINDOWS {
                windows.push(u32::try_from((last - then).as_nanos()).unwrap_or(u32::MAX));
            }
        }
        flows.next().context("no flow")?.send(&data).context("send a datagram")?;
        sent += 1;
    }
    wait(received, sent - given_up, 0);
    let time = start.elapsed();
    data[0] = END;
    flows.next().context("no flow")?.send(&data).context("send the last datagram")?;
    Ok(Sent { datagrams: sent, time, windows })
}

/// Waits until all but `rest` of `sent` have arrived; gives the number of those that it has given up.
fn wait(received: &AtomicU64, sent: u64, rest: u64) -> u64 {
    let mut seen = received.load(Ordering::Acquire);
    let mut since = Instant::now();
    while seen + rest < sent {
        // On a CPU of its own the receiver goes on meanwhile; on the same one it gets it now.
        thread::yield_now();
        let now = received.load(Ordering::Acquire);
        if now != seen {
            (seen, since) = (now, Instant::now());
        } else if since.elapsed() > PATIENCE {
            return sent - seen;
        }
    }
    0
}

/// The far end of [`send`], on a thread that is in its place.
pub(crate) fn receive(socket: &UdpSocket, shared: Shared) -> Result<()> {
    never_preempt()?;
    let received = shared.word(0);
    let mut data = [0; 2048];
    loop {
        match socket.recv(&mut data) {
            Ok(_) if data[0] == END => return Ok(()),
            Ok(_) => {
                received.fetch_add(1, Ordering::Release);
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if shared.over().load(Ordering::Relaxed) != 0 {
                    return Ok(());
                }
            }
            Err(error) => return Err(error).context("receive a datagram"),
        }
    }
}

/// Makes the calling thread one that does not interrupt another when it is woken (`SCHED_BATCH`, sched(7)). On one CPU it is the
/// scheduler's mood otherwise whether the receiver runs for each datagram or for a window of them, and that costs more than the path.
fn never_preempt() -> Result<()> {
    let parameter = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameter outlives the call; 0 is the calling thread.
    let rc = unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameter) };
    if rc == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()).context("become a batch thread") }
}
