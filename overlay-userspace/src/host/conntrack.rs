//! Which connections the kernel tracks, by ctnetlink, and forgetting some of them.
//!
//! Only what is asked for: the addresses and ports of both directions of each connection, of both families
//! (linux/netfilter/nfnetlink_conntrack.h). The agent lists them to find out which recorded flows nobody will come back
//! for; flows of UDP are forgotten where host ports come and go. Runs in the network namespace of the calling thread.

use std::{io, net::IpAddr};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NlaBuffer, NlasIterator,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use super::netlink::messages;

/// `NFNL_SUBSYS_CTNETLINK << 8` and `IPCTNL_MSG_CT_GET`, `…_DELETE`.
const GET: u16 = 0x0101;
const DELETE: u16 = 0x0102;
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
/// `CTA_TUPLE_IP`, with `CTA_IP_V4_SRC`, `CTA_IP_V4_DST` and the same of IPv6.
const TUPLE_IP: u16 = 1;
const IP_V4_SRC: u16 = 1;
const IP_V4_DST: u16 = 2;
const IP_V6_SRC: u16 = 3;
const IP_V6_DST: u16 = 4;
/// `CTA_TUPLE_PROTO`, with `CTA_PROTO_NUM`, `…_SRC_PORT`, `…_DST_PORT`, `…_ICMP_ID` and `…_ICMPV6_ID`.
const TUPLE_PROTO: u16 = 2;
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;
const PROTO_ICMP_ID: u16 = 4;
const PROTO_ICMPV6_ID: u16 = 7;
/// The header of a netlink message, and that of nfnetlink behind it (`struct nfgenmsg`: family, version, resource).
const HEADER: usize = 16;
const GENERIC: usize = 4;
/// Of a dump: the connections of all families.
const ANY: u8 = libc::AF_UNSPEC as u8;
/// As much as the kernel puts into one part of a dump, and more.
const BUFFER: usize = 64 * 1024;

/// The connections cannot be listed, or one of them not be forgotten.
#[derive(Debug, thiserror::Error)]
#[error("{action}: {cause}")]
pub struct ConntrackError {
    action: &'static str,
    cause: io::Error,
}

impl ConntrackError {
    fn during(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |cause| Self { action, cause }
    }
}

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// Whom its packets come from.
    pub src: IpAddr,
    /// Whom they go to.
    pub dst: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Source port, host order; the identifier of an ICMP echo; 0 without either.
    pub src_port: u16,
    /// Destination port, host order; as above.
    pub dst_port: u16,
}

/// Both directions of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// As its first packet was sent.
    pub original: Tuple,
    /// As the packets that answer are sent: from where a translated destination is.
    pub reply: Tuple,
}

/// Hands both directions of every tracked connection to `each`.
pub fn list(mut each: impl FnMut(Tuple)) -> Result<(), ConntrackError> {
    dump(&mut Ctnetlink::open()?, |payload| {
        if let Some(Connection { original, reply }) = connection(payload) {
            each(original);
            each(reply);
        }
    })
}

/// The connection that packets like this one belong to, in either direction.
pub fn find(packet: Tuple) -> Result<Option<Connection>, ConntrackError> {
    let mut found = None;
    dump(&mut Ctnetlink::open()?, |payload| {
        let meant = |c: &Connection| c.original == packet || c.reply == packet;
        found = found.or_else(|| connection(payload).filter(meant));
    })?;
    Ok(found)
}

/// Forgets the connections of UDP that `stale` picks out; returns how many. One that is gone meanwhile is none.
///
/// A translation is decided once for a connection, and a sender that never falls silent keeps its connection alive: from
/// one port, with a packet every few seconds, it would talk for ever to somebody who is gone. TCP needs no such help,
/// its connections end with who is gone.
pub fn forget_udp(stale: impl Fn(&Connection) -> bool) -> Result<usize, ConntrackError> {
    let mut ctnetlink = Ctnetlink::open()?;
    let mut requests = Vec::new();
    dump(&mut ctnetlink, |payload| {
        let udp = |connection: &Connection| connection.original.protocol == libc::IPPROTO_UDP as u8;
        if connection(payload).filter(udp).is_some_and(|connection| stale(&connection)) {
            requests.push((payload.first().copied().unwrap_or_default(), identity(payload)));
        }
    })?;
    let mut forgotten = 0;
    for (family, request) in requests {
        match ctnetlink.exchange(DELETE, NLM_F_ACK, family, &request, |_| ()) {
            Ok(()) => forgotten += 1,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(ConntrackError::during("forget a connection")(error)),
        }
    }
    Ok(forgotten)
}

