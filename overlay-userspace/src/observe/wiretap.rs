//! Every packet that a device sends and gets: a packet socket (packet(7)) in the device's namespace.
//!
//! What is seen are the packets as the stack has them: super-packets whole, checksums perhaps still to be filled in.

use std::{
    io::{self, IoSliceMut},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    time::Duration,
};

use nix::{
    cmsg_space,
    sys::{
        socket::{
            AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType,
            recvmsg, setsockopt, socket,
            sockopt::{RcvBufForce, ReceiveTimestampns},
        },
        time::TimeSpec,
    },
};

/// Room for what arrives while nobody reads, in bytes.
const BUFFER: usize = 8 << 20;
/// More than any packet that a device takes (`GSO_MAX_SIZE`, include/linux/netdevice.h: 8 * 65535).
const LONGEST: usize = 512 << 10;

/// A packet.
#[derive(Debug)]
pub struct Tapped<'a> {
    /// Since 1970.
    pub time: Duration,
    /// The device sent it, or received it otherwise.
    pub outbound: bool,
    /// How long it is.
    pub len: usize,
    /// What was asked for of it.
    pub bytes: &'a [u8],
}

/// A device that is listened to.
pub struct Wiretap {
    socket: OwnedFd,
    buffer: Vec<u8>,
    snap: usize,
}

impl Wiretap {
    /// Listens to the device with this index, in the calling thread's namespace; keeps `snap` bytes of a packet.
    pub fn open(ifindex: u32, snap: usize) -> io::Result<Self> {
        // Protocol 0 until it is bound: otherwise packets of other devices come in before.
        let socket =
            socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None::<SockProtocol>)?;
        // Needs rights that one may lack; the kernel's default will do then.
        let _ = setsockopt(&socket, RcvBufForce, &BUFFER);
        setsockopt(&socket, ReceiveTimestampns, &true)?;
        // SAFETY: sockaddr_ll is plain integers, for which all zeroes is valid.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = i32::try_from(ifindex).map_err(io::Error::other)?;
        let len = size_of_val(&address) as libc::socklen_t;
        // SAFETY: the address is valid for `len` bytes during the call.
        if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { socket, buffer: vec![0; snap.min(LONGEST)], snap })
    }

    /// The next packet; `None` where there is none at the moment. The device went down is an error (`ENETDOWN`).
    pub fn next_packet(&mut self) -> io::Result<Option<Tapped<'_>>> {
        let mut control = cmsg_space!(TimeSpec);
        let mut parts = [IoSliceMut::new(&mut self.buffer)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
        let message = recvmsg::<LinkAddr>(self.socket.as_raw_fd(), &mut parts, Some(&mut control), flags);
        let message = match message {
            Ok(message) => message,
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let outbound = message.address.is_some_and(|from| from.pkttype() == libc::PACKET_OUTGOING);
        let len = message.bytes;
        let stamp = message.cmsgs().map_err(io::Error::from)?.find_map(|cmsg| match cmsg {
            ControlMessageOwned::ScmTimestampns(time) => Some(time),
            _ => None,
        });
        let time = stamp.map_or(Duration::ZERO, Duration::from);
        let kept = len.min(self.snap).min(self.buffer.len());
        Ok(Some(Tapped { time, outbound, len, bytes: &self.buffer[..kept] }))
    }

    /// Packets that found no room since the last call.
    pub fn lost(&self) -> io::Result<u32> {
        let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut len = size_of_val(&stats) as libc::socklen_t;
        // SAFETY: `stats` is valid for `len` bytes during the call.
        let result = unsafe {
            let value = (&raw mut stats).cast();
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                value,
                &raw mut len,
            )
        };
        if result == 0 { Ok(stats.tp_drops) } else { Err(io::Error::last_os_error()) }
    }
}

impl AsFd for Wiretap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
