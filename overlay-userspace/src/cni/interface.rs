//! A pod's veth pair as the node sees it: making it, its settings, its programs, how packets reach it, removing it.
//!
//! Invariant: the device has its programs before it is up, so that nothing of a pod passes unchecked; and it loses them
//! only by being deleted. Called by ADD and DEL.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::AsFd as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use overlay_common::maps::AttachMode;

use super::{
    failure::{Code, Failure},
    local::Node,
};
use crate::{
    datapath::{
        DatapathError,
        attach::{Device, Programs, Role},
        pins::Pins,
    },
    host::{
        netlink::{Link, MacAddress, Netlink, NetlinkError, Route, VethSpec},
        netns::NetNs,
        sysctl::{self, Family, SysctlError},
    },
};

/// The link watch handles what is not urgent once a second (net/core/link_watch.c); several times that.
const CARRIER_TIMEOUT: Duration = Duration::from_secs(5);

/// Creates the pair, both ends down, the pod's end under `ifname` in its namespace.
pub(super) fn create(
    netlink: &mut Netlink,
    device: &str,
    pod: &NetNs,
    ifname: &str,
    mac: MacAddress,
    node: &Node,
) -> Result<Link, Failure> {
    netlink
        .create_veth(&VethSpec {
            host_name: device,
            host_mac: node.gateway_mac,
            peer_name: ifname,
            peer_mac: mac,
            mtu: node.mtu,
            peer_netns: pod.as_fd(),
        })
        .map_err(|e| Failure::step("create the veth pair", e))
}

/// Sets the host side up, from settings to routes. `link` is as [`create`] returned it.
pub(super) fn set_up(
    netlink: &mut Netlink,
    programs: &Programs,
    link: &Link,
    address: Ipv4Addr,
    mac: MacAddress,
    gateway: Ipv4Addr,
) -> Result<(), Failure> {
    let Link { name, index, .. } = link;
    configure(name).map_err(|e| Failure::step("configure the host side", e))?;
    programs.attach_all(Role::Pod, Device { name, ifindex: *index }).map_err(|error| {
        let failure = Failure::step("attach the programs", &error);
        match error {
            DatapathError::NotPinned { .. } => Failure { code: Code::TryAgainLater, ..failure },
            _ => failure,
        }
    })?;
    let mut connect = || -> Result<(), NetlinkError> {
        netlink.set_up(*index)?;
        netlink.replace_neighbour(*index, address.into(), mac)?;
        netlink.replace_route(&Route {
            prefsrc: Some(gateway.into()),
            ..Route::unicast(ipnet::Ipv4Net::from(address).into(), *index)
        })
    };
    connect().map_err(|e| Failure::step("connect the host side", e))
}

/// Waits until one end of the pair can send; both have to be up.
///
/// The end that came up first gets its queueing discipline when the kernel's link watch notices the carrier, a moment
/// later; until then everything sent there is lost (`dev_activate`, net/sched/sch_generic.c).
pub(super) fn await_carrier(netlink: &mut Netlink, index: u32) -> anyhow::Result<()> {
    let deadline = Instant::now() + CARRIER_TIMEOUT;
    loop {
        let link = netlink.link_by_index(index)?.with_context(|| format!("link #{index} is gone"))?;
        if link.running {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let seconds = CARRIER_TIMEOUT.as_secs();
            anyhow::bail!(
                "link {} has no carrier after {seconds} seconds: is its peer taken down?",
                link.name
            );
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Settings of the host side device. `rp_filter` stays as the node has it: the kernel takes the larger of `all` and
/// the device's, and the route to the pod satisfies either.
fn configure(device: &str) -> Result<(), SysctlError> {
    for (setting, value) in [("forwarding", "1"), ("proxy_arp", "0")] {
        sysctl::ensure(&sysctl::interface(Family::Ipv4, device, setting), value)?;
    }
    without_ipv6(device)?;
    optional(sysctl::ensure(&sysctl::interface(Family::Ipv6, device, "accept_ra"), "0"))
}

/// Turns IPv6 off on a device: this version carries IPv4 only, and a link-local address alone would be a way round the
/// programs' checks of what a pod may send.
pub(super) fn without_ipv6(device: &str) -> Result<(), SysctlError> {
    optional(sysctl::ensure(&sysctl::interface(Family::Ipv6, device, "disable_ipv6"), "1"))
}

/// A kernel without IPv6 lacks the setting, which is as good.
fn optional(result: Result<bool, SysctlError>) -> Result<(), SysctlError> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What remains after [`remove`].
pub(super) struct Removal {
    /// The device does not exist any more, and with it its routes and neighbours, and the pod's end.
    pub(super) gone: bool,
    /// What could not be done.
    pub(super) errors: Vec<String>,
}

/// Deletes the device, then the pins of its links. Missing ones are fine; what fails does not stop the rest.
pub(super) fn remove(netlink: &mut Netlink, pins: &Pins, device: &str) -> Removal {
    let mut errors = Vec::new();
    let deleted = netlink.delete_link(device);
    let gone = deleted.is_ok();
    errors.extend(deleted.err().map(|e| e.to_string()));
    // A device that is still there keeps its programs.
    if gone {
        // Pins exist in tcx mode only; removing them needs no mode.
        let programs = Programs::new(pins, AttachMode::Tcx);
        let detached = programs.detach_all(Role::Pod, Device { name: device, ifindex: 0 });
        errors.extend(detached.err().map(|e| e.to_string()));
    }
    Removal { gone, errors }
}