fn dump(ctnetlink: &mut Ctnetlink, each: impl FnMut(&[u8])) -> Result<(), ConntrackError> {
    let listed = ctnetlink.exchange(GET, NLM_F_DUMP, ANY, &[], each);
    listed.map_err(ConntrackError::during("list the connections that the kernel tracks"))
}

/// A connection to the kernel.
struct Ctnetlink {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Ctnetlink {
    fn open() -> Result<Self, ConntrackError> {
        let connect = || {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let socket = connect().map_err(ConntrackError::during("open a netlink socket for conntrack"))?;
        Ok(Self { socket, buffer: Vec::with_capacity(BUFFER) })
    }

    /// Sends a request and hands on the payload of each answer, to the end of a dump or the acknowledgement. `family` is the
    /// kernel's number.
    fn exchange(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        attributes: &[u8],
        mut each: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let length = HEADER + GENERIC + attributes.len();
        let mut request = Vec::with_capacity(length);
        request.extend((length as u32).to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        request.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        // Sequence number and port: one request is under way at a time, and its answer is read to the end.
        request.extend([0; 8]);
        request.extend([family, 0, 0, 0]);
        request.extend(attributes);
        self.socket.send(&request, 0)?;
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                received => received?,
            };
            for message in messages(&self.buffer) {
                let message = message?;
                match message.header.message_type {
                    NLMSG_DONE | NLMSG_ERROR => return result(message.payload),
                    _ => each(message.payload),
                }
            }
        }
    }
}

/// The error number that the end of an answer begins with, negative.
fn result(payload: &[u8]) -> io::Result<()> {
    match payload.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
        None => Err(io::ErrorKind::InvalidData.into()),
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
    }
}

fn connection(payload: &[u8]) -> Option<Connection> {
    let direction = |kind| {
        let found = attributes(payload.get(GENERIC..)?).find(|attribute| attribute.kind() == kind)?;
        tuple(found.value())
    };
    Some(Connection { original: direction(TUPLE_ORIG)?, reply: direction(TUPLE_REPLY)? })
}

/// The attributes of a connection by which it is deleted; by its identity as well, so that a new one between the same
/// ports is not meant.
fn identity(payload: &[u8]) -> Vec<u8> {
    let mut request = Vec::new();
    for attribute in attributes(payload.get(GENERIC..).unwrap_or_default()) {
        if [TUPLE_ORIG, ID, ZONE].contains(&attribute.kind()) {
            let length = usize::from(attribute.length());
            request.extend(attribute.into_inner().get(..length).unwrap_or_default());
            request.resize(request.len().next_multiple_of(4), 0);
        }
    }
    request
}

