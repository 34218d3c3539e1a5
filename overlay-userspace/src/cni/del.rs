//! DEL: takes a pod off the network.
//!
//! Idempotent, and needs neither the agent nor the pod's namespace: device, host ports and lease are found by the
//! attachment alone.
//! The lease goes last, so that a call that is killed leaves one that the next call finds. What fails does not stop the
//! rest; all of it is reported.

use overlay_common::maps::{Addr, Endpoint};

use super::{
    env::Attachment,
    failure::{Code, Failure},
    interface, lease, names,
    owner::{device_name, owner},
    ports,
};
use crate::{
    datapath::{DatapathError, pins::Pins, tables::Endpoints},
    host::netlink::Netlink,
};

/// Removes everything of an attachment; nothing there is success.
///
/// # Errors
///
/// [`Code::Teardown`] with one line for each part that failed. A lease whose device or host ports could not be deleted is kept, so that
/// its address is not given to another pod.
pub(super) fn del(attachment: &Attachment, pins: &Pins) -> Result<(), Failure> {
    let owner = owner(attachment);
    let device = device_name(&owner);
    let mut errors = Vec::new();
    let (mut endpoints, entries) = match open(pins) {
        Ok(Some((endpoints, entries))) => (Some(endpoints), entries),
        // The agent never ran, or the node was booted since: nobody holds an address.
        Ok(None) => (None, Vec::new()),
        Err(error) => {
            errors.push(error.to_string());
            (None, Vec::new())
        }
    };

    let mut gone = false;
    match Netlink::open().and_then(|mut netlink| Ok((netlink.link(&device)?, netlink))) {
        // The name of another pod's device happens to be the same: this attachment never got one.
        Ok((Some(link), _)) if lease::is_foreign(&entries, &owner, link.index) => gone = true,
        Ok((_, mut netlink)) => {
            let removal = interface::remove(&mut netlink, pins, &device);
            gone = removal.gone;
            errors.extend(removal.errors);
        }
        Err(error) => errors.push(error.to_string()),
    }

    // Rules that lead to an address go before it can be somebody else's.
    if gone && let Err(error) = ports::give_back(pins, &owner) {
        errors.push(error.to_string());
        gone = false;
    }
    if gone && let Some(endpoints) = &mut endpoints {
        for (address, _) in lease::held_by(&entries, &owner) {
            names::forget(pins, address);
            if let Err(error) = lease::release(endpoints, pins, address) {
                errors.push(error.to_string());
            }
        }
    }
    if errors.is_empty() {
        return Ok(());
    }
    let summary = format!("delete {attachment} ({device}): {}", errors.join("; "));
    Err(Failure::new(Code::Teardown, summary)
        .with_details("the other parts are deleted; DEL can be repeated"))
}

type Entries = Vec<(Addr, Endpoint)>;

fn open(pins: &Pins) -> Result<Option<(Endpoints, Entries)>, DatapathError> {
    match Endpoints::open(pins) {
        Ok(endpoints) => {
            let entries = endpoints.entries()?;
            Ok(Some((endpoints, entries)))
        }
        Err(DatapathError::NotPinned { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
