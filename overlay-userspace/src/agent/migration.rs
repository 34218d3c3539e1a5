//! From one schema to another, while packets go on: the agent of a build whose schema is not the one in force.
//!
//! The order, with F in force and T this build's (newer or older):
//!
//! 1. `current` says F. T's directory is made, with the maps in it that both have in the same layout.
//! 2. Programs are loaded onto T's maps, `NODES` is filled.
//! 3. The CNI plugin is locked out. Contents are converted from F's maps to T's, F's links pinned in T as well.
//! 4. Links and filters get the new programs, one after the other, each atomically. Flows that programs of F have recorded
//!    meanwhile are copied once more; `LOCAL` is written.
//! 5. `current` says T. The plugin goes on, with T.
//! 6. F is removed, then `current`.
//!
//! Until 5 all that is written is written to F, and T is made of it: an agent that is killed before leaves F in force, whole,
//! with some links running programs of T, whose maps hold all that was there when they were switched. The plugin, of either
//! build, goes on with F; a pod that it adds is reached through the stack by those programs. The next agent, of whichever
//! build, finishes or takes back. After 5 the same holds for T; what is left of F is nobody's.
//!
//! An older build cannot know what a newer one has pinned. So it has the newer one convert: the CNI plugin that the newer
//! agent has installed, or the binary that `--newer-build` names (`overlay migrate`).

use std::{
    fs::File,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, anyhow, bail};
use log::{info, warn};
use nix::{
    fcntl::Flock,
    sys::{prctl::set_pdeathsig, signal::Signal},
};
use overlay_common::maps::AttachMode;

use super::{anchor::is_anchor, lock};
use crate::{
    cni::is_pod_device,
    datapath::{
        attach::{Device, Programs, Role, xdp},
        flows::pinned_capacity,
        pins::{self, Pins},
        schema::{self, lock::Closed},
    },
    host::netlink::Netlink,
};

/// Steps that only a build which knows both schemas can do: `overlay migrate <step>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Step {
    /// Pin the maps that both have.
    Share,
    /// Convert the contents of the others.
    Copy,
    /// Add the flows that the first has recorded.
    Flows,
}

impl Step {
    /// Does it, from one schema's pins to another's.
    pub(crate) fn run(self, from: &Pins, to: &Pins) -> anyhow::Result<()> {
        match self {
            Self::Share => schema::share_maps(from, to)?,
            Self::Copy => schema::copy(from, to)?,
            Self::Flows => schema::copy_flows(from, to)?,
        }
        Ok(())
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Share => "share",
            Self::Copy => "copy",
            Self::Flows => "flows",
        }
    }
}

/// Does a step, by this build or by the newer one.
fn convert(step: Step, from: &Pins, to: &Pins, newer: &Path) -> anyhow::Result<()> {
    if from.schema() <= to.schema() {
        return step.run(from, to);
    }
    let (older, own) = (from.schema(), to.schema());
    let mut command = Command::new(newer);
    // SAFETY: between fork and exec only prctl is called, which is async-signal-safe.
    unsafe {
        // What it writes would be stale when another agent is at work.
        command.pre_exec(|| set_pdeathsig(Signal::SIGKILL).map_err(Into::into));
    }
    let output = command
        .args(["migrate", step.name(), "--from", &older.to_string(), "--to", &own.to_string()])
        .arg("--pins")
        .arg(from.root())
        .output()
        .with_context(|| format!("run {}", newer.display()))
        .and_then(|output| {
            if output.status.success() {
                return Ok(());
            }
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{} says: {}", newer.display(), said.lines().next_back().unwrap_or("nothing"))
        });
    output.with_context(|| {
        format!(
            "take the node back from schema {older} to {own}, which needs the newer build: keep it as CNI plugin until this \
             agent is ready, or name it with --newer-build"
        )
    })
}

/// A change of the schema that is under way.
pub(super) struct Migration {
    from: Pins,
    to: Pins,
    newer: PathBuf,
    closed: Option<Closed>,
    _agents: Flock<File>,
}

