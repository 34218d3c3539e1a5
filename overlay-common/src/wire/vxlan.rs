//! The outer headers: built by [`Encap::write`], recognised by [`Tunnel::is_plain`].
//!
//! The tunnel goes over either family and carries both: `O` is the outer IP header, `I` the inner one.

use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    udp::UdpHdr,
    vxlan::VxlanHdr,
};

use super::{
    ip::{IpHeader, Outward},
    mac_word, write_eth,
};

/// What lies between the outer Ethernet header and the inner IP header.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Outer<O = Ipv4Hdr> {
    /// Outer IP header, no options.
    pub ip: O,
    /// Outer UDP header.
    pub udp: UdpHdr,
    /// VXLAN header.
    pub vxlan: VxlanHdr,
    /// Inner Ethernet header.
    pub eth: EthHdr,
}

impl<O> Outer<O> {
    /// Bytes that the tunnel adds.
    pub const LEN: usize = size_of::<Self>();
    /// The same as the kernel's helpers take it.
    pub const LEN_I32: i32 = Self::LEN as u8 as i32;
    /// Those behind the outer IP header.
    const BEHIND: usize = Self::LEN - size_of::<O>();
}

impl<O: IpHeader> Outer<O> {
    /// The largest inner IP packet (or super-packet) in bytes whose outer lengths still fit 16 bits: over IPv4 the length
    /// counts the outer IP header, over IPv6 it does not. The same for both, since nobody gains by 20 bytes more.
    pub const MAX_INNER_LEN: u32 = 65_535 - Self::LEN as u32;
}

/// Bytes that the tunnel adds over an IPv4 underlay.
pub const OVERHEAD: usize = Outer::<Ipv4Hdr>::LEN;
/// Bytes that the tunnel adds over an IPv6 underlay.
pub const OVERHEAD_IPV6: usize = Outer::<Ipv6Hdr>::LEN;
const _: () = assert!(OVERHEAD == 50 && OVERHEAD_IPV6 == 70);

/// [`Outer::MAX_INNER_LEN`] over IPv4.
pub const MAX_INNER_LEN: u32 = Outer::<Ipv4Hdr>::MAX_INNER_LEN;

/// TTL and hop limit of the outer header: the kernel's `net.ipv4.ip_default_ttl` and `net.ipv6.conf.*.hop_limit`.
pub const OUTER_TTL: u8 = 64;

/// What [`Encap::write`] puts into the outer headers. `B` is an address of the underlay's family.
#[derive(Clone, Copy, Debug)]
pub struct Encap<B = [u8; 4]> {
    /// Own VTEP, network order.
    pub src: B,
    /// The peer's VTEP, network order.
    pub dst: B,
    /// UDP source port, host order, see [`super::source_port`].
    pub src_port: u16,
    /// UDP destination port, host order.
    pub port: u16,
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// Bytes of the inner packet from its IP header on; at most [`Outer::MAX_INNER_LEN`].
    pub inner_len: u16,
    /// Outer TOS byte or traffic class, see [`super::ecn::outer_tos`].
    pub tos: u8,
    /// `EtherType` of the inner packet, host order.
    pub inner_type: u16,
    /// Inner source MAC: the own anchor device.
    pub inner_src: [u8; 6],
    /// Inner destination MAC: the peer's anchor device.
    pub inner_dst: [u8; 6],
}

impl<B: Copy> Encap<B> {
    /// Fills all of `outer`. The UDP checksum is zero (RFC 7348, 5; over IPv6 RFC 6935, 5): the kernel cannot keep a non-zero
    /// one right on GSO packets that a program encapsulated, and the inner checksums cover the payload.
    #[inline(always)]
    pub fn write<O: IpHeader<Bytes = B>>(&self, outer: &mut Outer<O>) {
        let udp_len = self.inner_len.wrapping_add(Outer::<O>::BEHIND as u16);
        outer.ip = O::outer(&Outward {
            src: self.src,
            dst: self.dst,
            udp_len,
            traffic_class: self.tos,
            flow: self.src_port,
        });
        let ports = u64::from(self.src_port.swap_bytes()) | u64::from(self.port.swap_bytes()) << 16;
        let flags: u64 = network_types::vxlan::VXLAN_I_FLAG_MASK.into();
        // As words, whose lowest byte comes first: written one by one, bytes of zero become a call of a loop over bytes in BPF.
        let at = core::ptr::from_mut(&mut outer.udp);
        // SAFETY: the eight bytes of the UDP header.
        unsafe { at.cast::<u64>().write_unaligned((ports | u64::from(udp_len.swap_bytes()) << 32).to_le()) };
        let flags = flags | u64::from((self.vni << 8).swap_bytes()) << 32;
        let at = core::ptr::from_mut(&mut outer.vxlan);
        // SAFETY: the eight bytes of the VXLAN header.
        unsafe { at.cast::<u64>().write_unaligned(flags.to_le()) };
        write_eth(&mut outer.eth, mac_word(self.inner_dst), mac_word(self.inner_src), self.inner_type);
    }
}

