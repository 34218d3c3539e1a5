//! Programs as filters on a clsact qdisc: what kernels without tcx have, and what a pod's device gets by default.
//!
//! Why pods: attaching or detaching through tcx waits for an RCU grace period with the RTNL lock held
//! (`tcx_entry_sync`, include/net/tcx.h), some 10 ms each, and a pod's life has four of them, during which no other
//! pod of the node comes or goes. A filter waits for none.

use std::os::fd::AsFd as _;

use aya::programs::SchedClassifier;
use overlay_common::reason::Hook;

use super::{Attached, Device};
use crate::{
    datapath::{DatapathError, pins::Pins},
    host::netlink::{Direction, FilterKey, Netlink, NetlinkError},
};

/// Fixed, so that a restarted agent finds its own. Room is left before.
pub(in crate::datapath) const KEY: FilterKey = FilterKey { priority: 0x6f76, handle: 1 };

pub(super) const fn direction(hook: Hook) -> Direction {
    match hook {
        // XDP is no filter; its way is the same.
        Hook::FromPod | Hook::FromTunnel | Hook::FromWire | Hook::XdpWire => Direction::Ingress,
        Hook::ToPod | Hook::FromHost => Direction::Egress,
    }
}

impl From<NetlinkError> for DatapathError {
    fn from(error: NetlinkError) -> Self {
        Self::Filter(error)
    }
}

/// The kernel's id of the pinned program of `hook`.
pub(super) fn pinned_id(pins: &Pins, hook: Hook) -> Result<u32, DatapathError> {
    id(&super::open(pins, hook)?, hook)
}

fn id(program: &SchedClassifier, hook: Hook) -> Result<u32, DatapathError> {
    let info = program.info();
    Ok(info.map_err(|e| DatapathError::new(format!("inspect the program {}", hook.name()), e))?.id())
}

/// Attaches the pinned program of `hook`, in place of what our filter runs.
pub(super) fn attach(
    pins: &Pins,
    netlink: &mut Netlink,
    device: Device<'_>,
    hook: Hook,
) -> Result<(), DatapathError> {
    replace(&super::open(pins, hook)?, netlink, device, hook)
}

fn replace(
    program: &SchedClassifier,
    netlink: &mut Netlink,
    device: Device<'_>,
    hook: Hook,
) -> Result<(), DatapathError> {
    // That of the pin: a program's id opens it for CAP_SYS_ADMIN alone.
    let fd = program.fd().map_err(|e| DatapathError::new(format!("open the program {}", hook.name()), e))?;
    netlink.replace_bpf_filter(device.ifindex, direction(hook), KEY, hook.name(), fd.as_fd())?;
    Ok(())
}

/// Brings the filter into the wanted state; what is right is not written again.
pub(super) fn ensure(
    pins: &Pins,
    netlink: &mut Netlink,
    device: Device<'_>,
    hook: Hook,
) -> Result<Attached, DatapathError> {
    let program = super::open(pins, hook)?;
    let wanted = id(&program, hook)?;
    let filters = netlink.bpf_filters(device.ifindex, direction(hook))?;
    let present = filters.iter().find(|filter| filter.key == KEY);
    if present.is_some_and(|filter| filter.program == Some(wanted)) {
        return Ok(Attached::Kept);
    }
    if present.is_none() {
        netlink.create_clsact(device.ifindex)?;
    }
    replace(&program, netlink, device, hook)?;
    Ok(if present.is_some() { Attached::Kept } else { Attached::New })
}

/// The kernel's id of the program that our filter runs, if it is there.
pub(super) fn program(
    netlink: &mut Netlink,
    device: Device<'_>,
    hook: Hook,
) -> Result<Option<u32>, DatapathError> {
    let filters = netlink.bpf_filters(device.ifindex, direction(hook))?;
    Ok(filters.iter().find(|filter| filter.key == KEY).and_then(|filter| filter.program))
}

/// Whether our filter is there.
pub(super) fn present(netlink: &mut Netlink, device: Device<'_>, hook: Hook) -> Result<bool, DatapathError> {
    let filters = netlink.bpf_filters(device.ifindex, direction(hook))?;
    Ok(filters.iter().any(|filter| filter.key == KEY))
}

/// The directions in which a link has a filter of ours.
pub(super) fn directions(netlink: &mut Netlink, index: u32) -> Result<Vec<Direction>, DatapathError> {
    let mut found = Vec::new();
    for direction in [Direction::Ingress, Direction::Egress] {
        if netlink.bpf_filters(index, direction)?.iter().any(|filter| filter.key == KEY) {
            found.push(direction);
        }
    }
    Ok(found)
}

/// Removes our filters of a link, and the qdisc if nobody else's are left.
pub(super) fn clear(netlink: &mut Netlink, index: u32) -> Result<(), DatapathError> {
    for direction in directions(netlink, index)? {
        netlink.delete_bpf_filter(index, direction, KEY)?;
    }
    netlink.delete_unused_clsact(index)?;
    Ok(())
}

/// Removes our filter; missing is fine.
pub(super) fn detach(netlink: &mut Netlink, device: Device<'_>, hook: Hook) -> Result<(), DatapathError> {
    netlink.delete_bpf_filter(device.ifindex, direction(hook), KEY)?;
    Ok(())
}
