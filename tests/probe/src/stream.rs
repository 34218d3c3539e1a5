//! Traffic without end: a TCP connection, UDP datagrams and pings, one each 10 ms, every one to be answered.
//!
//! What is not answered within [`LIMIT`] is lost. The counts are cumulative, printed each second as one JSON line, so that
//! the difference of two lines is what happened between them.

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
    mem,
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, RawFd},
    process::{self, ExitCode},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::ping;

const INTERVAL: Duration = Duration::from_millis(10);
const LIMIT: Duration = Duration::from_secs(5);
/// How often the counts are printed.
const REPORT: Duration = Duration::from_secs(1);

/// What became of the packets of one kind.
#[derive(Debug, Default)]
struct Counts {
    sent: u64,
    answered: u64,
    lost: u64,
    /// When those were sent that are on their way.
    open: BTreeMap<u64, Instant>,
    /// The longest time between two answers.
    gap: Duration,
    last: Option<Instant>,
}

impl Counts {
    fn sent(&mut self, now: Instant) {
        self.open.insert(self.sent, now);
        self.sent += 1;
        self.expire(now);
    }

    fn answered(&mut self, sequence: u64, now: Instant) {
        // A second answer, or one that is too late, does not count.
        if self.open.remove(&sequence).is_some() {
            self.answered += 1;
            if let Some(last) = self.last.replace(now) {
                self.gap = self.gap.max(now - last);
            }
        }
    }

    fn expire(&mut self, now: Instant) {
        while let Some(entry) = self.open.first_entry()
            && now.saturating_duration_since(*entry.get()) > LIMIT
        {
            entry.remove();
            self.lost += 1;
        }
    }

    fn line(&mut self, now: Instant) -> Value {
        self.expire(now);
        json!({
            "sent": self.sent, "answered": self.answered, "lost": self.lost, "open": self.open.len(),
            "gap_ms": self.gap.as_millis() as u64,
        })
    }
}

/// Shared by the thread that sends and the one that receives.
#[derive(Clone, Debug, Default)]
struct Shared(Arc<Mutex<Counts>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        // Counts are valid between any two statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Streams to a `serve` until killed.
pub(crate) fn run(to: SocketAddr) -> io::Result<ExitCode> {
    let connection = TcpStream::connect_timeout(&to, LIMIT)?;
    connection.set_nodelay(true)?;
    let tcp_fd = connection.as_raw_fd();
    let (tcp, broken) = tcp(connection)?;
    let udp = udp(to)?;
    let ping = pings(to)?;
    loop {
        thread::sleep(REPORT);
        let now = Instant::now();
        let mut tcp = tcp.lock().line(now);
        tcp["retransmitted"] = retransmitted(tcp_fd)?.into();
        tcp["broken"] = broken.lock().unwrap_or_else(PoisonError::into_inner).clone().into();
        println!("{}", json!({ "tcp": tcp, "udp": udp.lock().line(now), "ping": ping.lock().line(now) }));
        io::stdout().flush()?;
    }
}

/// Why the connection ended, if it did.
type Broken = Arc<Mutex<Option<String>>>;

fn tcp(connection: TcpStream) -> io::Result<(Shared, Broken)> {
    let counts = Shared::default();
    let broken = Broken::default();
    let (mut reader, mut writer) = (connection.try_clone()?, connection);
    // The server's first line, with our address.
    let mut byte = [0];
    while byte != *b"\n" {
        reader.read_exact(&mut byte)?;
    }
    let breaks = |broken: &Broken, error: &io::Error| {
        broken.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| error.to_string());
    };
    let (receiving, sending) = ((counts.clone(), broken.clone()), (counts.clone(), broken.clone()));
    thread::spawn(move || {
        let (counts, broken) = receiving;
        let mut number = [0; 8];
        loop {
            if let Err(error) = reader.read_exact(&mut number) {
                return breaks(&broken, &error);
            }
            counts.lock().answered(u64::from_be_bytes(number), Instant::now());
        }
    });
    thread::spawn(move || {
        let (counts, broken) = sending;
        loop {
            let number = {
                let mut counts = counts.lock();
                counts.sent(Instant::now());
                counts.sent - 1
            };
            if let Err(error) = writer.write_all(&number.to_be_bytes()) {
                // The descriptor stays open for the report.
                breaks(&broken, &error);
                thread::park();
            }
            thread::sleep(INTERVAL);
        }
    });
    Ok((counts, broken))
}

