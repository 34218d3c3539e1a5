//! `xdp_wire` on the underlay device: a pinned link in native mode. Never in generic mode, which linearises every packet
//! after its skb was made, and never in place of a program that is there.
//!
//! Which device gets it, and whether, is decided by `agent::xdp`.

use std::io;

use aya::programs::{
    ProgramError, Xdp, XdpError, XdpMode,
    links::{FdLink, LinkError, PinnedLink},
    xdp::XdpLink,
};
use aya_obj::programs::XdpAttachType;
use overlay_common::reason::Hook;

use super::{Attached, Device, Role};
use crate::datapath::{Cause, DatapathError, pins::Pins};

const HOOK: Hook = Hook::XdpWire;

/// The name of the pin of the link.
pub fn link_name(device: Device<'_>) -> String {
    Role::Wire.link_name(device, HOOK)
}

/// The kernel's id of the program that our link runs; none where there is no link of ours.
pub fn program_of_link(pins: &Pins, device: Device<'_>) -> Option<u32> {
    let link = PinnedLink::from_pin(pins.link(&link_name(device))).ok()?;
    FdLink::from(link).info().ok().map(|info| info.program_id())
}

/// The kernel's id of the pinned program; none where there is none.
pub fn pinned_id(pins: &Pins) -> Option<u32> {
    open(pins).ok()?.info().ok().map(|info| info.id())
}

/// Opens the pinned program.
pub(in crate::datapath) fn open(pins: &Pins) -> Result<Xdp, DatapathError> {
    let path = pins.program(HOOK.name());
    Xdp::from_pin(&path, XdpAttachType::Interface).map_err(|e| match Cause::from(e) {
        Cause::Io(e) if e.kind() == io::ErrorKind::NotFound => DatapathError::NotPinned { path },
        cause => DatapathError::new(format!("open {}", path.display()), cause),
    })
}

/// Attaches the pinned program, or updates the link where there is one: in place, without a packet in between that no
/// program sees. The driver's refusal is an error, whose text is the driver's own where it gives one.
pub fn ensure(pins: &Pins, device: Device<'_>) -> Result<Attached, DatapathError> {
    let name = link_name(device);
    let pin = pins.link(&name);
    let failed = |what: &str, cause: Cause| {
        DatapathError::new(
            format!("{what} {} on {} (link {})", HOOK.name(), device.name, pin.display()),
            cause,
        )
    };
    let mut program = open(pins)?;
    match PinnedLink::from_pin(&pin) {
        Ok(pinned) => {
            let link: XdpLink =
                FdLink::from(pinned).try_into().map_err(|e: LinkError| failed("open", e.into()))?;
            match program.attach_to_link(link).map_err(Cause::from) {
                Ok(id) => {
                    // Taken back, or dropping the program would drop a link that it does not own.
                    program.take_link(id).map_err(|e| failed("keep", e.into()))?;
                    return Ok(Attached::Kept);
                }
                // The device is gone, or somebody has detached the link: the pin has outlived it.
                Err(Cause::Io(e)) if e.raw_os_error() == Some(libc::ENOLINK) => pins.remove_link(&name)?,
                Err(cause) => return Err(failed("update", cause)),
            }
        }
        Err(e) => match Cause::from(e) {
            Cause::Io(e) if e.kind() == io::ErrorKind::NotFound => {}
            cause => return Err(failed("open", cause)),
        },
    }
    let id = program
        .attach_to_if_index(device.ifindex, XdpMode::Driver)
        .map_err(|e| failed("attach", cause(e)))?;
    let link: FdLink = program
        .take_link(id)
        .map_err(|e| failed("keep", e.into()))?
        // aya attaches without a link where the kernel refuses one; dropped here, that is taken back.
        .try_into()
        .map_err(|e: LinkError| failed("keep", e.into()))?;
    link.pin(&pin).map_err(|e| failed("pin", e.into()))?;
    Ok(Attached::New)
}

/// After a refusal with EINVAL aya tries netlink, whose errors are wrapped once more.
fn cause(error: ProgramError) -> Cause {
    match error {
        ProgramError::XdpError(XdpError::NetlinkError(e)) => Cause::Other(crate::datapath::chain(&e)),
        other => other.into(),
    }
}

/// Detaches the program from all devices but `keep`; gives the names of the links that were there.
pub fn detach_others(pins: &Pins, keep: Option<Device<'_>>) -> Result<Vec<String>, DatapathError> {
    let keep = keep.map(link_name);
    let ours = |name: &String| name.ends_with(HOOK.name()) && Some(name) != keep.as_ref();
    let links: Vec<_> = pins.links()?.into_iter().filter(ours).collect();
    for name in &links {
        pins.remove_link(name)?;
    }
    Ok(links)
}
