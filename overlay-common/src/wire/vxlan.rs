//! The outer headers: built by [`Encap::write`], recognised by [`Tunnel::is_plain`].

use network_types::{eth::EthHdr, ip::Ipv4Hdr, udp::UdpHdr, vxlan::VxlanHdr};

use super::{ETHERTYPE_IPV4, PROTO_UDP, checksum, ipv4};

/// What lies between the outer Ethernet header and the inner IP header over an IPv4 underlay.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Outer {
    /// Outer IPv4 header, no options.
    pub ip: Ipv4Hdr,
    /// Outer UDP header.
    pub udp: UdpHdr,
    /// VXLAN header.
    pub vxlan: VxlanHdr,
    /// Inner Ethernet header.
    pub eth: EthHdr,
}

/// Bytes that the tunnel adds over an IPv4 underlay.
pub const OVERHEAD: usize = size_of::<Outer>();
const _: () = assert!(OVERHEAD == 50 && OVERHEAD_I32 == 50);

/// [`OVERHEAD`] as the kernel's helpers take it.
pub const OVERHEAD_I32: i32 = 50;

/// The largest inner IP packet (or super-packet) in bytes whose outer IPv4 and UDP lengths still fit 16 bits.
pub const MAX_INNER_LEN: u32 = 65_535 - OVERHEAD as u32;

/// TTL of the outer header: the kernel's `net.ipv4.ip_default_ttl`.
pub const OUTER_TTL: u8 = 64;

/// Bits of the outer header's flags and fragment offset: Don't Fragment (RFC 7348, 4.3: a VTEP must not fragment).
const DONT_FRAGMENT: [u8; 2] = [0x40, 0];

/// What [`Encap::write`] puts into the outer headers.
#[derive(Clone, Copy, Debug)]
pub struct Encap {
    /// Own VTEP, network order.
    pub src: [u8; 4],
    /// The peer's VTEP, network order.
    pub dst: [u8; 4],
    /// UDP source port, host order, see [`super::source_port`].
    pub src_port: u16,
    /// UDP destination port, host order.
    pub port: u16,
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// Bytes of the inner packet from its IP header on; at most [`MAX_INNER_LEN`].
    pub inner_len: u16,
    /// Outer TOS byte, see [`super::ecn::outer_tos`].
    pub tos: u8,
    /// Inner source MAC: the own anchor device.
    pub inner_src: [u8; 6],
    /// Inner destination MAC: the peer's anchor device.
    pub inner_dst: [u8; 6],
}

impl Encap {
    /// Fills all of `outer`. The UDP checksum is zero (RFC 7348, 5): the kernel cannot keep a non-zero one right on
    /// GSO packets that a program encapsulated, and the inner checksums cover the payload.
    #[inline(always)]
    pub const fn write(&self, outer: &mut Outer) {
        let udp_len = self.inner_len.wrapping_add((OVERHEAD - Ipv4Hdr::LEN) as u16);
        let ip_len = self.inner_len.wrapping_add(OVERHEAD as u16);
        outer.ip = Ipv4Hdr {
            vihl: 0x45,
            tos: self.tos,
            tot_len: ip_len.to_be_bytes(),
            // With Don't Fragment set the identification has no meaning (RFC 6864, 4.1).
            id: [0; 2],
            frags: DONT_FRAGMENT,
            ttl: OUTER_TTL,
            proto: PROTO_UDP,
            check: [0; 2],
            src_addr: self.src,
            dst_addr: self.dst,
        };
        outer.ip.check = checksum::ipv4_header(&outer.ip);
        outer.udp = UdpHdr {
            src: self.src_port.to_be_bytes(),
            dst: self.port.to_be_bytes(),
            len: udp_len.to_be_bytes(),
            check: [0; 2],
        };
        let [_, v0, v1, v2] = self.vni.to_be_bytes();
        outer.vxlan = VxlanHdr {
            flags: network_types::vxlan::VXLAN_I_FLAG_MASK,
            _reserved1: [0; 3],
            vni: [v0, v1, v2],
            _reserved2: 0,
        };
        outer.eth =
            EthHdr { dst_addr: self.inner_dst, src_addr: self.inner_src, ether_type: ETHERTYPE_IPV4.to_be() };
    }
}

