//! Flannel on the same node: recognised before anything is made.
//!
//! Both want the tunnel's port and the pods' subnet. While Flannel is alive the agent does not begin; what Flannel leaves
//! behind when it is removed is only pointed out, because pods may still hang on it.

use std::path::{Path, PathBuf};

use anyhow::bail;
use log::warn;

use crate::{
    config::Settings,
    host::netlink::{Link, Netlink},
};

/// Flannel's bridge, and what it tells its CNI plugin.
pub(crate) const BRIDGE: &str = "cni0";
pub(crate) const SUBNET_ENV: &str = "/run/flannel/subnet.env";

/// Refuses where Flannel is alive; warns of what it has left.
pub(super) fn check(settings: &Settings) -> anyhow::Result<()> {
    let links = Netlink::open()?.links()?;
    if let Some(device) = alive(&links, settings.network.port) {
        let pods = match pods(&links) {
            0 => String::new(),
            pods => format!(" (with {pods} pods on {BRIDGE})"),
        };
        bail!(
            "Flannel is on this node{pods}: UDP port {} is taken by the vxlan device {device}; remove Flannel first \
             (its DaemonSet, then `ip link del {device}` on each node), or choose another network.port",
            settings.network.port
        );
    }
    for line in leftovers(&links, settings) {
        warn!("{line}");
    }
    Ok(())
}

/// The device of a Flannel that wants our port.
fn alive(links: &[Link], port: u16) -> Option<&str> {
    let flannels = |link: &&Link| {
        link.name.starts_with("flannel") && link.vxlan.as_ref().is_some_and(|v| v.port == port)
    };
    links.iter().find(flannels).map(|link| link.name.as_str())
}

/// How many pods hang on Flannel's bridge.
fn pods(links: &[Link]) -> usize {
    let Some(bridge) = links.iter().find(|link| link.name == BRIDGE) else { return 0 };
    links.iter().filter(|link| link.master == Some(bridge.index)).count()
}

fn leftovers(links: &[Link], settings: &Settings) -> Vec<String> {
    let mut said = Vec::new();
    if links.iter().any(|link| link.name == BRIDGE) {
        said.push(match pods(links) {
            0 => format!("{BRIDGE}, a bridge as Flannel makes it, is left: `ip link del {BRIDGE}`"),
            pods => format!(
                "{pods} pods are still on {BRIDGE}, a bridge as Flannel makes it, and reach no other node: delete them, \
                 so that they are made anew, then `ip link del {BRIDGE}`"
            ),
        });
    }
    let ours = &settings.cni.name;
    for list in conf_lists(&settings.cni.conf).into_iter().filter(|_| settings.cni.install) {
        let file = list.file_name().unwrap_or_default();
        if file.to_string_lossy().as_ref() < ours.as_str() {
            said.push(format!(
                "{} comes before {ours}, so that new pods get Flannel's network: remove it",
                list.display()
            ));
        }
    }
    if Path::new(SUBNET_ENV).exists() {
        said.push(format!("{SUBNET_ENV} is left of Flannel: remove it"));
    }
    said
}

/// Lists whose name says that they are Flannel's.
fn conf_lists(dir: &Path) -> Vec<PathBuf> {
    let mut lists: Vec<_> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.contains("flannel") && path.extension().is_some_and(|e| e == "conflist" || e == "conf")
        })
        .collect();
    lists.sort();
    lists
}
