//! A stream of changes to links, addresses, routes, policy rules, forwarding and nftables of the namespace, for the agent's reconcile
//! loop.
//!
//! Invariants: what is reported is a reason to look, never the state itself; the stream does not end on lost
//! messages but says [`Change::Overrun`]. Messages are read only as far as needed to name what changed, so
//! an attribute unknown to this program cannot hide a change.

mod filter;

use std::{collections::VecDeque, io};

use ipnet::IpNet;
use netlink_packet_core::{DecodeError, NLA_HEADER_SIZE, NlasIterator, parse_ip, parse_string};
use netlink_packet_route::{
    AddressFamily,
    address::AddressHeader,
    link::LinkHeader,
    route::{RouteFlags, RouteHeader},
};
use netlink_sys::{
    AsyncSocket as _, AsyncSocketExt as _, TokioSocket,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};

use super::netlink::{NetlinkError, RawMessage, messages};
use crate::family::Family;

/// Room for some thousand changes that arrive while the agent is busy.
const QUEUE: usize = 1024 * 1024;

/// Sizes of `struct ifinfomsg`, `struct rtmsg` (linux/rtnetlink.h) and `struct netconfmsg` (linux/netconf.h, aligned),
/// before the attributes.
const LINK_HEADER: usize = 16;
const ROUTE_HEADER: usize = 12;
const NETCONF_HEADER: usize = 4;

/// `NETCONFA_FORWARDING` (linux/netconf.h).
const NETCONFA_FORWARDING: u16 = 2;

const GROUPS: [u32; 9] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV4_NETCONF,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_NETCONF,
    libc::RTNLGRP_IPV6_RULE,
];

/// Something changed in the namespace, by whomever, this process included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A link appeared, changed or went away.
    Link {
        /// Its index.
        index: u32,
        /// Its name, now.
        name: String,
        /// It no longer exists.
        gone: bool,
    },
    /// A link got or lost an address.
    Address {
        /// Index of the link.
        index: u32,
        /// It was lost.
        gone: bool,
    },
    /// A route was written or deleted, in any table but the local one, which follows the addresses.
    ///
    /// Routes that vanish with their link, or with the link's state, are not reported by the kernel for
    /// IPv4, and for IPv6 only one by one: a [`Change::Link`] has to be taken as a change of routes, too.
    Route {
        /// Destination.
        dst: IpNet,
        /// Who made it.
        protocol: u8,
        /// It was deleted.
        gone: bool,
    },
    /// A policy rule of this family was written or deleted.
    Rule(Family),
    /// Forwarding of this family was switched on or off, on a link or on all.
    Forwarding(Family),
    /// nftables were changed in a way that may matter to a packet filter; what is in other chains is not told apart.
    Filter {
        /// The table.
        table: String,
        /// The chain; none for a set, and for the table itself.
        chain: Option<String>,
        /// A base chain was written: made, or given a policy.
        base: bool,
    },
    /// Changes were lost: look at everything.
    Overrun,
}

/// The subscription.
pub struct Monitor {
    route: TokioSocket,
    /// None where the kernel lacks nf_tables.
    filter: Option<TokioSocket>,
    pending: VecDeque<Change>,
}

impl Monitor {
    /// Subscribes in the network namespace of the calling thread; needs a tokio runtime.
    ///
    /// Changes from now on are reported: subscribe first, then read the state.
    pub fn open() -> Result<Self, NetlinkError> {
        Self::with_queue(QUEUE)
    }

    fn with_queue(bytes: usize) -> Result<Self, NetlinkError> {
        Self::subscribe(bytes).map_err(|cause| NetlinkError::new("subscribe to network changes", cause))
    }

    fn subscribe(bytes: usize) -> io::Result<Self> {
        let route = socket(NETLINK_ROUTE, &GROUPS, bytes)?;
        let filter = socket(NETLINK_NETFILTER, &[filter::GROUP], bytes).ok();
        Ok(Self { route, filter, pending: VecDeque::new() })
    }

