//! A packet's bytes in words: whom it is from and to, and what it is.

use std::{fmt::Write as _, net::IpAddr};

use etherparse::{Icmpv4Type, LaxPacketHeaders, NetHeaders, TcpHeader, TransportHeader, icmpv4};
use overlay_common::{
    maps::Event,
    wire::{ETH_LEN, vxlan::OVERHEAD},
};

use super::filter::Protocol;

/// Addresses and ports of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// `None` where there is no IP header.
    pub src: Option<IpAddr>,
    /// As above.
    pub dst: Option<IpAddr>,
    /// 0 where the protocol has none.
    pub src_port: u16,
    /// 0 where the protocol has none.
    pub dst_port: u16,
    /// IP protocol number.
    pub protocol: u8,
}

impl Flow {
    /// The innermost packet of a record.
    pub fn of(event: &Event) -> Self {
        let known = !(event.src.is_unspecified() && event.dst.is_unspecified());
        Self {
            src: known.then(|| event.src.to_ip()),
            dst: known.then(|| event.dst.to_ip()),
            src_port: event.src_port,
            dst_port: event.dst_port,
            protocol: event.protocol,
        }
    }
}

/// A packet in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decoded {
    /// Addresses and ports.
    pub flow: Flow,
    /// Such as `TCP Flags: SYN`, `UDP`, `ICMP echo request`, `ARP`.
    pub what: String,
}

/// Reads a frame from its Ethernet header on, which may be cut off anywhere.
pub fn decode(frame: &[u8]) -> Decoded {
    let Ok(headers) = LaxPacketHeaders::from_ethernet(frame) else {
        return Decoded { flow: Flow::default(), what: "no Ethernet".to_owned() };
    };
    let ether_type = || {
        let bytes = frame.get(12..14).unwrap_or(&[0, 0]);
        format!("EtherType 0x{:02x}{:02x}", bytes[0], bytes[1])
    };
    let mut flow = Flow::default();
    let mut fragment = false;
    match &headers.net {
        Some(NetHeaders::Ipv4(ip, _)) => {
            flow.src = Some(ip.source.into());
            flow.dst = Some(ip.destination.into());
            flow.protocol = ip.protocol.0;
            fragment = ip.is_fragmenting_payload();
        }
        Some(NetHeaders::Ipv6(ip, _)) => {
            flow.src = Some(ip.source.into());
            flow.dst = Some(ip.destination.into());
            flow.protocol = ip.next_header.0;
        }
        Some(NetHeaders::Arp(_)) => return Decoded { flow, what: "ARP".to_owned() },
        None => return Decoded { flow, what: ether_type() },
    }
    let mut what = Protocol(flow.protocol).to_string();
    match &headers.transport {
        Some(TransportHeader::Tcp(tcp)) => {
            (flow.src_port, flow.dst_port) = (tcp.source_port, tcp.destination_port);
            let _ = write!(what, " Flags: {}", flags(tcp));
        }
        Some(TransportHeader::Udp(udp)) => {
            (flow.src_port, flow.dst_port) = (udp.source_port, udp.destination_port);
        }
        Some(TransportHeader::Icmpv4(icmp)) => {
            let _ = write!(what, " {}", icmp_text(&icmp.icmp_type));
        }
        _ => {}
    }
    if fragment {
        what.push_str(" fragment");
    }
    Decoded { flow, what }
}

/// What the innermost packet of a record is.
pub fn what(event: &Event) -> String {
    let head = event.head.get(..usize::from(event.head_len)).unwrap_or_default();
    let outer = decode(head);
    let flow = Flow::of(event);
    let inner = |decoded: &Decoded| (decoded.flow.src, decoded.flow.dst) == (flow.src, flow.dst);
    if inner(&outer) || flow.src.is_none() {
        return outer.what;
    }
    // Behind the tunnel's headers, whose Ethernet header is the outer one.
    let decoded = head.get(OVERHEAD..).filter(|rest| rest.len() > ETH_LEN).map(decode).unwrap_or_default();
    if inner(&decoded) { decoded.what } else { Protocol(flow.protocol).to_string() }
}

