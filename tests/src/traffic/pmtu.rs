//! Path MTU as a UDP socket meets it: datagrams that must not be fragmented. (ICMP: [`super::ping::unfragmented`].)

use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{getsockopt, sockopt::IpMtu};

use super::ping::Probe;
use super::{Pattern, udp};
use crate::lab::Namespace;

/// IPv4 header (20) and UDP header (8), in bytes.
const UDP_OVERHEAD: usize = 28;

/// Sends one datagram whose whole IPv4 packet has `packet` bytes from `client` to `server` at address `at` (port 0: any),
/// with DF set. [`Probe::Reply`] means that it arrived as it was; [`Probe::TooLong`] that the client's own socket refused it
/// (`EMSGSIZE`), and which path MTU the socket then names (`IP_MTU`, ip(7)).
///
/// Errors: a socket call fails otherwise, or what arrives is something else.
pub fn unfragmented(client: &Namespace, server: &Namespace, at: SocketAddr, packet: usize) -> Result<Probe> {
    let far = udp::bind(server, at)?;
    let near = udp::connected(client, far.local_addr()?)?;
    let always: libc::c_int = libc::IP_PMTUDISC_DO;
    // SAFETY: the option's value is valid for the length given, during the call.
    let result = unsafe {
        let len = size_of_val(&always) as libc::socklen_t;
        let (level, name) = (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER);
        libc::setsockopt(near.as_raw_fd(), level, name, (&raw const always).cast(), len)
    };
    ensure!(result == 0, "set IP_MTU_DISCOVER: {}", std::io::Error::last_os_error());

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