    /// Waits for the next change. Cancel-safe: a change is reported once, also if the future is dropped.
    pub async fn changed(&mut self) -> Result<Change, NetlinkError> {
        loop {
            if let Some(change) = self.pending.pop_front() {
                return Ok(change);
            }
            self.receive().await.map_err(|cause| NetlinkError::new("wait for network changes", cause))?;
        }
    }

    /// Queues the changes of one datagram.
    async fn receive(&mut self) -> io::Result<()> {
        let filter = async {
            match &mut self.filter {
                Some(socket) => socket.recv_from_full().await,
                None => std::future::pending().await,
            }
        };
        let (received, read): (_, Reader) = tokio::select! {
            received = self.route.recv_from_full() => (received, read),
            received = filter => (received, filter::read),
        };
        match received {
            Ok((datagram, _)) => self.pending.extend(changes(&datagram, read)),
            // The kernel's queue was full; it goes on after having said so.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                self.pending.push_back(Change::Overrun);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// A subscription to `groups` of `protocol`, with room for `bytes` in its queue.
fn socket(protocol: isize, groups: &[u32], bytes: usize) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocol)?;
    // Without the privilege the default size has to do; an overrun is reported in any case.
    let _ = setsockopt(socket.socket_ref(), RcvBufForce, &bytes);
    socket.socket_mut().bind_auto()?;
    for group in groups {
        socket.socket_ref().add_membership(*group)?;
    }
    Ok(socket)
}

/// `Ok(None)` for what is of no interest, an error for what cannot be read.
type Reader = fn(&RawMessage<'_>) -> Result<Option<Change>, DecodeError>;

fn changes(datagram: &[u8], read: Reader) -> Vec<Change> {
    let mut changes: Vec<_> = messages(datagram)
        .filter_map(|message| match message {
            // What cannot be read may be anything.
            Ok(message) => read(&message).unwrap_or(Some(Change::Overrun)),
            Err(_) => Some(Change::Overrun),
        })
        .collect();
    changes.dedup();
    changes
}

/// The [`Reader`] of rtnetlink.
fn read(message: &RawMessage<'_>) -> Result<Option<Change>, DecodeError> {
    let payload = message.payload;
    let kind = message.header.message_type;
    Ok(match kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => {
            let header = LinkHeader::parse(payload)?;
            // A bridge reports its ports in this group, too; there RTM_DELLINK is a port that left.
            if header.interface_family != AddressFamily::Unspec {
                return Ok(None);
            }
            let name = attribute(payload, LINK_HEADER, libc::IFLA_IFNAME)
                .map(parse_string)
                .transpose()?
                .unwrap_or_default();
            Some(Change::Link { index: header.index, name, gone: kind == libc::RTM_DELLINK })
        }
        libc::RTM_NEWADDR | libc::RTM_DELADDR => {
            let header = AddressHeader::parse(payload)?;
            Some(Change::Address { index: header.index, gone: kind == libc::RTM_DELADDR })
        }
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => {
            let header = RouteHeader::parse(payload)?;
            // Cached routes come and go with traffic.
            if header.flags.contains(RouteFlags::Cloned) || header.table == libc::RT_TABLE_LOCAL {
                return Ok(None);
            }
            let dst = attribute(payload, ROUTE_HEADER, libc::RTA_DST);
            let address = match (dst, header.address_family) {
                (Some(bytes), _) => parse_ip(bytes)?,
                (None, AddressFamily::Inet) => [0; 4].into(),
                (None, _) => [0; 16].into(),
            };
            let dst = IpNet::new(address, header.destination_prefix_length)
                .map_err(|error| DecodeError::from(error.to_string()))?;
            Some(Change::Route { dst, protocol: header.protocol.into(), gone: kind == libc::RTM_DELROUTE })
        }
        libc::RTM_NEWNETCONF => attribute(payload, NETCONF_HEADER, NETCONFA_FORWARDING)
            .and(family(payload))
            .map(Change::Forwarding),
        libc::RTM_NEWRULE | libc::RTM_DELRULE => family(payload).map(Change::Rule),
        _ => None,
    })
}

/// The family of a message whose header begins with it; `None` for any other than the two (MPLS has such messages, too).
fn family(payload: &[u8]) -> Option<Family> {
    match i32::from(*payload.first()?) {
        libc::AF_INET => Some(Family::Ipv4),
        libc::AF_INET6 => Some(Family::Ipv6),
        _ => None,
    }
}

/// The value of the first attribute of that kind, behind a header of `offset` bytes.
fn attribute(payload: &[u8], offset: usize, kind: u16) -> Option<&[u8]> {
    let attribute = NlasIterator::new(payload.get(offset..)?)
        .map_while(Result::ok)
        .find(|attribute| attribute.kind() == kind)?;
    let length = usize::from(attribute.length());
    attribute.into_inner().get(NLA_HEADER_SIZE..length)
}

#[cfg(test)]
mod tests {
    use std::{future::Future, time::Duration};

