//! Echo requests that no router may cut up: which sizes a path carries.
//!
//! One raw socket of a family asks any number of addresses at once. Nothing is learned from an address that does not answer
//! at all.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recvfrom, sendto, socket,
    },
};
use overlay_common::wire::checksum::fold;

use crate::family::Family;

/// The ICMP header of an echo.
const ICMP: usize = 8;
/// Shorter than any path may cut (RFC 791: 68), long enough for the headers of both families.
pub(super) const SMALL: u16 = 60;
/// How long to wait for answers, each time that it is asked.
const WAIT: Duration = Duration::from_millis(300);
/// Answers are awaited no longer than this after the last request.
const TRIES: u16 = 3;

/// The IP header, without options.
const fn ip_header(family: Family) -> usize {
    match family {
        Family::Ipv4 => 20,
        Family::Ipv6 => 40,
    }
}

/// The types of an echo request and its reply (RFC 792; RFC 4443, 4).
const fn echo(family: Family) -> [u8; 2] {
    match family {
        Family::Ipv4 => [8, 0],
        Family::Ipv6 => [128, 129],
    }
}

/// Asks with "don't fragment" set, whatever the kernel knows of the path.
pub(super) struct Prober {
    family: Family,
    socket: OwnedFd,
    id: u16,
    sequence: u16,
}

impl Prober {
    /// Needs `CAP_NET_RAW`.
    pub(super) fn open(family: Family) -> io::Result<Self> {
        let (kind, protocol) = match family {
            Family::Ipv4 => (AddressFamily::Inet, SockProtocol::Icmp),
            Family::Ipv6 => (AddressFamily::Inet6, SockProtocol::IcmpV6),
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(kind, SockType::Raw, flags, protocol)?;
        let options: &[_] = match family {
            Family::Ipv4 => &[(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)],
            Family::Ipv6 => &[
                (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE),
                (libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 1),
            ],
        };
        for (level, option, value) in options {
            // SAFETY: the descriptor is open, and each option is an int of that size (ip(7), ipv6(7)).
            let result = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    *level,
                    *option,
                    std::ptr::from_ref(value).cast(),
                    size_of_val(value) as libc::socklen_t,
                )
            };
            nix::errno::Errno::result(result)?;
        }
        Ok(Self { family, socket, id: std::process::id() as u16, sequence: 0 })
    }

    /// Which of the targets, all of the socket's family, answer a packet of so many bytes, IP header included.
    pub(super) fn ask(&mut self, targets: &[(IpAddr, u16)]) -> io::Result<HashSet<IpAddr>> {
        let first = self.sequence.wrapping_add(1);
        let mut answered = HashSet::new();
        for _ in 0..TRIES {
            self.sequence = self.sequence.wrapping_add(1);
            for (target, length) in targets.iter().filter(|(target, _)| !answered.contains(target)) {
                let packet = request(self.family, self.id, self.sequence, usize::from(*length));
                let to = SockaddrStorage::from(SocketAddr::new(*target, 0));
                // Too long for the device, or no route: that is no answer as well.
                let _ = sendto(self.socket.as_raw_fd(), &packet, &to, MsgFlags::empty());
            }
            let deadline = Instant::now() + WAIT;
            while answered.len() < targets.len() {
                let left = deadline.saturating_duration_since(Instant::now());
                let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
                if poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], timeout)? == 0 {
                    break;
                }
                self.receive(first, targets, &mut answered);
            }
            if answered.len() == targets.len() {
                break;
            }
        }
        Ok(answered)
    }

    /// The longest packet, up to `high`, that each path carries; all of them carry [`SMALL`].
    pub(super) fn measure(&mut self, targets: &[IpAddr], high: u16) -> io::Result<Vec<(IpAddr, u16)>> {
        let mut bounds: Vec<_> = targets.iter().map(|target| (*target, SMALL, high)).collect();
        while bounds.iter().any(|(_, low, high)| low < high) {
            let middle = |low: u16, high: u16| low + (high - low).div_ceil(2);
            let open: Vec<_> = bounds
                .iter()
                .filter(|(_, low, high)| low < high)
                .map(|(target, low, high)| (*target, middle(*low, *high)))
                .collect();
            let answered = self.ask(&open)?;
            for (target, low, high) in bounds.iter_mut().filter(|(_, low, high)| low < high) {
                let middle = middle(*low, *high);
                if answered.contains(target) { *low = middle } else { *high = middle - 1 }
            }
        }
        Ok(bounds.into_iter().map(|(target, low, _)| (target, low)).collect())
    }

    fn receive(&self, first: u16, targets: &[(IpAddr, u16)], answered: &mut HashSet<IpAddr>) {
        let mut buffer = vec![0; 1 << 16];
        while let Ok((length, Some(from))) = recvfrom::<SockaddrStorage>(self.socket.as_raw_fd(), &mut buffer)
        {
            let Some(from) = address(&from) else { continue };
            let Some((id, sequence, whole)) =
                buffer.get(..length).and_then(|packet| reply(self.family, packet))
            else {
                continue;
            };
            let recent = sequence.wrapping_sub(first) <= self.sequence.wrapping_sub(first);
            // Of an earlier question, a shorter one, no answer counts.
            let asked =
                targets.iter().any(|(target, length)| *target == from && whole == usize::from(*length));
            if id == self.id && recent && asked {
                answered.insert(from);
            }
        }
    }
}

fn address(from: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = from.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
    v4.or_else(|| from.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
}

fn request(family: Family, id: u16, sequence: u16, length: usize) -> Vec<u8> {
    let mut packet = vec![0; length.saturating_sub(ip_header(family)).max(ICMP)];
    packet[0] = echo(family)[0];
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[6..8].copy_from_slice(&sequence.to_be_bytes());
    // Of ICMPv6 the kernel writes it, because the addresses are part of it (RFC 3542, 3.1).
    if family == Family::Ipv4 {
        let words =
            packet.chunks(2).map(|pair| u32::from(u16::from_ne_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
        let check = fold(words.sum());
        packet[2..4].copy_from_slice(&check);
    }
    packet
}

/// Id, sequence number and length of an echo reply, with its IP header, which a socket of IPv4 gets and one of IPv6 does not.
fn reply(family: Family, packet: &[u8]) -> Option<(u16, u16, usize)> {
    let (header, unseen) = match family {
        Family::Ipv4 => (usize::from(packet.first()? & 0xf) * 4, 0),
        Family::Ipv6 => (0, ip_header(family)),
    };
    let icmp = packet.get(header..)?;
    let word = |at: usize| Some(u16::from_be_bytes(icmp.get(at..at + 2)?.try_into().ok()?));
    let [_, reply] = echo(family);
    (*icmp.first()? == reply).then_some((word(4)?, word(6)?, packet.len() + unseen))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netns::testing::{in_fresh_netns, ip};

    #[test]
    fn the_longest_packet_of_a_device_is_found() {
        in_fresh_netns(|| {
            ip("link set dev lo up mtu 1400");
            for (family, local) in [(Family::Ipv4, "127.0.0.1"), (Family::Ipv6, "::1")] {
                let local: IpAddr = local.parse().unwrap();
                let mut prober = Prober::open(family).unwrap();
                assert!(prober.ask(&[(local, SMALL)]).unwrap().contains(&local), "{family}");
                assert_eq!(prober.measure(&[local], 1450).unwrap(), [(local, 1400)]);
                assert_eq!(prober.measure(&[local], 1300).unwrap(), [(local, 1300)]);
            }
        });
    }
}
