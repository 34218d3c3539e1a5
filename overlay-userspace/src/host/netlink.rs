//! A synchronous rtnetlink connection: links, addresses, routes, neighbours and tc filters.
//!
//! Owns the socket, the sequence numbers and the errors; one submodule per kind of object holds its typed
//! form and its operations. Raw netlink messages do not leave this module.
//!
//! Invariants:
//! * One request is in flight at a time, and is read to its terminator (an acknowledgement, or the end of a
//!   dump) also when it failed, so that a connection stays usable after an error.
//! * A dump that the kernel marks as inconsistent (`NLM_F_DUMP_INTR`) is repeated, never returned.
//! * Dumps are filtered by the kernel (`NETLINK_GET_STRICT_CHK`, Linux 4.20) and checked again here, so an
//!   older kernel gives the same answer, only slower.
//!
//! The connection belongs to the network namespace of the thread that opened it.

mod address;
mod changes;
mod filter;
mod link;
mod namespace;
mod neighbour;
mod netns;
mod route;
mod rule;
mod way;

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
};

use log::warn;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NLMSG_NOOP, NLMSG_OVERRUN, NetlinkBuffer, NetlinkDeserializable as _, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NlasIterator, Parseable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;

pub use address::Address;
pub use changes::Changes;
pub use filter::{BpfFilter, Direction, FilterKey};
pub use link::{Link, MacAddress, VethSpec, VxlanInfo, VxlanSpec};
pub use neighbour::Neighbour;
pub use route::{ROUTE_PROTOCOL, Route, RouteKind};
pub use way::{Traveller, Way};

/// The kernel sizes the parts of a dump by the reader's buffer, up to 32 KiB (`netlink_recvmsg`,
/// net/netlink/af_netlink.c); twice that also holds any single object asked for here.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// How often a dump is repeated when the table changes while it is read.
const DUMP_ATTEMPTS: usize = 16;

/// `NLMSGERR_ATTR_MSG` (linux/netlink.h): the kernel's own words on an error.
const EXT_ACK_MESSAGE: u16 = 1;

/// What the kernel refused, and why.
#[derive(Debug, thiserror::Error)]
#[error("{action}: {cause}{}", .detail.as_ref().map(|text| format!(" ({text})")).unwrap_or_default())]
pub struct NetlinkError {
    action: String,
    cause: io::Error,
    detail: Option<String>,
}

impl NetlinkError {
    /// The error number, for callers that branch; [`Errno::UnknownErrno`] when it did not come from the kernel.
    pub fn errno(&self) -> Errno {
        self.cause.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
    }

    pub(super) fn new(action: impl Into<String>, cause: io::Error) -> Self {
        Self { action: action.into(), cause, detail: None }
    }
}

/// A failed exchange that does not know yet what it was for.
#[derive(Debug)]
struct Failure {
    cause: io::Error,
    detail: Option<String>,
}

impl Failure {
    fn is(&self, errno: Errno) -> bool {
        self.cause.raw_os_error() == Some(errno as i32)
    }

    fn during(self, action: String) -> NetlinkError {
        NetlinkError { action, cause: self.cause, detail: self.detail }
    }
}

impl From<io::Error> for Failure {
    fn from(cause: io::Error) -> Self {
        Self { cause, detail: None }
    }
}

