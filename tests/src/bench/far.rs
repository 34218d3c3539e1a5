//! The far end: a process of its own that all servers run in, as a pod's server is another process than its client. A switch
//! between two processes costs more than one between two threads, for all contenders alike, and it is what pods pay.
//!
//! Sockets are opened by the near end, which knows the namespaces, and handed over once ([`Far::hand_over`]); a turn names them by their
//! seat. The two ends talk in packets of a `SOCK_SEQPACKET` pair, before and after a turn only; within a turn they share a page of
//! counters ([`Shared`]). The far end lives as long as the pair: it cannot outlive the benchmark.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};
use nix::time::{ClockId, clock_gettime};
use overlay_tests::lab::interrupt;
use serde::{Deserialize, Serialize};

use crate::placement::{Placement, Role};
use crate::workloads::{bulk, datagrams, transactions};

/// The only argument of the process that is the far end.
const ARGUMENT: &str = "far-end";

/// Bytes of a packet between the two ends at most.
const PACKET: usize = 16 * 1024;

/// Words of [`Shared`].
const WORDS: usize = 8;

/// Where a socket sits at the far end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seat(usize);

/// What the servers do in a turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Task {
    /// Answer requests on a TCP connection.
    Answer(Seat),
    /// Accept connections and answer a request on each.
    Accept(Seat),
    /// Answer datagrams.
    Echo(Seat),
    /// Take what comes by these TCP connections, each on a thread.
    Take(Vec<Seat>),
    /// Count datagrams.
    Count(Seat),
}

/// What one stream took in a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Taken {
    /// Bytes.
    pub(crate) bytes: u64,
    /// When the last one came, see [`now`].
    pub(crate) end: u64,
}

/// From the near end.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    /// The socket that comes with it has the next seat.
    Sit(Kind),
    /// Begin a turn.
    Serve(Task, Placement),
}

/// What a socket is.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// A TCP connection.
    Stream,
    /// A TCP socket that listens.
    Listener,
    /// A UDP socket.
    Datagrams,
}

/// `CLOCK_MONOTONIC` in nanoseconds: the same for both ends.
pub(crate) fn now() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("read the clock")?;
    u64::try_from(std::time::Duration::from(now).as_nanos()).context("read the clock")
}

/// A page that both ends see. Word 0 says that the turn is over, the others are the workloads' own.
#[derive(Clone, Copy)]
pub(crate) struct Shared(&'static [AtomicU64; WORDS]);

impl Shared {
    fn map(memory: &OwnedFd) -> Result<Self> {
        let len = NonZeroUsize::new(size_of::<[AtomicU64; WORDS]>()).context("map shared memory")?;
        let flags = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping; the kernel chooses where.
        let start = unsafe { mmap(None, len, flags, MapFlags::MAP_SHARED, memory, 0) };
        let start = start.context("map shared memory")?;
        // SAFETY: page-aligned, as long as that and never unmapped; atomics may be shared with another process.
        Ok(Self(unsafe { start.cast::<[AtomicU64; WORDS]>().as_ref() }))
    }

    /// Raised by the near end when it has stopped asking: a server that waits in vain may go.
    pub(crate) fn over(self) -> &'static AtomicU64 {
        &self.0[0]
    }

    /// Word number `index` of those that are the workloads' own.
    pub(crate) fn word(self, index: usize) -> &'static AtomicU64 {
        &self.0[1 + index % (WORDS - 1)]
    }
}

/// The near end's handle.
pub(crate) struct Far {
    child: Child,
    control: OwnedFd,
    shared: Shared,
    seats: Mutex<usize>,
}

impl Far {
    /// Starts the process.
    pub(crate) fn start() -> Result<Self> {
        let (control, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .context("make a pair of sockets")?;
        let memory = memfd_create(c"overlay-bench", MFdFlags::MFD_CLOEXEC).context("make shared memory")?;
        nix::unistd::ftruncate(&memory, 4096).context("make shared memory")?;
        let shared = Shared::map(&memory)?;
        let program = std::env::current_exe().context("find the benchmark's own program")?;
        let child = Command::new(program)
            .arg(ARGUMENT)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::from(memory))
            .spawn()
            .context("start the far end")?;
        Ok(Self { child, control, shared, seats: Mutex::new(0) })
    }

