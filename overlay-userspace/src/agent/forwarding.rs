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
//! Nothing else is set: strict reverse path filtering (`rp_filter = 1`) passes all that this node gets, because each
//! source is answered by the device that it comes in by; without a bridge, `bridge-nf-call-iptables` has no say.

use std::io;

use log::{info, warn};

use crate::host::sysctl::{self, Family};

const FORWARD: &str = "net/ipv4/ip_forward";

/// What a node with these devices, the anchor among them, has set: paths below `/proc/sys`, and values.
pub(crate) fn wanted<'a>(
    devices: impl IntoIterator<Item = &'a str>,
    anchor: &str,
) -> Vec<(String, &'static str)> {
    let forwarding = devices.into_iter().map(|device| sysctl::interface(Family::Ipv4, device, "forwarding"));
    let redirects = ["all", anchor].map(|device| sysctl::interface(Family::Ipv4, device, "send_redirects"));
    let on = std::iter::once(FORWARD.to_owned()).chain(forwarding).map(|path| (path, "1"));
    on.chain(redirects.map(|path| (path, "0"))).collect()
}

/// Is told what a setting was, before it is changed.
pub(super) type Note<'a> = &'a dyn Fn(&str, &str);

/// Switches it on in general and on devices; one that is gone needs nothing. Looks at all before it fails.
pub(super) fn ensure<'a>(devices: impl IntoIterator<Item = &'a str>, note: Note<'_>) -> anyhow::Result<()> {
    // First: it writes the settings of all devices.
    let mut result = set(FORWARD, "1", note);
    for device in devices {
        match set(&sysctl::interface(Family::Ipv4, device, "forwarding"), "1", note) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => result = result.and(other),
        }
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

/// Gives settings back what they were.
pub(super) fn put_back(settings: Vec<(String, String)>) {
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
        in_fresh_netns(|| {
            sysctl::set("net/ipv4/ip_forward", "1").unwrap();
            ip("link add d0 up type veth peer name d1");
            let path = |device: &str| sysctl::interface(Family::Ipv4, device, "forwarding");
            for device in ["d0", "d1"] {
                sysctl::set(&path(device), "0").unwrap();
            }
            let own = path("d0");
            ensure(["gone", "d0"], &|path, before| assert_eq!((path, before), (own.as_str(), "0"))).unwrap();
            assert_eq!(sysctl::get(&path("d0")).unwrap(), "1");
            assert_eq!(sysctl::get(&path("d1")).unwrap(), "0");
            sysctl::set("net/ipv4/ip_forward", "0").unwrap();
            ensure(["d0"], &|path, before| assert_eq!((path, before), ("net/ipv4/ip_forward", "0"))).unwrap();
            assert_eq!(sysctl::get("net/ipv4/ip_forward").unwrap(), "1");
            assert_eq!(sysctl::get(&path("d0")).unwrap(), "1");
        });
    }
}
