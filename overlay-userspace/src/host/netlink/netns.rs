//! By which number this namespace knows another one: what `IFLA_LINK_NETNSID` of a link refers to.

use std::os::fd::{AsFd as _, AsRawFd as _};

use netlink_packet_route::{
    RouteNetlinkMessage,
    nsid::{NsidAttribute, NsidMessage},
};

use super::{Netlink, NetlinkError};
use crate::host::netns::NetNs;

impl Netlink {
    /// The number of a namespace; `None` where it has none here, because no link leads there.
    pub fn netns_number(&mut self, netns: &NetNs) -> Result<Option<i32>, NetlinkError> {
        let mut message = NsidMessage::default();
        message.attributes.push(NsidAttribute::Fd(netns.as_fd().as_raw_fd().cast_unsigned()));
        let reply = self
            .get(RouteNetlinkMessage::GetNsId(message))
            .map_err(|failure| failure.during("ask for the number of a namespace".into()))?;
        Ok(match reply {
            Some(RouteNetlinkMessage::NewNsId(reply)) => reply.attributes.iter().find_map(|attribute| {
                // -1: none (NETNSA_NSID_NOT_ASSIGNED, include/uapi/linux/net_namespace.h).
                if let NsidAttribute::Id(number) = attribute {
                    (*number >= 0).then_some(*number)
                } else {
                    None
                }
            }),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::process::{self, Command};

    use super::*;
    use crate::host::netns::testing::{fresh_netns, in_fresh_netns, ip, run};

    #[test]
    fn a_namespace_has_a_number_where_a_link_leads_to_it() {
        in_fresh_netns(|| {
            let (pod, stranger) = (fresh_netns(), fresh_netns());
            ip("link add here type veth peer name there");
            let mut netlink = Netlink::open().unwrap();
            assert_eq!(netlink.netns_number(&pod).unwrap(), None);
            // `ip` takes a process or a name; a process that is inside will do.
            let inside = pod.run(|| Child(Command::new("sleep").arg("60").spawn().unwrap())).unwrap();
            run(&format!("ip link set there netns {}", inside.0.id()));
            let number = netlink.netns_number(&pod).unwrap();
            assert_eq!(netlink.link("here").unwrap().unwrap().link_netnsid, number);
            assert!(number.is_some());
            assert_eq!(netlink.netns_number(&stranger).unwrap(), None);
        });
    }

    /// A child that does not outlive the test.
    struct Child(process::Child);

    impl Drop for Child {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}