    use super::*;
    use crate::host::{
        netns::testing::{in_fresh_netns, ip, ip_batch, run},
        sysctl,
    };

    /// Runs an async test in a namespace of its own.
    fn in_runtime<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
        in_fresh_netns(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { test().await });
        });
    }

    /// Everything that is reported until nothing comes for a while.
    async fn drain(monitor: &mut Monitor) -> Vec<Change> {
        let mut changes = Vec::new();
        while let Ok(change) = tokio::time::timeout(Duration::from_millis(200), monitor.changed()).await {
            changes.push(change.unwrap());
        }
        changes
    }

    #[test]
    fn policy_rules_are_reported_as_they_come_and_go() {
        in_runtime(async || {
            let mut monitor = Monitor::open().unwrap();
            for (family, flag, source) in
                [(Family::Ipv4, "-4", "10.0.0.0/8"), (Family::Ipv6, "-6", "fd00::/48")]
            {
                for act in ["add", "del"] {
                    ip(&format!("{flag} rule {act} from {source} table 100"));
                    assert_eq!(drain(&mut monitor).await, [Change::Rule(family)]);
                }
            }
        });
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn links_addresses_and_routes_are_reported_as_they_come_and_go() {
        in_runtime(async || {
            let mut monitor = Monitor::open().unwrap();
            ip("link add d0 index 79 type veth peer name d0p");
            ip("link set d0 up");
            ip("address add 192.0.2.1/24 dev d0");
            ip("-6 address add fd00::1/64 dev d0 nodad");
            ip("route add 10.244.0.0/16 dev d0 proto 79");
            ip("-6 route add fd00:244::/56 dev d0 proto 79");
            let changes = drain(&mut monitor).await;
            let route = |dst, gone| Change::Route { dst: net(dst), protocol: 79, gone };
            for expected in [
                Change::Link { index: 79, name: "d0".into(), gone: false },
                Change::Address { index: 79, gone: false },
                route("10.244.0.0/16", false),
                route("fd00:244::/56", false),
            ] {
                assert!(changes.contains(&expected), "{expected:?} not in {changes:?}");
            }
            assert!(!changes.contains(&Change::Overrun), "{changes:?}");

            ip("route del 10.244.0.0/16 dev d0");
            ip("address del 192.0.2.1/24 dev d0");
            ip("link del d0");
            let changes = drain(&mut monitor).await;
            for expected in [
                route("10.244.0.0/16", true),
                Change::Address { index: 79, gone: true },
                Change::Link { index: 79, name: "d0".into(), gone: true },
            ] {
                assert!(changes.contains(&expected), "{expected:?} not in {changes:?}");
            }
        });
    }

    #[test]
    fn forwarding_is_reported_when_it_is_switched() {
        in_runtime(async || {
            for (family, path) in
                [(Family::Ipv4, "net/ipv4/ip_forward"), (Family::Ipv6, "net/ipv6/conf/all/forwarding")]
            {
                sysctl::set(path, "1").unwrap();
                let mut monitor = Monitor::open().unwrap();
                sysctl::set(path, "0").unwrap();
                let changes = drain(&mut monitor).await;
                assert!(changes.contains(&Change::Forwarding(family)), "{changes:?}");
                assert!(!changes.contains(&Change::Forwarding(family.other())), "{changes:?}");
                sysctl::set(path, "0").unwrap();
                assert_eq!(drain(&mut monitor).await, []);
            }
        });
    }

    #[test]
    fn tables_chains_and_rules_are_reported_by_name() {
        in_runtime(async || {
            run("nft add table ip t");
            run("nft add chain ip t plain");
            let mut monitor = Monitor::open().unwrap();
            let change = |chain: Option<&str>, base| Change::Filter {
                table: "t".into(),
                chain: chain.map(str::to_owned),
                base,
            };
            for (command, expected) in [
                (
                    "nft add chain ip t base { type filter hook forward priority 0; }",
                    change(Some("base"), true),
                ),
                ("nft chain ip t base { policy drop; }", change(Some("base"), true)),
                ("nft add rule ip t plain accept", change(Some("plain"), false)),
                ("nft flush chain ip t plain", change(Some("plain"), false)),
                ("nft add set ip t s { type ipv4_addr; }", change(None, false)),
                ("nft add element ip t s { 192.0.2.1 }", change(None, false)),
                ("nft delete element ip t s { 192.0.2.1 }", change(None, false)),
                ("nft delete chain ip t plain", change(Some("plain"), false)),
                ("nft delete table ip t", change(None, false)),
            ] {
                run(command);
                let changes = drain(&mut monitor).await;
                assert!(changes.contains(&expected), "{command}: {changes:?}");
            }
            run("nft list ruleset");
            assert_eq!(drain(&mut monitor).await, []);
        });
    }

    #[test]
    fn a_bridge_port_that_leaves_is_not_a_link_that_is_gone() {
        in_runtime(async || {
            ip("link add br0 up type bridge");
            ip("link add d0 up type veth peer name d0p");
            ip("link set d0 master br0");
            let mut monitor = Monitor::open().unwrap();
            ip("link set d0 nomaster");
            let changes = drain(&mut monitor).await;
            assert!(!changes.is_empty());
            assert!(
                !changes.iter().any(|change| matches!(change, Change::Link { gone: true, .. })),
                "{changes:?}"
            );
        });
    }

    #[test]
    fn lost_messages_are_an_overrun_and_the_stream_goes_on() {
        in_runtime(async || {
            let mut monitor = Monitor::with_queue(4096).unwrap();
            ip("link add d0 up type veth peer name d0p");
            let routes = (0..1000).map(|i| format!("route add 10.9.{}.{}/32 dev d0\n", i / 250, i % 250));
            ip_batch(&routes.collect::<String>());
            let changes = drain(&mut monitor).await;
            assert!(changes.contains(&Change::Overrun), "{} changes", changes.len());
            ip("link add d1 type veth peer name d1p");
            let changes = drain(&mut monitor).await;
            let named =
                |change: &Change| matches!(change, Change::Link { name, gone: false, .. } if name == "d1");
            assert!(changes.iter().any(named), "{changes:?}");
        });
    }

    #[test]
    fn an_unreadable_message_is_taken_as_any_change() {
        let mut bytes = 20u32.to_ne_bytes().to_vec();
        bytes.extend(libc::RTM_NEWLINK.to_ne_bytes());
        bytes.extend([0; 14]);
        for read in [read as Reader, filter::read] {
            assert_eq!(changes(&[1, 2, 3], read), [Change::Overrun]);
        }
        assert_eq!(changes(&bytes, read), [Change::Overrun]);
    }
}
