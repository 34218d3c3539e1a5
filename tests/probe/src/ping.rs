//! ICMP echo by a raw socket (RFC 792); needs `NET_RAW`, which container runtimes give by default.

use std::{io, net::UdpSocket};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

const REQUEST: u8 = 8;
const REPLY: u8 = 0;
/// Of an ICMP echo message.
const HEADER: usize = 8;

/// A raw ICMP socket. The standard library's type sends and receives on it as on any datagram socket.
pub(crate) fn open() -> io::Result<UdpSocket> {
    let fd = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp)?;
    Ok(UdpSocket::from(fd))
}

/// An echo request.
pub(crate) fn request(id: u16, sequence: u16) -> [u8; 16] {
    let mut packet = [0; 16];
    packet[0] = REQUEST;
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[6..8].copy_from_slice(&sequence.to_be_bytes());
    packet[HEADER..].copy_from_slice(b"overlay!");
    let sum = checksum(&packet);
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The sequence number of an echo reply to `id`, in an IPv4 packet as a raw socket gives it.
pub(crate) fn reply(packet: &[u8], id: u16) -> Option<u16> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let icmp = packet.get(header..).filter(|icmp| icmp.len() >= HEADER)?;
    let field = |at: usize| u16::from_be_bytes([icmp[at], icmp[at + 1]]);
    (icmp[0] == REPLY && field(4) == id).then(|| field(6))
}

/// RFC 1071.
fn checksum(packet: &[u8]) -> u16 {
    let mut sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_over_a_request_with_its_checksum_is_zero() {
        assert_eq!(checksum(&request(0x1234, 7)), 0);
    }

    #[test]
    fn only_replies_to_the_own_identifier_count() {
        let mut packet = vec![0; 20];
        packet[0] = 0x45;
        packet.extend(request(9, 300));
        assert_eq!(reply(&packet, 9), None, "that is the request");
        packet[20] = REPLY;
        assert_eq!(reply(&packet, 9), Some(300));
        assert_eq!(reply(&packet, 8), None);
        assert_eq!(reply(&packet[..25], 9), None);
        assert_eq!(reply(&[], 9), None);
    }
}
