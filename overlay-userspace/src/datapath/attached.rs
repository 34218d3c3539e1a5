//! Which program is attached where, and by what: the pinned links and the filters on all devices of the calling thread's
//! network namespace, read from the kernel.
//!
//! Reads only. Called by the command line; what should be attached, [`super::attach`] knows.

use std::{
    collections::HashMap,
    fs, io,
    os::fd::OwnedFd,
    time::{Duration, SystemTime},
};

use aya::{
    programs::{
        ProgramInfo,
        links::{FdLink, LinkType, PinnedLink},
        loaded_programs,
    },
    sys::{Stats, enable_stats},
};
use overlay_common::reason::Hook;

use super::{Cause, DatapathError, attach::clsact, pins::Pins};
use crate::host::netlink::{Direction, Link, Netlink};

/// A program as the kernel has it. Links and filters may hold another one than the pin, until the agent updates them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The kernel's id.
    pub id: u32,
    /// As the kernel knows it, at most 15 bytes.
    pub name: String,
    /// Hash of its instructions: the same for the same program.
    pub tag: u64,
    /// When it was loaded; Linux 4.15.
    pub loaded_at: Option<SystemTime>,
    /// How often it has run, on all its devices together, while statistics were on; Linux 5.1.
    pub run_count: u64,
    /// How long it has run in all, while statistics were on.
    pub run_time: Duration,
    /// It is the one that is pinned.
    pub pinned: bool,
}

/// What holds a program on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// A tcx link (Linux 6.6).
    Tcx,
    /// An XDP link.
    Xdp,
    /// A filter on a clsact qdisc.
    Clsact,
    /// A link of a kind that this build does not know.
    Other,
}

impl By {
    /// The name for people and for machines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Xdp => "xdp",
            Self::Clsact => "clsact",
            Self::Other => "link",
        }
    }
}

/// A program on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// What the program is for: the name of its pin.
    pub program: String,
    /// The kernel's id of the program.
    pub program_id: u32,
    /// What holds it.
    pub by: By,
    /// The device, if it is (still) in this namespace.
    pub device: Option<String>,
    /// Its index.
    pub ifindex: Option<u32>,
    /// The pin and the kernel's id of the link; filters have neither.
    pub link: Option<(String, u32)>,
}

/// All programs of ours, and where they are.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// By id.
    pub programs: HashMap<u32, Program>,
    /// Links by name of their pin, then filters by device.
    pub attachments: Vec<Attachment>,
}

impl Inventory {
    /// Reads it.
    pub fn read(pins: &Pins) -> Result<Self, DatapathError> {
        let mut netlink = Netlink::open()?;
        let devices = netlink.links()?;
        let mut found = Self { programs: pinned(pins)?, attachments: Vec::new() };
        found.links(pins, &devices)?;
        found.filters(&mut netlink, &devices)?;
        found.name_the_rest();
        Ok(found)
    }

    /// Whether a program is on a device, by index.
    pub fn has(&self, hook: Hook, ifindex: u32) -> bool {
        self.attachments.iter().any(|one| one.program == hook.name() && one.ifindex == Some(ifindex))
    }

    fn links(&mut self, pins: &Pins, devices: &[Link]) -> Result<(), DatapathError> {
        let mut names = pins.links()?;
        names.sort_unstable();
        for name in names {
            let failed = |cause: Cause| DatapathError::new(format!("open link {name}"), cause);
            let link = match PinnedLink::from_pin(pins.link(&name)).map_err(Cause::from) {
                Ok(link) => FdLink::from(link),
                // Gone since the directory was listed.
                Err(Cause::Io(e)) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(cause) => return Err(failed(cause)),
            };
            let info = link.info().map_err(|e| failed(e.into()))?;
            let by = match info.link_type() {
                Ok(LinkType::Tcx) => By::Tcx,
                Ok(LinkType::Xdp) => By::Xdp,
                _ => By::Other,
            };
            // `pod_<device>_<program>`, `wire_<ifindex>_<program>`, ….
            let mut parts = name.splitn(3, '_').skip(1);
            let (place, program) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            let device = devices.iter().find(|device| match place.parse::<u32>() {
                Ok(index) => device.index == index,
                Err(_) => device.name == place,
            });
            self.attachments.push(Attachment {
                program: program.to_owned(),
                program_id: info.program_id(),
                by,
                device: device.map(|device| device.name.clone()),
                ifindex: device.map(|device| device.index),
                link: Some((name, info.id())),
            });
        }
        Ok(())
    }

