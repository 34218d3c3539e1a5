//! The probe on the wire: one UDP datagram there, one of the same size back. All numbers in network byte order.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic, `OVMP` |
//! | 4 | 1 | version, 1 |
//! | 5 | 1 | kind: 1 request, 2 answer |
//! | 6 | 2 | entries that follow; 0 in a request |
//! | 8 | 8 | nonce, repeated in the answer |
//! | 16 | 8 | the asking node's clock when it was sent, in nanoseconds; repeated in the answer |
//! | 24 | 8 | nanoseconds from the arrival of the request to the answer; 0 in a request |
//! | 32 | 4 | the first entry that is asked for, or that follows |
//! | 36 | 4 | entries in the whole row of the answering node; 0 in a request |
//! | 40 | 26 each | entries: node address (16), latency in µs (4), loss in ‰ (2), age in s (2), state (1), 0 (1) |
//! | | | zeros up to the size that was asked |
//!
//! An answer is exactly as long as its request, so nobody gains by asking with somebody else's address. It carries as much
//! of the answering node's row (what that node knows of its peers) as fits; a request that has no room gets none.
//!
//! Pure: no clock, no socket.

use std::time::Duration;

use bytes::{Buf as _, BufMut as _};
use overlay_common::maps::Addr;

const MAGIC: u32 = u32::from_be_bytes(*b"OVMP");
const VERSION: u8 = 1;
const REQUEST: u8 = 1;
const ANSWER: u8 = 2;

/// Bytes of a request or answer without entries: the shortest there is.
pub const HEADER: usize = 40;
/// Bytes of an entry.
pub const ENTRY: usize = 26;
/// The longest UDP payload over IPv4.
pub const LONGEST: usize = 65_535 - 20 - 8;
/// The age of an answer that has never come.
const NEVER: u16 = u16::MAX;

/// What is known of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Not asked yet, or the first answer is still out.
    Unknown,
    /// It answers.
    Up,
    /// The way is there and back, but nobody answers on the port: no agent runs, or it takes no part.
    NoAgent,
    /// The last probes have been lost.
    Lost,
    /// It is no overlay node (it has a MAC of its own in the list of nodes), and is not asked.
    Foreign,
}

impl State {
    const ALL: [Self; 5] = [Self::Unknown, Self::Up, Self::NoAgent, Self::Lost, Self::Foreign];

    /// As in metrics and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::NoAgent => "no_agent",
            Self::Lost => "lost",
            Self::Foreign => "foreign",
        }
    }
}

/// One peer as a node knows it: a cell of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The peer's tunnel address.
    pub node: Addr,
    /// What is known of it.
    pub state: State,
    /// Smoothed round trip; `None` before the first answer.
    pub latency: Option<Duration>,
    /// Lost of the last probes, in thousandths.
    pub loss: u16,
    /// How long ago it answered, in whole seconds up to about 18 hours; `None` when it never has.
    pub age: Option<Duration>,
}

/// What is repeated or told by both kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Tells answers apart.
    pub nonce: u64,
    /// Nanoseconds of a clock that only the asking node reads.
    pub sent: u64,
    /// The first entry of the row that is wanted.
    pub offset: u32,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// As asked.
    pub request: Request,
    /// How long the request lay at the answering node.
    pub held: Duration,
    /// How long the whole row is.
    pub total: u32,
    /// The part of it that had room.
    pub entries: Vec<Entry>,
}

/// A datagram that is one of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    /// Somebody asks.
    Request(Request),
    /// Somebody answers.
    Answer(Answer),
}

/// How many entries a datagram of this size has room for.
pub const fn room(size: usize) -> usize {
    size.saturating_sub(HEADER) / ENTRY
}

fn header(out: &mut Vec<u8>, kind: u8, count: u16, request: Request, held: u64, total: u32) {
    out.put_u32(MAGIC);
    out.put_u8(VERSION);
    out.put_u8(kind);
    out.put_u16(count);
    out.put_u64(request.nonce);
    out.put_u64(request.sent);
    out.put_u64(held);
    out.put_u32(request.offset);
    out.put_u32(total);
}

/// A request of `size` bytes, at least [`HEADER`] and at most [`LONGEST`].
pub fn request(request: Request, size: usize) -> Vec<u8> {
    let size = size.clamp(HEADER, LONGEST);
    let mut out = Vec::with_capacity(size);
    header(&mut out, REQUEST, 0, request, 0, 0);
    out.resize(size, 0);
    out
}

