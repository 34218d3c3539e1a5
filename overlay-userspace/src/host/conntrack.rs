//! Which connections the kernel tracks, from ctnetlink.
//!
//! Only what the agent asks: the addresses and ports of both directions of each IPv4 connection, to find out which
//! recorded flows nobody will come back for (linux/netfilter/nfnetlink_conntrack.h). Runs in the network namespace of the
//! calling thread.

use std::{io, net::Ipv4Addr};

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NlaBuffer, NlasIterator,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET`.
const GET: u16 = 0x0101;
/// `CTA_TUPLE_ORIG`, `CTA_TUPLE_REPLY`.
const TUPLES: [u16; 2] = [1, 2];
/// `CTA_TUPLE_IP`, with `CTA_IP_V4_SRC` and `CTA_IP_V4_DST`.
const TUPLE_IP: u16 = 1;
const IP_V4_SRC: u16 = 1;
const IP_V4_DST: u16 = 2;
/// `CTA_TUPLE_PROTO`, with `CTA_PROTO_NUM`, `…_SRC_PORT`, `…_DST_PORT` and `…_ICMP_ID`.
const TUPLE_PROTO: u16 = 2;
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;
const PROTO_ICMP_ID: u16 = 4;
/// The header of a netlink message, and that of nfnetlink behind it (`struct nfgenmsg`).
const HEADER: usize = 16;
const GENERIC: usize = 4;
/// As much as the kernel puts into one part of a dump, and more.
const BUFFER: usize = 64 * 1024;

/// The connections cannot be listed.
#[derive(Debug, thiserror::Error)]
#[error("list the connections that the kernel tracks: {0}")]
pub struct ConntrackError(#[from] io::Error);

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// Whom its packets come from.
    pub src: Ipv4Addr,
    /// Whom they go to.
    pub dst: Ipv4Addr,
    /// IP protocol number.
    pub protocol: u8,
    /// Source port, host order; the identifier of an ICMP echo; 0 without either.
    pub src_port: u16,
    /// Destination port, host order; as above.
    pub dst_port: u16,
}

/// Hands both directions of every tracked IPv4 connection to `each`.
pub fn list(mut each: impl FnMut(Tuple)) -> Result<(), ConntrackError> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut request = [0_u8; HEADER + GENERIC];
    request[HEADER] = libc::AF_INET as u8;
    {
        let mut message = NetlinkBuffer::new(&mut request[..]);
        message.set_length((HEADER + GENERIC) as u32);
        message.set_message_type(GET);
        message.set_flags(NLM_F_REQUEST | NLM_F_DUMP);
    }
    socket.send(&request, 0)?;
    let mut buffer = vec![0_u8; BUFFER];
    loop {
        let len = socket.recv(&mut &mut buffer[..], 0)?;
        let mut rest = &buffer[..len];
        while let Ok(message) = NetlinkBuffer::new_checked(rest) {
            let length = message.length() as usize;
            match message.message_type() {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return Err(refusal(message.payload()).into()),
                _ => {
                    if let Some(attributes) = message.payload().get(GENERIC..) {
                        tuples(attributes, &mut each);
                    }
                }
            }
            // Messages begin at multiples of four.
            match rest.get(length.next_multiple_of(4)..) {
                Some(next) if length > 0 && !next.is_empty() => rest = next,
                _ => break,
            }
        }
    }
}

/// The error number that an error message begins with, negative.
fn refusal(payload: &[u8]) -> io::Error {
    payload.first_chunk().map_or_else(
        || io::ErrorKind::InvalidData.into(),
        |code| io::Error::from_raw_os_error(-i32::from_ne_bytes(*code)),
    )
}

fn attributes(bytes: &[u8]) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
    NlasIterator::new(bytes).filter_map(Result::ok)
}

fn tuples(bytes: &[u8], each: &mut impl FnMut(Tuple)) {
    for attribute in attributes(bytes).filter(|attribute| TUPLES.contains(&attribute.kind())) {
        if let Some(tuple) = tuple(attribute.value()) {
            each(tuple);
        }
    }
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let mut addresses = (None, None);
    let mut tuple = Tuple {
        src: Ipv4Addr::UNSPECIFIED,
        dst: Ipv4Addr::UNSPECIFIED,
        protocol: 0,
        src_port: 0,
        dst_port: 0,
    };
    let short = |value: &[u8]| value.first_chunk().map_or(0, |bytes| u16::from_be_bytes(*bytes));
    for outer in attributes(bytes) {
        for inner in attributes(outer.value()) {
            let value = inner.value();
            match (outer.kind(), inner.kind()) {
                (TUPLE_IP, IP_V4_SRC) => addresses.0 = value.first_chunk::<4>().copied(),
                (TUPLE_IP, IP_V4_DST) => addresses.1 = value.first_chunk::<4>().copied(),
                (TUPLE_PROTO, PROTO_NUM) => tuple.protocol = value.first().copied()?,
                (TUPLE_PROTO, PROTO_SRC_PORT) => tuple.src_port = short(value),
                (TUPLE_PROTO, PROTO_DST_PORT) => tuple.dst_port = short(value),
                (TUPLE_PROTO, PROTO_ICMP_ID) => {
                    tuple.src_port = short(value);
                    tuple.dst_port = tuple.src_port;
                }
                _ => {}
            }
        }
    }
    let (Some(src), Some(dst)) = addresses else { return None };
    Some(Tuple { src: src.into(), dst: dst.into(), ..tuple })
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::host::netns::testing::{in_fresh_netns, ip, run};

    #[test]
    fn both_directions_of_a_translated_connection_are_listed() {
        in_fresh_netns(|| {
            ip("link set lo up");
            run("nft add table ip t");
            run("nft add chain ip t out { type nat hook output priority -100 ; }");
            run("nft add rule ip t out ip daddr 127.0.0.9 udp dport 5300 dnat to 127.0.0.1:5399");
            let socket = UdpSocket::bind("127.0.0.1:4000").unwrap();
            socket.send_to(b"x", "127.0.0.9:5300").unwrap();
            let mut seen = Vec::new();
            list(|tuple| seen.push(tuple)).unwrap();
            let tuple = |src: &str, src_port, dst: &str, dst_port| Tuple {
                src: src.parse().unwrap(),
                dst: dst.parse().unwrap(),
                protocol: 17,
                src_port,
                dst_port,
            };
            assert!(seen.contains(&tuple("127.0.0.1", 4000, "127.0.0.9", 5300)), "{seen:?}");
            assert!(seen.contains(&tuple("127.0.0.1", 5399, "127.0.0.1", 4000)), "{seen:?}");
        });
    }

    #[test]
    fn thousands_come_in_several_parts() {
        in_fresh_netns(|| {
            ip("link set lo up");
            run("nft add table ip t");
            run("nft add chain ip t out { type filter hook output priority 0 ; }");
            run("nft add rule ip t out ct state new accept");
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            for port in 10_000..13_000_u16 {
                // Nobody listens: the refusal of one is the error of the next.
                let _ = socket.send_to(b"x", ("127.0.0.1", port));
            }
            let mut seen = std::collections::HashSet::new();
            list(|tuple| {
                seen.insert(tuple.dst_port);
            })
            .unwrap();
            assert!((10_000..13_000).filter(|port| seen.contains(port)).count() > 2_900, "{}", seen.len());
        });
    }

    #[test]
    fn a_namespace_that_tracks_nothing_has_none() {
        in_fresh_netns(|| list(|tuple| panic!("{tuple:?}")).unwrap());
    }
}
