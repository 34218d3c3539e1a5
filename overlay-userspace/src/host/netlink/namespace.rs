//! The numbers that a network namespace knows others by, as links name the namespace of their other end.

use std::os::fd::{AsFd, AsRawFd as _};

use netlink_packet_route::{
    RouteNetlinkMessage,
    nsid::{NsidAttribute, NsidMessage},
};

use super::{Netlink, NetlinkError};

impl Netlink {
    /// The number of a namespace, as in [`super::Link::link_netnsid`]; `None` where this one has none for it.
    pub fn namespace_id(&mut self, namespace: &impl AsFd) -> Result<Option<i32>, NetlinkError> {
        let mut message = NsidMessage::default();
        let descriptor = namespace.as_fd().as_raw_fd().unsigned_abs();
        message.attributes.push(NsidAttribute::Fd(descriptor));
        let reply = self
            .get(RouteNetlinkMessage::GetNsId(message))
            .map_err(|failure| failure.during("read the number of a network namespace".into()))?;
        let Some(RouteNetlinkMessage::NewNsId(reply)) = reply else { return Ok(None) };
        Ok(reply.attributes.iter().find_map(|attribute| match attribute {
            NsidAttribute::Id(id) if *id >= 0 => Some(*id),
            _ => None,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{
        netlink::VethSpec,
        netns::testing::{fresh_netns, in_fresh_netns},
    };

    #[test]
    fn the_other_end_of_a_link_is_found_by_its_namespace() {
        in_fresh_netns(|| {
            let (pod, other) = (fresh_netns(), fresh_netns());
            let mut netlink = Netlink::open().unwrap();
            assert_eq!(netlink.namespace_id(&pod).unwrap(), None);
            let link = netlink
                .create_veth(&VethSpec {
                    host_name: "v0",
                    host_mac: [2, 0, 0, 0, 0, 1],
                    peer_name: "eth0",
                    peer_mac: [2, 0, 0, 0, 0, 2],
                    mtu: 1500,
                    peer_netns: pod.as_fd(),
                })
                .unwrap();
            assert!(link.link_netnsid.is_some());
            assert_eq!(netlink.namespace_id(&pod).unwrap(), link.link_netnsid);
            assert_eq!(netlink.namespace_id(&other).unwrap(), None);
        });
    }
}
