//! Whole frames as a device of a namespace sends and receives them: a packet socket (packet(7)).
//!
//! What a packet socket sees of a *sent* frame is what the stack hands to the device: with offloads on that
//! can be a super-packet, and checksums that the device would fill in are not there yet.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket,
    sockopt::{RcvBufForce, ReceiveTimeout},
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::lab::Namespace;

/// Room for what arrives while the reader does not run, in bytes.
const BUFFER: usize = 32 << 20;

/// How long one read waits before it looks whether to stop; also how long a stop waits for stragglers before it lets
/// nothing in any more.
const TICK: Duration = Duration::from_millis(20);

/// One frame.
#[derive(Debug, Clone)]
pub struct Frame {
    /// When it was read from the socket: soon after it crossed the device.
    pub at: Instant,
    /// Whether the device sent it; it received it otherwise.
    pub outgoing: bool,
    /// The frame, from the Ethernet header on.
    pub bytes: Vec<u8>,
}

/// A running capture. Dropping it ends it.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    frames: Arc<Mutex<Vec<Frame>>>,
    reader: Option<JoinHandle<io::Result<()>>>,
    socket: Arc<OwnedFd>,
}

impl Capture {
    /// Captures everything that device `dev` of `namespace` sends or receives from now on.
    #[track_caller]
    pub fn start(namespace: &Namespace, dev: &str) -> Self {
        let opened = namespace.run(|| open(dev));
        let socket =
            opened.unwrap_or_else(|error| panic!("cannot capture on {dev} in {}: {error}", namespace.name()));
        let (socket, stop) = (Arc::new(socket), Arc::new(AtomicBool::new(false)));
        let (own_socket, own_stop) = (Arc::clone(&socket), Arc::clone(&stop));
        let frames = Arc::default();
        let own_frames = Arc::clone(&frames);
        let reader = thread::spawn(move || read_all(&own_socket, &own_stop, &own_frames));
        Self { stop, frames, reader: Some(reader), socket }
    }

    /// The frames so far that are of this kind.
    pub fn count(&self, kind: impl Fn(&Frame) -> bool) -> usize {
        self.frames().iter().filter(|frame| kind(frame)).count()
    }

    fn frames(&self) -> MutexGuard<'_, Vec<Frame>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the capture and gives all frames, in order.
    ///
    /// Panics if the kernel had to drop some: what is missing could be what the test looks for.
    #[track_caller]
    pub fn stop(mut self) -> Vec<Frame> {
        self.end().expect("a capture ends once").expect("read from packet socket");
        let dropped = dropped(&self.socket).expect("read packet statistics");
        assert_eq!(dropped, 0, "frames that the capture has lost");
        mem::take(&mut *self.frames())
    }

    fn end(&mut self) -> Option<io::Result<()>> {
        let reader = self.reader.take()?;
        thread::sleep(TICK);
        // Under traffic that goes on the socket would never be found empty.
        let closed = close(&self.socket);
        self.stop.store(true, Ordering::Relaxed);
        Some(closed.and_then(|()| reader.join().expect("the reader does not panic")))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// A packet socket for all protocols, bound to `dev` in the calling thread's namespace.
pub(super) fn open(dev: &str) -> io::Result<OwnedFd> {
    let index = if_nametoindex(dev)?;
    // Protocol 0 until it is bound: otherwise frames of other devices come in before.
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None::<SockProtocol>)?;
    setsockopt(&socket, RcvBufForce, &BUFFER)?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(TICK.as_millis() as i64))?;
    // SAFETY: sockaddr_ll is plain integers, for which all zeroes is valid.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address is valid for `len` bytes during the call.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
    if result == 0 { Ok(socket) } else { Err(io::Error::last_os_error()) }
}

/// Lets no more frames into the socket: a filter (socket(7)) that takes none. What is in it stays.
fn close(socket: &OwnedFd) -> io::Result<()> {
    let mut none = libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 };
    let program = libc::sock_fprog { len: 1, filter: &raw mut none };
    let len = size_of_val(&program) as libc::socklen_t;
    let (level, name) = (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER);
    // SAFETY: program and filter are valid during the call; the kernel copies both.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const program).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn read_all(socket: &OwnedFd, stop: &AtomicBool, frames: &Mutex<Vec<Frame>>) -> io::Result<()> {
    let mut buffer = vec![0; 128 << 10];
    loop {
        // Looked at before the read: after a stop the socket is emptied until one read finds nothing.
        let last = stop.load(Ordering::Relaxed);
        match read_one(socket, &mut buffer) {
            Ok((len, outgoing)) => {
                let frame = Frame { at: Instant::now(), outgoing, bytes: buffer[..len].to_vec() };
                frames.lock().unwrap_or_else(PoisonError::into_inner).push(frame);
            }
            Err(error) if super::udp::is_timeout(&error) => {
                if last {
                    return Ok(());
                }
            }
            // The device went down; it may come up again.
            Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {
                if last {
                    return Ok(());
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// Reads one frame; gives its length and whether it was sent.
fn read_one(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<(usize, bool)> {
    // SAFETY: sockaddr_ll is plain integers, for which all zeroes is valid.
    let mut from: libc::sockaddr_ll = unsafe { mem::zeroed() };
    let mut len = size_of_val(&from) as libc::socklen_t;
    // SAFETY: buffer and address are valid for the lengths given, during the call.
    let result = unsafe {
        let (data, room) = (buffer.as_mut_ptr().cast(), buffer.len());
        libc::recvfrom(socket.as_raw_fd(), data, room, 0, (&raw mut from).cast(), &raw mut len)
    };
    let read = usize::try_from(result).map_err(|_| io::Error::last_os_error())?;
    Ok((read, from.sll_pkttype == libc::PACKET_OUTGOING))
}

/// The number of frames that found the socket's buffer full.
fn dropped(socket: &OwnedFd) -> io::Result<u32> {
    let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut len = size_of_val(&stats) as libc::socklen_t;
    let (level, name) = (libc::SOL_PACKET, libc::PACKET_STATISTICS);
    // SAFETY: stats is valid for `len` bytes, during the call.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut stats).cast(), &raw mut len) };
    if result == 0 { Ok(stats.tp_drops) } else { Err(io::Error::last_os_error()) }
}
