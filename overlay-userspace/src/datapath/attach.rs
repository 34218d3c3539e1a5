//! Programs onto devices: tcx links, pinned, or filters on a clsact qdisc (`clsact`); of the underlay also an XDP link ([`xdp`]).
//!
//! Level-triggered: [`Programs::attach_all`] brings a device into the wanted state from whatever it is in, and keeps the link (and
//! its id) where one is attached. Used by the agent for anchor, underlay and existing pods, and by the CNI plugin for new
//! pods.

use std::io;

use aya::programs::{
    LinkOrder, SchedClassifier, TcAttachType,
    links::{FdLink, LinkError, PinnedLink},
    tc::{SchedClassifierLink, TcAttachOptions},
};
use overlay_common::{maps::AttachMode, reason::Hook};

use super::{Cause, DatapathError, pins::Pins};
use crate::host::netlink::Netlink;

pub(super) mod clsact;
mod look;
mod running;
pub mod xdp;

pub use look::{Attachment, severed};
pub use running::{Running, running, xdp_program};

/// The pinned programs, opened once for any number of devices.
pub struct Programs {
    mode: AttachMode,
    pins: Pins,
}

/// What [`Programs::attach_all`] found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// Attached before; now runs the pinned program.
    Kept,
    /// Not attached before.
    New,
}

/// A device that programs are attached to.
#[derive(Clone, Copy, Debug)]
pub struct Device<'a> {
    /// Its name in the calling thread's network namespace.
    pub name: &'a str,
    /// Its index.
    pub ifindex: u32,
}

/// What a device is for: decides which programs it gets and what their links are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The host side of a pod's veth pair.
    Pod,
    /// The anchor device.
    Anchor,
    /// An underlay device.
    Wire,
}

impl Role {
    /// The programs of this role, in the order in which they are attached.
    pub const fn hooks(self) -> &'static [Hook] {
        match self {
            Self::Pod => &[Hook::FromPod, Hook::ToPod],
            Self::Anchor => &[Hook::FromHost, Hook::FromTunnel],
            Self::Wire => &[Hook::FromWire],
        }
    }

    /// The name of the pin of a link. By name for a pod, whose device is named after its owner; by index for others,
    /// whose name may hold a dot.
    pub fn link_name(self, device: Device<'_>, hook: Hook) -> String {
        match self {
            Self::Pod => format!("pod_{}_{}", device.name, hook.name()),
            Self::Anchor => format!("anchor_{}_{}", device.ifindex, hook.name()),
            Self::Wire => format!("wire_{}_{}", device.ifindex, hook.name()),
        }
    }
}

const fn attach_type(hook: Hook) -> TcAttachType {
    match hook {
        // XDP is no tcx link; its way is the same.
        Hook::FromPod | Hook::FromTunnel | Hook::FromWire | Hook::XdpWire => TcAttachType::Ingress,
        Hook::ToPod | Hook::FromHost => TcAttachType::Egress,
    }
}

impl Programs {
    /// Programs pinned at `pins`, to be attached in this mode.
    pub fn new(pins: &Pins, mode: AttachMode) -> Self {
        Self { mode, pins: pins.clone() }
    }

    fn open(&self, hook: Hook) -> Result<SchedClassifier, DatapathError> {
        open(&self.pins, hook)
    }

    /// Attaches all programs of `role` to the device, or updates them where they are attached.
    pub fn attach_all(&self, role: Role, device: Device<'_>) -> Result<Attached, DatapathError> {
        let mut netlink = Netlink::open()?;
        let mut result = Attached::Kept;
        for &hook in role.hooks() {
            if self.attach(&mut netlink, role, device, hook)? == Attached::New {
                result = Attached::New;
            }
        }
        Ok(result)
    }

    /// Attaches all programs of `role` to a device that was made just now. As [`Programs::attach_all`], without looking
    /// for what cannot be there.
    pub fn attach_first(
        &self,
        netlink: &mut Netlink,
        role: Role,
        device: Device<'_>,
    ) -> Result<(), DatapathError> {
        if self.mode_of(role, device) == AttachMode::Tcx {
            return role
                .hooks()
                .iter()
                .try_for_each(|&hook| self.attach_tcx(&mut self.open(hook)?, role, device, hook).map(drop));
        }
        netlink.create_clsact(device.ifindex)?;
        role.hooks().iter().try_for_each(|&hook| clsact::attach(&self.pins, netlink, device, hook))
    }

    /// The mode for a device: where the choice is ours, links that a pod has are kept, because the CNI plugin had a
    /// reason for them.
    fn mode_of(&self, role: Role, device: Device<'_>) -> AttachMode {
        match (self.mode, role) {
            (AttachMode::Auto, Role::Pod) => {
                let linked = |&hook| self.pins.link(&role.link_name(device, hook)).exists();
                if role.hooks().iter().any(linked) { AttachMode::Tcx } else { AttachMode::Clsact }
            }
            (AttachMode::Auto, Role::Anchor | Role::Wire) => AttachMode::Tcx,
            (mode, _) => mode,
        }
    }

    /// Whether a program of `hook` is attached to the device, in either mode. Asks the kernel about the device, because
    /// a pinned link outlives its own.
    pub fn is_attached(netlink: &mut Netlink, device: Device<'_>, hook: Hook) -> Result<bool, DatapathError> {
        // An error is a kernel without tcx, or a device that is gone.
        let tcx = SchedClassifier::query_tcx(device.name, attach_type(hook));
        let by_name = |(_, programs): (u64, Vec<aya::programs::ProgramInfo>)| {
            programs.iter().any(|program| program.name() == hook.name().as_bytes())
        };
        Ok(tcx.is_ok_and(by_name) || clsact::present(netlink, device, hook)?)
    }

