//! The file system of the pins.

use std::path::Path;

use super::{Check, Report, Site};
use crate::datapath::DatapathError;

pub(super) struct Bpffs;

/// Where systemd mounts it.
const USUAL: &str = "/sys/fs/bpf";

impl Check for Bpffs {
    fn name(&self) -> &'static str {
        "bpffs"
    }

    fn run(&self, site: &Site, report: &mut Report) -> anyhow::Result<()> {
        let root = site.pins.root();
        match site.pins.check() {
            Ok(()) => report.saw(format!("{} is on a BPF file system", root.display())),
            Err(DatapathError::NoBpffs { path }) => {
                let place = if root.starts_with(USUAL) { Path::new(USUAL) } else { &path };
                report
                    .error(
                        place.display().to_string(),
                        "is no BPF file system: there is nowhere to pin maps and programs",
                    )
                    .evidence(format!("the pins belong in {}", root.display()))
                    .remedy(format!("overlay bpffs {}", place.display()));
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}
