//! Forwarding: what makes the kernel pass on what the programs leave to it, between pods, the tunnel and the underlay.
//!
//! The kernel asks the device that a packet comes in by. `ip_forward` is on as well, because a node port may be called
//! by any device of the node (kubelet asks for the same); switching it changes the devices' own settings, and a device
//! made while it is on begins with it. What others switch off later, on one device or on all, is switched on again.
//!
//! Redirects are off where packets turn round: a node port's packet that came by the tunnel and leaves by it again, a pod
//! that calls itself by a Service. The advice would be wrong, and it uses up what the kernel allows itself of ICMP errors
//! for that address, so that a real one is not sent. The kernel sends them where `all` or the device says so; other
//! devices keep their own setting.
//!
//! The two families are switched independently, each where it is in use. For IPv6 the kernel asks `all` when it forwards,
//! and the device when a program looks up a route (`bpf_ipv6_fib_lookup`). A router takes no router advertisements and
//! forgets the default routes that it has from them; a node that has its own from there would lose its network by being a
//! Kubernetes node. So its device is first told to take them although it forwards (`accept_ra = 2`).
//!
//! Nothing else is set: strict reverse path filtering (`rp_filter = 1`) passes all that this node gets, because each
//! source is answered by the device that it comes in by; without a bridge, `bridge-nf-call-iptables` has no say; of IPv6
//! redirects need a link-local address, which the anchor does not have.

use std::{collections::HashSet, io};

use log::{info, warn};

use crate::host::{
    netlink::Netlink,
    sysctl::{self, Family},
};

/// What the kernel's own routes from router advertisements are marked with (`RTPROT_RA`, linux/rtnetlink.h).
const PROTOCOL_RA: u8 = 9;

/// The setting for all devices.
pub(crate) const fn general(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "net/ipv4/ip_forward",
        Family::Ipv6 => "net/ipv6/conf/all/forwarding",
    }
}

/// Whether a path is that of the setting for all devices, of whichever family.
pub(crate) fn is_general(path: &str) -> bool {
    Family::ALL.into_iter().any(|family| general(family) == path)
}

/// What a node with these devices, the anchor among them, has set in a family: paths below `/proc/sys`, and values.
pub(crate) fn wanted<'a>(
    family: Family,
    devices: impl IntoIterator<Item = &'a str>,
    anchor: &str,
) -> Vec<(String, &'static str)> {
    let forwarding = devices.into_iter().map(|device| sysctl::interface(family, device, "forwarding"));
    let mut wanted: Vec<_> =
        std::iter::once(general(family).to_owned()).chain(forwarding).map(|path| (path, "1")).collect();
    if family == Family::Ipv4 {
        let redirects = ["all", anchor].map(|device| sysctl::interface(family, device, "send_redirects"));
        wanted.extend(redirects.map(|path| (path, "0")));
    }
    wanted
}

/// Is told what a setting was, before it is changed.
pub(super) type Note<'a> = &'a dyn Fn(&str, &str);

/// Switches it on in general and on devices; one that is gone needs nothing. Looks at all before it fails.
pub(super) fn ensure<'a>(
    family: Family,
    devices: impl IntoIterator<Item = &'a str>,
    note: Note<'_>,
) -> anyhow::Result<()> {
    // First: it writes the settings of all devices.
    let mut result = set(general(family), "1", note);
    for device in devices {
        match set(&sysctl::interface(family, device, "forwarding"), "1", note) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => result = result.and(other),
        }
    }
    Ok(result?)
}

/// Devices that have to be told to take router advertisements although the node forwards, each with its setting: `wires`
/// that take them now, and whatever has given the node a route.
pub(crate) fn advertised<'a>(
    netlink: &mut Netlink,
    wires: impl IntoIterator<Item = &'a str>,
) -> anyhow::Result<Vec<(String, &'static str)>> {
    let is = |device: &str, setting: &str, value: &str| {
        sysctl::get(&sysctl::interface(Family::Ipv6, device, setting)).is_ok_and(|found| found == value)
    };
    let routes = netlink.routes(Some(PROTOCOL_RA))?;
    let indexes: HashSet<u32> = routes.iter().filter_map(|route| route.oif).collect();
    let mut devices: Vec<String> = Vec::new();
    for index in indexes {
        devices.extend(netlink.link_by_index(index)?.map(|link| link.name));
    }
    devices.extend(wires.into_iter().filter(|wire| is(wire, "forwarding", "0")).map(str::to_owned));
    devices.sort();
    devices.dedup();
    devices.retain(|device| is(device, "accept_ra", "1"));
    Ok(devices.iter().map(|device| (sysctl::interface(Family::Ipv6, device, "accept_ra"), "2")).collect())
}

/// Before IPv6 is forwarded: keeps the routes that the node has from routers. Looks at all before it fails.
pub(super) fn keep_advertised<'a>(
    netlink: &mut Netlink,
    wires: impl IntoIterator<Item = &'a str>,
    note: Note<'_>,
) -> anyhow::Result<()> {
    let mut result = Ok(());
    for (path, value) in advertised(netlink, wires)? {
        result = result.and(set(&path, value, note));
    }
    Ok(result?)
}

