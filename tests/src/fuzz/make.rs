//! Packets that nobody sends: put together from parts that mean something to the programs, then damaged.

use overlay_common::reason::Hook;

use crate::{
    bed::{
        ANCHOR_MAC, Both, Devices, GATEWAY, Mac, NEXT_HOP_MAC, NO_POD, NOWHERE, OTHER_POD, OTHER_POD_MAC,
        PEER, PEER_MAC, PEER_V6, PLAIN_POD, POD, POD_MAC, PORT, REMOTE_POD, STRANGER, UNREADY_POD,
        UNRESOLVED, UNRESOLVED_POD, V6_POD, VNI, VTEP, WIRE_MAC, WORLD,
    },
    random::Random,
};

/// A packet, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) hook: Hook,
    pub(crate) device: u32,
    pub(crate) bytes: Vec<u8>,
    /// Segment size and number of segments.
    pub(crate) gso: Option<(u32, u32)>,
}

/// The least and the most that every kernel takes for a run, bytes: more than an Ethernet header, and less than a page with what
/// else is on it.
pub(crate) const LEAST: usize = 15;
const MOST: usize = 3400;

const ADDRESSES: [Both; 16] = [
    POD,
    OTHER_POD,
    REMOTE_POD,
    V6_POD,
    REMOTE_POD,
    V6_POD,
    PLAIN_POD,
    UNRESOLVED_POD,
    UNREADY_POD,
    NO_POD,
    GATEWAY,
    NOWHERE,
    WORLD,
    PEER,
    PEER_V6,
    VTEP,
];
const OUTER: [Both; 5] = [PEER, PEER_V6, UNRESOLVED, STRANGER, VTEP];
const MACS: [Mac; 7] = [ANCHOR_MAC, POD_MAC, OTHER_POD_MAC, PEER_MAC, WIRE_MAC, NEXT_HOP_MAC, [0xff; 6]];
const HOPS: [u8; 6] = [64, 64, 255, 2, 1, 0];
const NUMBERS: [u16; 12] = [0, 1, 5, 20, 40, 0x7fff, 0x8000, 0xfffe, 0xffff, 0x0800, 0x86dd, PORT];

/// Makes packets for one hook.
pub(crate) struct Maker {
    pub(crate) random: Random,
    pub(crate) devices: Devices,
}

/// Family of an IP header.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    V4,
    V6,
}

impl Maker {
    /// The next one.
    pub(crate) fn packet(&mut self, hook: Hook) -> Packet {
        let mut bytes = match hook {
            Hook::FromPod => self.sent_by_pod(),
            Hook::ToPod => self.routed(ANCHOR_MAC, POD_MAC),
            Hook::FromHost => self.routed(ANCHOR_MAC, ANCHOR_MAC),
            Hook::FromTunnel => self.routed(PEER_MAC, ANCHOR_MAC),
            Hook::FromWire | Hook::XdpWire => self.off_the_wire(),
        };
        if self.random.one_in(3) {
            for _ in 0..=self.random.below(4) {
                self.damage(&mut bytes);
            }
        }
        let len = bytes.len().clamp(LEAST, MOST);
        bytes.resize(len, 0);
        let device = match hook {
            Hook::FromPod | Hook::ToPod => self.devices.pod,
            Hook::FromHost | Hook::FromTunnel => self.devices.anchor,
            Hook::FromWire | Hook::XdpWire => self.devices.wire,
        };
        let gso = (hook != Hook::XdpWire && self.random.one_in(8)).then(|| {
            let size = self.random.pick(&[1_u32, 8, 100, 536, 1398, 1410, 9000, 65_535]);
            (size, self.random.pick(&[1_u32, 2, 44, 1000]))
        });
        Packet { hook, device, bytes, gso }
    }

    fn version(&mut self) -> Version {
        self.random.pick(&[Version::V4, Version::V6])
    }

    fn address(&mut self) -> Both {
        self.random.pick(&ADDRESSES)
    }

