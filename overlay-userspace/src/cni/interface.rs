//! A pod's veth pair as the node sees it: making it, its settings, its programs, how packets reach it, removing it.
//!
//! Invariant: the device has its programs before it is up, so that nothing of a pod passes unchecked; and it loses them
//! only by being deleted. Called by ADD, DEL and GC.

use std::{
    io,
    net::IpAddr,
    os::fd::AsFd as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use ipnet::IpNet;
use overlay_common::maps::AttachMode;

use super::{
    failure::{Code, Failure},
    lease::Leased,
    local::Node,
    sandbox::Sandbox,
};
use crate::{
    datapath::{
        DatapathError,
        attach::{Device, Programs, Role},
        pins::Pins,
    },
    family::Family,
    host::{
        netlink::{Changes, Link, MacAddress, Netlink, NetlinkError, Route, Traveller, VethSpec, Way},
        sysctl::{self, SysctlError},
    },
};

mod unlink;

/// The link watch of kernels before 6.8 handles what is not urgent once a second (net/core/link_watch.c); several times
/// that.
const CARRIER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the kernel's worker may take for what takes it microseconds.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(5);

/// A device with less has no IPv6 (RFC 8200, 5; `IPV6_MIN_MTU` of linux/ipv6.h).
const IPV6_MIN_MTU: u32 = 1280;

/// Creates the pair, both ends down, the pod's end under `ifname` in its namespace.
pub(super) fn create(
    netlink: &mut Netlink,
    device: &str,
    pod: &Sandbox,
    ifname: &str,
    mac: MacAddress,
    node: &Node,
) -> Result<Link, Failure> {
    if node.nets.v6.is_some() && node.mtu < IPV6_MIN_MTU {
        let what = format!(
            "{} bytes are less than the {IPV6_MIN_MTU} that IPv6 needs: raise the MTU of the underlay or network.mtu, or leave IPv6 out of network.cidr",
            node.mtu
        );
        return Err(Failure::step("set the MTU of the pod", what));
    }
    netlink
        .create_veth(&VethSpec {
            host_name: device,
            host_mac: node.gateway_mac,
            peer_name: ifname,
            peer_mac: mac,
            mtu: node.mtu,
            peer_netns: pod.netns.as_fd(),
        })
        .map_err(|e| Failure::step("create the veth pair", e))
}

/// Settings and programs of the device that [`create`] has made.
pub(super) fn prepare(
    netlink: &mut Netlink,
    programs: &Programs,
    link: &Link,
    node: &Node,
) -> Result<(), Failure> {
    configure(&link.name, node).map_err(|e| Failure::step("configure the host side", e))?;
    let device = Device { name: &link.name, ifindex: link.index };
    programs.attach_first(netlink, Role::Pod, device).map_err(|error| {
        let failure = Failure::step("attach the programs", &error);
        match error {
            DatapathError::NotPinned { .. } => Failure { code: Code::TryAgainLater, ..failure },
            _ => failure,
        }
    })
}

/// Brings the prepared device up, which gives the pod's the carrier, and leads packets for its addresses to it. Returns
/// when both ends can send.
pub(super) fn connect(
    netlink: &mut Netlink,
    pod: &mut Sandbox,
    ifname: &str,
    link: &Link,
    leased: &Leased,
    node: &Node,
) -> anyhow::Result<()> {
    let mut changes = Changes::new();
    changes.set_up(link.index);
    for (family, address) in leased.addresses.iter() {
        let gateway = node.nets.get(family).map(|net| net.gateway);
        changes.neighbour(link.index, *address, leased.endpoint.mac);
        let route = Route { prefsrc: gateway, ..Route::unicast(IpNet::from(*address), link.index) };
        changes.route(link.index, &route);
        if let (Family::Ipv6, Some(gateway)) = (family, gateway) {
            changes.proxy(link.index, gateway);
        }
    }
    netlink.apply(changes)?;
    await_carrier(&mut pod.netlink, ifname)?;
    await_carrier(netlink, &link.name)?;
    // The kernel puts those of IPv4 to use at once.
    leased.addresses.v6.map_or(Ok(()), |address| await_address(&mut pod.netlink, address))
}

/// Waits until an end of the pair can send.
///
/// The end that came up first gets its queueing discipline when the kernel's link watch notices the carrier, which may be
/// a moment later; until then everything sent there is lost (`dev_activate`, net/sched/sch_generic.c).
fn await_carrier(netlink: &mut Netlink, device: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + CARRIER_TIMEOUT;
    loop {
        netlink.settle_carrier(device)?;
        let link = netlink.link(device)?.with_context(|| format!("link {device} is gone"))?;
        if link.running {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let seconds = CARRIER_TIMEOUT.as_secs();
            bail!("link {device} has no carrier after {seconds} seconds: has its peer been taken down?");
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until what is sent to an address of the pod is the pod's.
///
/// A kernel worker writes the local route of an IPv6 address, also of one without duplicate address detection; until then
/// what arrives is taken for somebody else's (`addrconf_dad_work`, net/ipv6/addrconf.c).
fn await_address(netlink: &mut Netlink, address: IpAddr) -> anyhow::Result<()> {
    let deadline = Instant::now() + ADDRESS_TIMEOUT;
    let traveller = Traveller { src: None, dst: address, iif: None, transport: None };
    while !matches!(netlink.way(traveller)?, Way::Local(_)) {
        if Instant::now() >= deadline {
            let seconds = ADDRESS_TIMEOUT.as_secs();
            bail!("the pod's address {address} is not in use after {seconds} seconds: has it been removed?");
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Writes the settings of the host side device.
fn configure(device: &str, node: &Node) -> Result<(), SysctlError> {
    for (family, path, value) in settings(device, |family| node.nets.get(family).is_some()) {
        let written = sysctl::ensure(&path, value).map(drop);
        match family {
            Family::Ipv6 if node.nets.v6.is_none() => optional(written)?,
            _ => written?,
        }
    }
    Ok(())
}

/// Settings of the host side device, in the order in which they are written, for a pod that has addresses of these families.
///
/// `rp_filter` stays as the node has it: the kernel takes the larger of `all` and the device's, and the route to the pod
/// satisfies either. Without IPv6 the device has none at all: a link-local address alone would be a way round the programs'
/// checks of what a pod may send. With it, it still needs no link-local address; it answers for the gateway's address,
/// which the anchor device holds, to those who do not keep the neighbour entry that they were given, and does so at once
/// (the kernel would let up to 0.8 s go by first).
pub(crate) fn settings(
    device: &str,
    has: impl Fn(Family) -> bool,
) -> impl Iterator<Item = (Family, String, &'static str)> {
    const V4: &[(&str, &str)] = &[("forwarding", "1"), ("proxy_arp", "0"), ("send_redirects", "0")];
    const V6: &[(&str, &str)] = &[
        ("accept_ra", "0"),
        ("autoconf", "0"),
        ("addr_gen_mode", NO_ADDRESS),
        ("forwarding", "1"),
        ("proxy_ndp", "1"),
        ("disable_ipv6", "0"),
    ];
    const WITHOUT_V6: &[(&str, &str)] = &[("disable_ipv6", "1"), ("accept_ra", "0")];
    let v4 = if has(Family::Ipv4) { V4 } else { &[] };
    let v6 = if has(Family::Ipv6) { V6 } else { WITHOUT_V6 };
    let delay = has(Family::Ipv6).then(|| (Family::Ipv6, proxy_delay(device), "0"));
    let of = |family, list: &'static [(&str, &'static str)], device: String| {
        list.iter().map(move |(name, value)| (family, sysctl::interface(family, &device, name), *value))
    };
    of(Family::Ipv4, v4, device.to_owned()).chain(of(Family::Ipv6, v6, device.to_owned())).chain(delay)
}

/// `addr_gen_mode`: the kernel makes no link-local address (`IN6_ADDR_GEN_MODE_NONE`, linux/if_link.h).
pub(super) const NO_ADDRESS: &str = "1";

/// How long, in 1/100 s at most, the kernel waits before it answers for another's address.
fn proxy_delay(device: &str) -> String {
    format!("net/ipv6/neigh/{device}/proxy_delay")
}

/// Lets the answers of a pod to a process of the node that called 127.0.0.1 pass: a host port is there, too.
pub(super) fn answer_to_loopback(device: &str) -> Result<(), SysctlError> {
    sysctl::ensure(&sysctl::interface(Family::Ipv4, device, "route_localnet"), "1").map(drop)
}

/// Turns IPv6 off on a device of a node that does not carry it.
pub(super) fn without_ipv6(device: &str) -> Result<(), SysctlError> {
    optional(sysctl::ensure(&sysctl::interface(Family::Ipv6, device, "disable_ipv6"), "1").map(drop))
}

/// A kernel without IPv6 lacks the setting, which is as good.
fn optional(result: Result<(), SysctlError>) -> Result<(), SysctlError> {
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
    let deleted: Result<(), NetlinkError> =
        netlink.link(device).and_then(|link| link.map_or(Ok(()), |link| unlink::unlink(netlink, &link)));
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