fn flags(tcp: &TcpHeader) -> String {
    let set = [
        (tcp.syn, "SYN"),
        (tcp.fin, "FIN"),
        (tcp.rst, "RST"),
        (tcp.psh, "PSH"),
        (tcp.ack, "ACK"),
        (tcp.urg, "URG"),
        (tcp.ece, "ECE"),
        (tcp.cwr, "CWR"),
    ];
    let set: Vec<_> = set.into_iter().filter(|(set, _)| *set).map(|(_, name)| name).collect();
    if set.is_empty() { "none".to_owned() } else { set.join(", ") }
}

fn icmp_text(message: &Icmpv4Type) -> String {
    match message {
        Icmpv4Type::EchoRequest(_) => "echo request".to_owned(),
        Icmpv4Type::EchoReply(_) => "echo reply".to_owned(),
        Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::FragmentationNeeded {
            next_hop_mtu,
        }) => {
            format!("fragmentation needed, MTU {next_hop_mtu}")
        }
        Icmpv4Type::DestinationUnreachable(header) => format!("unreachable, code {}", header.code_u8()),
        Icmpv4Type::Redirect(_) => "redirect".to_owned(),
        Icmpv4Type::TimeExceeded(_) => "time exceeded".to_owned(),
        Icmpv4Type::ParameterProblem(_) => "parameter problem".to_owned(),
        Icmpv4Type::TimestampRequest(_) => "timestamp request".to_owned(),
        Icmpv4Type::TimestampReply(_) => "timestamp reply".to_owned(),
        Icmpv4Type::Unknown { type_u8, code_u8, .. } => format!("type {type_u8} code {code_u8}"),
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;
    use etherparse::PacketBuilder;
    use overlay_common::maps::{Addr, HEAD};

    use super::*;

    fn tcp() -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 244, 0, 2], [10, 244, 1, 3], 64)
            .tcp(40_000, 80, 1, 1024)
            .syn()
            .ece();
        let mut frame = Vec::new();
        builder.write(&mut frame, b"hello").unwrap();
        frame
    }

    #[test]
    fn packets_are_told_by_protocol_and_flags() {
        let decoded = decode(&tcp());
        assert_eq!(decoded.what, "TCP Flags: SYN, ECE");
        assert_eq!(decoded.flow.src, Some([10, 244, 0, 2].into()));
        assert_eq!((decoded.flow.src_port, decoded.flow.dst_port, decoded.flow.protocol), (40_000, 80, 6));

        let ping = PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 244, 0, 2], [10, 244, 1, 3], 64)
            .icmpv4_echo_request(1, 1);
        let mut frame = Vec::new();
        ping.write(&mut frame, &[]).unwrap();
        assert_eq!(decode(&frame).what, "ICMP echo request");
        frame[12..14].copy_from_slice(&[0x88, 0xcc]);
        assert_eq!(decode(&frame).what, "EtherType 0x88cc");
    }

    #[test]
    fn whatever_is_cut_off_is_no_panic() {
        let frame = tcp();
        for len in 0..=frame.len() {
            let decoded = decode(&frame[..len]);
            assert_eq!(decoded.flow.src.is_some(), len >= 34, "{len}: {decoded:?}");
        }
    }

    #[test]
    fn a_record_tells_of_the_packet_inside_of_the_tunnel() {
        let inner = tcp();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64)
            .udp(50_000, 8472);
        let mut frame = Vec::new();
        builder.write(&mut frame, &[&[8, 0, 0, 0, 0, 0, 1, 0][..], &inner].concat()).unwrap();
        let mut event = Event::zeroed();
        let len = frame.len().min(HEAD);
        event.head[..len].copy_from_slice(&frame[..len]);
        event.head_len = len as u16;
        event.src = Addr::v4([10, 244, 0, 2]);
        event.dst = Addr::v4([10, 244, 1, 3]);
        event.protocol = 6;
        assert_eq!(what(&event), "TCP Flags: SYN, ECE");
        // The same record of a packet that was cut off in its outer headers.
        event.head_len = 40;
        assert_eq!(what(&event), "TCP");
    }
}
