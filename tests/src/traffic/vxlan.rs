//! VXLAN frames (RFC 7348): taken apart as captured, and put together for forging.
//!
//! Independent of overlay-common on purpose: both would share a mistake.

use std::net::{Ipv4Addr, SocketAddrV4};

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

/// Flags of a VXLAN header with a valid VNI and nothing else.
pub const FLAG_VNI: u8 = 0x08;

/// What is needed to send a tunnel packet; also what there is to see of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// Outer MACs: source, destination.
    pub macs: ([u8; 6], [u8; 6]),
    /// Outer source address and port.
    pub source: SocketAddrV4,
    /// Outer destination address and port.
    pub destination: SocketAddrV4,
    /// Outer TTL.
    pub ttl: u8,
    /// Outer DSCP (upper 6 bits) and ECN (lower 2).
    pub tos: u8,
    /// Whether the outer header says "do not fragment".
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
    /// Takes a frame apart; `None` if it is not a UDP packet over IPv4 with room for a VXLAN header. Whether the
    /// port is the tunnel's is for the caller to see.
    pub fn decode(frame: &[u8]) -> Option<Self> {
        let packet = SlicedPacket::from_ethernet(frame).ok()?;
        let ethernet = packet.link.as_ref()?.to_header()?.ethernet2()?;
        let Some(NetSlice::Ipv4(ip)) = &packet.net else { return None };
        let Some(TransportSlice::Udp(udp)) = &packet.transport else { return None };
        let ip = ip.header();
        let (header, inner) = udp.payload().split_first_chunk::<8>()?;
        let [flags, _, _, _, vni @ .., _] = *header;
        Some(Self {
            macs: (ethernet.source, ethernet.destination),
            source: SocketAddrV4::new(ip.source_addr(), udp.source_port()),
            destination: SocketAddrV4::new(ip.destination_addr(), udp.destination_port()),
            ttl: ip.ttl(),
            tos: ip.dcp().value() << 2 | ip.ecn().value(),
            dont_fragment: ip.dont_fragment(),
            udp_checksum: udp.checksum(),
            flags,
            vni: u32::from_be_bytes([0, vni[0], vni[1], vni[2]]),
            inner: inner.to_vec(),
        })
    }

    /// Puts the frame together, with right lengths and checksums.
    pub fn encode(&self) -> Vec<u8> {
        let [_, vni @ ..] = self.vni.to_be_bytes();
        let mut payload = vec![self.flags, 0, 0, 0, vni[0], vni[1], vni[2], 0];
        payload.extend_from_slice(&self.inner);
        let (source, destination) = (self.source.ip().octets(), self.destination.ip().octets());
        let mut ip = etherparse::Ipv4Header::new(0, self.ttl, etherparse::IpNumber::UDP, source, destination)
            .expect("an empty payload is short enough");
        ip.dont_fragment = self.dont_fragment;
        ip.dscp = etherparse::IpDscp::try_new(self.tos >> 2).expect("six bits");
        ip.ecn = etherparse::IpEcn::try_new(self.tos & 3).expect("two bits");
        let builder = PacketBuilder::ethernet2(self.macs.0, self.macs.1)
            .ip(etherparse::IpHeaders::Ipv4(ip, etherparse::Ipv4Extensions::default()))
            .udp(self.source.port(), self.destination.port());
        let mut frame = Vec::with_capacity(builder.size(payload.len()));
        builder.write(&mut frame, &payload).expect("a frame in memory can be written");
        if self.udp_checksum == 0 {
            // Ethernet (14), IPv4 without options (20), then the last two bytes of the UDP header.
            frame[40..42].fill(0);
        }
        frame
    }
}

/// A UDP frame over IPv4, as a pod could send it; the usual inner frame of a forged tunnel packet.
pub fn udp_frame(
    (source_mac, destination_mac): ([u8; 6], [u8; 6]),
    source: SocketAddrV4,
    destination: SocketAddrV4,
    payload: &[u8],
) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(source_mac, destination_mac)
        .ipv4(source.ip().octets(), destination.ip().octets(), 64)
        .udp(source.port(), destination.port());
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut frame, payload).expect("a frame in memory can be written");
    frame
}

/// Source and destination of the IPv4 packet in an Ethernet frame.
pub fn ipv4_addresses(frame: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr)> {
    match SlicedPacket::from_ethernet(frame).ok()?.net? {
        NetSlice::Ipv4(ip) => Some((ip.header().source_addr(), ip.header().destination_addr())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunnel_packet_survives_encode_and_decode() {
        let macs = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let inner =
            udp_frame(macs, "10.244.0.2:1".parse().unwrap(), "10.244.1.2:2".parse().unwrap(), b"payload");
        let mut tunnel = Tunnel {
            macs,
            source: "192.0.2.11:50000".parse().unwrap(),
            destination: "192.0.2.12:8472".parse().unwrap(),
            ttl: 61,
            tos: 0xb9,
            dont_fragment: true,
            udp_checksum: 0,
            flags: FLAG_VNI,
            vni: 0x12_3456,
            inner,
        };
        assert_eq!(Tunnel::decode(&tunnel.encode()).as_ref(), Some(&tunnel));
        tunnel.udp_checksum = 1;
        assert_ne!(Tunnel::decode(&tunnel.encode()).unwrap().udp_checksum, 0);
    }
}
