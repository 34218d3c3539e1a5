//! The test bed with both families, IPv6 packets to be built, and tunnel packets of all four kinds.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{
    EtherType, Icmpv6Header, Icmpv6Type, IpNumber, Ipv6FlowLabel, Ipv6Header, TcpHeader, UdpHeader,
};
use overlay_common::maps::{Endpoint, NODE_CHECKSUM, NODE_HOST, NODE_SELF, Node, Owner};
use overlay_userspace::{
    datapath::{
        object::Constants,
        tables::{Endpoints, Nodes},
    },
    family::ByFamily,
};

use crate::bed::{
    ANCHOR_MAC, Bed, Ip, Mac, NEXT_HOP_MAC, OTHER_POD_MAC, PEER, PEER_MAC, POD_MAC, PORT, VNI, VTEP,
    WIRE_MAC, frame, ip, mac_text,
};

const fn v6(at: [u16; 8]) -> Ipv6Addr {
    Ipv6Addr::new(at[0], at[1], at[2], at[3], at[4], at[5], at[6], at[7])
}

/// An address of a node's subnet.
const fn of_node(node: u16, host: u16) -> Ipv6Addr {
    v6([0xfd00, 0x244, 0, node, 0, 0, 0, host])
}

/// This node's other tunnel address, a peer that is reached over IPv6, and one that wants outer checksums there.
pub(crate) const VTEP6: Ipv6Addr = v6([0x2001, 0xdb8, 0x192, 0, 0, 0, 0, 1]);
pub(crate) const PEER6: Ipv6Addr = v6([0x2001, 0xdb8, 0x192, 0, 0, 0, 0, 2]);
pub(crate) const CHECKING6: Ipv6Addr = v6([0x2001, 0xdb8, 0x192, 0, 0, 0, 0, 5]);
pub(crate) const STRANGER6: Ipv6Addr = v6([0x2001, 0xdb8, 0x192, 0, 0, 0, 0, 0x66]);
pub(crate) const PEER6_MAC: Mac = [0x0a, 0x6f, 0, 0, 0, 4];
pub(crate) const CHECKING_MAC: Mac = [0x0a, 0x6f, 0, 0, 0, 5];

/// The IPv6 addresses of the pods of the bed.
pub(crate) const POD6: Ipv6Addr = of_node(1, 5);
pub(crate) const OTHER_POD6: Ipv6Addr = of_node(1, 6);
pub(crate) const UNREADY_POD6: Ipv6Addr = of_node(1, 7);
pub(crate) const GATEWAY6: Ipv6Addr = of_node(1, 1);
/// A pod of the peer that is reached over IPv4.
pub(crate) const REMOTE_POD6: Ipv6Addr = of_node(2, 9);
/// The pods of the peer that is reached over IPv6.
pub(crate) const FAR_POD: Ipv4Addr = Ipv4Addr::new(10, 244, 4, 9);
pub(crate) const FAR_POD6: Ipv6Addr = of_node(4, 9);
/// A pod of the one that wants checksums.
pub(crate) const CHECKING_POD6: Ipv6Addr = of_node(5, 9);
pub(crate) const WORLD6: Ipv6Addr = v6([0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 7]);
/// The pod's own on its link, and everybody there.
pub(crate) const LINK_LOCAL: Ipv6Addr = v6([0xfe80, 0, 0, 0, 0x858, 0xaff, 0xfef4, 0x105]);
pub(crate) const ALL_NODES: Ipv6Addr = v6([0xff02, 0, 0, 0, 0, 0, 0, 1]);

/// As the agent of a node with both families has them.
pub(crate) fn dual(constants: &mut Constants) {
    constants.cluster.v6 = Some("fd00:244::/32".parse().unwrap());
    constants.subnet.v6 = Some("fd00:244:0:1::/64".parse().unwrap());
    constants.node_prefix.v6 = Some(64);
    constants.vtep.v6 = Some(VTEP6.into());
}

