//! A pod's network namespace, found from outside: by the device on the node, whose other end is in it.
//!
//! The kernel tells of a veth device in which namespace its peer is, by a number (`IFLA_LINK_NETNSID`). Which namespace has
//! that number is asked for each that can be reached: the named ones of runtimes, and those of processes.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow, ensure};

use super::names::Pod;
use crate::host::{netlink::Netlink, netns::NetNs};

/// Where runtimes keep the namespaces of pods.
const NAMED: [&str; 2] = ["/run/netns", "/var/run/netns"];

/// Opens the namespace of a pod of this node, and finds the pod's device there.
pub fn open(pod: &Pod) -> anyhow::Result<(NetNs, u32)> {
    ensure!(pod.ifindex != 0, "pod {} is not connected yet", pod.address);
    let mut netlink = Netlink::open()?;
    let link = netlink.link_by_index(pod.ifindex)?;
    let link = link.ok_or_else(|| anyhow!("the device of pod {} (#{}) is gone", pod.address, pod.ifindex))?;
    let (Some(number), Some(peer)) = (link.link_netnsid, link.link) else {
        return Err(anyhow!(
            "the device {} of pod {} has no end in another namespace",
            link.name,
            pod.address
        ));
    };
    for path in candidates() {
        // Gone meanwhile, or a plain file.
        let Ok(netns) = NetNs::open(&path) else { continue };
        if netlink.netns_number(&netns)? == Some(number) {
            return Ok((netns, peer));
        }
    }
    Err(anyhow!(
        "no namespace of pod {} below {} or of any process: run this on the node itself, or in a pod that mounts the node's {1}",
        pod.address,
        NAMED[0]
    ))
}

/// Named ones first: there is one for each pod, while a node has many processes.
fn candidates() -> impl Iterator<Item = PathBuf> {
    let named = NAMED.into_iter().flat_map(|directory| entries(Path::new(directory)));
    let of_processes = entries(Path::new("/proc"))
        .filter(|path| {
            path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit))
        })
        .map(|path| path.join("ns/net"));
    named.chain(of_processes)
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// The name of a device in a namespace.
pub fn device_name(netns: &NetNs, ifindex: u32) -> anyhow::Result<String> {
    let link = netns.run(|| Netlink::open()?.link_by_index(ifindex))??;
    link.map(|link| link.name).context("the pod's own device is gone")
}
