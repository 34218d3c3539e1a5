//! GC: takes off the network what a runtime knows nothing of.
//!
//! Source of truth is `ENDPOINTS`: an attachment that ever began has its lease there, first of all and last of all. Looked
//! at are the leases of one network, because a runtime lists the attachments of one; what another network, or another
//! build, has made stays. Never concurrent with ADD or DEL of the same runtime, by the specification.

use std::collections::HashSet;

use overlay_common::maps::Owner;

use super::{
    failure::{Code, Failure},
    interface, lease, names,
    owner::{device_name, owner, owner_text},
    ports,
    types::{Conf, Version},
};
use crate::{
    datapath::{DatapathError, attach::Role, tables::Endpoints},
    host::netlink::Netlink,
};

/// The attachments to keep; what the configuration alone can be refused for.
pub(super) fn judge(conf: &Conf) -> Result<HashSet<[u8; 80]>, Failure> {
    conf.since(Version::V1_1_0, "GC")?;
    Ok(conf.valid_attachments()?.iter().map(|attachment| key(&owner(attachment))).collect())
}

/// Removes the attachments of this network that are not in the list, and pins of links that lead nowhere.
///
/// # Errors
///
/// [`Code::Teardown`] with one line for each part that failed; the others are removed.
pub(super) fn gc(conf: &Conf) -> Result<(), Failure> {
    let valid = judge(conf)?;
    let mut endpoints = match Endpoints::open(&conf.pins) {
        Ok(endpoints) => endpoints,
        // Nobody was ever added.
        Err(DatapathError::NotPinned { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut netlink = Netlink::open()?;
    let mut errors = Vec::new();

    let (mut kept, mut removed) = (HashSet::new(), HashSet::new());
    for (address, endpoint) in endpoints.entries()? {
        let device = device_name(&endpoint.owner);
        if endpoint.network != conf.network || valid.contains(&key(&endpoint.owner)) {
            kept.insert(device);
            continue;
        }
        // Again for its address of the other family, and where a call was killed and repeated.
        let gone = if removed.contains(&device) {
            true
        } else {
            let removal = interface::remove(&mut netlink, &conf.pins, &device);
            errors.extend(removal.errors);
            let returned =
                if removal.gone { ports::give_back(&conf.pins, &endpoint.owner).err() } else { None };
            let gone = removal.gone && returned.is_none();
            errors.extend(returned.map(|error| error.to_string()));
            gone
        };
        if !gone {
            kept.insert(device);
            continue;
        }
        removed.insert(device);
        names::forget(&conf.pins, address);
        match lease::release(&mut endpoints, &conf.pins, address) {
            Ok(()) => {
                let (container, ifname) = owner_text(&endpoint.owner);
                log::info!("removed {ifname} of container {container} ({})", address.to_ip());
            }
            Err(error) => errors.push(error.to_string()),
        }
    }
    if let Err(failure) = remove_stale_pins(conf, &mut netlink, &kept) {
        errors.push(failure.to_string());
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Code::Teardown, format!("collect garbage: {}", errors.join("; ")))
        .with_details("the rest is removed; GC can be repeated"))
}

/// Removes the pins of pods' links whose device is neither there nor anybody's.
fn remove_stale_pins(conf: &Conf, netlink: &mut Netlink, kept: &HashSet<String>) -> Result<(), Failure> {
    for name in conf.pins.links()? {
        let Some(device) = Role::Pod
            .hooks()
            .iter()
            .find_map(|hook| name.strip_prefix("pod_")?.strip_suffix(hook.name())?.strip_suffix('_'))
        else {
            continue;
        };
        if !kept.contains(device) && netlink.link(device)?.is_none() {
            conf.pins.remove_link(&name)?;
        }
    }
    Ok(())
}

fn key(owner: &Owner) -> [u8; 80] {
    bytemuck::cast(*owner)
}

#[cfg(test)]
mod tests;
