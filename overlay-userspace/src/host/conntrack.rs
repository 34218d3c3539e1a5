//! Connection tracking (nf_conntrack), by ctnetlink: forgetting flows of UDP that go where nobody is any more.
//!
//! A translation is decided once for a flow, and a sender that never falls silent keeps its flow alive: with one source
//! port and a packet every few seconds it would talk to a pod that is gone for ever. TCP needs no such help, its
//! connections end with the pod.
//!
//! Called where host ports come and go; acts on the network namespace of the calling thread.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
};

use netlink_packet_core::{
    NLA_HEADER_SIZE, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NlasIterator,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use super::netlink::{NetlinkError, messages};

/// `NFNL_SUBSYS_CTNETLINK` (linux/netfilter/nfnetlink.h), as the high byte of a message type.
const SUBSYSTEM: u16 = 1 << 8;
/// `IPCTNL_MSG_CT_GET`, `IPCTNL_MSG_CT_DELETE` (linux/netfilter/nfnetlink_conntrack.h); likewise what follows.
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
/// `struct nfgenmsg`: `AF_INET`, version 0, no resource.
const HEADER: [u8; 4] = [libc::AF_INET as u8, 0, 0, 0];

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

/// Room for a part of a dump, which the kernel makes at most 32 KiB long.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// A flow of UDP as the kernel remembers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Who began it.
    pub source: SocketAddrV4,
    /// Whom it was sent to.
    pub destination: SocketAddrV4,
    /// Who answers: the destination after translation.
    pub answers: SocketAddrV4,
}

/// Forgets the flows that `stale` picks out; how many there were.
///
/// # Errors
///
/// Where the kernel has no ctnetlink, or refuses. A flow that is gone meanwhile is none.
pub fn forget_udp(stale: impl Fn(&Flow) -> bool) -> Result<usize, NetlinkError> {
    let failed = |what: &'static str| move |cause| NetlinkError::new(what, cause);
    let mut connection = Connection::open().map_err(failed("open a netlink socket for conntrack"))?;
    let mut requests = Vec::new();
    connection
        .exchange(&message(GET, NLM_F_DUMP, &[]), |payload| {
            requests.extend(entry(payload).filter(|(flow, _)| stale(flow)).map(|(_, request)| request));
        })
        .map_err(failed("list flows of conntrack"))?;
    let mut forgotten = 0;
    for request in requests {
        match connection.exchange(&message(DELETE, NLM_F_ACK, &request), |_| ()) {
            Ok(()) => forgotten += 1,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(NetlinkError::new("delete a flow of conntrack", error)),
        }
    }
    Ok(forgotten)
}

/// A flow of UDP, and the attributes by which it can be deleted; none for another protocol.
fn entry(payload: &[u8]) -> Option<(Flow, Vec<u8>)> {
    let attributes = payload.get(HEADER.len()..)?;
    let (source, destination) = tuple(value(attributes, CTA_TUPLE_ORIG)?)?;
    let (answers, _) = tuple(value(attributes, CTA_TUPLE_REPLY)?)?;
    let mut request = Vec::new();
    // By the identity as well, so that a new flow with the same addresses is not meant.
    for kind in [CTA_TUPLE_ORIG, CTA_ID, CTA_ZONE] {
        request.extend(raw(attributes, kind).unwrap_or_default());
        request.resize(request.len().next_multiple_of(4), 0);
    }
    Some((Flow { source, destination, answers }, request))
}

/// Source and destination of one direction of a flow of UDP.
fn tuple(attributes: &[u8]) -> Option<(SocketAddrV4, SocketAddrV4)> {
    let (addresses, ports) = (value(attributes, CTA_TUPLE_IP)?, value(attributes, CTA_TUPLE_PROTO)?);
    if value(ports, CTA_PROTO_NUM)?.first() != Some(&(libc::IPPROTO_UDP as u8)) {
        return None;
    }
    let address = |kind| Some(Ipv4Addr::from(*value(addresses, kind)?.first_chunk::<4>()?));
    let port = |kind| Some(u16::from_be_bytes(*value(ports, kind)?.first_chunk()?));
    Some((
        SocketAddrV4::new(address(CTA_IP_V4_SRC)?, port(CTA_PROTO_SRC_PORT)?),
        SocketAddrV4::new(address(CTA_IP_V4_DST)?, port(CTA_PROTO_DST_PORT)?),
    ))
}

/// The first attribute of a kind, header included.
fn raw(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    let found = NlasIterator::new(attributes).map_while(Result::ok).find(|nla| nla.kind() == kind)?;
    let length = usize::from(found.length());
    found.into_inner().get(..length)
}

/// Its value.
fn value(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    raw(attributes, kind)?.get(NLA_HEADER_SIZE..)
}

fn message(kind: u16, flags: u16, attributes: &[u8]) -> Vec<u8> {
    let length = 16 + HEADER.len() + attributes.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend((length as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    // Sequence number and port: one request is under way at a time, and its answer read to the end.
    bytes.extend([0; 8]);
    bytes.extend(HEADER);
    bytes.extend(attributes);
    bytes
}

struct Connection {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Connection {
    fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, buffer: Vec::with_capacity(RECEIVE_BUFFER) })
    }

    /// Sends a request and hands on the payload of each answer, until the end of a dump or an acknowledgement.
    fn exchange(&mut self, request: &[u8], mut answer: impl FnMut(&[u8])) -> io::Result<()> {
        self.socket.send(request, 0)?;
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                received => received?,
            };
            for message in messages(&self.buffer) {
                let message = message?;
                match message.header.message_type {
                    NLMSG_DONE | NLMSG_ERROR => {
                        let code = message.payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                        return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                    }
                    _ => answer(message.payload),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::host::netns::testing::{in_fresh_netns, ip, run};

    #[test]
    fn flows_that_are_picked_out_are_forgotten_and_no_others() {
        in_fresh_netns(|| {
            ip("link set lo up");
            // Makes the kernel track connections, and translate those to one port.
            run("nft add table ip t");
            run("nft add chain ip t output { type nat hook output priority -100; }");
            run("nft add rule ip t output udp dport 53 dnat to 127.0.0.2:5353");
            let socket = UdpSocket::bind("127.0.0.1:7000").unwrap();
            for port in [53, 54, 55] {
                // Nobody listens: the second finds the error of the first.
                while socket.send_to(b"x", ("127.0.0.1", port)).is_err() {}
            }
            let count = || run("conntrack -L -p udp").lines().count();
            assert_eq!(count(), 3);
            let seen = std::cell::RefCell::new(Vec::new());
            assert_eq!(
                forget_udp(|flow| {
                    seen.borrow_mut().push(*flow);
                    false
                })
                .unwrap(),
                0
            );
            let translated = Flow {
                source: "127.0.0.1:7000".parse().unwrap(),
                destination: "127.0.0.1:53".parse().unwrap(),
                answers: "127.0.0.2:5353".parse().unwrap(),
            };
            assert_eq!(seen.borrow().len(), 3);
            assert!(seen.borrow().contains(&translated), "{seen:?}");
            assert_eq!(forget_udp(|flow| *flow == translated).unwrap(), 1);
            assert_eq!(count(), 2);
            assert_eq!(forget_udp(|flow| flow.destination.port() == 53).unwrap(), 0);
        });
    }
}