    /// The kernel's id of the program that the pinned link of `hook` runs; none where there is no such link.
    pub fn linked(&self, role: Role, device: Device<'_>, hook: Hook) -> Option<u32> {
        let link = PinnedLink::from_pin(self.pins.link(&role.link_name(device, hook))).ok()?;
        FdLink::from(link).info().ok().map(|info| info.program_id())
    }

    /// Attaches in the device's mode, then detaches what an agent in the other one has left: it would go on running
    /// programs of an earlier load.
    fn attach(
        &self,
        netlink: &mut Netlink,
        role: Role,
        device: Device<'_>,
        hook: Hook,
    ) -> Result<Attached, DatapathError> {
        if self.mode_of(role, device) == AttachMode::Tcx {
            let attached = self.attach_tcx(&mut self.open(hook)?, role, device, hook)?;
            clsact::detach(netlink, device, hook)?;
            return Ok(attached);
        }
        let attached = clsact::ensure(&self.pins, netlink, device, hook)?;
        self.pins.remove_link(&role.link_name(device, hook))?;
        Ok(attached)
    }

    fn attach_tcx(
        &self,
        program: &mut SchedClassifier,
        role: Role,
        device: Device<'_>,
        hook: Hook,
    ) -> Result<Attached, DatapathError> {
        let link_name = role.link_name(device, hook);
        let pin = self.pins.link(&link_name);
        let failed = |what: &str, cause: Cause| {
            DatapathError::new(
                format!("{what} {} on {} (link {})", hook.name(), device.name, pin.display()),
                cause,
            )
        };
        match PinnedLink::from_pin(&pin) {
            Ok(pinned) => {
                let link: SchedClassifierLink =
                    FdLink::from(pinned).try_into().map_err(|e: LinkError| failed("open", e.into()))?;
                match program.attach_to_link(link).map_err(Cause::from) {
                    Ok(id) => {
                        // Taken back, or dropping the program would drop a link that it does not own.
                        program.take_link(id).map_err(|e| failed("keep", e.into()))?;
                        return Ok(Attached::Kept);
                    }
                    // ENOLINK: the device is gone, the pin has outlived it.
                    Err(Cause::Io(e)) if e.raw_os_error() == Some(libc::ENOLINK) => {
                        self.pins.remove_link(&link_name)?;
                    }
                    Err(cause) => return Err(failed("update", cause)),
                }
            }
            Err(e) => match Cause::from(e) {
                Cause::Io(e) if e.kind() == io::ErrorKind::NotFound => {}
                cause => return Err(failed("open", cause)),
            },
        }
        let id = program
            .attach_with_options(
                device.name,
                attach_type(hook),
                TcAttachOptions::TcxOrder(LinkOrder::default()),
            )
            .map_err(|e| failed("attach", e.into()))?;
        let link: FdLink = program
            .take_link(id)
            .map_err(|e| failed("keep", e.into()))?
            .try_into()
            .map_err(|e: LinkError| failed("keep", e.into()))?;
        link.pin(&pin).map_err(|e| failed("pin", e.into()))?;
        Ok(Attached::New)
    }

    /// Detaches all programs of `role`. For a device that is gone this removes the stale pins; filters of a clsact
    /// qdisc go with their device.
    pub fn detach_all(&self, role: Role, device: Device<'_>) -> Result<(), DatapathError> {
        for &hook in role.hooks() {
            self.pins.remove_link(&role.link_name(device, hook))?;
        }
        Ok(())
    }

    /// Removes the pins of links whose device is gone; says which.
    pub fn remove_severed(&self) -> Result<Vec<String>, DatapathError> {
        let mut removed = Vec::new();
        for name in self.pins.links()? {
            let Some(hook) = Hook::ALL.into_iter().find(|hook| name.ends_with(hook.name())) else { continue };
            let Ok(pinned) = PinnedLink::from_pin(self.pins.link(&name)) else { continue };
            let Ok(link) = SchedClassifierLink::try_from(FdLink::from(pinned)) else { continue };
            // The only question that the kernel answers about a severed link: updating it to the same program fails.
            let mut program = self.open(hook)?;
            match program.attach_to_link(link).map_err(Cause::from) {
                Err(Cause::Io(e)) if e.raw_os_error() == Some(libc::ENOLINK) => {
                    self.pins.remove_link(&name)?;
                    removed.push(name);
                }
                Ok(id) => drop(program.take_link(id)),
                Err(_) => {}
            }
        }
        Ok(removed)
    }
}

/// Opens the pinned program of `hook`.
fn open(pins: &Pins, hook: Hook) -> Result<SchedClassifier, DatapathError> {
    let path = pins.program(hook.name());
    SchedClassifier::from_pin(&path).map_err(|e| match Cause::from(e) {
        Cause::Io(e) if e.kind() == io::ErrorKind::NotFound => DatapathError::NotPinned { path },
        cause => DatapathError::new(format!("open {}", path.display()), cause),
    })
}

/// Whether a link, by index, has filters of ours: programs that are attached by clsact.
pub fn has_filters(netlink: &mut Netlink, index: u32) -> Result<bool, DatapathError> {
    Ok(!clsact::directions(netlink, index)?.is_empty())
}

/// Removes the filters of ours of a link, and its clsact qdisc if nobody else's are left.
pub fn remove_filters(netlink: &mut Netlink, index: u32) -> Result<(), DatapathError> {
    clsact::clear(netlink, index)
}
