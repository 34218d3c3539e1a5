//! The socket of probes: bound to the node's gateway address, never fragmenting, with the kernel's own time of arrival and
//! the ICMP errors that come back.
//!
//! The kernel hands it only datagrams from addresses that may be a gateway (a classic BPF filter, `SO_ATTACH_FILTER`): pods
//! can reach the address, and none of them shall take the agent's time. What is dropped there is counted by the kernel.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrStorage, bind, recvmsg,
        setsockopt, socket, sockopt,
    },
    time::ClockId,
};

/// `IP_PMTUDISC_PROBE` (ip(7)): Don't Fragment is set, and the size is the caller's affair.
const PMTUDISC_PROBE: libc::c_int = libc::IP_PMTUDISC_PROBE;
/// `IPV6_PMTUDISC_PROBE` (linux/in6.h): the same.
const PMTUDISC_PROBE_IPV6: libc::c_int = libc::IPV6_PMTUDISC_PROBE;
/// `SKF_NET_OFF` (linux/filter.h): offsets from here on count from the IP header.
const NET_OFFSET: u32 = (-0x10_0000_i32).cast_unsigned();
/// Source address in an IPv4 header, and in an IPv6 header.
const SOURCE: u32 = 12;
const SOURCE_IPV6: u32 = 8;
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
    pub(crate) from: SocketAddr,
    /// When the kernel got it, by the clock of [`now`].
    pub(crate) at: Duration,
}