fn attributes(bytes: &[u8]) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
    NlasIterator::new(bytes).filter_map(Result::ok)
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let (mut src, mut dst) = (None, None);
    let (mut protocol, mut src_port, mut dst_port) = (0, 0, 0);
    let v4 = |value: &[u8]| value.first_chunk::<4>().map(|bytes| IpAddr::from(*bytes));
    let v6 = |value: &[u8]| value.first_chunk::<16>().map(|bytes| IpAddr::from(*bytes));
    let short = |value: &[u8]| value.first_chunk().map_or(0, |bytes| u16::from_be_bytes(*bytes));
    for outer in attributes(bytes) {
        for inner in attributes(outer.value()) {
            let value = inner.value();
            match (outer.kind(), inner.kind()) {
                (TUPLE_IP, IP_V4_SRC) => src = v4(value),
                (TUPLE_IP, IP_V4_DST) => dst = v4(value),
                (TUPLE_IP, IP_V6_SRC) => src = v6(value),
                (TUPLE_IP, IP_V6_DST) => dst = v6(value),
                (TUPLE_PROTO, PROTO_NUM) => protocol = value.first().copied()?,
                (TUPLE_PROTO, PROTO_SRC_PORT) => src_port = short(value),
                (TUPLE_PROTO, PROTO_DST_PORT) => dst_port = short(value),
                (TUPLE_PROTO, PROTO_ICMP_ID | PROTO_ICMPV6_ID) => {
                    (src_port, dst_port) = (short(value), short(value));
                }
                _ => {}
            }
        }
    }
    Some(Tuple { src: src?, dst: dst?, protocol, src_port, dst_port })
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::host::netns::testing::{in_fresh_netns, ip, run};

    /// Family of nft, the caller, what it calls, and who answers.
    const CASES: [[&str; 4]; 2] =
        [["ip", "127.0.0.1", "127.0.0.9", "127.0.0.1"], ["ip6", "::1", "fd00::9", "fd00::2"]];

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Loopback with the addresses of all cases.
    fn loopback() {
        ip("link set lo up");
        for address in ["fd00::2", "fd00::9"] {
            ip(&format!("address add {address}/128 dev lo nodad"));
        }
    }

    #[test]
    fn both_directions_of_translated_connections_are_listed() {
        in_fresh_netns(|| {
            loopback();
            for [family, caller, called, answers] in CASES {
                run(&format!("nft add table {family} t"));
                run(&format!("nft add chain {family} t out {{ type nat hook output priority -100 ; }}"));
                let to =
                    if family == "ip6" { format!("[{answers}]:5399") } else { format!("{answers}:5399") };
                run(&format!(
                    "nft add rule {family} t out {family} daddr {called} udp dport 5300 dnat to {to}"
                ));
                let socket = UdpSocket::bind((caller, 4000)).unwrap();
                socket.send_to(b"x", (called, 5300)).unwrap();
            }
            let mut seen = Vec::new();
            list(|tuple| seen.push(tuple)).unwrap();
            for [_, caller, called, answers] in CASES {
                let tuple = |src: &str, src_port, dst: &str, dst_port| Tuple {
                    src: address(src),
                    dst: address(dst),
                    protocol: 17,
                    src_port,
                    dst_port,
                };
                assert!(seen.contains(&tuple(caller, 4000, called, 5300)), "{seen:?}");
                assert!(seen.contains(&tuple(answers, 5399, caller, 4000)), "{seen:?}");
            }
        });
    }

    #[test]
    fn an_echo_has_its_identifier_at_both_ends() {
        in_fresh_netns(|| {
            loopback();
            for [family, caller, ..] in CASES {
                run(&format!("nft add table {family} t"));
                run(&format!("nft add chain {family} t out {{ type filter hook output priority 0 ; }}"));
                run(&format!("nft add rule {family} t out ct state new accept"));
                run(&format!("ping -c 1 -e 4711 {caller}"));
            }
            let mut seen = Vec::new();
            list(|tuple| seen.push(tuple)).unwrap();
            for ([_, caller, ..], protocol) in CASES.into_iter().zip([1, 58]) {
                let echo = Tuple {
                    src: address(caller),
                    dst: address(caller),
                    protocol,
                    src_port: 4711,
                    dst_port: 4711,
                };
                assert!(seen.contains(&echo), "{seen:?}");
            }
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

    #[test]
    fn connections_of_udp_that_are_picked_out_are_forgotten_and_no_others() {
        in_fresh_netns(|| {
            loopback();
            for ([family, caller, ..], answers) in CASES.into_iter().zip(["127.0.0.2", "fd00::2"]) {
                run(&format!("nft add table {family} t"));
                run(&format!("nft add chain {family} t out {{ type nat hook output priority -100 ; }}"));
                let to =
                    if family == "ip6" { format!("[{answers}]:5353") } else { format!("{answers}:5353") };
                run(&format!("nft add rule {family} t out udp dport 53 dnat to {to}"));
                let socket = UdpSocket::bind((caller, 7000)).unwrap();
                for port in [53, 54, 55] {
                    // Nobody listens: the refusal of one is the error of the next.
                    while socket.send_to(b"x", (caller, port)).is_err() {}
                }
            }
            let count = || {
                let mut tuples = 0;
                list(|_| tuples += 1).unwrap();
                tuples / 2
            };
            assert_eq!((forget_udp(|_| false).unwrap(), count()), (0, 6));
            for (left, answers) in [(5, "127.0.0.2"), (4, "fd00::2")] {
                let translated = |connection: &Connection| {
                    let from = (connection.reply.src, connection.reply.src_port);
                    connection.original.dst_port == 53 && from == (address(answers), 5353)
                };
                assert_eq!((forget_udp(translated).unwrap(), count()), (1, left));
                assert_eq!(forget_udp(translated).unwrap(), 0);
            }
        });
    }
}
