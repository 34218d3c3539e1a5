//! BPF programs as tc filters: the clsact qdisc of a link, and filters with a fixed priority and handle on it.
//!
//! A filter lives as long as its link. Called by [`crate::datapath::attach`] alone.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};
use nix::errno::Errno;

use super::{Netlink, NetlinkError};

/// Which way packets go through a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the link into the stack.
    Ingress,
    /// From the stack to the link.
    Egress,
}

/// Where a filter is: ours are told from others' by both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilterKey {
    /// Lower runs first.
    pub priority: u16,
    /// Unique among the filters of a priority; not 0.
    pub handle: u32,
}

/// A BPF filter of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BpfFilter {
    /// Where it is.
    pub key: FilterKey,
    /// The kernel's id of the program; none before Linux 4.13.
    pub program: Option<u32>,
}

impl Netlink {
    /// Gives a link a clsact qdisc; `false` when it has one, or an ingress qdisc in its place.
    pub fn create_clsact(&mut self, index: u32) -> Result<bool, NetlinkError> {
        let mut message = message(index, TcHandle::CLSACT);
        message.header.handle = TcHandle { major: u16::MAX, minor: 0 };
        message.attributes.push(TcAttribute::Kind("clsact".to_owned()));
        match self.execute(RouteNetlinkMessage::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_EXCL) {
            Ok(()) => Ok(true),
            Err(failure) if failure.is(Errno::EEXIST) => Ok(false),
            Err(failure) => {
                let device = self.device(index);
                Err(failure.during(format!("create the clsact qdisc of link {device}")))
            }
        }
    }

    /// Removes the clsact qdisc of a link if it has no filter, of whatever kind; `false` when it has, or is none.
    pub fn delete_unused_clsact(&mut self, index: u32) -> Result<bool, NetlinkError> {
        for direction in [Direction::Ingress, Direction::Egress] {
            if !self.filters(index, direction)?.is_empty() {
                return Ok(false);
            }
        }
        let mut message = message(index, TcHandle::CLSACT);
        // The kernel refuses where it is an ingress qdisc.
        message.attributes.push(TcAttribute::Kind("clsact".to_owned()));
        match self.execute(RouteNetlinkMessage::DelQueueDiscipline(message), 0) {
            Ok(()) => Ok(true),
            Err(failure) if [Errno::ENOENT, Errno::EINVAL, Errno::ENODEV].iter().any(|e| failure.is(*e)) => {
                Ok(false)
            }
            Err(failure) => {
                let device = self.device(index);
                Err(failure.during(format!("remove the clsact qdisc of link {device}")))
            }
        }
    }

    /// Runs a program on all packets of one direction, in direct action mode; atomically in place of the one at `key`.
    pub fn replace_bpf_filter(
        &mut self,
        index: u32,
        direction: Direction,
        key: FilterKey,
        name: &str,
        program: BorrowedFd<'_>,
    ) -> Result<(), NetlinkError> {
        let mut message = filter(index, direction, key);
        message.attributes.push(TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::ProgFd(program.as_raw_fd().cast_unsigned())),
            TcOption::Bpf(TcFilterBpfOption::ProgName(name.to_owned())),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ]));
        self.execute(RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_CREATE).map_err(|failure| {
            let device = self.device(index);
            failure.during(format!("attach {name} to link {device} as a filter"))
        })
    }

    /// Removes the filter at `key`; `false` when there is none.
    pub fn delete_bpf_filter(
        &mut self,
        index: u32,
        direction: Direction,
        key: FilterKey,
    ) -> Result<bool, NetlinkError> {
        match self.execute(RouteNetlinkMessage::DelTrafficFilter(filter(index, direction, key)), 0) {
            Ok(()) => Ok(true),
            // EINVAL: no qdisc that could have filters.
            Err(failure) if [Errno::ENOENT, Errno::EINVAL, Errno::ENODEV].iter().any(|e| failure.is(*e)) => {
                Ok(false)
            }
            Err(failure) => {
                let device = self.device(index);
                Err(failure.during(format!("remove a filter of link {device}")))
            }
        }
    }

    /// The BPF filters of one direction, of whomever.
    pub fn bpf_filters(&mut self, index: u32, direction: Direction) -> Result<Vec<BpfFilter>, NetlinkError> {
        let replies = self.filters(index, direction)?;
        Ok(replies.into_iter().filter_map(|reply| into_filter(reply, index, parent(direction))).collect())
    }

    /// The filters of one direction, of whatever kind.
    fn filters(
        &mut self,
        index: u32,
        direction: Direction,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        match self.dump(&RouteNetlinkMessage::GetTrafficFilter(message(index, parent(direction)))) {
            Ok(replies) => Ok(replies),
            Err(failure) if failure.is(Errno::ENODEV) => Ok(Vec::new()),
            Err(failure) => {
                let device = self.device(index);
                Err(failure.during(format!("list the filters of link {device}")))
            }
        }
    }
}

