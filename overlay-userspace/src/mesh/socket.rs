//! The socket of probes: bound to the node's gateway address, never fragmenting, with the kernel's own time of arrival and
//! the ICMP errors that come back.
//!
//! The kernel hands it only datagrams from addresses that may be a gateway (a classic BPF filter, `SO_ATTACH_FILTER`): pods
//! can reach the address, and none of them shall take the agent's time. What is dropped there is counted by the kernel.

use std::{
    io::{self, IoSliceMut},
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrIn, bind, recvmsg,
        setsockopt, socket, sockopt,
    },
    time::ClockId,
};

/// `IP_PMTUDISC_PROBE` (ip(7)): Don't Fragment is set, and the size is the caller's affair.
const PMTUDISC_PROBE: libc::c_int = libc::IP_PMTUDISC_PROBE;
/// `SKF_NET_OFF` (linux/filter.h): offsets from here on count from the IP header.
const NET_OFFSET: u32 = (-0x10_0000_i32).cast_unsigned();
/// Source address in an IPv4 header.
const SOURCE: u32 = 12;
/// `SK_MEMINFO_DROPS` (linux/sock_diag.h): index into what `SO_MEMINFO` gives, and its length.
const MEMINFO_DROPS: usize = 8;
const MEMINFO_VARS: usize = 9;

/// The socket.
#[derive(Debug)]
pub(crate) struct Socket(UdpSocket);

/// A datagram that came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received {
    /// Bytes of it.
    pub(crate) len: usize,
    /// Who sent it.
    pub(crate) from: SocketAddrV4,
    /// When the kernel got it, by the clock of [`now`].
    pub(crate) at: Duration,
}

/// An ICMP error that came back for a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Returned {
    /// Whom it was for.
    pub(crate) to: SocketAddrV4,
    /// Who says so. Whoever can reach this node can say anything about others.
    pub(crate) by: Option<Ipv4Addr>,
    /// What is said.
    pub(crate) errno: i32,
    /// The MTU that it names, where it says that the datagram was too long.
    pub(crate) mtu: Option<u32>,
}

/// The clock of [`Received::at`], since 1970.
pub(crate) fn now() -> io::Result<Duration> {
    Ok(ClockId::CLOCK_REALTIME.now()?.into())
}