/// As on a node that has IPv6 alone.
pub(crate) fn only_ipv6(constants: &mut Constants) {
    dual(constants);
    for nets in [&mut constants.cluster, &mut constants.subnet] {
        nets.v4 = None;
    }
    constants.node_prefix.v4 = None;
    constants.vtep = ByFamily { v4: None, v6: Some(VTEP6.into()) };
}

/// Runs a test in a bed with both families.
pub(crate) fn with(test: impl FnOnce(&mut Bed) + Send + 'static) {
    Bed::with(|bed| {
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        ip(&format!("addr add {VTEP6}/64 dev wire nodad"));
        for peer in [PEER6, CHECKING6] {
            ip(&format!("neigh replace {peer} lladdr {} dev wire nud permanent", mac_text(NEXT_HOP_MAC)));
        }
        bed.reload(dual);
        fill(bed);
        test(bed);
    });
}

fn fill(bed: &Bed) {
    let mut nodes = Nodes::open(bed.pins()).unwrap();
    let mut set = |key: IpAddr, vtep: IpAddr, vtep_mac: Mac, prefix_len: u8, flags: u8| {
        let node = Node { vtep: vtep.into(), vtep_mac, prefix_len, flags, neigh_epoch: 0 };
        nodes.set(key.into(), node).unwrap();
    };
    set(of_node(1, 0).into(), VTEP.into(), ANCHOR_MAC, 64, NODE_SELF);
    set(VTEP6.into(), VTEP6.into(), ANCHOR_MAC, 128, NODE_SELF | NODE_HOST);
    set(of_node(2, 0).into(), PEER.into(), PEER_MAC, 64, 0);
    set([10, 244, 4, 0].into(), PEER6.into(), PEER6_MAC, 24, 0);
    set(of_node(4, 0).into(), PEER6.into(), PEER6_MAC, 64, 0);
    set(PEER6.into(), PEER6.into(), PEER6_MAC, 128, NODE_HOST);
    set(of_node(5, 0).into(), CHECKING6.into(), CHECKING_MAC, 64, NODE_CHECKSUM);
    set(CHECKING6.into(), CHECKING6.into(), CHECKING_MAC, 128, NODE_HOST | NODE_CHECKSUM);

    let mut endpoints = Endpoints::open(bed.pins()).unwrap();
    for (addr, ifindex, mac) in [
        (POD6, bed.devices.pod, POD_MAC),
        (OTHER_POD6, bed.devices.other_pod, OTHER_POD_MAC),
        (UNREADY_POD6, 0, [0; 6]),
    ] {
        let owner = Owner { container: [0; 64], ifname: [0; 16] };
        let endpoint = Endpoint { ifindex, network: 0, mac, gateway_mac: ANCHOR_MAC, owner };
        assert!(endpoints.lease(addr.into(), endpoint).unwrap());
    }
}

/// An IPv6 packet to be built.
#[derive(Clone, Debug)]
pub(crate) struct Ip6 {
    pub(crate) src: Ipv6Addr,
    pub(crate) dst: Ipv6Addr,
    pub(crate) hop_limit: u8,
    pub(crate) traffic_class: u8,
    pub(crate) flow_label: u32,
    /// Number of what follows the header.
    pub(crate) next_header: IpNumber,
    /// Extension headers, transport header, and data.
    pub(crate) payload: Vec<u8>,
}

impl Ip6 {
    /// Any payload.
    pub(crate) fn new(src: Ipv6Addr, dst: Ipv6Addr, next_header: IpNumber, payload: Vec<u8>) -> Self {
        Self { src, dst, hop_limit: 64, traffic_class: 0, flow_label: 0x12345, next_header, payload }
    }

    /// A UDP datagram of 18 bytes of data.
    pub(crate) fn udp(src: Ipv6Addr, dst: Ipv6Addr, dst_port: u16) -> Self {
        let data = b"eighteen bytes ok!";
        let ip = Self::new(src, dst, IpNumber::UDP, vec![]).header();
        let header = UdpHeader::with_ipv6_checksum(40_000, dst_port, &ip, data).unwrap();
        Self::new(src, dst, IpNumber::UDP, [&header.to_bytes()[..], data].concat())
    }