    fn filters(&mut self, netlink: &mut Netlink, devices: &[Link]) -> Result<(), DatapathError> {
        for device in devices {
            for direction in [Direction::Ingress, Direction::Egress] {
                let filters = netlink.bpf_filters(device.index, direction)?;
                let ours = filters.iter().filter(|filter| filter.key == clsact::KEY);
                for program_id in ours.filter_map(|filter| filter.program) {
                    self.attachments.push(Attachment {
                        program: String::new(),
                        program_id,
                        by: By::Clsact,
                        device: Some(device.name.clone()),
                        ifindex: Some(device.index),
                        link: None,
                    });
                }
            }
        }
        Ok(())
    }

    /// A filter knows the id of its program only, which may be an earlier one than the one that is pinned.
    fn name_the_rest(&mut self) {
        let known = |id: &u32| self.programs.contains_key(id);
        if !self.attachments.iter().all(|one| known(&one.program_id)) {
            let wanted: Vec<u32> = self.attachments.iter().map(|one| one.program_id).collect();
            // Needs CAP_SYS_ADMIN; without, there are ids only.
            for info in loaded_programs().filter_map(Result::ok).filter(|info| wanted.contains(&info.id())) {
                self.programs.entry(info.id()).or_insert_with(|| program(&info, false));
            }
        }
        for one in &mut self.attachments {
            if one.program.is_empty()
                && let Some(program) = self.programs.get(&one.program_id)
            {
                one.program.clone_from(&program.name);
            }
        }
    }
}

/// The pinned programs, by id.
fn pinned(pins: &Pins) -> Result<HashMap<u32, Program>, DatapathError> {
    let dir = pins.root().join("programs");
    let failed = |e| DatapathError::new(format!("list {}", dir.display()), e);
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(DatapathError::NotPinned { path: dir });
        }
        Err(e) => return Err(failed(e)),
    };
    let mut programs = HashMap::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        match ProgramInfo::from_pin(&path) {
            Ok(info) => {
                programs.insert(info.id(), program(&info, true));
            }
            Err(e) => match Cause::from(e) {
                // Replaced since the directory was listed.
                Cause::Io(e) if e.kind() == io::ErrorKind::NotFound => {}
                cause => return Err(DatapathError::new(format!("open {}", path.display()), cause)),
            },
        }
    }
    Ok(programs)
}

fn program(info: &ProgramInfo, pinned: bool) -> Program {
    Program {
        id: info.id(),
        name: info.name_as_str().unwrap_or_default().to_owned(),
        tag: info.tag(),
        loaded_at: info.loaded_at(),
        run_count: info.run_count(),
        run_time: info.run_time(),
        pinned,
    }
}

/// Lets the kernel count runs and run time of all programs for as long as this is held; Linux 5.8, `BPF_ENABLE_STATS`.
/// Costs some 20 ns for each run of each program.
#[derive(Debug)]
pub struct Statistics(#[expect(dead_code, reason = "its end is what matters")] OwnedFd);

impl Statistics {
    /// Turns it on. Needs `CAP_SYS_ADMIN`.
    pub fn enable() -> Result<Self, DatapathError> {
        enable_stats(Stats::RunTime)
            .map(Self)
            .map_err(|e| DatapathError::new("have the kernel count runs of programs (BPF_ENABLE_STATS)", e))
    }
}