/// A connection to the kernel's routing tables.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Connects to the network namespace of the calling thread.
    pub fn open() -> Result<Self, NetlinkError> {
        Self::connect().map_err(|cause| NetlinkError::new("open a netlink socket", cause))
    }

    fn connect() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        // Comforts, absent on old kernels: errors in words, without the request echoed, and filtered dumps.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        let _ = socket.set_netlink_get_strict_chk(true);
        socket.bind_auto()?;
        // A connected netlink socket takes messages from the kernel only, not from other processes.
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(RECEIVE_BUFFER) })
    }

    /// Asks for a change; returns when the kernel has made it.
    fn execute(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Failure> {
        self.exchange(message, NLM_F_ACK | flags).map(drop)
    }

    /// Asks for one object; `None` when the kernel answers with an acknowledgement alone.
    fn get(&mut self, message: RouteNetlinkMessage) -> Result<Option<RouteNetlinkMessage>, Failure> {
        Ok(self.exchange(message, NLM_F_ACK)?.objects.pop())
    }

    /// Reads a whole table, consistently.
    fn dump(&mut self, message: &RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, Failure> {
        for _ in 0..DUMP_ATTEMPTS {
            let reply = self.exchange(message.clone(), NLM_F_DUMP)?;
            if !reply.interrupted {
                return Ok(reply.objects);
            }
        }
        Err(Failure {
            cause: io::Error::from(Errno::EAGAIN),
            detail: Some(format!("the table changed during each of {DUMP_ATTEMPTS} reads")),
        })
    }

    /// The bytes of the next request.
    fn encode(&mut self, message: RouteNetlinkMessage, flags: u16) -> Vec<u8> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request =
            NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(message));
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        bytes
    }

    fn exchange(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<Reply, Failure> {
        let bytes = self.encode(message, flags);
        self.socket.send(&bytes, 0)?;

        let mut reply = Reply { dump: flags & NLM_F_DUMP == NLM_F_DUMP, ..Reply::default() };
        loop {
            self.receive()?;
            if reply.absorb(&self.buffer, self.sequence)? {
                return Ok(reply);
            }
        }
    }

    /// Fills the buffer with one datagram.
    fn receive(&mut self) -> io::Result<()> {
        loop {
            self.buffer.clear();
            // MSG_TRUNC returns the true length, also when the buffer was too small for it.
            match self.socket.recv(&mut self.buffer, libc::MSG_TRUNC) {
                Ok(length) if length > self.buffer.len() => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("reply of {length} bytes exceeds the buffer of {RECEIVE_BUFFER}"),
                    ));
                }
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// A link's name for an error message.
    fn device(&mut self, index: u32) -> String {
        match self.link_by_index(index) {
            Ok(Some(link)) => link.name,
            _ => format!("#{index}"),
        }
    }
}

/// For a request of [`Netlink::encode_delete`]; whoever sends on it has to leave this connection alone.
impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket stays open as long as `self`, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(self.socket.as_raw_fd()) }
    }
}

/// What has been read of the answer to one request.
#[derive(Default)]
struct Reply {
    dump: bool,
    objects: Vec<RouteNetlinkMessage>,
    interrupted: bool,
    undecodable: Option<String>,
}

impl Reply {
    /// Takes one datagram in; true once the answer is complete.
    fn absorb(&mut self, datagram: &[u8], sequence: u32) -> Result<bool, Failure> {
        for message in messages(datagram) {
            let message = message?;
            // Left over from a request that failed half-way.
            if message.header.sequence_number != sequence {
                continue;
            }
            self.interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
            match message.header.message_type {
                NLMSG_NOOP => {}
                NLMSG_OVERRUN => return Err(io::Error::from(Errno::ENOBUFS).into()),
                NLMSG_ERROR => {
                    // The request's header (16 bytes, NETLINK_CAP_ACK) stands between code and attributes.
                    check(&message, 20)?;
                    return self.finish();
                }
                NLMSG_DONE => {
                    check(&message, 4)?;
                    return self.finish();
                }
                _ => match RouteNetlinkMessage::deserialize(&message.header, message.payload) {
                    Ok(object) => self.objects.push(object),
                    // One exotic object must not hide all others from a dump.
                    Err(error) if self.dump => warn!("ignoring an object in a netlink dump: {error}"),
                    Err(error) => self.undecodable = Some(error.to_string()),
                },
            }
        }
        Ok(false)
    }

    fn finish(&mut self) -> Result<bool, Failure> {
        match self.undecodable.take() {
            None => Ok(true),
            Some(text) => Err(io::Error::new(io::ErrorKind::InvalidData, text).into()),
        }
    }
}

/// One netlink message within a datagram.
pub(crate) struct RawMessage<'a> {
    pub(crate) header: NetlinkHeader,
    pub(crate) payload: &'a [u8],
}

