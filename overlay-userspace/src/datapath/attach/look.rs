//! What is attached, compared with what should be; nothing is changed. Called by who looks for drift.

use aya::programs::{ProgramInfo, SchedClassifier};
use overlay_common::{maps::AttachMode, reason::Hook};

use super::{Device, Programs, Role, attach_type, clsact};
use crate::{
    datapath::{DatapathError, pins::Pins},
    host::netlink::{Link, Netlink},
};

/// What a device has of one program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// The one that is pinned, in the device's mode.
    Current,
    /// One of an earlier load.
    Outdated,
    /// The pinned one, but by the other mode.
    OtherMode,
    /// None.
    Absent,
}

impl Programs {
    /// What [`Programs::attach_all`] would find of `hook` on a device.
    pub fn look(
        &self,
        netlink: &mut Netlink,
        role: Role,
        device: Device<'_>,
        hook: Hook,
    ) -> Result<Attachment, DatapathError> {
        let pinned = clsact::pinned_id(&self.pins, hook)?;
        // An error is a kernel without tcx, a device that is gone, or nobody who may ask about programs by their ids
        // (CAP_SYS_ADMIN): the pinned link may be asked.
        let linked: Vec<u32> = SchedClassifier::query_tcx(device.name, attach_type(hook)).map_or_else(
            |_| self.linked(role, device, hook).into_iter().collect(),
            |(_, programs)| {
                programs.iter().filter(|program| is(program, hook)).map(ProgramInfo::id).collect()
            },
        );
        let filtered = clsact::program(netlink, device, hook)?;
        let (own, other) = match self.mode_of(role, device) {
            AttachMode::Tcx => (linked, filtered.into_iter().collect()),
            _ => (filtered.into_iter().collect::<Vec<_>>(), linked),
        };
        Ok(match (own.first(), other.first()) {
            (Some(_), None) if own.contains(&pinned) => Attachment::Current,
            (None, None) => Attachment::Absent,
            (None, Some(_)) if other.contains(&pinned) => Attachment::OtherMode,
            _ => Attachment::Outdated,
        })
    }
}

fn is(program: &ProgramInfo, hook: Hook) -> bool {
    program.name() == hook.name().as_bytes()
}

/// The pinned links that hold on to nothing: their device, among `links`, is gone, or is another one by now.
pub fn severed(pins: &Pins, links: &[Link]) -> Result<Vec<String>, DatapathError> {
    let mut severed = pins.links()?;
    severed.retain(|name| {
        let Some(hook) = Hook::ALL.into_iter().find(|hook| name.ends_with(hook.name())) else { return false };
        let device = links.iter().find(|link| {
            let device = Device { name: &link.name, ifindex: link.index };
            [Role::Pod, Role::Anchor, Role::Wire].iter().any(|role| role.link_name(device, hook) == *name)
        });
        device.is_none_or(|link| {
            // A link of XDP is none of tcx; it goes with its device alone.
            if hook == Hook::XdpWire {
                return false;
            }
            let attached = SchedClassifier::query_tcx(&link.name, attach_type(hook));
            attached.is_ok_and(|(_, programs)| !programs.iter().any(|program| is(program, hook)))
        })
    });
    Ok(severed)
}