impl Socket {
    /// Binds; the address need not be there yet. Port 0 is any that is free.
    pub(crate) fn bind(address: SocketAddrV4) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd: OwnedFd = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
        setsockopt(&fd, sockopt::IpFreebind, &true)?;
        setsockopt(&fd, sockopt::ReceiveTimestampns, &true)?;
        setsockopt(&fd, sockopt::Ipv4RecvErr, &true)?;
        set(fd.as_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &PMTUDISC_PROBE)?;
        bind(fd.as_raw_fd(), &SockaddrIn::from(address))?;
        Ok(Self(UdpSocket::from(fd)))
    }

    /// From now on only datagrams from possible gateways come in: first host addresses of subnets with this prefix length.
    /// A shorter subnet's gateway is one too.
    pub(crate) fn only_gateways(&self, prefix: u8) -> io::Result<()> {
        let host_bits = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
        let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
        let mut program = [
            step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, NET_OFFSET.wrapping_add(SOURCE)),
            step(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, host_bits),
            step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, 1),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        ];
        let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        set(self.as_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
    }

    /// Sends; the whole of it or nothing.
    pub(crate) fn send(&self, bytes: &[u8], to: SocketAddrV4) -> io::Result<()> {
        self.0.send_to(bytes, to).map(drop)
    }

    /// The next datagram, cut off where `buffer` ends.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when there is none; what an ICMP error says, once for each, when one came back.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let mut space = nix::cmsg_space!(libc::timespec);
        let mut parts = [IoSliceMut::new(buffer)];
        let message =
            recvmsg::<SockaddrIn>(self.0.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_DONTWAIT)?;
        let at = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::ScmTimestampns(at) => Some(Duration::from(at)),
            _ => None,
        });
        let at = at.map_or_else(now, Ok)?;
        let from = message.address.ok_or(io::ErrorKind::InvalidData)?;
        Ok(Received { len: message.bytes, from: SocketAddrV4::new(from.ip(), from.port()), at })
    }

    /// The next ICMP error that came back; `None` when there is none.
    pub(crate) fn returned(&self) -> io::Result<Option<Returned>> {
        let mut space = nix::cmsg_space!(libc::timespec, libc::sock_extended_err, libc::sockaddr_in);
        let mut first = [0; 8];
        let mut parts = [IoSliceMut::new(&mut first)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_ERRQUEUE;
        let message = match recvmsg::<SockaddrIn>(self.0.as_raw_fd(), &mut parts, Some(&mut space), flags) {
            Ok(message) => message,
            Err(Errno::EAGAIN) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let error = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4RecvErr(error, by) => Some((error, by)),
            _ => None,
        });
        let by = error.and_then(|(_, by)| by).map(|by| Ipv4Addr::from_bits(u32::from_be(by.sin_addr.s_addr)));
        let error = error.map(|(error, _)| error);
        let to = message
            .address
            .map_or(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0), |to| SocketAddrV4::new(to.ip(), to.port()));
        let errno = error.map_or(0, |error| error.ee_errno.cast_signed());
        let mtu = error.filter(|_| errno == libc::EMSGSIZE).map(|error| error.ee_info);
        Ok(Some(Returned { to, by, errno, mtu }))
    }

    /// Datagrams that the kernel has dropped before this socket: from no gateway, or because it was full. Linux 4.12.
    pub(crate) fn drops(&self) -> io::Result<u32> {
        let mut info = [0_u32; MEMINFO_VARS];
        let mut length = size_of_val(&info) as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes to `info`, which has them.
        let result = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_MEMINFO,
                info.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        Errno::result(result)?;
        Ok(info[MEMINFO_DROPS])
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl std::os::fd::AsRawFd for Socket {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

/// `setsockopt` for what nix has no type for.
fn set<T>(fd: BorrowedFd<'_>, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes of `value`, and what a filter points to, before it returns.
    let result =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const *value).cast(), length) };
    Errno::result(result)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn loopback(last: u8) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(127, 0, 9, last), 0)
    }

    fn address(socket: &Socket) -> SocketAddrV4 {
        match socket.0.local_addr().unwrap() {
            std::net::SocketAddr::V4(address) => address,
            std::net::SocketAddr::V6(_) => unreachable!("bound to IPv4"),
        }
    }

    /// Loopback delivers before `send` returns.
    #[test]
    fn only_gateways_come_in_and_the_rest_is_counted() {
        let listening = Socket::bind(loopback(200)).unwrap();
        listening.only_gateways(28).unwrap();
        let mut buffer = [0; 16];
        for (from, comes_in) in [(1, true), (17, true), (2, false), (0, false), (33, true), (18, false)] {
            let sender = Socket::bind(loopback(from)).unwrap();
            let before = listening.drops().unwrap();
            sender.send(b"probe", address(&listening)).unwrap();
            assert_eq!(listening.receive(&mut buffer).is_ok(), comes_in, "from .{from}");
            assert_eq!(listening.drops().unwrap() - before, u32::from(!comes_in), "from .{from}");
        }
    }

    #[test]
    fn the_time_of_arrival_is_the_kernels() {
        let [a, b] = [loopback(1), loopback(2)].map(|address| Socket::bind(address).unwrap());
        let before = now().unwrap();
        a.send(b"probe", address(&b)).unwrap();
        let after = now().unwrap();
        let got = b.receive(&mut [0; 16]).unwrap();
        assert_eq!((got.len, got.from), (5, address(&a)));
        assert!(before <= got.at && got.at <= after, "{before:?} {got:?} {after:?}");
        assert_eq!(b.receive(&mut [0; 16]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_port_that_nobody_has_comes_back_as_an_error() {
        let nobody = address(&Socket::bind(loopback(3)).unwrap());
        let socket = Socket::bind(loopback(4)).unwrap();
        assert_eq!(socket.returned().unwrap(), None);
        socket.send(b"probe", nobody).unwrap();
        let wanted = Returned { to: nobody, by: Some(*nobody.ip()), errno: libc::ECONNREFUSED, mtu: None };
        assert_eq!(socket.returned().unwrap(), Some(wanted));
        assert_eq!(socket.returned().unwrap(), None);
    }
}