impl Encap {
    /// The headers over IPv4 as bytes.
    pub fn to_bytes(&self) -> [u8; OVERHEAD] {
        // SAFETY: the headers are made of bytes and numbers, for which all zeroes are valid.
        let mut outer: Outer = unsafe { core::mem::zeroed() };
        self.write(&mut outer);
        // SAFETY: as many bytes, without padding between them (`OVERHEAD` is their sum).
        unsafe { core::mem::transmute(outer) }
    }
}

impl Encap<[u8; 16]> {
    /// The headers over IPv6 as bytes.
    pub fn to_bytes(&self) -> [u8; OVERHEAD_IPV6] {
        // SAFETY: as above.
        let mut outer: Outer<Ipv6Hdr> = unsafe { core::mem::zeroed() };
        self.write(&mut outer);
        // SAFETY: as above.
        unsafe { core::mem::transmute(outer) }
    }
}

/// A whole tunnel packet up to the end of the inner IP header, as it lies on an underlay device. With `()` as the inner
/// header, up to that.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Tunnel<O = Ipv4Hdr, I = Ipv4Hdr> {
    /// Outer Ethernet header.
    pub eth: EthHdr,
    /// Everything up to the inner Ethernet header.
    pub outer: Outer<O>,
    /// Inner IP header without its options.
    pub inner: I,
}

/// Bytes of [`Tunnel`] over IPv4 with an inner IPv4 header: what must be linear for the fast path.
pub const TUNNEL_LEN: usize = size_of::<Tunnel>();
const _: () = assert!(TUNNEL_LEN == 84 && size_of::<Tunnel<Ipv6Hdr, Ipv6Hdr>>() == 124);

/// The tunnel this node is an end of. `B` is an address of the underlay's family.
#[derive(Clone, Copy, Debug)]
pub struct Vtep<B = [u8; 4]> {
    /// Own tunnel address, network order.
    pub addr: B,
    /// UDP port, host order.
    pub port: u16,
    /// VXLAN network identifier.
    pub vni: u32,
}

impl<O: IpHeader, I: Copy> Tunnel<O, I> {
    /// Bytes of it.
    pub const LEN: usize = size_of::<Self>();

    /// The packet at the front of these bytes; `None` where they are too few.
    #[inline(always)]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..Self::LEN)?;
        // SAFETY: as many bytes as the headers have, and any are valid for them.
        Some(unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() })
    }

    /// The outer headers are plain and whole, and addressed to this VTEP, with a VXLAN header that says no more than a VNI.
    ///
    /// The outer UDP checksum is not looked at, as RFC 7348, 4.1 allows for the zero that VTEPs send; the inner transport
    /// checksum is verified by the pod. (RFC 6936, 4 wants a node that takes zero checksums over IPv6 to check the outer
    /// addresses: the destination is here, the source by `decap::check_source`.)
    #[inline(always)]
    pub fn is_for(&self, vtep: &Vtep<O::Bytes>) -> bool {
        let Outer { ip, udp, vxlan, .. } = &self.outer;
        self.eth.ether_type == O::ETHERTYPE.to_be()
            && ip.carries_udp()
            && ip.dst() == O::address(vtep.addr)
            && u16::from_ne_bytes(udp.dst) == vtep.port.to_be()
            && vxlan.flags == network_types::vxlan::VXLAN_I_FLAG_MASK
    }
}

impl<O: IpHeader, I: IpHeader> Tunnel<O, I> {
    /// It has our VNI.
    #[inline(always)]
    pub const fn has_vni(&self, vni: u32) -> bool {
        let [_, v0, v1, v2] = vni.to_be_bytes();
        let vxlan = &self.outer.vxlan;
        vxlan.vni[0] == v0 && vxlan.vni[1] == v1 && vxlan.vni[2] == v2
    }

    /// It carries an `I` without options.
    #[inline(always)]
    pub fn carries_plain(&self) -> bool {
        self.outer.eth.ether_type == I::ETHERTYPE.to_be() && self.inner.is_plain()
    }

    /// A packet that a program may decapsulate: addressed to this VTEP, whole, without options, with our VNI and no
    /// VXLAN extension, carrying an `I` without options. Whatever is not, the anchor device takes.
    #[inline(always)]
    pub fn is_plain(&self, vtep: &Vtep<O::Bytes>) -> bool {
        self.is_for(vtep) && self.has_vni(vtep.vni) && self.carries_plain()
    }

    /// The lengths in the headers agree with each other and with `len`, the bytes from the outer Ethernet header on
    /// that the packet really has. Not for GSO packets, whose lengths the kernel keeps.
    #[inline(always)]
    pub fn lengths_agree(&self, len: u32) -> bool {
        let ip_len = self.outer.ip.total_len();
        let udp_len = u32::from(u16::from_be_bytes(self.outer.udp.len));
        let inner_len = self.inner.total_len();
        ip_len == udp_len + O::LEN as u32
            && ip_len + EthHdr::LEN as u32 <= len
            && inner_len + Outer::<O>::LEN as u32 <= ip_len
            && inner_len >= I::LEN as u32
    }
}

#[cfg(test)]
mod tests;