    /// A TCP segment with `len` bytes of data.
    pub(crate) fn tcp(src: Ipv6Addr, dst: Ipv6Addr, len: usize) -> Self {
        let header = TcpHeader::new(40_000, 80, 1, 1024);
        Self::new(src, dst, IpNumber::TCP, [header.to_bytes().to_vec(), vec![0x5a; len]].concat())
    }

    /// An `ICMPv6` message with the checksum that it has to have.
    pub(crate) fn icmp(src: Ipv6Addr, dst: Ipv6Addr, message_type: u8, body: [u8; 4], data: &[u8]) -> Self {
        let kind = Icmpv6Type::Unknown { type_u8: message_type, code_u8: 0, bytes5to8: body };
        let header = Icmpv6Header::with_checksum(kind, src.octets(), dst.octets(), data).unwrap();
        let packet =
            Self::new(src, dst, IpNumber::IPV6_ICMP, [header.to_bytes().to_vec(), data.to_vec()].concat());
        Self { hop_limit: 255, ..packet }
    }

    /// With an extension header of this number in front, eight bytes of it and as many more as told.
    pub(crate) fn extended(&self, number: u8, more: u8) -> Self {
        let mut header = vec![0; 8 + usize::from(more) * 8];
        (header[0], header[1]) = (self.next_header.0, more);
        Self {
            next_header: IpNumber(number),
            payload: [header, self.payload.clone()].concat(),
            ..self.clone()
        }
    }

    /// A fragment of this: offset in units of 8 bytes, and whether more follow.
    pub(crate) fn fragment(&self, offset: u16, more: bool) -> Self {
        let word = (offset << 3 | u16::from(more)).to_be_bytes();
        let header = vec![self.next_header.0, 0, word[0], word[1], 0, 0, 0, 7];
        Self { next_header: IpNumber(44), payload: [header, self.payload.clone()].concat(), ..self.clone() }
    }

    fn header(&self) -> Ipv6Header {
        Ipv6Header {
            traffic_class: self.traffic_class,
            flow_label: Ipv6FlowLabel::try_new(self.flow_label).unwrap(),
            payload_length: self.payload.len() as u16,
            next_header: self.next_header,
            hop_limit: self.hop_limit,
            source: self.src.octets(),
            destination: self.dst.octets(),
        }
    }
}

/// A packet of either family.
pub(crate) trait Inner: Clone {
    const TYPE: EtherType;
    fn bytes(&self) -> Vec<u8>;
    /// One hop further.
    fn hop(&self) -> Self;
    /// With another TOS byte or traffic class.
    fn class(&self, value: u8) -> Self;
    /// The TOS byte or traffic class.
    fn its_class(&self) -> u8;
    /// In a frame.
    fn framed(&self, dst: Mac, src: Mac) -> Vec<u8> {
        frame(dst, src, Self::TYPE, &self.bytes())
    }
    /// As a pod sends it.
    fn of_pod(&self) -> Vec<u8> {
        self.framed(ANCHOR_MAC, POD_MAC)
    }
}

impl Inner for Ip {
    const TYPE: EtherType = EtherType::IPV4;

    fn bytes(&self) -> Vec<u8> {
        Ip::bytes(self)
    }

    fn hop(&self) -> Self {
        Ip::hop(self)
    }

    fn class(&self, value: u8) -> Self {
        Self { tos: value, ..self.clone() }
    }

    fn its_class(&self) -> u8 {
        self.tos
    }
}

impl Inner for Ip6 {
    const TYPE: EtherType = EtherType::IPV6;

    fn bytes(&self) -> Vec<u8> {
        [&self.header().to_bytes()[..], &self.payload].concat()
    }

    fn hop(&self) -> Self {
        Self { hop_limit: self.hop_limit - 1, ..self.clone() }
    }

