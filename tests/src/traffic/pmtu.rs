//! Path MTU as a UDP socket meets it: datagrams that must not be fragmented. (ICMP: [`super::ping::unfragmented`].)

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::socket::{getsockopt, sockopt::IpMtu};

use super::ping::Probe;
use super::{Pattern, STEP_LIMIT, udp};
use crate::lab::Namespace;

/// IPv4 header (20) and UDP header (8), in bytes.
const UDP_OVERHEAD: usize = 28;

/// From now on packets of `socket` have DF set, and what is too long for the path as far as it is known is refused.
pub fn never_fragment(socket: &UdpSocket) -> Result<()> {
    let always: libc::c_int = libc::IP_PMTUDISC_DO;
    // SAFETY: the option's value is valid for the length given, during the call.
    let result = unsafe {
        let len = size_of_val(&always) as libc::socklen_t;
        let (level, name) = (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER);
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const always).cast(), len)
    };
    ensure!(result == 0, "set IP_MTU_DISCOVER: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Sends datagrams whose whole IPv4 packet has `packet` bytes from the connected `socket` until somebody on the path has said that
/// they are too long; gives the MTU that was named.
///
/// Errors: nobody does in time.
pub fn told_mtu(socket: &UdpSocket, packet: usize) -> Result<u32> {
    never_fragment(socket)?;
    let payload = vec![0; packet.checked_sub(UDP_OVERHEAD).context("packet is too small for UDP")?];
    let start = Instant::now();
    while start.elapsed() < STEP_LIMIT {
        match socket.send(&payload) {
            Ok(_) => thread::sleep(Duration::from_millis(5)),
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                let mtu = getsockopt(socket, IpMtu).context("get IP_MTU")?;
                return mtu.try_into().context("the path MTU is negative");
            }
            Err(error) => return Err(error).context("send an unfragmented datagram"),
        }
    }
    bail!("nobody says that packets of {packet} bytes are too long")
}

/// Sends one datagram whose whole IPv4 packet has `packet` bytes from `client` to `server` at address `at` (port 0: any),
/// with DF set. [`Probe::Reply`] means that it arrived as it was; [`Probe::TooLong`] that the client's own socket refused it
/// (`EMSGSIZE`), and which path MTU the socket then names (`IP_MTU`, ip(7)).
///
/// Errors: a socket call fails otherwise, or what arrives is something else.
pub fn unfragmented(client: &Namespace, server: &Namespace, at: SocketAddr, packet: usize) -> Result<Probe> {
    let far = udp::bind(server, at)?;
    let near = udp::connected(client, far.local_addr()?)?;
    never_fragment(&near)?;
    let mut payload = vec![0; packet.checked_sub(UDP_OVERHEAD).context("packet is too small for UDP")?];
    Pattern::new(packet as u64).fill(&mut payload);
    let start = Instant::now();
    match near.send(&payload) {
        Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
            let mtu = getsockopt(&near, IpMtu).context("get IP_MTU")?;
            return Ok(Probe::TooLong { mtu: mtu.try_into().context("the path MTU is negative")? });
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
