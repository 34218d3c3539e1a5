//! Frames changed on the way to being odd: what a sender that means no good does to an Ethernet frame with an IPv4
//! packet without options in it. Checksums stay right.

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// Bytes of an IPv4 header without options.
const IPV4: usize = 20;

/// The frame with IPv4 options: four bytes of "no operation" (RFC 791, 3.1).
#[must_use]
pub fn with_options(frame: &[u8]) -> Vec<u8> {
    let (headers, payload) = frame.split_at(ETHERNET + IPV4);
    let mut odd = headers.to_vec();
    odd.extend_from_slice(&[1; 4]);
    odd.extend_from_slice(payload);
    odd[ETHERNET] = 0x46;
    finish(&mut odd);
    odd
}

/// The frame as two fragments, the first with `first` bytes of payload, a multiple of 8.
#[must_use]
pub fn fragmented(frame: &[u8], first: usize) -> [Vec<u8>; 2] {
    assert!(first.is_multiple_of(8), "fragments are cut at multiples of 8 bytes");
    let (headers, payload) = frame.split_at(ETHERNET + IPV4);
    let (head, tail) = payload.split_at(first);
    let offset = u16::try_from(first / 8).expect("a packet is short");
    // More Fragments, then none but the offset.
    [(head, 0x2000), (tail, offset)].map(|(part, flags)| {
        let mut fragment = [headers, part].concat();
        fragment[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&0x4f56_u16.to_be_bytes());
        fragment[ETHERNET + 6..ETHERNET + 8].copy_from_slice(&flags.to_be_bytes());
        finish(&mut fragment);
        fragment
    })
}

/// The frame with an 802.1Q tag of VLAN `id`.
#[must_use]
pub fn tagged(frame: &[u8], id: u16) -> Vec<u8> {
    let (macs, rest) = frame.split_at(12);
    [macs, &0x8100_u16.to_be_bytes(), &id.to_be_bytes(), rest].concat()
}

/// Sets total length and header checksum.
fn finish(frame: &mut [u8]) {
    let packet = &mut frame[ETHERNET..];
    let len = u16::try_from(packet.len()).expect("a packet is short");
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet[10..12].fill(0);
    let header = &packet[..usize::from(packet[0] & 0xf) * 4];
    let words = header.as_chunks().0.iter().map(|word| u32::from(u16::from_be_bytes(*word)));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket};

    use super::*;
    use crate::traffic::vxlan::udp_frame;

    fn frame() -> Vec<u8> {
        let at = |text: &str| text.parse::<std::net::SocketAddr>().unwrap();
        let (from, to) = (at("192.0.2.1:7"), at("192.0.2.2:9"));
        udp_frame(([2; 6], [4; 6]), from, to, b"sixteen bytes  .")
    }

    /// The IPv4 header of a frame, whose checksum is right, and its payload.
    fn parsed(frame: &[u8]) -> (etherparse::Ipv4Header, Vec<u8>) {
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        let Some(NetSlice::Ipv4(ip)) = packet.net else { panic!("no IPv4 in {frame:?}") };
        let header = ip.header().to_header();
        assert_eq!(header.calc_header_checksum(), header.header_checksum);
        (header, ip.payload().payload.to_vec())
    }

    #[test]
    fn options_change_the_header_alone() {
        let (header, payload) = parsed(&with_options(&frame()));
        assert_eq!(header.options.as_slice(), [1; 4]);
        assert_eq!(payload, parsed(&frame()).1);
    }

    #[test]
    fn fragments_add_up() {
        let [(first, head), (second, tail)] = fragmented(&frame(), 16).map(|frame| parsed(&frame));
        assert_eq!((first.more_fragments, first.fragment_offset.value()), (true, 0));
        assert_eq!((second.more_fragments, second.fragment_offset.value()), (false, 2));
        assert_eq!(first.identification, second.identification);
        assert_eq!([head, tail].concat(), parsed(&frame()).1);
    }

    #[test]
    fn tag_names_the_vlan() {
        let frame = tagged(&frame(), 7);
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        assert_eq!(packet.vlan_ids().first().map(|id| id.value()), Some(7));
    }
}