    fn class(&self, value: u8) -> Self {
        Self { traffic_class: value, ..self.clone() }
    }

    fn its_class(&self) -> u8 {
        self.traffic_class
    }
}

/// A tunnel packet on the wire. The UDP source port, and over IPv6 the flow label, are [`Self::FLOW`].
#[derive(Clone, Debug)]
pub(crate) struct Tunnel {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) class: u8,
    pub(crate) vni: u32,
    pub(crate) inner_type: EtherType,
    pub(crate) inner: Vec<u8>,
    pub(crate) inner_macs: (Mac, Mac),
    pub(crate) macs: (Mac, Mac),
}

impl Tunnel {
    const FLOW: u16 = 50_000;

    /// From a peer to this node, over the peer's family.
    pub(crate) fn arriving(peer: IpAddr, inner: &impl Inner) -> Self {
        let (dst, mac) = if peer.is_ipv4() { (VTEP.into(), PEER_MAC) } else { (VTEP6.into(), PEER6_MAC) };
        Self {
            src: peer,
            dst,
            class: inner.its_class(),
            vni: VNI,
            inner_type: inner_type(inner),
            inner: inner.bytes(),
            inner_macs: (ANCHOR_MAC, mac),
            macs: (WIRE_MAC, NEXT_HOP_MAC),
        }
    }

    /// From this node to a peer.
    pub(crate) fn leaving(peer: IpAddr, inner: &impl Inner) -> Self {
        let there = Self::arriving(peer, inner);
        Self {
            src: there.dst,
            dst: there.src,
            inner_macs: (there.inner_macs.1, ANCHOR_MAC),
            macs: (NEXT_HOP_MAC, WIRE_MAC),
            ..there
        }
    }

    /// From another sender.
    pub(crate) fn from(self, src: impl Into<IpAddr>) -> Self {
        Self { src: src.into(), ..self }
    }

    /// What the outer IP header is followed by.
    fn datagram(&self) -> Vec<u8> {
        let vni = self.vni.to_be_bytes();
        let vxlan = [8, 0, 0, 0, vni[1], vni[2], vni[3], 0];
        let inner = frame(self.inner_macs.0, self.inner_macs.1, self.inner_type, &self.inner);
        let udp = UdpHeader {
            source_port: Self::FLOW,
            destination_port: PORT,
            length: (8 + vxlan.len() + inner.len()) as u16,
            checksum: 0,
        };
        [&udp.to_bytes()[..], &vxlan, &inner].concat()
    }

    /// The outer packet over IPv6, to be changed.
    pub(crate) fn outer6(&self) -> Ip6 {
        let (IpAddr::V6(src), IpAddr::V6(dst)) = (self.src, self.dst) else { panic!("not over IPv6") };
        Ip6 {
            traffic_class: self.class,
            flow_label: Self::FLOW.into(),
            ..Ip6::new(src, dst, IpNumber::UDP, self.datagram())
        }
    }

    /// The outer packet over IPv4, to be changed.
    pub(crate) fn outer4(&self) -> Ip {
        let (IpAddr::V4(src), IpAddr::V4(dst)) = (self.src, self.dst) else { panic!("not over IPv4") };
        Ip { tos: self.class, payload: self.datagram(), ..Ip::udp(src, dst, PORT) }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        if self.src.is_ipv4() {
            self.outer4().framed(self.macs.0, self.macs.1)
        } else {
            self.outer6().framed(self.macs.0, self.macs.1)
        }
    }
}

fn inner_type<I: Inner>(_: &I) -> EtherType {
    I::TYPE
}

/// The four ways: peer that the tunnel goes to, and a UDP datagram from a pod of it to the local pod, in both families.
pub(crate) const OVER: [(IpAddr, Ipv4Addr, Ipv6Addr); 2] =
    [(IpAddr::V4(PEER), crate::bed::REMOTE_POD, REMOTE_POD6), (IpAddr::V6(PEER6), FAR_POD, FAR_POD6)];