    fn sent_by_pod(&mut self) -> Vec<u8> {
        match self.random.below(16) {
            0 => self.arp(),
            1 => self.neighbour_discovery(POD_MAC),
            2 => self.anything(),
            _ => {
                let version = self.version();
                let src = if self.random.one_in(12) { self.address() } else { POD };
                let dst = self.address();
                let ip = self.ip(version, src, dst, 1);
                let from = if self.random.one_in(16) { self.random.pick(&MACS) } else { POD_MAC };
                self.frame(ANCHOR_MAC, from, version, &ip)
            }
        }
    }

    fn routed(&mut self, from: Mac, to: Mac) -> Vec<u8> {
        match self.random.below(16) {
            0 => self.arp(),
            1 => self.neighbour_discovery(from),
            2 => self.anything(),
            _ => {
                let version = self.version();
                let (src, dst) = (self.address(), self.address());
                let ip = self.ip(version, src, dst, 1);
                self.frame(to, from, version, &ip)
            }
        }
    }

    fn off_the_wire(&mut self) -> Vec<u8> {
        match self.random.below(16) {
            0 => self.arp(),
            1 => self.neighbour_discovery(NEXT_HOP_MAC),
            2 => self.anything(),
            3 => {
                let version = self.version();
                let (src, dst) = (self.address(), self.address());
                let ip = self.ip(version, src, dst, 1);
                self.frame(WIRE_MAC, NEXT_HOP_MAC, version, &ip)
            }
            _ => {
                let version = self.version();
                let tunnel = self.tunnel(version);
                let to = if self.random.one_in(24) { self.random.pick(&MACS) } else { WIRE_MAC };
                self.frame(to, NEXT_HOP_MAC, version, &tunnel)
            }
        }
    }

    fn anything(&mut self) -> Vec<u8> {
        let len = self.random.below(200);
        self.random.bytes(len)
    }

    /// A frame, sometimes with a VLAN tag or another type.
    fn frame(&mut self, to: Mac, from: Mac, version: Version, payload: &[u8]) -> Vec<u8> {
        let mut bytes = [to, from].concat();
        if self.random.one_in(32) {
            bytes.extend([0x81, 0x00, 0x00, self.random.byte() & 7]);
        }
        let kind: u16 = match version {
            _ if self.random.one_in(64) => self.random.pick(&NUMBERS),
            Version::V4 => 0x0800,
            Version::V6 => 0x86dd,
        };
        bytes.extend(kind.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    fn ip(&mut self, version: Version, src: Both, dst: Both, depth: u8) -> Vec<u8> {
        let (protocol, payload) = self.transport(version, src, dst, depth);
        match version {
            Version::V4 => self.ipv4(src, dst, protocol, &payload),
            Version::V6 => self.ipv6(src, dst, protocol, &payload),
        }
    }

    /// Protocol and payload.
    fn transport(&mut self, version: Version, src: Both, dst: Both, depth: u8) -> (u8, Vec<u8>) {
        let random = &mut self.random;
        let len = random.pick(&[0, 1, 18, 64, 200, 1372, 1392, 1460]);
        let ports = [random.pick(&[40_000_u16, 53, 80]), random.pick(&[80_u16, 53, 443, PORT])];
        let mut bytes: Vec<u8> = ports.into_iter().flat_map(u16::to_be_bytes).collect();
        let protocol = match random.below(8) {
            0..=2 => {
                bytes.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, random.byte(), 0x04, 0, 0, 0, 0, 0]);
                6
            }
            3 | 4 => {
                bytes.extend(((8 + len) as u16).to_be_bytes());
                bytes.extend([0, 0]);
                17
            }
            5 => {
                // Echo, or an error about another packet.
                let error = random.one_in(2) && depth > 0;
                let kinds: &[u8] = if version == Version::V4 { &[3, 11, 12] } else { &[1, 2, 3, 4] };
                let echo = if version == Version::V4 { 8 } else { 128 };
                bytes = vec![if error { random.pick(kinds) } else { echo }, 0, 0, 0, 0, 0, 0, 1];
                if error {
                    let about = self.ip(version, dst, src, depth - 1);
                    bytes.extend(about);
                }
                if version == Version::V4 { 1 } else { 58 }
            }
            6 => {
                bytes.extend([0, 0, 0, 1, 0, 0, 0, 0]);
                132
            }
            _ => random.byte(),
        };
        bytes.extend(self.random.bytes(len));
        (protocol, bytes)
    }