/// The answer to a request that was `size` bytes long. `row` are the entries from `request.offset` on, of `total`.
pub fn answer(
    request: Request,
    size: usize,
    held: Duration,
    row: impl Iterator<Item = Entry>,
    total: u32,
) -> Vec<u8> {
    let entries: Vec<Entry> = row.take(room(size)).collect();
    let mut out = Vec::with_capacity(size);
    let held = u64::try_from(held.as_nanos()).unwrap_or(u64::MAX);
    header(&mut out, ANSWER, entries.len() as u16, request, held, total);
    for Entry { node, state, latency, loss, age } in entries {
        out.put_slice(&node.bytes);
        // 0 is "never"; nothing is as fast as that.
        out.put_u32(
            latency.map_or(0, |latency| u32::try_from(latency.as_micros()).unwrap_or(u32::MAX).max(1)),
        );
        out.put_u16(loss);
        out.put_u16(age.map_or(NEVER, |age| u16::try_from(age.as_secs()).unwrap_or(NEVER).min(NEVER - 1)));
        out.put_u8(state as u8);
        out.put_u8(0);
    }
    out.resize(size, 0);
    out
}

/// Reads a datagram; `None` where it is not one of this version.
pub fn parse(mut bytes: &[u8]) -> Option<Packet> {
    if bytes.len() < HEADER || bytes.get_u32() != MAGIC || bytes.get_u8() != VERSION {
        return None;
    }
    let (kind, count) = (bytes.get_u8(), usize::from(bytes.get_u16()));
    let (nonce, sent, held) = (bytes.get_u64(), bytes.get_u64(), bytes.get_u64());
    let (offset, total) = (bytes.get_u32(), bytes.get_u32());
    let request = Request { nonce, sent, offset };
    match kind {
        REQUEST => Some(Packet::Request(request)),
        ANSWER if count <= bytes.len() / ENTRY => {
            let entries = (0..count).map(|_| entry(&mut bytes)).collect::<Option<_>>()?;
            Some(Packet::Answer(Answer { request, held: Duration::from_nanos(held), total, entries }))
        }
        _ => None,
    }
}

/// The next entry; the caller has checked that there is one.
fn entry(bytes: &mut &[u8]) -> Option<Entry> {
    let mut node = Addr::UNSPECIFIED;
    bytes.copy_to_slice(&mut node.bytes);
    let (latency, loss, age) = (bytes.get_u32(), bytes.get_u16(), bytes.get_u16());
    let state = *State::ALL.get(usize::from(bytes.get_u8()))?;
    bytes.advance(1);
    Some(Entry {
        node,
        state,
        latency: (latency != 0).then(|| Duration::from_micros(latency.into())),
        loss: loss.min(1000),
        age: (age != NEVER).then(|| Duration::from_secs(age.into())),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let entry = (any::<[u8; 4]>(), 0..5_usize, 0..100_000_u32, 0..=1000_u16, any::<u16>()).prop_map(
            |(node, state, latency, loss, age)| Entry {
                node: Addr::v4(node),
                state: State::ALL[state],
                latency: (latency != 0).then(|| Duration::from_micros(latency.into())),
                loss,
                age: (age != NEVER).then(|| Duration::from_secs(age.into())),
            },
        );
        prop::collection::vec(entry, 0..40)
    }

    proptest! {
        #[test]
        fn an_answer_is_as_long_as_its_request_and_says_what_fits(
            nonce: u64, sent: u64, offset: u32, row in entries(), size in 0..2000_usize, held in 0..u64::MAX / 2,
        ) {
            let asked = Request { nonce, sent, offset };
            let bytes = request(asked, size);
            prop_assert_eq!(bytes.len(), size.max(HEADER));
            prop_assert_eq!(parse(&bytes), Some(Packet::Request(asked)));

            let held = Duration::from_nanos(held);
            let answered = answer(asked, bytes.len(), held, row.iter().copied(), row.len() as u32);
            prop_assert_eq!(answered.len(), bytes.len());
            let entries = row[..row.len().min(room(size))].to_vec();
            let wanted = Answer { request: asked, held, total: row.len() as u32, entries };
            prop_assert_eq!(parse(&answered), Some(Packet::Answer(wanted)));
        }

        #[test]
        fn no_datagram_is_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..300), flip in 0..300_usize) {
            let _ = parse(&bytes);
            let row = [Entry { node: Addr::v4([192, 0, 2, 1]), state: State::Up, latency: None, loss: 0, age: None }];
            let asked = Request { nonce: 1, sent: 2, offset: 0 };
            let mut ours = answer(asked, 120, Duration::ZERO, row.into_iter(), 1);
            if let (Some(byte), Some(other)) = (ours.get_mut(flip), bytes.first()) {
                *byte ^= *other;
            }
            let _ = parse(&ours);
        }
    }

    #[test]
    fn what_is_not_ours_is_not_read() {
        let good = request(Request { nonce: 1, sent: 2, offset: 0 }, HEADER);
        assert!(parse(&good).is_some());
        assert_eq!(parse(&good[..HEADER - 1]), None);
        for (at, why) in [(0, "magic"), (4, "version"), (5, "kind")] {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            assert_eq!(parse(&bad), None, "{why}");
        }
        // More entries than there are bytes.
        let mut bad =
            answer(Request { nonce: 1, sent: 2, offset: 0 }, HEADER, Duration::ZERO, [].into_iter(), 0);
        bad[7] = 1;
        assert_eq!(parse(&bad), None);
    }
}
