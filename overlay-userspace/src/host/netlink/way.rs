//! What the kernel would do with a packet: one route looked up, instead of the table listed.
//!
//! Called by [`crate::trace`], to say how a packet goes on that a program leaves to the stack.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType},
};
use nix::errno::Errno;

use super::{Netlink, NetlinkError};

/// A packet whose way is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Traveller {
    /// Its source; none for one that the node sends itself.
    pub src: Option<Ipv4Addr>,
    /// Its destination.
    pub dst: Ipv4Addr,
    /// The link that it came in by; none for one that the node sends itself.
    pub iif: Option<u32>,
    /// IP protocol number and ports in host order, which policy rules and several next hops go by.
    pub transport: Option<(u8, u16, u16)>,
}

/// What the kernel answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It is for the node itself; the link that holds the address.
    Local(Option<u32>),
    /// It is sent on.
    Out {
        /// The outgoing link.
        oif: u32,
        /// The next hop, where that is not the destination.
        gateway: Option<IpAddr>,
        /// The path's MTU in bytes, where the route or what was learnt says another than the link.
        mtu: Option<u32>,
    },
    /// To many, or of a kind that is not for pods: the kernel's `RTN_*` number.
    Other(u8),
    /// It is refused: `EHOSTUNREACH`, `ENETUNREACH`, `EACCES`; `EINVAL` for a blackhole or a source that is not believed.
    Refused(Errno),
}

impl Netlink {
    /// Looks up the way of one packet (`ip route get`).
    pub fn way(&mut self, traveller: Traveller) -> Result<Way, NetlinkError> {
        let Traveller { src, dst, iif, transport } = traveller;
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = 32;
        message.header.source_prefix_length = if src.is_some() { 32 } else { 0 };
        message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(dst)));
        message.attributes.extend(src.map(|src| RouteAttribute::Source(RouteAddress::Inet(src))));
        message.attributes.extend(iif.map(RouteAttribute::Iif));
        if let Some((protocol, sport, dport)) = transport {
            message.attributes.push(RouteAttribute::IpProto(protocol));
            message.attributes.push(RouteAttribute::Sport(sport));
            message.attributes.push(RouteAttribute::Dport(dport));
        }
        match self.get(RouteNetlinkMessage::GetRoute(message)) {
            Ok(Some(RouteNetlinkMessage::NewRoute(reply))) => Ok(way(&reply)),
            Ok(_) => Ok(Way::Refused(Errno::ENETUNREACH)),
            Err(failure) => {
                let errno = failure.cause.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
                match errno {
                    Errno::EHOSTUNREACH
                    | Errno::ENETUNREACH
                    | Errno::EACCES
                    | Errno::EINVAL
                    | Errno::EXDEV => Ok(Way::Refused(errno)),
                    _ => Err(failure.during(format!("look up the route to {dst}"))),
                }
            }
        }
    }
}

fn way(reply: &RouteMessage) -> Way {
    let (mut oif, mut gateway, mut mtu) = (None, None, None);
    for attribute in &reply.attributes {
        match attribute {
            RouteAttribute::Oif(index) => oif = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(IpAddr::V4(*address)),
            RouteAttribute::Gateway(RouteAddress::Inet6(address)) => gateway = Some(IpAddr::V6(*address)),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    match (reply.header.kind, oif) {
        (RouteType::Local, _) => Way::Local(oif),
        (RouteType::Unicast, Some(oif)) => Way::Out { oif, gateway, mtu },
        (kind, _) => Way::Other(kind.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netns::testing::{in_fresh_netns, ip};

    #[test]
    fn ways_are_those_that_the_kernel_takes() {
        in_fresh_netns(|| {
            ip("link set lo up");
            ip("link add d0 up type veth peer name d0p");
            ip("link set d0p up");
            ip("addr add 192.0.2.1/24 dev d0");
            ip("route add 198.51.100.0/24 via 192.0.2.9 mtu 1300");
            ip("route add unreachable 203.0.113.0/24");
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            let mut netlink = Netlink::open().unwrap();
            let index = netlink.link("d0").unwrap().unwrap().index;
            let mut to = |dst: [u8; 4], iif: Option<u32>| {
                let src = iif.map(|_| Ipv4Addr::new(192, 0, 2, 77));
                netlink.way(Traveller { src, dst: dst.into(), iif, transport: Some((17, 7, 9)) }).unwrap()
            };
            for iif in [None, Some(index)] {
                assert!(matches!(to([192, 0, 2, 1], iif), Way::Local(_)));
                assert_eq!(to([203, 0, 113, 7], iif), Way::Refused(Errno::EHOSTUNREACH));
                let gateway = Some([192, 0, 2, 9].into());
                assert_eq!(to([198, 51, 100, 7], iif), Way::Out { oif: index, gateway, mtu: Some(1300) });
            }
            assert_eq!(to([10, 0, 0, 1], None), Way::Refused(Errno::ENETUNREACH));
        });
    }
}