fn udp(to: SocketAddr) -> io::Result<Shared> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    exchange(
        socket,
        |socket, sequence| socket.send(&sequence.to_be_bytes()),
        |packet, _| Some(u64::from_be_bytes(packet.get(..8)?.try_into().ok()?)),
    )
}

fn pings(to: SocketAddr) -> io::Result<Shared> {
    let id = process::id() as u16;
    exchange(
        ping::open()?,
        move |socket, sequence| socket.send_to(&ping::request(id, sequence as u16), (to.ip(), 0)),
        move |packet, sent| {
            // The upper bits are those of the newest request that can be meant.
            let low = u64::from(ping::reply(packet, id)?);
            let newest = sent.checked_sub(1)?;
            newest.checked_sub(newest.wrapping_sub(low) & 0xffff)
        },
    )
}

/// Sends each [`INTERVAL`] by `send`, which is given the sequence number; `parse` finds that of an answer, given how many
/// have been sent.
fn exchange(
    socket: UdpSocket,
    send: impl Fn(&UdpSocket, u64) -> io::Result<usize> + Send + 'static,
    parse: impl Fn(&[u8], u64) -> Option<u64> + Send + 'static,
) -> io::Result<Shared> {
    let counts = Shared::default();
    let receiver = socket.try_clone()?;
    let receiving = counts.clone();
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        loop {
            // An ICMP error on the socket: the request that it is about stays without an answer.
            let Ok((length, _)) = receiver.recv_from(&mut buffer) else { continue };
            let mut counts = receiving.lock();
            if let Some(sequence) = parse(&buffer[..length], counts.sent) {
                counts.answered(sequence, Instant::now());
            }
        }
    });
    let sending = counts.clone();
    thread::spawn(move || {
        loop {
            let sequence = {
                let mut counts = sending.lock();
                counts.sent(Instant::now());
                counts.sent - 1
            };
            // What cannot be sent is lost like what does not arrive.
            let _ = send(&socket, sequence);
            thread::sleep(INTERVAL);
        }
    });
    Ok(counts)
}

/// How many segments of the connection have been sent again (`tcpi_total_retrans`, include/uapi/linux/tcp.h).
fn retransmitted(fd: RawFd) -> io::Result<u32> {
    // SAFETY: all fields are integers, for which zero is a value.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: `info` is valid for writes of `length` bytes, and the descriptor is open as long as the process.
    let result = unsafe {
        libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut length)
    };
    if result == 0 { Ok(info.tcpi_total_retrans) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_answered_in_time_is_lost_and_a_late_answer_does_not_bring_it_back() {
        let mut counts = Counts::default();
        let start = Instant::now();
        counts.sent(start);
        counts.sent(start);
        counts.answered(0, start);
        counts.answered(0, start);
        counts.expire(start + LIMIT + INTERVAL);
        counts.answered(1, start + LIMIT + INTERVAL);
        assert_eq!((counts.sent, counts.answered, counts.lost), (2, 1, 1));
    }

    #[test]
    fn the_longest_silence_between_answers_is_kept() {
        let mut counts = Counts::default();
        let start = Instant::now();
        for (sequence, at) in [(0, 0), (1, 70), (2, 90)] {
            counts.sent(start);
            counts.answered(sequence, start + Duration::from_millis(at));
        }
        assert_eq!(counts.gap, Duration::from_millis(70));
    }
}
