//! Pins that nobody owns: links of devices that are gone, pods without device, another schema's directory.

use std::{fs, thread, time::Duration};

use overlay_common::maps::{Addr, Endpoint};

use super::{Check, Fix, Report, Site};
use crate::{
    cni::owner_text,
    datapath::{DatapathError, attach::severed, pins::Pins, tables::Endpoints},
    host::netlink::Netlink,
};

pub(super) struct Pinned;

/// A call of the CNI plugin may be at work: what is gone has to be gone for so long.
const SETTLED: Duration = Duration::from_millis(500);

impl Check for Pinned {
    fn name(&self) -> &'static str {
        "pins"
    }

    fn run(&self, site: &Site, report: &mut Report) -> anyhow::Result<()> {
        let pins = &site.pins;
        if !pins.root().exists() {
            report.skip("nothing is pinned");
            return Ok(());
        }
        let links = Netlink::open()?.links()?;
        for name in severed(pins, &links)? {
            let path = pins.link(&name);
            report
                .warning(path.display().to_string(), "is the link of a device that is gone")
                .evidence("no device of this node has this link")
                .remedy(format!("rm {}", path.display()))
                .fix(Fix::Link(name));
        }
        let held = endpoints(pins)?;
        let mut gone = without_device(&held)?;
        if !gone.is_empty() {
            thread::sleep(SETTLED);
            let still = without_device(&endpoints(pins)?)?;
            gone.retain(|entry| still.contains(entry));
        }
        for (address, endpoint) in gone {
            let (container, ifname) = owner_text(&endpoint.owner);
            let ip = address.to_ip();
            report
                .warning(format!("pod {ip}"), "holds its address, but its device is gone: it has no network, and nobody else gets the address")
                .evidence(format!("{ifname} of container {container} has device index {}, which does not exist", endpoint.ifindex))
                .remedy("delete the pod; if it does not exist any more: overlay doctor --only pins --fix")
                .fix(Fix::Endpoint(address, Box::new(endpoint)));
        }
        other_schemas(pins, report)?;
        report.saw(format!("{} pods and {} links have their devices", held.len(), pins.links()?.len()));
        Ok(())
    }
}

fn endpoints(pins: &Pins) -> anyhow::Result<Vec<(Addr, Endpoint)>> {
    match Endpoints::open(pins).and_then(|endpoints| endpoints.entries()) {
        Err(DatapathError::NotPinned { .. }) => Ok(Vec::new()),
        entries => Ok(entries?),
    }
}

/// Leases that had a device once.
fn without_device(endpoints: &[(Addr, Endpoint)]) -> anyhow::Result<Vec<(Addr, Endpoint)>> {
    let links = Netlink::open()?.links()?;
    let gone = |endpoint: &Endpoint| {
        endpoint.ifindex != 0 && !links.iter().any(|link| link.index == endpoint.ifindex)
    };
    Ok(endpoints.iter().filter(|(_, endpoint)| gone(endpoint)).copied().collect())
}

/// The directories beside ours that are called like one of another schema.
fn other_schemas(pins: &Pins, report: &mut Report) -> anyhow::Result<()> {
    let Some(parent) = pins.base() else { return Ok(()) };
    for entry in fs::read_dir(parent)?.flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(schema) = name.strip_prefix('v').and_then(|number| number.parse().ok()) else { continue };
        if path == pins.root() || !path.is_dir() {
            continue;
        }
        let other = pins.of_schema(schema);
        let links = other.links()?.len();
        let finding =
            report.warning(path.display().to_string(), "are the pins of another version of overlay");
        // Leases are the truth about pods, in whichever schema is in force.
        let leases = other.map("ENDPOINTS").exists();
        if links == 0 && !leases {
            finding
                .evidence("no link and no lease is pinned there")
                .remedy(format!("rm -r {}", path.display()))
                .fix(Fix::Pins(path));
        } else {
            finding
                .evidence(format!(
                    "{links} links are pinned there{}",
                    if leases { ", and leases of addresses" } else { "" }
                ))
                .remedy("start the agent of the version that is to run: it takes over what they hold");
        }
    }
    Ok(())
}