impl Encap {
    /// The headers as bytes.
    pub const fn to_bytes(&self) -> [u8; OVERHEAD] {
        // SAFETY: the headers are made of bytes and numbers, for which all zeroes are valid.
        let mut outer: Outer = unsafe { core::mem::zeroed() };
        self.write(&mut outer);
        // SAFETY: as many bytes, without padding between them (`OVERHEAD` is their sum).
        unsafe { core::mem::transmute(outer) }
    }
}

/// A whole tunnel packet up to the end of the inner IPv4 header, as it lies on an underlay device.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Tunnel {
    /// Outer Ethernet header.
    pub eth: EthHdr,
    /// Everything up to the inner Ethernet header.
    pub outer: Outer,
    /// Inner IPv4 header without its options.
    pub inner: Ipv4Hdr,
}

/// Bytes of [`Tunnel`]: what must be linear for the fast path.
pub const TUNNEL_LEN: usize = size_of::<Tunnel>();
const _: () = assert!(TUNNEL_LEN == 84);

/// The tunnel this node is an end of.
#[derive(Clone, Copy, Debug)]
pub struct Vtep {
    /// Own tunnel address, network order.
    pub addr: [u8; 4],
    /// UDP port, host order.
    pub port: u16,
    /// VXLAN network identifier.
    pub vni: u32,
}

impl Tunnel {
    /// The packet at the front of these bytes; `None` where they are too few.
    #[inline(always)]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..TUNNEL_LEN)?;
        // SAFETY: as many bytes as the headers have, and any are valid for them.
        Some(unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() })
    }

    /// A packet that a program may decapsulate: addressed to this VTEP, whole, without options, with our VNI and no
    /// VXLAN extension, carrying IPv4 without options. Whatever is not, the anchor device takes.
    ///
    /// The outer UDP checksum is not looked at, as RFC 7348, 4.1 allows for the zero that VTEPs send; the inner
    /// transport checksum is verified by the pod.
    #[inline(always)]
    pub const fn is_plain(&self, vtep: &Vtep) -> bool {
        let [_, v0, v1, v2] = vtep.vni.to_be_bytes();
        let Outer { ip, udp, vxlan, eth } = &self.outer;
        self.eth.ether_type == ETHERTYPE_IPV4.to_be()
            && ipv4::is_plain(ip)
            && ip.proto == PROTO_UDP
            && !ipv4::is_fragment(ip)
            && u32::from_ne_bytes(ip.dst_addr) == u32::from_ne_bytes(vtep.addr)
            && u16::from_ne_bytes(udp.dst) == vtep.port.to_be()
            && vxlan.flags == network_types::vxlan::VXLAN_I_FLAG_MASK
            && vxlan.vni[0] == v0
            && vxlan.vni[1] == v1
            && vxlan.vni[2] == v2
            && eth.ether_type == ETHERTYPE_IPV4.to_be()
            && ipv4::is_plain(&self.inner)
    }

    /// The lengths in the headers agree with each other and with `len`, the bytes from the outer Ethernet header on
    /// that the packet really has. Not for GSO packets, whose lengths the kernel keeps.
    #[inline(always)]
    pub const fn lengths_agree(&self, len: u32) -> bool {
        let ip_len = u16::from_be_bytes(self.outer.ip.tot_len) as u32;
        let udp_len = u16::from_be_bytes(self.outer.udp.len) as u32;
        let inner_len = u16::from_be_bytes(self.inner.tot_len) as u32;
        ip_len == udp_len + Ipv4Hdr::LEN as u32
            && ip_len + EthHdr::LEN as u32 <= len
            && inner_len + OVERHEAD as u32 <= ip_len
            && inner_len >= Ipv4Hdr::LEN as u32
    }
}

#[cfg(test)]
mod tests;
