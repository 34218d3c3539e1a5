//! VXLAN frames (RFC 7348): taken apart as captured, and put together for forging.
//!
//! Independent of overlay-common on purpose: both would share a mistake.

use std::net::{IpAddr, SocketAddr};

use etherparse::{IpDscp, IpEcn, IpHeaders, IpNumber, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

/// Flags of a VXLAN header with a valid VNI and nothing else.
pub const FLAG_VNI: u8 = 0x08;

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;

/// What is needed to send a tunnel packet; also what there is to see of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// Outer MACs: source, destination.
    pub macs: ([u8; 6], [u8; 6]),
    /// Outer source address and port.
    pub source: SocketAddr,
    /// Outer destination address and port, of the same family.
    pub destination: SocketAddr,
    /// Outer TTL, or hop limit.
    pub ttl: u8,
    /// Outer DSCP (upper 6 bits) and ECN (lower 2).
    pub tos: u8,
    /// Whether the outer header says "do not fragment". No IPv6 packet is fragmented on its way: always true.
    pub dont_fragment: bool,
    /// The outer UDP checksum; on building, 0 means none and anything else "the right one".
    pub udp_checksum: u16,
    /// The first byte of the VXLAN header.
    pub flags: u8,
    /// The network identifier, 24 bits.
    pub vni: u32,
    /// The inner Ethernet frame.
    pub inner: Vec<u8>,
}

impl Tunnel {
    /// Takes a frame apart; `None` if it is not a UDP packet with room for a VXLAN header. Whether the
    /// port is the tunnel's is for the caller to see.
    pub fn decode(frame: &[u8]) -> Option<Self> {
        let packet = SlicedPacket::from_ethernet(frame).ok()?;
        let ethernet = packet.link.as_ref()?.to_header()?.ethernet2()?;
        let (source, destination) = addresses(packet.net.as_ref()?)?;
        let (ttl, tos, dont_fragment) = match packet.net.as_ref()? {
            NetSlice::Ipv4(ip) => {
                let ip = ip.header();
                (ip.ttl(), ip.dcp().value() << 2 | ip.ecn().value(), ip.dont_fragment())
            }
            NetSlice::Ipv6(ip) => (ip.header().hop_limit(), ip.header().traffic_class(), true),
            NetSlice::Arp(_) => return None,
        };
        let Some(TransportSlice::Udp(udp)) = &packet.transport else { return None };
        let (header, inner) = udp.payload().split_first_chunk::<8>()?;
        let [flags, _, _, _, vni @ .., _] = *header;
        Some(Self {
            macs: (ethernet.source, ethernet.destination),
            source: SocketAddr::new(source, udp.source_port()),
            destination: SocketAddr::new(destination, udp.destination_port()),
            ttl,
            tos,
            dont_fragment,
            udp_checksum: udp.checksum(),
            flags,
            vni: u32::from_be_bytes([0, vni[0], vni[1], vni[2]]),
            inner: inner.to_vec(),
        })
    }

    /// Puts the frame together, with right lengths and checksums.
    #[track_caller]
    pub fn encode(&self) -> Vec<u8> {
        let [_, vni @ ..] = self.vni.to_be_bytes();
        let mut payload = vec![self.flags, 0, 0, 0, vni[0], vni[1], vni[2], 0];
        payload.extend_from_slice(&self.inner);
        let mut headers = headers(self.source.ip(), self.destination.ip(), self.ttl);
        let ip_len = match &mut headers {
            IpHeaders::Ipv4(ip, _) => {
                ip.dont_fragment = self.dont_fragment;
                ip.dscp = IpDscp::try_new(self.tos >> 2).expect("six bits");
                ip.ecn = IpEcn::try_new(self.tos & 3).expect("two bits");
                20
            }
            IpHeaders::Ipv6(ip, _) => {
                ip.traffic_class = self.tos;
                40
            }
        };
        let builder = PacketBuilder::ethernet2(self.macs.0, self.macs.1)
            .ip(headers)
            .udp(self.source.port(), self.destination.port());
        let mut frame = Vec::with_capacity(builder.size(payload.len()));
        builder.write(&mut frame, &payload).expect("a frame in memory can be written");
        if self.udp_checksum == 0 {
            // The last two bytes of the UDP header.
            frame[ETHERNET + ip_len + 6..ETHERNET + ip_len + 8].fill(0);
        }
        frame
    }
}

