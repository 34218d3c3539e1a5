//! What a runtime needs to start pods: the plugin, its network configuration in the first place, and a free address.

use std::path::Path;

use super::{Check, Report, Site};
use crate::cni::{install::Install, room};

pub(super) struct Cni;

impl Check for Cni {
    fn name(&self) -> &'static str {
        "cni"
    }

    fn run(&self, site: &Site, report: &mut Report) -> anyhow::Result<()> {
        let Ok(settings) = &site.settings else {
            report.skip("the configuration is not known");
            return Ok(());
        };
        let cni = &settings.cni;
        let install = Install::new(&cni.bin, &cni.conf, &cni.name, cni.version.as_deref(), &cni.chain);
        let (there, missing): (Vec<_>, Vec<_>) = install.files().into_iter().partition(|path| path.exists());
        if there.is_empty() && !(cni.install && site.is_installed()) {
            report.skip(format!("the plugin is not installed in {}", cni.conf.display()));
            return Ok(());
        }
        for path in missing {
            let remedy = format!(
                "overlay cni install --bin-dir {} --conf-dir {} --name {}",
                cni.bin.display(),
                cni.conf.display(),
                cni.name
            );
            report
                .error(path.display().to_string(), "is missing: the runtime does not start pods with overlay")
                .evidence("the file does not exist")
                .remedy(remedy);
        }
        for path in install.earlier()? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            report
                .error(
                    path.display().to_string(),
                    "is taken by the runtime instead of overlay's: new pods get another network",
                )
                .evidence(format!("{name} sorts before {}", cni.name))
                .remedy(format!("rm {}", path.display()));
        }
        if site.local.is_some() {
            match room(&site.pins) {
                Ok((held, total)) if held < total => {
                    report.saw(format!(
                        "{}, first of all; {held} of {total} addresses are held",
                        Path::new(&cni.name).display()
                    ));
                }
                Ok((held, total)) => {
                    report
                        .error("addresses", "none is free: new pods do not start")
                        .evidence(format!("{held} of {total} are held; `overlay endpoints` says by whom"))
                        .remedy("move pods to other nodes, or give the node a larger subnet");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
