//! What may become of a packet. Reads packets on its own, from the RFCs, without the code under test.
//!
//! Not an oracle of the verdict, which would be the programs once more, but of everything around it: a verdict has one of the
//! forms that its hook has, the packet that comes out is exactly the one that went in but for what that form changes, and each
//! form is counted in one way.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use overlay_common::{counter::Path, reason::Hook};
use overlay_userspace::datapath::run::Verdict;

use crate::{
    bed::{
        ANCHOR_MAC, Bed, GATEWAY, NEXT_HOP_MAC, OTHER_POD, OTHER_POD_MAC, POD, POD_MAC, PORT, VNI, VTEP,
        WIRE_MAC,
    },
    make::{Packet, fold, sum},
};

/// What became of a packet, as the counters see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Counted under one reason.
    Dropped,
    /// Counted under this path.
    By(Path),
    /// The kernel's, without a count.
    Uncounted,
    /// The kernel has refused to run the program.
    NotRun,
}

/// Bytes of an Ethernet header.
const ETH: usize = 14;
/// Of UDP, VXLAN and the inner Ethernet header.
const BEHIND_IP: usize = 8 + 8 + ETH;

/// An IP packet, as far as it is looked at.
#[derive(Clone, Copy)]
struct Ip<'a>(&'a [u8]);

impl<'a> Ip<'a> {
    /// Behind an Ethernet header that says which version it is.
    fn in_frame(frame: &'a [u8]) -> Option<Self> {
        let bytes = frame.get(ETH..)?;
        match frame.get(12..ETH)? {
            [8, 0] if bytes.len() >= 20 => Some(Self(bytes)),
            [0x86, 0xdd] if bytes.len() >= 40 => Some(Self(bytes)),
            _ => None,
        }
    }
}