/// Splits a datagram into its messages; what cannot be split is an error, once.
pub(crate) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = io::Result<RawMessage<'_>>> {
    std::iter::from_fn(move || {
        if datagram.is_empty() {
            return None;
        }
        let whole = datagram;
        let parsed = NetlinkBuffer::new_checked(whole).and_then(|buffer| {
            let header = <NetlinkHeader as Parseable<NetlinkBuffer<&[u8]>>>::parse(&buffer)?;
            Ok(RawMessage { header, payload: buffer.payload() })
        });
        datagram = match &parsed {
            // Messages start on multiples of four bytes.
            Ok(message) => {
                whole.get((message.header.length as usize).next_multiple_of(4)..).unwrap_or_default()
            }
            Err(_) => &[],
        };
        Some(parsed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string())))
    })
}

/// Reads the result code at the head of an error or done message, and the kernel's words `attributes` bytes in.
fn check(message: &RawMessage<'_>, attributes: usize) -> Result<(), Failure> {
    let payload = message.payload;
    let code = payload.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    if code == 0 {
        return Ok(());
    }
    let attributes = match message.header.flags & NLM_F_ACK_TLVS {
        0 => &[],
        _ => payload.get(attributes..).unwrap_or_default(),
    };
    let detail = NlasIterator::new(attributes)
        .filter_map(Result::ok)
        .find(|attribute| attribute.kind() == EXT_ACK_MESSAGE)
        .map(|attribute| String::from_utf8_lossy(attribute.value()).trim_end_matches('\0').to_owned());
    Err(Failure { cause: io::Error::from_raw_os_error(-code), detail })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of one message: header, then `payload`.
    fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = (16 + payload.len() as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn interrupted_dump_is_noticed_on_any_part() {
        let mut reply = Reply { dump: true, ..Reply::default() };
        let mut datagram = message(NLMSG_NOOP, NLM_F_DUMP_INTR, 7, &[]);
        datagram.extend(message(NLMSG_DONE, 0, 7, &0i32.to_ne_bytes()));
        assert!(reply.absorb(&datagram, 7).unwrap());
        assert!(reply.interrupted);
    }

    #[test]
    fn leftovers_of_an_earlier_request_are_skipped() {
        let mut reply = Reply::default();
        let error = (-libc::EPERM).to_ne_bytes();
        assert!(!reply.absorb(&message(NLMSG_ERROR, 0, 1, &error), 2).unwrap());
    }

    #[test]
    fn error_at_the_end_of_a_dump_is_returned() {
        let mut reply = Reply { dump: true, ..Reply::default() };
        let code = (-libc::ENOENT).to_ne_bytes();
        let failure = reply.absorb(&message(NLMSG_DONE, 0, 1, &code), 1).unwrap_err();
        assert!(failure.is(Errno::ENOENT));
    }

    #[test]
    fn truncated_datagram_is_an_error_and_not_a_loop() {
        let mut bytes = message(NLMSG_NOOP, 0, 1, &[1, 2, 3, 4]);
        bytes.truncate(18);
        let parts: Vec<_> = messages(&bytes).collect();
        assert_eq!(parts.len(), 1);
        assert!(parts[0].is_err());
    }

    #[test]
    fn undecodable_object_is_skipped_in_a_dump_and_an_error_in_a_get() {
        let mut datagram = message(16 /* RTM_NEWLINK */, 0, 1, &[0; 3]);
        datagram.extend(message(NLMSG_DONE, 0, 1, &0i32.to_ne_bytes()));
        assert!(Reply { dump: true, ..Reply::default() }.absorb(&datagram, 1).unwrap());
        let failure = Reply::default().absorb(&datagram, 1).unwrap_err();
        assert_eq!(failure.cause.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn error_text_has_action_cause_and_the_kernels_words() {
        let failure =
            Failure { cause: io::Error::from_raw_os_error(libc::EEXIST), detail: Some("name taken".into()) };
        let error = failure.during("create link ov0".into());
        assert_eq!(error.errno(), Errno::EEXIST);
        assert_eq!(error.to_string(), "create link ov0: File exists (os error 17) (name taken)");
    }
}
