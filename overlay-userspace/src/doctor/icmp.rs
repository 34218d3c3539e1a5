//! Echo requests that no router may cut up: which sizes a path carries.
//!
//! One raw socket asks any number of addresses at once. Nothing is learned from an address that does not answer at all.

use std::{
    collections::HashSet,
    io,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recvfrom, sendto, socket,
    },
};
use overlay_common::wire::checksum::fold;

/// IPv4 header without options, ICMP header.
const HEADERS: usize = 20 + 8;
/// Shorter than any path may cut (RFC 791: 68), long enough for the headers.
pub(super) const SMALL: u16 = 60;
const ECHO: u8 = 8;
const ECHO_REPLY: u8 = 0;
/// How long to wait for answers, each time that it is asked.
const WAIT: Duration = Duration::from_millis(300);
/// Answers are awaited no longer than this after the last request.
const TRIES: u16 = 3;

/// Asks with "don't fragment" set, whatever the kernel knows of the path.
pub(super) struct Prober {
    socket: OwnedFd,
    id: u16,
    sequence: u16,
}

impl Prober {
    /// Needs `CAP_NET_RAW`.
    pub(super) fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Inet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::Icmp,
        )?;
        let probe = libc::IP_PMTUDISC_PROBE;
        // SAFETY: the descriptor is open, and the option is an int of that size (ip(7)).
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_IP,
                libc::IP_MTU_DISCOVER,
                (&raw const probe).cast(),
                size_of_val(&probe) as libc::socklen_t,
            )
        };
        nix::errno::Errno::result(result)?;
        Ok(Self { socket, id: std::process::id() as u16, sequence: 0 })
    }

    /// Which of the targets answer a packet of so many bytes, IP header included.
    pub(super) fn ask(&mut self, targets: &[(Ipv4Addr, u16)]) -> io::Result<HashSet<Ipv4Addr>> {
        let first = self.sequence.wrapping_add(1);
        let mut answered = HashSet::new();
        for _ in 0..TRIES {
            self.sequence = self.sequence.wrapping_add(1);
            for (target, length) in targets.iter().filter(|(target, _)| !answered.contains(target)) {
                let packet = request(self.id, self.sequence, usize::from(*length));
                let to = SockaddrIn::from(SocketAddrV4::new(*target, 0));
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
    pub(super) fn measure(&mut self, targets: &[Ipv4Addr], high: u16) -> io::Result<Vec<(Ipv4Addr, u16)>> {
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

    fn receive(&self, first: u16, targets: &[(Ipv4Addr, u16)], answered: &mut HashSet<Ipv4Addr>) {
        let mut buffer = vec![0; 1 << 16];
        while let Ok((length, Some(from))) = recvfrom::<SockaddrIn>(self.socket.as_raw_fd(), &mut buffer) {
            let Some((id, sequence, whole)) = buffer.get(..length).and_then(reply) else { continue };
            let recent = sequence.wrapping_sub(first) <= self.sequence.wrapping_sub(first);
            // Of an earlier question, a shorter one, no answer counts.
            let asked =
                targets.iter().any(|(target, length)| *target == from.ip() && whole == usize::from(*length));
            if id == self.id && recent && asked {
                answered.insert(from.ip());
            }
        }
    }
}

fn request(id: u16, sequence: u16, length: usize) -> Vec<u8> {
    let mut packet = vec![0; length.saturating_sub(20).max(HEADERS - 20)];
    packet[0] = ECHO;
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[6..8].copy_from_slice(&sequence.to_be_bytes());
    let words =
        packet.chunks(2).map(|pair| u32::from(u16::from_ne_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
    let check = fold(words.sum());
    packet[2..4].copy_from_slice(&check);
    packet
}

/// Id, sequence number and length of an echo reply, with its IP header.
fn reply(packet: &[u8]) -> Option<(u16, u16, usize)> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let icmp = packet.get(header..)?;
    let word = |at: usize| Some(u16::from_be_bytes(icmp.get(at..at + 2)?.try_into().ok()?));
    (*icmp.first()? == ECHO_REPLY).then_some((word(4)?, word(6)?, packet.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netns::testing::{in_fresh_netns, ip};

    #[test]
    fn the_longest_packet_of_a_device_is_found() {
        in_fresh_netns(|| {
            ip("link set dev lo up mtu 1400");
            let mut prober = Prober::open().unwrap();
            let local = Ipv4Addr::LOCALHOST;
            assert!(prober.ask(&[(local, SMALL)]).unwrap().contains(&local));
            assert_eq!(prober.measure(&[local], 1450).unwrap(), [(local, 1400)]);
            assert_eq!(prober.measure(&[local], 1300).unwrap(), [(local, 1300)]);
        });
    }
}
