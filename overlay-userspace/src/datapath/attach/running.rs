//! Which programs run at a hook of a device, whoever attached them, in the order in which they run.

use aya::programs::{ProgramInfo, SchedClassifier, loaded_programs};
use overlay_common::reason::Hook;

use super::{Device, attach_type, clsact};
use crate::{datapath::DatapathError, host::netlink::Netlink};

/// A program at a hook.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Running {
    /// The kernel's id of the program.
    pub id: u32,
    /// Its name, as it was given at load.
    pub name: String,
    /// The kernel's digest of its instructions: equal for one object, whatever maps and constants it runs with.
    pub tag: u64,
    /// `tcx`, `clsact` or `xdp`.
    pub by: String,
}

impl Running {
    fn new(info: &ProgramInfo, by: &str) -> Self {
        let name = info.name_as_str().unwrap_or_default().to_owned();
        Self { id: info.id(), name, tag: info.tag(), by: by.to_owned() }
    }

    /// The kernel's description of the program, which may be gone since.
    pub fn info(&self) -> Result<ProgramInfo, DatapathError> {
        find(self.id)?.ok_or_else(|| {
            let Self { id, name, .. } = self;
            DatapathError::Unsupported(format!(
                "the program {name} (id {id}) has been replaced meanwhile: try again"
            ))
        })
    }
}

fn find(id: u32) -> Result<Option<ProgramInfo>, DatapathError> {
    for info in loaded_programs() {
        let info = info.map_err(|e| DatapathError::new("list the loaded programs", e))?;
        if info.id() == id {
            return Ok(Some(info));
        }
    }
    Ok(None)
}

/// The XDP program of this id; none where it is gone.
pub fn xdp_program(id: u32) -> Result<Option<Running>, DatapathError> {
    Ok(find(id)?.map(|info| Running::new(&info, "xdp")))
}

/// All programs at a hook of a device: those of tcx links run before those of clsact filters.
pub fn running(netlink: &mut Netlink, device: Device<'_>, hook: Hook) -> Result<Vec<Running>, DatapathError> {
    // An error is a kernel without tcx.
    let linked = SchedClassifier::query_tcx(device.name, attach_type(hook))
        .map_or_else(|_| Vec::new(), |(_, all)| all);
    let mut all: Vec<_> = linked.iter().map(|info| Running::new(info, "tcx")).collect();
    for filter in netlink.bpf_filters(device.ifindex, clsact::direction(hook))? {
        if let Some(info) = filter.program.map(find).transpose()?.flatten() {
            all.push(Running::new(&info, "clsact"));
        }
    }
    Ok(all)
}
