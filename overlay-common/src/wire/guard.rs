//! What `xdp_wire` asks of a tunnel packet that is not plain.
//!
//! Invariant: nothing is refused here that the tc programs would accept. `from_wire` leaves what is not plain to the
//! anchor device, whose packets `from_tunnel` judges; [`reaches_anchor`] says of which packets that is certain, and
//! [`refused`] what `from_tunnel` would say.

use super::{
    ip::IpHeader,
    vxlan::{Tunnel, Vtep},
};
use crate::reason::Reason;

/// Will the kernel hand this packet to the anchor device? Addressed to the tunnel's socket by plain headers, with a VXLAN
/// header that the kernel takes (drivers/net/vxlan: the VNI flag, and no flag that an extension would own).
#[inline(always)]
pub fn reaches_anchor<O: IpHeader, I: Copy>(tunnel: &Tunnel<O, I>, vtep: &Vtep<O::Bytes>) -> bool {
    tunnel.is_for(vtep)
}

/// Why `from_tunnel` drops this packet whoever has sent it, in the order in which it looks; the senders of others are to
/// be checked. For packets that reach the anchor. `carries` says which `EtherType`s (host order) the network carries.
#[inline(always)]
pub fn refused<O: IpHeader, I: Copy>(
    tunnel: &Tunnel<O, I>,
    vni: u32,
    carries: impl FnOnce(u16) -> bool,
) -> Option<Reason> {
    let [v0, v1, v2] = tunnel.outer.vxlan.vni;
    if u32::from_be_bytes([0, v0, v1, v2]) != vni {
        Some(Reason::Vni)
    } else if !carries(u16::from_be(tunnel.outer.eth.ether_type)) {
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
    use crate::wire::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTO_TCP, ipv4, vxlan::Encap};

    fn only_ipv4(ether_type: u16) -> bool {
        ether_type == ETHERTYPE_IPV4
    }

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
            inner_type: ETHERTYPE_IPV4,
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
        assert_eq!(refused(&tunnel, VTEP.vni, only_ipv4), None);
    }

    #[test]
    fn what_from_tunnel_refuses_of_every_sender_is_named_alike() {
        let mut vni = tunnel(40);
        vni.outer.vxlan.vni = [1, 2, 4];
        vni.outer.eth.ether_type = 0x0806_u16.to_be();
        assert_eq!(refused(&vni, VTEP.vni, only_ipv4), Some(Reason::Vni), "the VNI is looked at first");
        let mut inner6 = tunnel(40);
        inner6.outer.eth.ether_type = ETHERTYPE_IPV6.to_be();
        assert_eq!(refused(&inner6, VTEP.vni, only_ipv4), Some(Reason::InnerProtocol));
        assert_eq!(refused(&inner6, VTEP.vni, |_| true), None);
        let mut arp = tunnel(40);
        arp.outer.eth.ether_type = 0x0806_u16.to_be();
        assert_eq!(refused(&arp, VTEP.vni, only_ipv4), Some(Reason::InnerProtocol));
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
                && refused(&tunnel, VTEP.vni, only_ipv4).is_none()
                && ipv4::is_plain(&inner);
            prop_assert_eq!(tunnel.is_plain(&VTEP), expected);
        }
    }
}