    fn ipv4(&mut self, src: Both, dst: Both, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let random = &mut self.random;
        let options = if random.one_in(10) { random.below(11) * 4 } else { 0 };
        let total = 20 + options + payload.len();
        let fragment: u16 = if random.one_in(8) {
            random.pick(&[0x2000, 0x2001, 0x0001, 0x00b9, 0x1fff])
        } else {
            random.pick(&[0x4000, 0])
        };
        let mut bytes = vec![0x45 + (options / 4) as u8, random.byte()];
        bytes.extend((total as u16).to_be_bytes());
        bytes.extend([random.byte(), random.byte()]);
        bytes.extend(fragment.to_be_bytes());
        bytes.extend([random.pick(&HOPS), protocol, 0, 0]);
        bytes.extend(src.v4.octets());
        bytes.extend(self.destination4(dst));
        let options = self.random.bytes(options);
        bytes.extend(options);
        let sum = !fold(sum(&bytes));
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    fn destination4(&mut self, dst: Both) -> [u8; 4] {
        match self.random.below(40) {
            0 => [224, 0, 0, 1],
            1 => [255; 4],
            2 => [0; 4],
            3 => [127, 0, 0, 1],
            _ => dst.v4.octets(),
        }
    }

    fn ipv6(&mut self, src: Both, dst: Both, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let random = &mut self.random;
        let mut next = protocol;
        let mut extensions = Vec::new();
        if random.one_in(5) {
            let most = random_depth(random.byte());
            for _ in 0..=random.below(most) {
                let (kind, header) = match random.below(5) {
                    0 => (0, vec![next, 0, 1, 4, 0, 0, 0, 0]),
                    1 => (60, vec![next, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
                    2 => (43, vec![next, 0, 0, 0, 0, 0, 0, 0]),
                    3 => {
                        let offset: u16 = random.pick(&[0, 1, 8, 1448, 0xfff8]);
                        let mut header = vec![next, 0];
                        header.extend(offset.to_be_bytes());
                        header.extend([0, 0, 0, 7]);
                        (44, header)
                    }
                    _ => {
                        (51, vec![next, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9])
                    }
                };
                next = kind;
                extensions = [header, extensions].concat();
            }
        }
        let class = random.byte();
        let mut bytes =
            vec![0x60 | class >> 4, class << 4 | random.byte() & 15, random.byte(), random.byte()];
        bytes.extend(((extensions.len() + payload.len()) as u16).to_be_bytes());
        bytes.extend([next, random.pick(&HOPS)]);
        bytes.extend(match random.below(40) {
            0 => LINK_LOCAL,
            1 => [0; 16],
            _ => src.v6.octets(),
        });
        bytes.extend(match random.below(40) {
            0 => ALL_NODES,
            1 => LINK_LOCAL,
            2 => [0; 16],
            _ => dst.v6.octets(),
        });
        bytes.extend(extensions);
        bytes.extend(payload);
        bytes
    }

    /// An outer packet from its IP header on, with a frame inside.
    fn tunnel(&mut self, version: Version) -> Vec<u8> {
        // Mostly what a node may send, so that the checks behind that are reached.
        let (own, pod) = if version == Version::V4 { (PEER, REMOTE_POD) } else { (PEER_V6, V6_POD) };
        let outer = if self.random.one_in(8) { self.random.pick(&OUTER) } else { own };
        let inner_version = self.version();
        let src = match self.random.below(12) {
            0 => self.address(),
            1 => outer,
            _ => pod,
        };
        let dst = if self.random.one_in(4) { self.address() } else { POD };
        let inner = self.ip(inner_version, src, dst, 1);
        let frame = self.frame(ANCHOR_MAC, PEER_MAC, inner_version, &inner);
        let random = &mut self.random;
        let port = if random.one_in(24) { random.pick(&NUMBERS) } else { PORT };
        let flags = if random.one_in(24) { random.byte() } else { 8 };
        let vni = if random.one_in(24) { random.byte().into() } else { VNI };
        let mut bytes = 50_000_u16.to_be_bytes().to_vec();
        bytes.extend(port.to_be_bytes());
        bytes.extend(((16 + frame.len()) as u16).to_be_bytes());
        bytes.extend(random.pick(&[[0, 0], [0, 0], [0xab, 0xcd]]));
        bytes.extend([flags, 0, 0, 0]);
        bytes.extend((vni << 8).to_be_bytes());
        bytes.extend(frame);
        match version {
            Version::V4 => self.ipv4(outer, VTEP, 17, &bytes),
            Version::V6 => self.ipv6(outer, VTEP, 17, &bytes),
        }
    }

    fn arp(&mut self) -> Vec<u8> {
        let random = &mut self.random;
        let mut bytes = [[0xff; 6], POD_MAC].concat();
        bytes.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, random.pick(&[1, 2, 9])]);
        bytes.extend(random.pick(&[POD_MAC, POD_MAC, OTHER_POD_MAC]));
        bytes.extend(random.pick(&[POD, POD, OTHER_POD, GATEWAY]).v4.octets());
        bytes.extend([0; 6]);
        bytes.extend(random.pick(&[GATEWAY, OTHER_POD, WORLD]).v4.octets());
        bytes
    }

    /// Solicitations, advertisements (routers' as well) and redirects.
    fn neighbour_discovery(&mut self, from: Mac) -> Vec<u8> {
        let random = &mut self.random;
        let mut bytes = [ANCHOR_MAC, from].concat();
        let message =
            [vec![random.pick(&[133, 134, 135, 136, 137, 143]), 0, 0, 0, 0, 0, 0, 0], random.bytes(24)]
                .concat();
        bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, message.len() as u8, 58, 255]);
        bytes.extend(random.pick(&[LINK_LOCAL, POD.v6.octets(), [0; 16]]));
        bytes.extend(random.pick(&[ALL_NODES, LINK_LOCAL, GATEWAY.v6.octets(), REMOTE_POD.v6.octets()]));
        bytes.extend(message);
        bytes
    }

    fn damage(&mut self, bytes: &mut Vec<u8>) {
        let random = &mut self.random;
        if bytes.is_empty() {
            return;
        }
        // Headers are what matters.
        let reach = bytes.len().min(if random.one_in(4) { 2000 } else { 130 });
        let at = random.below(reach);
        match random.below(7) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.byte(),
            2 => bytes[at] = random.pick(&[0, 1, 0x7f, 0x80, 0xff]),
            3 => {
                let number = random.pick(&NUMBERS).to_be_bytes();
                bytes.iter_mut().skip(at).zip(number).for_each(|(byte, new)| *byte = new);
            }
            4 => bytes.truncate(at),
            5 => {
                let len = random.below(64);
                let more = random.bytes(len);
                bytes.extend(more);
            }
            _ => {
                let len = random.below(20).min(bytes.len() - at);
                bytes.drain(at..at + len);
            }
        }
    }
}

const LINK_LOCAL: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5];
const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// Mostly few headers, sometimes more than anybody follows.
const fn random_depth(byte: u8) -> usize {
    if byte < 16 { 12 } else { 3 }
}

/// The sum of 16-bit words, not folded (RFC 1071).
pub(crate) fn sum(bytes: &[u8]) -> u32 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    bytes.chunks(2).map(word).sum()
}

/// The sum in 16 bits.
pub(crate) const fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
