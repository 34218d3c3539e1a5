//! Path MTU as a UDP socket meets it: datagrams that must not be fragmented. (ICMP: [`super::ping::unfragmented`].)

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::ping::Probe;
use super::{Pattern, step_limit, udp};
use crate::lab::Namespace;

/// IP header without options and UDP header (8), in bytes.
pub const fn overhead(address: SocketAddr) -> usize {
    match address {
        SocketAddr::V4(_) => 28,
        SocketAddr::V6(_) => 48,
    }
}

/// From now on packets of `socket` are never fragmented, by nobody (over IPv4: DF), and what is too long for the path as far as it
/// is known is refused.
pub fn never_fragment(socket: &UdpSocket) -> Result<()> {
    let (level, name, always) = if socket.local_addr()?.is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO)
    };
    // SAFETY: the option's value is valid for the length given, during the call.
    let result = unsafe {
        let len = size_of_val(&always) as libc::socklen_t;
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const always).cast(), len)
    };
    ensure!(result == 0, "set the path MTU discovery: {}", std::io::Error::last_os_error());
    Ok(())
}

/// The MTU of the path of a connected socket, as the kernel knows it (`IP_MTU`, ip(7); `IPV6_MTU`, ipv6(7)).
fn known_mtu(socket: &UdpSocket) -> Result<u32> {
    let (level, name) = if socket.local_addr()?.is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_MTU)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU)
    };
    let mut mtu: libc::c_int = 0;
    let mut len = size_of_val(&mtu) as libc::socklen_t;
    // SAFETY: the option's value is valid for the length given, during the call.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut mtu).cast(), &raw mut len) };
    ensure!(result == 0, "get the path MTU: {}", std::io::Error::last_os_error());
    mtu.try_into().context("the path MTU is negative")
}

/// Sends datagrams whose whole IP packet has `packet` bytes from the connected `socket` until somebody on the path has said that
/// they are too long; gives the MTU that was named.
///
/// Errors: nobody does in time.
pub fn told_mtu(socket: &UdpSocket, packet: usize) -> Result<u32> {
    never_fragment(socket)?;
    let overhead = overhead(socket.local_addr()?);
    let payload = vec![0; packet.checked_sub(overhead).context("packet is too small for UDP")?];
    let start = Instant::now();
    while start.elapsed() < step_limit() {
        match socket.send(&payload) {
            Ok(_) => thread::sleep(Duration::from_millis(5)),
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                return known_mtu(socket);
            }
            Err(error) => return Err(error).context("send an unfragmented datagram"),
        }
    }
    bail!("nobody says that packets of {packet} bytes are too long")
}

/// Sends one datagram whose whole IP packet has `packet` bytes from `client` to `server` at address `at` (port 0: any),
/// never to be fragmented. [`Probe::Reply`] means that it arrived as it was; [`Probe::TooLong`] that the client's own socket refused it
/// (`EMSGSIZE`), and which path MTU the socket then names.
///
/// Errors: a socket call fails otherwise, or what arrives is something else.
pub fn unfragmented(client: &Namespace, server: &Namespace, at: SocketAddr, packet: usize) -> Result<Probe> {
    let far = udp::bind(server, at)?;
    let near = udp::connected(client, far.local_addr()?)?;
    never_fragment(&near)?;
    let mut payload = vec![0; packet.checked_sub(overhead(at)).context("packet is too small for UDP")?];
    Pattern::new(packet as u64).fill(&mut payload);
    let start = Instant::now();
    match near.send(&payload) {
        Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
            return Ok(Probe::TooLong { mtu: known_mtu(&near)? });
        }
        result => result.context("send an unfragmented datagram")?,
    };
    let mut got = vec![0; packet];
    match far.recv(&mut got) {
        Ok(len) => {
            ensure!(got[..len] == payload, "the datagram that arrived differs from what was sent");
            Ok(Probe::Reply(start.elapsed()))
        }
        Err(error) if udp::is_timeout(&error) => Ok(Probe::Silence),
        Err(error) => Err(error).context("receive an unfragmented datagram"),
    }
}