/// Turns redirects off for the device that leads into the tunnel. That of a pod is set when it is made.
pub(super) fn without_redirects(anchor: &str, note: Note<'_>) -> anyhow::Result<()> {
    for device in ["all", anchor] {
        set(&sysctl::interface(Family::Ipv4, device, "send_redirects"), "0", note)?;
    }
    Ok(())
}

fn set(path: &str, value: &str, note: Note<'_>) -> Result<(), sysctl::SysctlError> {
    let before = sysctl::get(path)?;
    if before != value {
        note(path, &before);
        sysctl::set(path, value)?;
        info!("set {path} = {value}");
    }
    Ok(())
}

/// Gives settings back what they were; that for all devices first, because it writes those of the devices.
pub(super) fn put_back(mut settings: Vec<(String, String)>) {
    settings.sort_by_key(|(path, _)| !is_general(path));
    for (path, value) in settings {
        match sysctl::ensure(&path, &value) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => warn!("put back: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::host::netns::testing::{in_fresh_netns, ip};

    #[test]
    fn redirects_are_off_for_the_anchor_and_up_to_other_devices() {
        in_fresh_netns(|| {
            ip("link add overlay.1 up type veth peer name d1");
            without_redirects("overlay.1", &|_, _| {}).unwrap();
            let read = |device: &str| {
                sysctl::get(&sysctl::interface(Family::Ipv4, device, "send_redirects")).unwrap()
            };
            assert_eq!(["all", "overlay.1", "d1"].map(read), ["0", "0", "1"]);
        });
    }

    #[test]
    fn what_is_off_is_switched_on_and_the_rest_left_alone() {
        for family in Family::ALL {
            in_fresh_netns(|| {
                let all = general(family);
                let other = general(family.other());
                sysctl::set(other, "0").unwrap();
                sysctl::set(all, "1").unwrap();
                ip("link add d0 up type veth peer name d1");
                let path = |device: &str| sysctl::interface(family, device, "forwarding");
                for device in ["d0", "d1"] {
                    sysctl::set(&path(device), "0").unwrap();
                }
                let own = path("d0");
                ensure(family, ["gone", "d0"], &|path, before| {
                    assert_eq!((path, before), (own.as_str(), "0"));
                })
                .unwrap();
                assert_eq!(sysctl::get(&path("d0")).unwrap(), "1");
                assert_eq!(sysctl::get(&path("d1")).unwrap(), "0");
                sysctl::set(all, "0").unwrap();
                ensure(family, ["d0"], &|path, before| assert_eq!((path, before), (all, "0"))).unwrap();
                assert_eq!(sysctl::get(all).unwrap(), "1");
                assert_eq!(sysctl::get(&path("d0")).unwrap(), "1");
                assert_eq!(sysctl::get(other).unwrap(), "0", "the other family");
            });
        }
    }

    #[test]
    fn a_default_route_from_a_router_outlives_the_switch() {
        in_fresh_netns(|| {
            for device in ["wire", "other", "plain"] {
                ip(&format!("link add {device} type veth peer name {device}p"));
                // No address, no detection of duplicates.
                ip(&format!("link set {device} addrgenmode none"));
                ip(&format!("link set {device}p up"));
                ip(&format!("link set {device} up"));
            }
            let setting = |device: &str, name: &str| sysctl::interface(Family::Ipv6, device, name);
            let read = |device: &str| sysctl::get(&setting(device, "accept_ra")).unwrap();
            // As the kernel writes it on an advertisement.
            ip("-6 route add default via fe80::1 dev other proto ra expires 600");
            let noted = RefCell::new(Vec::new());
            let note =
                |path: &str, before: &str| noted.borrow_mut().push((path.to_owned(), before.to_owned()));
            let mut netlink = Netlink::open().unwrap();
            for _ in 0..2 {
                keep_advertised(&mut netlink, ["wire"], &note).unwrap();
                ensure(Family::Ipv6, ["wire"], &note).unwrap();
            }
            assert_eq!(["wire", "other", "plain"].map(read), ["2", "2", "1"]);
            let noted = noted.into_inner();
            let all =
                [setting("other", "accept_ra"), setting("wire", "accept_ra"), general(Family::Ipv6).into()];
            assert_eq!(noted.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>(), all);
            // Set back by somebody, with the node forwarding: the route would end with its time.
            sysctl::set(&setting("other", "accept_ra"), "1").unwrap();
            sysctl::set(&setting("plain", "accept_ra"), "0").unwrap();
            keep_advertised(&mut netlink, ["wire", "plain"], &|_, _| {}).unwrap();
            assert_eq!(["wire", "other", "plain"].map(read), ["2", "2", "0"]);

            put_back(noted);
            assert_eq!(["wire", "other", "plain"].map(read), ["1", "1", "0"]);
            assert_eq!(sysctl::get(general(Family::Ipv6)).unwrap(), "0");
            // One that never took any is left so.
            sysctl::set(&setting("wire", "accept_ra"), "0").unwrap();
            ip("-6 route flush proto ra");
            assert_eq!(advertised(&mut netlink, ["wire"]).unwrap(), []);
        });
    }
}