/// An ICMP error that came back for a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Returned {
    /// Whom it was for.
    pub(crate) to: SocketAddr,
    /// Who says so. Whoever can reach this node can say anything about others.
    pub(crate) by: Option<IpAddr>,
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
    /// Binds; the address need not be there yet (IPv6: Linux 4.15). Port 0 is any that is free.
    pub(crate) fn bind(address: SocketAddr) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let fd: OwnedFd = socket(family, SockType::Datagram, flags, None)?;
        setsockopt(&fd, sockopt::ReceiveTimestampns, &true)?;
        if address.is_ipv4() {
            setsockopt(&fd, sockopt::IpFreebind, &true)?;
            setsockopt(&fd, sockopt::Ipv4RecvErr, &true)?;
            set(fd.as_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &PMTUDISC_PROBE)?;
        } else {
            set(fd.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_FREEBIND, &1_i32)?;
            setsockopt(&fd, sockopt::Ipv6RecvErr, &true)?;
            set(fd.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, &PMTUDISC_PROBE_IPV6)?;
        }
        bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
        Ok(Self(UdpSocket::from(fd)))
    }

    /// From now on only datagrams from possible gateways come in: first host addresses of subnets with this prefix length.
    /// A shorter subnet's gateway is one too.
    pub(crate) fn only_gateways(&self, prefix: u8) -> io::Result<()> {
        let (source, words) = match self.0.local_addr()? {
            SocketAddr::V4(_) => (SOURCE, 1),
            SocketAddr::V6(_) => (SOURCE_IPV6, 4),
        };
        let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
        let mut program = Vec::new();
        for word in 0..words {
            // The bits of this word that are of the host.
            let host_bits = u32::MAX.checked_shr(u32::from(prefix).saturating_sub(word * 32)).unwrap_or(0);
            let wanted = u32::from(word == words - 1);
            program.push(step(
                libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
                0,
                0,
                NET_OFFSET.wrapping_add(source + word * 4),
            ));
            program.push(step(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, host_bits));
            // Over the refusal to the next word.
            program.push(step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 0, wanted));
            program.push(step(libc::BPF_RET | libc::BPF_K, 0, 0, 0));
        }
        program.push(step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX));
        let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        set(self.as_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
    }

    /// Sends; the whole of it or nothing.
    pub(crate) fn send(&self, bytes: &[u8], to: SocketAddr) -> io::Result<()> {
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
        let message = recvmsg::<SockaddrStorage>(
            self.0.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::MSG_DONTWAIT,
        )?;
        let at = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::ScmTimestampns(at) => Some(Duration::from(at)),
            _ => None,
        });
        let at = at.map_or_else(now, Ok)?;
        let from = message.address.as_ref().and_then(plain).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Received { len: message.bytes, from, at })
    }

    /// The next ICMP error that came back; `None` when there is none.
    pub(crate) fn returned(&self) -> io::Result<Option<Returned>> {
        let mut space = nix::cmsg_space!(libc::timespec, libc::sock_extended_err, libc::sockaddr_in6);
        let mut first = [0; 8];
        let mut parts = [IoSliceMut::new(&mut first)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_ERRQUEUE;
        let message =
            match recvmsg::<SockaddrStorage>(self.0.as_raw_fd(), &mut parts, Some(&mut space), flags) {
                Ok(message) => message,
                Err(Errno::EAGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
        let error = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4RecvErr(error, by) => {
                let by = by.map(|by| Ipv4Addr::from_bits(u32::from_be(by.sin_addr.s_addr)));
                Some((error, by.map(IpAddr::from)))
            }
            ControlMessageOwned::Ipv6RecvErr(error, by) => {
                Some((error, by.map(|by| IpAddr::from(by.sin6_addr.s6_addr))))
            }
            _ => None,
        });
        let by = error.and_then(|(_, by)| by);
        let error = error.map(|(error, _)| error);
        let nobody = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        let to = message.address.as_ref().and_then(plain).unwrap_or(nobody);
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

/// As the standard library's type, without the scope and the flow label that an IPv6 one comes with.
fn plain(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = || address.as_sockaddr_in().map(|v4| SocketAddrV4::new(v4.ip(), v4.port()).into());
    let v6 = || address.as_sockaddr_in6().map(|v6| SocketAddrV6::new(v6.ip(), v6.port(), 0, 0).into());
    v4().or_else(v6)
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
    use super::*;
    use crate::host::netns::testing::{in_fresh_netns, ip};

    fn loopback(last: u8) -> SocketAddr {
        SocketAddr::new([127, 0, 9, last].into(), 0)
    }

    fn address(socket: &Socket) -> SocketAddr {
        socket.0.local_addr().unwrap()
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
        let wanted = Returned { to: nobody, by: Some(nobody.ip()), errno: libc::ECONNREFUSED, mtu: None };
        assert_eq!(socket.returned().unwrap(), Some(wanted));
        assert_eq!(socket.returned().unwrap(), None);
    }

    #[test]
    fn ipv6_is_no_different() {
        in_fresh_netns(|| {
            ip("link set lo up");
            ip("address add fd00:9::/32 dev lo nodad");
            ip("route add local fd00:9::/32 dev lo");
            let at = |text: &str| SocketAddr::new(text.parse().unwrap(), 0);
            let listening = Socket::bind(at("fd00:9:0:7::c8")).unwrap();
            listening.only_gateways(72).unwrap();
            let mut buffer = [0; 16];
            for (from, comes_in) in [
                ("fd00:9:0:1::1", true),
                ("fd00:9:ffff:1:ff00::1", true),
                ("fd00:9:0:1::2", false),
                ("fd00:9:0:1:0100::1", true),
                ("fd00:9:0:1:0001::1", false),
                ("fd00:9:0:1:0:1:0:1", false),
                ("fd00:9:0:1::1:1", false),
                ("fd00:9:0:1::", false),
            ] {
                let sender = Socket::bind(at(from)).unwrap();
                let before = listening.drops().unwrap();
                let clock = now().unwrap();
                sender.send(b"probe", address(&listening)).unwrap();
                let got = listening.receive(&mut buffer);
                assert_eq!(got.is_ok(), comes_in, "from {from}");
                assert_eq!(listening.drops().unwrap() - before, u32::from(!comes_in), "from {from}");
                if let Ok(got) = got {
                    assert_eq!((got.len, got.from), (5, address(&sender)));
                    assert!(got.at >= clock);
                }
            }
            // The kernel speaks only for addresses that it has.
            ip("address add fd00:9::3/128 dev lo nodad");
            let nobody = address(&Socket::bind(at("fd00:9::3")).unwrap());
            let socket = Socket::bind(at("fd00:9::4")).unwrap();
            assert_eq!(socket.returned().unwrap(), None);
            socket.send(b"probe", nobody).unwrap();
            let wanted = Returned { to: nobody, by: Some(nobody.ip()), errno: libc::ECONNREFUSED, mtu: None };
            assert_eq!(socket.returned().unwrap(), Some(wanted));
        });
    }
}