/// A header's fields that are the same in both versions.
struct Fields {
    len: usize,
    hops: u8,
    class: u8,
    src: IpAddr,
    dst: IpAddr,
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

fn fields(frame: &[u8]) -> Option<Fields> {
    let ip = Ip::in_frame(frame)?;
    let bytes = ip.0;
    Some(if frame[12] == 8 {
        Fields {
            len: 20,
            hops: bytes[8],
            class: bytes[1],
            src: Ipv4Addr::from(array::<4>(bytes, 12)).into(),
            dst: Ipv4Addr::from(array::<4>(bytes, 16)).into(),
        }
    } else {
        Fields {
            len: 40,
            hops: bytes[7],
            class: bytes[0] << 4 | bytes[1] >> 4,
            src: Ipv6Addr::from(array::<16>(bytes, 8)).into(),
            dst: Ipv6Addr::from(array::<16>(bytes, 24)).into(),
        }
    })
}

/// The frame one hop further, and with another traffic class where one is given. The checksum of an IPv4 header, right or
/// wrong, follows by as much as the header changes (RFC 1624).
fn one_hop(frame: &[u8], class: Option<u8>) -> Option<Vec<u8>> {
    let before = fields(frame)?;
    let mut next = frame.to_vec();
    let v4 = frame[12] == 8;
    let class = class.unwrap_or(before.class);
    if v4 {
        next[ETH + 1] = class;
        next[ETH + 8] = before.hops.wrapping_sub(1);
    } else {
        next[ETH] = next[ETH] & 0xf0 | class >> 4;
        next[ETH + 1] = next[ETH + 1] & 0x0f | class << 4;
        next[ETH + 7] = before.hops.wrapping_sub(1);
    }
    Some(next)
}

/// Whether two frames are the same but for the checksum of an IPv4 header, which has kept its error.
fn same(got: &[u8], wanted: &[u8], before: &[u8]) -> Result<(), String> {
    if got.len() != wanted.len() {
        return Err(format!("{} bytes came out, {} were wanted", got.len(), wanted.len()));
    }
    let v4 = wanted[12..ETH] == [8, 0];
    let checksum = ETH + 10..ETH + 12;
    let skip = |at: &usize| v4 && checksum.contains(at);
    if let Some(at) = (0..got.len()).filter(|at| !skip(at)).find(|at| got[*at] != wanted[*at]) {
        return Err(format!("byte {at} is {:02x}, not {:02x}: {}", got[at], wanted[at], hex(got)));
    }
    if v4 {
        let error = |frame: &[u8]| fold(sum(&frame[ETH..ETH + 20]));
        let (is, was) = (error(got), error(before));
        // Zero has two forms in one's complement.
        if is != was && ![is, was].iter().all(|sum| [0, 0xffff].contains(sum)) {
            return Err(format!("the sum of the IPv4 header is {is:04x} and was {was:04x}: {}", hex(got)));
        }
    }
    Ok(())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// Says what became of a packet, or what is wrong with that.
pub(crate) fn judge(bed: &Bed, packet: &Packet, verdict: Verdict, out: &[u8]) -> Result<Fate, String> {
    let input = &packet.bytes;
    let unchanged = || {
        if out == input { Ok(()) } else { Err(format!("the packet was changed: {}", hex(out))) }
    };
    match (packet.hook, verdict) {
        (
            Hook::FromPod | Hook::FromHost | Hook::FromTunnel | Hook::FromWire | Hook::XdpWire,
            Verdict::Drop,
        ) => {
            unchanged()?;
            Ok(Fate::Dropped)
        }
        (Hook::FromWire | Hook::XdpWire, Verdict::Pass) => {
            unchanged()?;
            Ok(Fate::Uncounted)
        }
        (Hook::ToPod, Verdict::Pass) => {
            unchanged()?;
            Ok(Fate::By(Path::StackToPod))
        }
        (Hook::FromPod, Verdict::Pass) => {
            unchanged()?;
            sender_is_the_pod(input)?;
            Ok(Fate::By(Path::PodToStack))
        }
        (Hook::FromPod, Verdict::Redirect) => {
            sender_is_the_pod(input)?;
            from_pod(bed, input, out)
        }
        (Hook::FromHost, Verdict::Redirect) if answers(input, out) => told(bed, input, input, out, false),
        (Hook::FromHost, Verdict::Redirect) => tunnelled(bed, input, input, out),
        (Hook::FromHost, Verdict::Pass) => {
            let dst = fields(input).ok_or("no IP packet went to the anchor")?.dst;
            let (_, mac) = bed.way(dst).ok_or_else(|| format!("{dst} is on no other node"))?;
            same(out, &[&mac, &ANCHOR_MAC, &input[12..]].concat(), input)?;
            Ok(Fate::By(Path::EncapAnchor))
        }
        (Hook::FromWire, Verdict::Redirect) => from_wire(bed, input, out),
        // Without tunnel metadata, which no run has, nothing came out of a tunnel.
        (hook, verdict) => Err(format!("{} gave {verdict:?}", hook.name())),
    }
}

/// Only the pod's own packets go anywhere, and what is between it and its link.
fn sender_is_the_pod(frame: &[u8]) -> Result<(), String> {
    let Some(Fields { src, dst, .. }) = fields(frame) else {
        // ARP: its own sender is checked by the packet tables.
        return if frame[12..ETH] == [8, 6] && frame[6..12] == POD_MAC {
            Ok(())
        } else {
            Err("neither IP nor ARP of the pod".into())
        };
    };
    if src == IpAddr::from(POD.v4) || src == IpAddr::from(POD.v6) {
        return if frame[6..12] == POD_MAC { Ok(()) } else { Err("it was sent with another MAC".into()) };
    }
    let link_local = |ip: IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    let unspecified = matches!(src, IpAddr::V6(ip) if ip.is_unspecified());
    if (link_local(src) || unspecified) && (link_local(dst) || dst.is_multicast()) {
        return Ok(());
    }
    Err(format!("{src} is not the pod's, and went to {dst}"))
}

fn from_pod(bed: &Bed, input: &[u8], out: &[u8]) -> Result<Fate, String> {
    let before = fields(input).ok_or("no IP packet was redirected")?;
    if before.hops <= 1 {
        return Err(format!("a packet with {} hops left was redirected", before.hops));
    }
    let next = one_hop(input, None).ok_or("no IP packet was redirected")?;
    if fields(out).is_some_and(|out| [GATEWAY.v4.into(), IpAddr::from(GATEWAY.v6)].contains(&out.src)) {
        return told(bed, input, &next, out, true);
    }
    if out.len() > input.len() {
        return tunnelled(bed, input, &next, out);
    }
    for (pod, mac) in [(POD, POD_MAC), (OTHER_POD, OTHER_POD_MAC)] {
        if before.dst == IpAddr::from(pod.v4) || before.dst == IpAddr::from(pod.v6) {
            same(out, &[&mac, &ANCHOR_MAC, &next[12..]].concat(), input)?;
            return Ok(Fate::By(Path::Local));
        }
    }
    // Handed to the anchor, whose program counts it.
    bed.way(before.dst).ok_or_else(|| format!("{} is on no other node", before.dst))?;
    same(out, &next, input)?;
    Ok(Fate::Uncounted)
}

/// `out` tells the sender that `input`, by now `next`, is too long for the path to the node that it belongs to: what RFC 1191, 4
/// and RFC 4443, 3.2 say of it. A pod is told by its gateway, the stack by the packet's destination.
fn told(bed: &Bed, input: &[u8], next: &[u8], out: &[u8], pod: bool) -> Result<Fate, String> {
    let about = fields(input).ok_or("no IP packet was answered")?;
    let (vtep, _) = bed.way(about.dst).ok_or_else(|| format!("{} is on no other node", about.dst))?;
    let v4 = about.src.is_ipv4();
    if v4 && vtep.is_ipv4() && input[ETH + 6] & 0x40 == 0 {
        return Err("a packet that may be fragmented was answered".into());
    }
    let mtu: u16 = 1500 - if vtep.is_ipv4() { 50 } else { 70 };
    let [high, low] = mtu.to_be_bytes();
    let (whole, kind): (usize, [u8; 8]) =
        if v4 { (508, [3, 4, 0, 0, 0, 0, high, low]) } else { (1280, [2, 0, 0, 0, 0, 0, high, low]) };
    if out.len() != ETH + whole {
        return Err(format!("the answer has {} bytes, not {}", out.len(), ETH + whole));
    }
    let (ip, icmp) = out.split_at(ETH + about.len);
    let mac = if pod { POD_MAC } else { ANCHOR_MAC };
    let mut wanted = [&mac[..], &ANCHOR_MAC].concat();
    let len = (if v4 { whole } else { whole - about.len } as u16).to_be_bytes();
    if v4 {
        wanted.extend([8, 0, 0x45, 0xc0, len[0], len[1], 0, 0, 0x40, 0, 64, 1, ip[ETH + 10], ip[ETH + 11]]);
        if fold(sum(&ip[ETH..])) != 0xffff {
            return Err(format!("the IPv4 header's checksum is wrong: {}", hex(ip)));
        }
    } else {
        wanted.extend([0x86, 0xdd, 0x6c, 0, 0, 0, len[0], len[1], 58, 64]);
    }
    let gateway = if v4 { GATEWAY.v4.into() } else { IpAddr::from(GATEWAY.v6) };
    for address in [if pod { gateway } else { about.dst }, about.src] {
        match address {
            IpAddr::V4(address) => wanted.extend(address.octets()),
            IpAddr::V6(address) => wanted.extend(address.octets()),
        }
    }
    if ip != wanted {
        return Err(format!("the answer's headers are {}, not {}", hex(ip), hex(&wanted)));
    }
    let pseudo = if v4 { 0 } else { sum(&ip[ETH + 8..]) + u32::from(u16::from_be_bytes(len)) + 58 };
    if icmp[..2] != kind[..2] || icmp[4..8] != kind[4..] || fold(pseudo + sum(icmp)) != 0xffff {
        return Err(format!("the answer is {}, not {} with a checksum", hex(&icmp[..8]), hex(&kind)));
    }
    let quoted = ETH + icmp.len() - 8;
    same(&[&next[..ETH], &icmp[8..]].concat(), &next[..quoted], &input[..quoted])?;
    Ok(Fate::Dropped)
}

/// Whether what came out is an answer to the stack: only of one does the destination become the source.
fn answers(input: &[u8], out: &[u8]) -> bool {
    match (fields(input), fields(out)) {
        (Some(input), Some(out)) => (out.src, out.dst) == (input.dst, input.src),
        _ => false,
    }
}

/// `out` is `inner`, which `input` has become, in a tunnel packet to the node that it belongs to.
fn tunnelled(bed: &Bed, input: &[u8], inner: &[u8], out: &[u8]) -> Result<Fate, String> {
    let header = fields(inner).ok_or("no IP packet was encapsulated")?;
    let (vtep, mac) = bed.way(header.dst).ok_or_else(|| format!("{} is on no other node", header.dst))?;
    let (ip_len, ether_type) = if vtep.is_ipv4() { (20, [8, 0]) } else { (40, [0x86, 0xdd]) };
    let overhead = ip_len + BEHIND_IP;
    if out.len() != input.len() + overhead {
        return Err(format!("{} bytes came out of {}", out.len(), input.len()));
    }
    let (outer, rest) = out.split_at(ETH + ip_len);
    let (udp, frame) = rest.split_at(16);
    if outer[..6] != NEXT_HOP_MAC || outer[6..12] != WIRE_MAC {
        // Without a neighbour entry the kernel writes the MACs, after the program.
        let unresolved =
            [6, 12].into_iter().all(|end| outer[end - 6..end] == [0; 6] || outer[end - 6..end] == WIRE_MAC);
        if !unresolved {
            return Err(format!("the outer MACs are wrong: {}", hex(outer)));
        }
    }
    let payload = (input.len() - ETH + BEHIND_IP) as u16;
    let [source_high, source_low] = [udp[0], udp[1]];
    let source = u16::from_be_bytes([source_high, source_low]);
    let wanted = outer_header(&header, vtep, payload, outer);
    if outer[12..ETH] != ether_type || outer[ETH..] != wanted[..] {
        return Err(format!("the outer header is {}, not {}", hex(&outer[12..]), hex(&wanted)));
    }
    if source < 49_152 {
        return Err(format!("the outer source port is {source}"));
    }
    let vni = VNI.to_be_bytes();
    let head =
        [&[source_high, source_low], &PORT.to_be_bytes()[..], &payload.to_be_bytes(), &[0, 0]].concat();
    let wanted = [&head[..], &[8, 0, 0, 0, vni[1], vni[2], vni[3], 0]].concat();
    if udp != wanted {
        return Err(format!("UDP and VXLAN are {}, not {}", hex(udp), hex(&wanted)));
    }
    same(frame, &[&mac, &ANCHOR_MAC, &inner[12..]].concat(), input)?;
    Ok(Fate::By(Path::EncapNative))
}

/// The outer IP header; identification and flow label, which nothing depends on, as in `found`.
fn outer_header(inner: &Fields, vtep: IpAddr, payload: u16, found: &[u8]) -> Vec<u8> {
    let class = inner.class;
    match vtep {
        IpAddr::V4(vtep) => {
            let mut header = vec![0x45, class];
            header.extend((payload + 20).to_be_bytes());
            header.extend(&found[ETH + 4..ETH + 6]);
            header.extend([0x40, 0, 64, 17, 0, 0]);
            header.extend(VTEP.v4.octets());
            header.extend(vtep.octets());
            let checksum = !fold(sum(&header));
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            header
        }
        IpAddr::V6(vtep) => {
            let mut header =
                vec![0x60 | class >> 4, class << 4 | found[ETH + 1] & 15, found[ETH + 2], found[ETH + 3]];
            header.extend(payload.to_be_bytes());
            header.extend([17, 64]);
            header.extend(VTEP.v6.octets());
            header.extend(vtep.octets());
            header
        }
    }
}

/// `input` was a tunnel packet from a node that vouches for what is in it, and `out` is that.
fn from_wire(bed: &Bed, input: &[u8], out: &[u8]) -> Result<Fate, String> {
    let outer = fields(input).ok_or("no IP packet was decapsulated")?;
    if outer.dst != IpAddr::from(VTEP.v4) && outer.dst != IpAddr::from(VTEP.v6) {
        return Err(format!("{} is no VTEP of this node", outer.dst));
    }
    let at = ETH + outer.len + 16;
    let frame = input.get(at..).ok_or("it was too short")?;
    let inner = fields(frame).ok_or("no IP packet was inside")?;
    let (owner, _) = bed.way(inner.src).ok_or_else(|| format!("{} is on no other node", inner.src))?;
    if owner != outer.src {
        return Err(format!("{} is not of {}", inner.src, outer.src));
    }
    if inner.hops <= 1 {
        return Err(format!("a packet with {} hops left was delivered", inner.hops));
    }
    let mac = [(POD, POD_MAC), (OTHER_POD, OTHER_POD_MAC)].into_iter().find_map(|(pod, mac)| {
        (inner.dst == IpAddr::from(pod.v4) || inner.dst == IpAddr::from(pod.v6)).then_some(mac)
    });
    let mac = mac.ok_or_else(|| format!("{} is no pod", inner.dst))?;
    let class = congestion(outer.class, inner.class)?;
    let next = one_hop(frame, Some(class)).ok_or("no IP packet was inside")?;
    same(out, &[&mac, &ANCHOR_MAC, &next[12..]].concat(), frame)?;
    Ok(Fate::By(Path::DecapNative))
}

/// The inner traffic class after decapsulation: RFC 6040, figure 4.
fn congestion(outer: u8, inner: u8) -> Result<u8, String> {
    let ecn = match (outer & 3, inner & 3) {
        (3, 0) => return Err("congestion was lost".into()),
        (3, _) => 3,
        (1, 2) => 1,
        (_, inner) => inner,
    };
    Ok(inner & !3 | ecn)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An IPv4 packet in a frame, with a right checksum.
    fn ipv4() -> Vec<u8> {
        let mut frame = [[1; 6], [2; 6]].concat();
        frame.extend([8, 0, 0x45, 2, 0, 20, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 244, 1, 5, 10, 244, 2, 9]);
        let checksum = !fold(sum(&frame[ETH..]));
        frame[ETH + 10..ETH + 12].copy_from_slice(&checksum.to_be_bytes());
        frame
    }

    /// One hop further by the book: the whole checksum anew.
    fn hop(frame: &[u8]) -> Vec<u8> {
        let mut next = frame.to_vec();
        next[ETH + 8] -= 1;
        next[ETH + 10..ETH + 12].fill(0);
        let checksum = !fold(sum(&next[ETH..ETH + 20]));
        next[ETH + 10..ETH + 12].copy_from_slice(&checksum.to_be_bytes());
        next
    }

    #[test]
    fn one_hop_with_a_checksum_that_follows_is_right() {
        let before = ipv4();
        let wanted = one_hop(&before, None).unwrap();
        same(&hop(&before), &wanted, &before).unwrap();
    }

    #[test]
    fn what_differs_is_found_wherever_it_is() {
        let before = ipv4();
        let wanted = one_hop(&before, None).unwrap();
        let right = hop(&before);
        for at in 0..right.len() {
            let mut wrong = right.clone();
            wrong[at] ^= 0x10;
            same(&wrong, &wanted, &before).unwrap_err();
        }
        same(&right[..right.len() - 1], &wanted, &before).unwrap_err();
        same(&before, &wanted, &before).unwrap_err();
    }

    #[test]
    fn a_wrong_checksum_stays_as_wrong_as_it_was() {
        let mut before = ipv4();
        before[ETH + 11] ^= 0x55;
        let wanted = one_hop(&before, None).unwrap();
        // Repaired: what a receiver has to notice would be gone.
        same(&hop(&before), &wanted, &before).unwrap_err();
        let mut right = wanted.clone();
        let sum = u16::from_be_bytes([before[ETH + 10], before[ETH + 11]]);
        // One less in the high byte of a word: by so much more.
        right[ETH + 10..ETH + 12].copy_from_slice(&fold(u32::from(sum) + 0x0100).to_be_bytes());
        same(&right, &wanted, &before).unwrap();
    }

    #[test]
    fn congestion_follows_figure_4() {
        assert_eq!(congestion(0b11, 0b10), Ok(0b11));
        assert_eq!(congestion(0b01, 0b10), Ok(0b01));
        assert_eq!(congestion(0b10, 0b1100), Ok(0b1100));
        congestion(0b11, 0b1100).unwrap_err();
    }

    #[test]
    fn only_the_pods_own_packets_are_let_through() {
        let mut frame = ipv4();
        frame[6..12].copy_from_slice(&POD_MAC);
        sender_is_the_pod(&frame).unwrap();
        frame[ETH + 15] = 6;
        sender_is_the_pod(&frame).unwrap_err();
    }
}
