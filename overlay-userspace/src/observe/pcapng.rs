//! Packets as a capture file: pcapng (draft-ietf-opsawg-pcapng), which Wireshark, tshark and tcpdump read.
//!
//! One section in the byte order of this machine; an interface for each device, described when its first packet comes; a
//! packet carries its time in nanoseconds, its direction and a comment.

use std::{
    collections::HashMap,
    io::{self, Write},
    time::Duration,
};

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
/// `LINKTYPE_ETHERNET`.
const ETHERNET: u16 = 1;

/// Options: the end, a comment (any block); of a section: the program; of an interface: name, resolution of times; of a
/// packet: flags.
const END: u16 = 0;
const COMMENT: u16 = 1;
const USER_APPLICATION: u16 = 4;
const INTERFACE_NAME: u16 = 2;
const TIME_RESOLUTION: u16 = 9;
const PACKET_FLAGS: u16 = 2;

/// Times are in units of 10^-9 s.
const NANOSECONDS: u8 = 9;
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// Longest option: its length has 16 bits.
const OPTION_MAX: usize = u16::MAX as usize;

/// A packet to be written.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Since 1970.
    pub time: Duration,
    /// The device.
    pub interface: &'a str,
    /// Sent by that device, or received.
    pub outbound: bool,
    /// What there is of it.
    pub bytes: &'a [u8],
    /// How long it was.
    pub len: u32,
    /// Anything; empty is none.
    pub comment: &'a str,
}

/// A capture file that is being written.
pub struct PcapNg<W> {
    out: W,
    snap: u32,
    interfaces: HashMap<String, u32>,
}

impl<W: Write> PcapNg<W> {
    /// Begins a file of packets of which at most `snap` bytes are kept; 0 is any number.
    pub fn new(mut out: W, snap: u32) -> io::Result<Self> {
        let mut body = Block::default();
        body.word(BYTE_ORDER);
        // Version 1.0.
        body.bytes(&1_u16.to_ne_bytes());
        body.bytes(&0_u16.to_ne_bytes());
        // The length of the section is not known.
        body.bytes(&u64::MAX.to_ne_bytes());
        body.option(USER_APPLICATION, concat!("overlay ", env!("CARGO_PKG_VERSION")).as_bytes());
        body.end();
        body.write(&mut out, SECTION_HEADER)?;
        Ok(Self { out, snap, interfaces: HashMap::new() })
    }

    fn interface(&mut self, name: &str) -> io::Result<u32> {
        if let Some(index) = self.interfaces.get(name) {
            return Ok(*index);
        }
        let mut body = Block::default();
        body.bytes(&ETHERNET.to_ne_bytes());
        body.bytes(&0_u16.to_ne_bytes());
        body.word(self.snap);
        body.option(INTERFACE_NAME, name.as_bytes());
        body.option(TIME_RESOLUTION, &[NANOSECONDS]);
        body.end();
        body.write(&mut self.out, INTERFACE_DESCRIPTION)?;
        let index = self.interfaces.len() as u32;
        self.interfaces.insert(name.to_owned(), index);
        Ok(index)
    }

    /// Appends a packet.
    pub fn write(&mut self, packet: &Packet<'_>) -> io::Result<()> {
        let Packet { time, interface, outbound, bytes, len, comment } = *packet;
        let interface = self.interface(interface)?;
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let mut body = Block::default();
        body.word(interface);
        body.word((time >> 32) as u32);
        body.word(time as u32);
        body.word(bytes.len() as u32);
        body.word(len);
        body.padded(bytes);
        body.option(PACKET_FLAGS, &(if outbound { OUTBOUND } else { INBOUND }).to_ne_bytes());
        if !comment.is_empty() {
            body.option(COMMENT, comment.as_bytes());
        }
        body.end();
        body.write(&mut self.out, ENHANCED_PACKET)
    }

    /// Writes out what is buffered.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The body of a block.
#[derive(Default)]
struct Block(Vec<u8>);

impl Block {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn word(&mut self, word: u32) {
        self.bytes(&word.to_ne_bytes());
    }

    /// To a multiple of four.
    fn padded(&mut self, bytes: &[u8]) {
        self.bytes(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn option(&mut self, code: u16, value: &[u8]) {
        let value = value.get(..OPTION_MAX).unwrap_or(value);
        self.bytes(&code.to_ne_bytes());
        self.bytes(&(value.len() as u16).to_ne_bytes());
        self.padded(value);
    }

    fn end(&mut self) {
        self.option(END, &[]);
    }

    /// In one piece, so that a reader of a pipe never waits for the rest of a block.
    fn write(self, out: &mut impl Write, kind: u32) -> io::Result<()> {
        let len = (self.0.len() + 12) as u32;
        let block = [&kind.to_ne_bytes()[..], &len.to_ne_bytes(), &self.0, &len.to_ne_bytes()].concat();
        out.write_all(&block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_whole_words_and_say_their_length_twice() {
        let mut file = Vec::new();
        let mut writer = PcapNg::new(&mut file, 128).unwrap();
        for (interface, comment) in [("eth0", "odd"), ("eth0", ""), ("overlay.1", "dropped: no_node")] {
            let packet = Packet {
                time: Duration::new(1_700_000_000, 7),
                interface,
                outbound: true,
                bytes: &[1, 2, 3, 4, 5],
                len: 99,
                comment,
            };
            writer.write(&packet).unwrap();
        }
        let word = |at: usize| u32::from_ne_bytes(file[at..at + 4].try_into().unwrap());
        let (mut at, mut kinds) = (0, Vec::new());
        while at < file.len() {
            let len = word(at + 4) as usize;
            assert_eq!(len % 4, 0);
            assert_eq!(word(at + len - 4) as usize, len);
            kinds.push(word(at));
            at += len;
        }
        assert_eq!(kinds, [SECTION_HEADER, INTERFACE_DESCRIPTION, 6, 6, INTERFACE_DESCRIPTION, 6]);
        let text = String::from_utf8_lossy(&file);
        assert!(text.contains("overlay.1") && text.contains("dropped: no_node"));
    }
}