impl Migration {
    /// Begins one if another schema than that of `pins` is in force. `newer` is where a newer build may be.
    pub(super) fn begin(pins: &Pins, newer: &Path) -> anyhow::Result<Option<Self>> {
        let Some(from) = schema::in_force(pins)?.filter(|found| found.schema() != pins.schema()) else {
            return Ok(None);
        };
        let Some(agents) = lock::pins(&from)? else {
            bail!(
                "another overlay agent is running with the pins in {}: stop it first",
                from.root().display()
            );
        };
        info!("schema {} is in force: taking over from {}", from.schema(), from.root().display());
        // Before there is a second directory.
        schema::put_in_force(&from)?;
        pins.create()?;
        convert(Step::Share, &from, pins, newer)?;
        let (to, newer) = (pins.clone(), newer.to_owned());
        Ok(Some(Self { from, to, newer, closed: None, _agents: agents }))
    }

    /// Entries that the table of flows has room for.
    pub(super) fn flow_capacity(&self) -> anyhow::Result<Option<u32>> {
        Ok(pinned_capacity(&self.from)?)
    }

    /// After the programs are loaded and before any is attached: locks the plugin out, and brings all over.
    pub(super) fn copy(&mut self) -> anyhow::Result<()> {
        if self.closed.is_none() {
            self.closed = schema::lock::close(&self.from)?;
        }
        convert(Step::Copy, &self.from, &self.to, &self.newer)?;
        Ok(schema::adopt_links(&self.from, &self.to)?)
    }

    /// When no program of the other schema is attached any more.
    pub(super) fn copy_flows(&self) -> anyhow::Result<()> {
        convert(Step::Flows, &self.from, &self.to, &self.newer)
    }

    /// When all is as it should be: puts this build's schema in force.
    pub(super) fn commit(&self) -> anyhow::Result<()> {
        schema::put_in_force(&self.to)?;
        info!("schema {} is in force, was {}", self.to.schema(), self.from.schema());
        Ok(())
    }

    /// When the start has failed: every device gets the programs of the schema in force again.
    pub(super) fn take_back(&self, mode: AttachMode) {
        let taken_back = || -> anyhow::Result<()> {
            let programs = Programs::new(&self.from, mode);
            let mut netlink = Netlink::open()?;
            for link in netlink.links()? {
                let device = Device { name: &link.name, ifindex: link.index };
                let role = if is_anchor(&link) {
                    Role::Anchor
                } else if is_pod_device(&link.name) {
                    Role::Pod
                } else {
                    Role::Wire
                };
                let mut attached = false;
                for &hook in role.hooks() {
                    attached |= programs.linked(role, device, hook).is_some()
                        || Programs::is_attached(&mut netlink, device, hook)?;
                }
                if attached {
                    programs.attach_all(role, device)?;
                }
                if xdp::program_of_link(&self.from, device).is_some() {
                    xdp::ensure(&self.from, device)?;
                }
            }
            Ok(())
        };
        match taken_back() {
            Ok(()) => info!("schema {} stays in force", self.from.schema()),
            Err(error) => warn!("take programs of schema {} back: {error:#}", self.to.schema()),
        }
    }
}

/// After a start that failed: the link is needed only where there are two schemas.
pub(super) fn forget(pins: &Pins) {
    let forgotten = || -> anyhow::Result<()> {
        if let Some(found) = schema::in_force(pins)?
            && schema::others(&found)?.is_empty()
        {
            schema::remove_pointer(&found)?;
        }
        Ok(())
    };
    if let Err(error) = forgotten() {
        warn!("{error:#}");
    }
}

/// Removes what is left of other schemas, once this build's is in force and all programs are its own.
pub(super) fn tidy(pins: &Pins, newer: &Path) -> anyhow::Result<()> {
    let others = schema::others(pins)?;
    for other in &others {
        // An attempt to change to that schema may have been given up; its programs have been recording until now.
        if let Err(error) = convert(Step::Flows, other, pins, newer) {
            log::debug!("copy recorded flows from {}: {error:#}", other.root().display());
        }
        pins::remove(other.root())?;
        info!("removed the pins of schema {}", other.schema());
    }
    if others.is_empty() && !schema::has_pointer(pins) {
        return Ok(());
    }
    let in_force = schema::in_force(pins)?.ok_or_else(|| anyhow!("{} is gone", pins.root().display()))?;
    if in_force == *pins {
        schema::remove_pointer(pins)?;
    }
    Ok(())
}
