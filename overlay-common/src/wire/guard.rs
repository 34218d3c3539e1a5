//! What `xdp_wire` asks of a tunnel packet that is not plain.
//!
//! Invariant: nothing is refused here that the tc programs would accept. `from_wire` leaves what is not plain to the
//! anchor device, whose packets `from_tunnel` judges; [`reaches_anchor`] says of which packets that is certain, and
//! [`refused`] what `from_tunnel` would say.

use network_types::vxlan::VXLAN_I_FLAG_MASK;

use super::{
    ETHERTYPE_IPV4, PROTO_UDP, ipv4,
    vxlan::{Outer, Tunnel, Vtep},
};
use crate::reason::Reason;

/// Will the kernel hand this packet to the anchor device? Addressed to the tunnel's socket by plain headers, with a VXLAN
/// header that the kernel takes (drivers/net/vxlan: the VNI flag, and no flag that an extension would own).
#[inline(always)]
pub const fn reaches_anchor(tunnel: &Tunnel, vtep: &Vtep) -> bool {
    let Outer { ip, udp, vxlan, .. } = &tunnel.outer;
    tunnel.eth.ether_type == ETHERTYPE_IPV4.to_be()
        && ipv4::is_plain(ip)
        && ip.proto == PROTO_UDP
        && !ipv4::is_fragment(ip)
        && u32::from_ne_bytes(ip.dst_addr) == u32::from_ne_bytes(vtep.addr)
        && u16::from_ne_bytes(udp.dst) == vtep.port.to_be()
        && vxlan.flags == VXLAN_I_FLAG_MASK
}

/// Why `from_tunnel` drops this packet whoever has sent it, in the order in which it looks; the senders of others are to
/// be checked. For packets that reach the anchor.
#[inline(always)]
pub const fn refused(tunnel: &Tunnel, vtep: &Vtep) -> Option<Reason> {
    let Outer { vxlan, eth, .. } = &tunnel.outer;
    let [v0, v1, v2] = vxlan.vni;
    if u32::from_be_bytes([0, v0, v1, v2]) != vtep.vni {
        Some(Reason::Vni)
    } else if eth.ether_type != ETHERTYPE_IPV4.to_be() {
        Some(Reason::InnerProtocol)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use network_types::{eth::EthHdr, ip::Ipv4Hdr};
    use proptest::prelude::*;

    use super::*;
    use crate::wire::{PROTO_TCP, vxlan::Encap};

    const VTEP: Vtep = Vtep { addr: [192, 0, 2, 1], port: 8472, vni: 0x0001_0203 };

    fn bytes_of<const N: usize, T>(bytes: [u8; N]) -> T {
        assert_eq!(N, size_of::<T>());
        // SAFETY: only called for header structs, which are plain bytes of this size.
        unsafe { core::ptr::read_unaligned(bytes.as_ptr().cast()) }
    }

    /// A plain packet for [`VTEP`].
    fn tunnel(inner_len: u16) -> Tunnel {
        let mut tunnel: Tunnel = bytes_of([0; 84]);
        let encap = Encap {
            src: [192, 0, 2, 2],
            dst: VTEP.addr,
            src_port: 50_000,
            port: VTEP.port,
            vni: VTEP.vni,
            inner_len,
            tos: 0,
            inner_src: [2; 6],
            inner_dst: [4; 6],
        };
        encap.write(&mut tunnel.outer);
        tunnel.eth = EthHdr { dst_addr: [6; 6], src_addr: [8; 6], ether_type: ETHERTYPE_IPV4.to_be() };
        tunnel.inner.vihl = 0x45;
        tunnel.inner.ttl = 64;
        tunnel.inner.proto = PROTO_TCP;
        tunnel.inner.tot_len = inner_len.to_be_bytes();
        tunnel
    }

    #[test]
    fn a_plain_packet_reaches_the_anchor_and_is_not_refused() {
        let tunnel = tunnel(40);
        assert!(tunnel.is_plain(&VTEP) && reaches_anchor(&tunnel, &VTEP));
        assert_eq!(refused(&tunnel, &VTEP), None);
    }

    #[test]
    fn what_from_tunnel_refuses_of_every_sender_is_named_alike() {
        let mut vni = tunnel(40);
        vni.outer.vxlan.vni = [1, 2, 4];
        vni.outer.eth.ether_type = 0x0806_u16.to_be();
        assert_eq!(refused(&vni, &VTEP), Some(Reason::Vni), "the VNI is looked at first");
        let mut arp = tunnel(40);
        arp.outer.eth.ether_type = 0x0806_u16.to_be();
        assert_eq!(refused(&arp, &VTEP), Some(Reason::InnerProtocol));
    }

    proptest! {
        /// Whatever is plain is for the anchor as well: a packet cannot be judged by the one and not by the other.
        #[test]
        fn plain_is_what_reaches_the_anchor_and_is_not_refused_and_has_a_plain_inner_header(
            noise in proptest::collection::vec((0_usize..84, any::<u8>()), 0..4),
        ) {
            let plain = tunnel(40);
            // SAFETY: a header struct is plain bytes.
            let mut bytes: [u8; 84] = unsafe { core::mem::transmute(plain) };
            for (at, value) in noise {
                bytes[at] = value;
            }
            let tunnel: Tunnel = bytes_of(bytes);
            let inner: Ipv4Hdr = tunnel.inner;
            let expected = reaches_anchor(&tunnel, &VTEP)
                && refused(&tunnel, &VTEP).is_none()
                && ipv4::is_plain(&inner);
            prop_assert_eq!(tunnel.is_plain(&VTEP), expected);
        }
    }
}