/// An IP header between two addresses of one family.
#[track_caller]
fn headers(source: IpAddr, destination: IpAddr, ttl: u8) -> IpHeaders {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let ip =
                etherparse::Ipv4Header::new(0, ttl, IpNumber::UDP, source.octets(), destination.octets());
            let ip = ip.expect("an empty payload is short enough");
            IpHeaders::Ipv4(ip, etherparse::Ipv4Extensions::default())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let ip = etherparse::Ipv6Header {
                hop_limit: ttl,
                source: source.octets(),
                destination: destination.octets(),
                ..etherparse::Ipv6Header::default()
            };
            IpHeaders::Ipv6(ip, etherparse::Ipv6Extensions::default())
        }
        _ => panic!("{source} and {destination} are of two families"),
    }
}

/// Source and destination in an IP header.
fn addresses(net: &NetSlice<'_>) -> Option<(IpAddr, IpAddr)> {
    match net {
        NetSlice::Ipv4(ip) => Some((ip.header().source_addr().into(), ip.header().destination_addr().into())),
        NetSlice::Ipv6(ip) => Some((ip.header().source_addr().into(), ip.header().destination_addr().into())),
        NetSlice::Arp(_) => None,
    }
}

/// A UDP frame, as a pod could send it; the usual inner frame of a forged tunnel packet. Both addresses are of one family.
#[track_caller]
pub fn udp_frame(
    (source_mac, destination_mac): ([u8; 6], [u8; 6]),
    source: impl Into<SocketAddr>,
    destination: impl Into<SocketAddr>,
    payload: &[u8],
) -> Vec<u8> {
    let (source, destination) = (source.into(), destination.into());
    let builder = PacketBuilder::ethernet2(source_mac, destination_mac)
        .ip(headers(source.ip(), destination.ip(), 64))
        .udp(source.port(), destination.port());
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut frame, payload).expect("a frame in memory can be written");
    frame
}

/// Source and destination of the IP packet in an Ethernet frame.
pub fn ip_addresses(frame: &[u8]) -> Option<(IpAddr, IpAddr)> {
    addresses(SlicedPacket::from_ethernet(frame).ok()?.net.as_ref()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn tunnel_packet_of_either_family_survives_encode_and_decode() {
        let macs = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        for (outer, inner) in [
            (["192.0.2.11:50000", "192.0.2.12:8472"], ["10.244.0.2:1", "10.244.1.2:2"]),
            (["[2001:db8:a::11]:50000", "[2001:db8:a::12]:8472"], ["[fd00::2]:1", "[fd00::3]:2"]),
        ] {
            let mut tunnel = Tunnel {
                macs,
                source: at(outer[0]),
                destination: at(outer[1]),
                ttl: 61,
                tos: 0xb9,
                dont_fragment: true,
                udp_checksum: 0,
                flags: FLAG_VNI,
                vni: 0x12_3456,
                inner: udp_frame(macs, at(inner[0]), at(inner[1]), b"payload"),
            };
            assert_eq!(Tunnel::decode(&tunnel.encode()).as_ref(), Some(&tunnel));
            assert_eq!(ip_addresses(&tunnel.inner), Some((at(inner[0]).ip(), at(inner[1]).ip())));
            tunnel.udp_checksum = 1;
            assert_ne!(Tunnel::decode(&tunnel.encode()).unwrap().udp_checksum, 0);
        }
    }
}
