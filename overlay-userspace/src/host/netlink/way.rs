//! What the kernel would do with a packet: one route looked up, instead of the table listed.
//!
//! Called by [`crate::trace`], to say how a packet goes on that a program leaves to the stack, and by the agent, to find the
//! devices that tunnel packets leave by.

use std::net::IpAddr;

use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteType},
};
use nix::errno::Errno;

use super::{Netlink, NetlinkError, route::kernel_family};
use crate::family::{Family, OfFamily as _};

/// A packet whose way is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Traveller {
    /// Its source; none for one that the node sends itself.
    pub src: Option<IpAddr>,
    /// Its destination.
    pub dst: IpAddr,
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
        let mut message = question(src, dst);
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

impl Netlink {
    /// The links that the node's own packets from `src` to `dst` leave by: those of all next hops of the one route that they
    /// take. None where there is no such route. (Linux 4.13, `RTM_F_FIB_MATCH`)
    pub fn exits(&mut self, src: IpAddr, dst: IpAddr) -> Result<Vec<u32>, NetlinkError> {
        let mut message = question(Some(src), dst);
        message.header.flags = RouteFlags::FibMatch;
        match self.get(RouteNetlinkMessage::GetRoute(message)) {
            Ok(Some(RouteNetlinkMessage::NewRoute(reply))) => Ok(exits(&reply)),
            // Any error but one about the question is the route's answer; that one is told as nothing as well, which is never wrong.
            Ok(_) => Ok(Vec::new()),
            Err(failure) if failure.cause.raw_os_error().is_some() => Ok(Vec::new()),
            Err(failure) => Err(failure.during(format!("look up the route to {dst}"))),
        }
    }
}

fn question(src: Option<IpAddr>, dst: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    let whole = match dst.family() {
        Family::Ipv4 => 32,
        Family::Ipv6 => 128,
    };
    message.header.address_family = kernel_family(dst.family());
    message.header.destination_prefix_length = whole;
    message.header.source_prefix_length = if src.is_some() { whole } else { 0 };
    message.attributes.push(RouteAttribute::Destination(RouteAddress::from(dst)));
    message.attributes.extend(src.map(|src| RouteAttribute::Source(RouteAddress::from(src))));
    message
}

fn exits(reply: &RouteMessage) -> Vec<u32> {
    let mut links = Vec::new();
    if reply.header.kind == RouteType::Unicast {
        for attribute in &reply.attributes {
            match attribute {
                RouteAttribute::Oif(index) => links.push(*index),
                RouteAttribute::MultiPath(hops) => links.extend(hops.iter().map(|hop| hop.interface_index)),
                _ => {}
            }
        }
    }
    links.sort_unstable();
    links.dedup();
    links
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
        // IPv6 answers with the route that refuses, where IPv4 answers with the error that it refuses by.
        (RouteType::Unreachable, _) => Way::Refused(Errno::EHOSTUNREACH),
        (RouteType::Prohibit, _) => Way::Refused(Errno::EACCES),
        (RouteType::BlackHole, _) => Way::Refused(Errno::EINVAL),
        (kind, _) => Way::Other(kind.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netns::testing::{in_fresh_netns, ip};

    /// This node's own address, a stranger on its link, a next hop with what is behind it, what a route refuses, and what
    /// no route leads to.
    const CASES: [[&str; 7]; 2] = [
        [
            "192.0.2.1/24",
            "192.0.2.77",
            "192.0.2.9",
            "198.51.100.0/24",
            "198.51.100.7",
            "203.0.113.7",
            "10.0.0.1",
        ],
        [
            "2001:db8:1::1/64",
            "2001:db8:1::77",
            "2001:db8:1::9",
            "2001:db8:2::/64",
            "2001:db8:2::7",
            "2001:db8:3::7",
            "fd00::1",
        ],
    ];

    #[test]
    fn ways_are_those_that_the_kernel_takes() {
        in_fresh_netns(|| {
            ip("link set lo up");
            ip("link add d0 up type veth peer name d0p");
            ip("link set d0p up");
            for path in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                std::fs::write(format!("/proc/sys/net/{path}"), "1").unwrap();
            }
            let mut netlink = Netlink::open().unwrap();
            let index = netlink.link("d0").unwrap().unwrap().index;
            for [own, near, hop, far, behind, refused, nowhere] in CASES {
                let address = |text: &str| text.parse::<IpAddr>().unwrap();
                let nodad = if own.contains(':') { "nodad" } else { "" };
                ip(&format!("addr add {own} dev d0 {nodad}"));
                ip(&format!("route add {far} via {hop} mtu 1300"));
                ip(&format!("route add unreachable {refused}"));
                let mut to = |dst: &str, iif: Option<u32>| {
                    let src = iif.map(|_| address(near));
                    netlink
                        .way(Traveller { src, dst: address(dst), iif, transport: Some((17, 7, 9)) })
                        .unwrap()
                };
                for iif in [None, Some(index)] {
                    let (own, _) = own.split_once('/').unwrap();
                    assert!(matches!(to(own, iif), Way::Local(_)), "{own} by {iif:?}: {:?}", to(own, iif));
                    assert_eq!(to(refused, iif), Way::Refused(Errno::EHOSTUNREACH), "by {iif:?}");
                    let gateway = Some(address(hop));
                    assert_eq!(to(behind, iif), Way::Out { oif: index, gateway, mtu: Some(1300) });
                }
                assert_eq!(to(nowhere, None), Way::Refused(Errno::ENETUNREACH));
            }
        });
    }

    #[test]
    fn exits_are_those_of_all_next_hops() {
        in_fresh_netns(|| {
            ip("link set lo up");
            for (number, device) in ["d0", "d1", "d2"].into_iter().enumerate() {
                ip(&format!("link add {device} up type veth peer name {device}p"));
                ip(&format!("link set {device}p up"));
                ip(&format!("addr add 192.0.{number}.1/24 dev {device}"));
                ip(&format!("addr add 2001:db8:{number}::1/64 dev {device} nodad"));
            }
            let mut netlink = Netlink::open().unwrap();
            let indices = ["d0", "d1"].map(|name| netlink.link(name).unwrap().unwrap().index);
            for (own, hops, far, near) in [
                ("192.0.0.1", ["192.0.0.9", "192.0.1.9"], "198.51.100.7", "192.0.0.77"),
                ("2001:db8:0::1", ["2001:db8:0::9", "2001:db8:1::9"], "2001:db8:f::7", "2001:db8:0::77"),
            ] {
                let option = if own.contains(':') { "-6" } else { "-4" };
                let [one, other] = hops;
                let mut to = |dst: &str| netlink.exits(own.parse().unwrap(), dst.parse().unwrap()).unwrap();
                assert_eq!(to(far), [0; 0], "no route");
                ip(&format!("{option} route add {far} nexthop via {one} nexthop via {other}"));
                assert_eq!(to(far), indices);
                assert_eq!(to(near), indices[..1]);
                assert_eq!(to(own), [0; 0], "the node itself");
                ip(&format!("{option} route replace unreachable {near}"));
                assert_eq!(to(near), [0; 0], "refused");
            }
        });
    }
}