const fn parent(direction: Direction) -> TcHandle {
    let minor = match direction {
        Direction::Ingress => TcHandle::MIN_INGRESS,
        Direction::Egress => TcHandle::MIN_EGRESS,
    };
    TcHandle { major: u16::MAX, minor }
}

fn message(index: u32, parent: TcHandle) -> TcMessage {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = parent;
    message
}

fn filter(index: u32, direction: Direction, FilterKey { priority, handle }: FilterKey) -> TcMessage {
    let mut message = message(index, parent(direction));
    message.header.handle = handle.into();
    // All protocols, in network byte order.
    let protocol = u32::from((libc::ETH_P_ALL as u16).to_be());
    message.header.info = u32::from(priority) << 16 | protocol;
    message.attributes.push(TcAttribute::Kind(TcFilterBpf::KIND.to_owned()));
    message
}

fn into_filter(reply: RouteNetlinkMessage, index: u32, parent: TcHandle) -> Option<BpfFilter> {
    let RouteNetlinkMessage::NewTrafficFilter(message) = reply else { return None };
    let header = &message.header;
    if header.index != index.cast_signed() || header.parent != parent {
        return None;
    }
    let (mut is_bpf, mut program) = (false, None);
    for attribute in &message.attributes {
        match attribute {
            TcAttribute::Kind(kind) => is_bpf = kind == TcFilterBpf::KIND,
            TcAttribute::Options(options) => {
                program = options.iter().find_map(|option| match option {
                    TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let key = FilterKey { priority: (header.info >> 16) as u16, handle: header.handle.into() };
    // Of each priority the kernel lists an entry without handle first: the list itself.
    (is_bpf && key.handle != 0).then_some(BpfFilter { key, program })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netns::testing::{in_fresh_netns, ip, run};

    const KEY: FilterKey = FilterKey { priority: 0x6f76, handle: 1 };

    #[test]
    fn a_clsact_qdisc_is_made_once_and_deleting_a_filter_that_is_not_there_is_no_error() {
        in_fresh_netns(|| {
            ip("link add d0 type veth peer name d0p");
            let mut netlink = Netlink::open().unwrap();
            let index = netlink.link("d0").unwrap().unwrap().index;
            assert!(!netlink.delete_bpf_filter(index, Direction::Ingress, KEY).unwrap());
            assert!(netlink.bpf_filters(index, Direction::Ingress).unwrap().is_empty());
            assert!(netlink.create_clsact(index).unwrap());
            assert!(!netlink.create_clsact(index).unwrap());
            assert!(run("tc qdisc show dev d0").contains("clsact"));
            for direction in [Direction::Ingress, Direction::Egress] {
                assert!(netlink.bpf_filters(index, direction).unwrap().is_empty());
                assert!(!netlink.delete_bpf_filter(index, direction, KEY).unwrap());
            }
        });
    }

    #[test]
    fn a_clsact_qdisc_goes_only_when_nobody_filters_by_it() {
        in_fresh_netns(|| {
            ip("link add d0 type veth peer name d0p");
            let mut netlink = Netlink::open().unwrap();
            let index = netlink.link("d0").unwrap().unwrap().index;
            assert!(!netlink.delete_unused_clsact(index).unwrap());
            run("tc qdisc add dev d0 clsact");
            let filter = ["filter", "add", "dev", "d0", "egress", "bpf", "bytecode", "1,6 0 0 0"];
            assert!(std::process::Command::new("tc").args(filter).status().unwrap().success());
            assert!(!netlink.delete_unused_clsact(index).unwrap());
            run("tc filter del dev d0 egress");
            assert!(netlink.delete_unused_clsact(index).unwrap());
            assert!(!run("tc qdisc show dev d0").contains("clsact"));
            run("tc qdisc add dev d0 ingress");
            assert!(!netlink.delete_unused_clsact(index).unwrap());
            assert!(run("tc qdisc show dev d0").contains("ingress"));
        });
    }

    #[test]
    fn a_missing_link_is_named() {
        in_fresh_netns(|| {
            let mut netlink = Netlink::open().unwrap();
            assert!(netlink.bpf_filters(99, Direction::Egress).unwrap().is_empty());
            let error = netlink.create_clsact(99).unwrap_err();
            assert_eq!(error.errno(), Errno::ENODEV);
            assert!(error.to_string().starts_with("create the clsact qdisc of link #99: "), "{error}");
        });
    }
}