    /// Gives a socket away.
    pub(crate) fn hand_over(&self, kind: Kind, socket: impl Into<OwnedFd>) -> Result<Seat> {
        let socket = socket.into();
        send(&self.control, &Order::Sit(kind), Some(&socket))?;
        answer::<()>(&self.control).context("hand a socket over")?;
        let mut seats = self.seats.lock().map_err(|_| anyhow!("a seat was being taken"))?;
        *seats += 1;
        Ok(Seat(*seats - 1))
    }

    /// Has `task` done beside `client`, which begins at once and gets the words that both see; gives what both had to say.
    pub(crate) fn beside<T>(
        &self,
        task: Task,
        placement: Placement,
        client: impl FnOnce(Shared) -> Result<T>,
    ) -> Result<(T, Vec<Taken>)> {
        self.shared.over().store(0, Ordering::SeqCst);
        send(&self.control, &Order::Serve(task, placement), None)?;
        let near = client(self.shared);
        self.shared.over().store(1, Ordering::SeqCst);
        let far = answer(&self.control).context("serve at the far end");
        // What the client says comes first: it asked.
        Ok((near?, far?))
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        // It ends by itself when the pair is gone, but not before its turn is over.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn send(control: &OwnedFd, message: &impl Serialize, socket: Option<&OwnedFd>) -> Result<()> {
    let bytes = serde_json::to_vec(message).context("write a message")?;
    ensure!(bytes.len() <= PACKET, "a message to the other end is too long");
    let raw: Vec<_> = socket.iter().map(|socket| socket.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let rights = if raw.is_empty() { &rights[..0] } else { &rights };
    let data = [IoSlice::new(&bytes)];
    // Without SIGPIPE: an end that is gone is an error.
    sendmsg::<()>(control.as_raw_fd(), &data, rights, MsgFlags::MSG_NOSIGNAL, None)
        .context("speak to the other end")?;
    Ok(())
}

/// The next message, `None` when the other end is gone.
fn receive<T: for<'a> Deserialize<'a>>(control: impl AsFd) -> Result<Option<(T, Option<OwnedFd>)>> {
    let mut bytes = vec![0; PACKET];
    let mut data = [IoSliceMut::new(&mut bytes)];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let fd = control.as_fd().as_raw_fd();
    let message = loop {
        match recvmsg::<()>(fd, &mut data, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(nix::errno::Errno::EINTR) => {}
            result => break result.context("hear from the other end")?,
        }
    };
    let len = message.bytes;
    let mut socket = None;
    for control in message.cmsgs().context("hear from the other end")? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            for fd in fds {
                // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
                socket = Some(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    if len == 0 {
        return Ok(None);
    }
    let message = serde_json::from_slice(&bytes[..len]).context("understand the other end")?;
    Ok(Some((message, socket)))
}

fn answer<T: for<'a> Deserialize<'a>>(control: &OwnedFd) -> Result<T> {
    interrupt::check();
    let (outcome, _) = receive::<Result<T, String>>(control)?.context("the far end is gone")?;
    outcome.map_err(|error| anyhow!(error))
}

/// Whether this process was started as the far end.
pub(crate) fn is_far_end() -> bool {
    let mut arguments = std::env::args_os().skip(1);
    arguments.next().is_some_and(|first| first == ARGUMENT) && arguments.next().is_none()
}

/// A socket that has been handed over.
enum Socket {
    Stream(TcpStream),
    Listener(TcpListener),
    Datagrams(UdpSocket),
}

/// Is the far end until the near end is gone.
pub(crate) fn main() -> ExitCode {
    // Ctrl-C reaches the whole group; when the near end has heard it, the pair is closed.
    interrupt::on_signals();
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: far end: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<()> {
    let own = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().context("take standard input");
    let control = own(io::stdin().as_fd())?;
    let shared = Shared::map(&own(io::stdout().as_fd())?)?;
    let mut sockets = Vec::new();
    while let Some((order, socket)) = receive::<Order>(&control)? {
        match order {
            Order::Sit(kind) => {
                let socket = socket.context("no socket came")?;
                sockets.push(match kind {
                    Kind::Stream => Socket::Stream(socket.into()),
                    Kind::Listener => Socket::Listener(socket.into()),
                    Kind::Datagrams => Socket::Datagrams(socket.into()),
                });
                send(&control, &Ok::<(), String>(()), None)?;
            }
            Order::Serve(task, placement) => {
                let outcome = run(&sockets, &task, placement, shared);
                send(&control, &outcome.map_err(|error| format!("{error:#}")), None)?;
            }
        }
    }
    Ok(())
}

/// Does a task, each of its sockets on a thread of its own: where a thread runs is for good.
fn run(sockets: &[Socket], task: &Task, placement: Placement, shared: Shared) -> Result<Vec<Taken>> {
    let stream = |seat: Seat| match sockets.get(seat.0) {
        Some(Socket::Stream(stream)) => Ok(stream),
        _ => Err(anyhow!("seat {} has no connection", seat.0)),
    };
    let datagrams = |seat: Seat| match sockets.get(seat.0) {
        Some(Socket::Datagrams(socket)) => Ok(socket),
        _ => Err(anyhow!("seat {} has no socket for datagrams", seat.0)),
    };
    match task {
        Task::Answer(seat) => {
            let mut stream = stream(*seat)?;
            one(placement, || patiently(shared, || answer_request(&mut stream)))
        }
        Task::Accept(seat) => {
            let Some(Socket::Listener(listener)) = sockets.get(seat.0) else {
                bail!("seat {} does not listen", seat.0)
            };
            one(placement, || patiently(shared, || answer_request(&mut &listener.accept()?.0)))
        }
        Task::Echo(seat) => {
            let socket = datagrams(*seat)?;
            one(placement, || patiently(shared, || transactions::echo(socket)))
        }
        Task::Count(seat) => {
            let socket = datagrams(*seat)?;
            one(placement, || datagrams::receive(socket, shared))
        }
        Task::Take(seats) => {
            let streams = seats.iter().map(|seat| stream(*seat)).collect::<Result<Vec<_>>>()?;
            thread::scope(|scope| {
                let threads: Vec<_> = streams
                    .into_iter()
                    .enumerate()
                    .map(|(index, stream)| {
                        scope.spawn(move || {
                            placement.pin(Role::Server)?;
                            bulk::receive(stream, shared.word(index))
                        })
                    })
                    .collect();
                let join = |thread: thread::ScopedJoinHandle<'_, Result<Taken>>| {
                    thread.join().unwrap_or_else(|_| Err(anyhow!("a server panicked")))
                };
                threads.into_iter().map(join).collect()
            })
        }
    }
}

/// Runs a server on a thread in its place.
fn one(placement: Placement, server: impl FnOnce() -> Result<()> + Send) -> Result<Vec<Taken>> {
    let server = || {
        placement.pin(Role::Server)?;
        server()
    };
    thread::scope(|scope| {
        scope.spawn(server).join().unwrap_or_else(|_| Err(anyhow!("the server panicked")))
    })?;
    Ok(Vec::new())
}

/// Answers until the last request; waits in vain only until the client has failed, which says why.
fn patiently(shared: Shared, mut serve: impl FnMut() -> io::Result<u8>) -> Result<()> {
    loop {
        match serve() {
            Ok(transactions::LAST) => return Ok(()),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if shared.over().load(Ordering::Relaxed) != 0 {
                    return Ok(());
                }
            }
            Err(error) => return Err(error).context("answer a request"),
        }
    }
}

fn answer_request(stream: &mut &TcpStream) -> io::Result<u8> {
    let mut request = [0];
    stream.read_exact(&mut request)?;
    stream.write_all(&request)?;
    Ok(request[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_carry_sockets_and_end_with_the_other_end() {
        let (near, far) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        send(&near, &Order::Sit(Kind::Datagrams), Some(&socket.into())).unwrap();
        send(&near, &Order::Serve(Task::Take(vec![Seat(3), Seat(4)]), Placement::Two), None).unwrap();
        let (order, socket) = receive::<Order>(&far).unwrap().unwrap();
        assert!(matches!(order, Order::Sit(Kind::Datagrams)), "{order:?}");
        assert_eq!(UdpSocket::from(socket.unwrap()).local_addr().unwrap(), address);
        let (order, socket) = receive::<Order>(&far).unwrap().unwrap();
        assert!(socket.is_none());
        let Order::Serve(task, Placement::Two) = order else { panic!("{order:?}") };
        assert_eq!(task, Task::Take(vec![Seat(3), Seat(4)]));
        drop(near);
        assert!(receive::<Order>(&far).unwrap().is_none());
    }

    #[test]
    fn both_ends_see_the_same_words() {
        let memory = memfd_create(c"overlay-bench-test", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&memory, 4096).unwrap();
        let (one, two) = (Shared::map(&memory).unwrap(), Shared::map(&memory).unwrap());
        one.word(2).store(7, Ordering::SeqCst);
        assert_eq!(two.word(2).load(Ordering::SeqCst), 7);
        assert_eq!((two.word(1).load(Ordering::SeqCst), two.over().load(Ordering::SeqCst)), (0, 0));
    }
}
