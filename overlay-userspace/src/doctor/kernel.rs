//! The kernel: version, privileges, what it shows of itself, and whether the programs load.

use std::path::Path;

use super::{Check, Report, Site};
use crate::{
    agent::drift,
    datapath::{kernel, object},
    host::sysctl,
};

pub(super) struct Kernel;

/// Where the kernel describes its types.
const BTF: &str = "/sys/kernel/btf/vmlinux";
const JIT: &str = "net/core/bpf_jit_enable";

impl Check for Kernel {
    fn name(&self) -> &'static str {
        "kernel"
    }

    fn run(&self, site: &Site, report: &mut Report) -> anyhow::Result<()> {
        let release = kernel::release();
        if let Err(error) = kernel::check_version() {
            report
                .error(format!("Linux {release}"), "is too old for the programs")
                .evidence(error.to_string())
                .remedy("boot a newer kernel");
            return Ok(());
        }
        if let Err(error) = kernel::check_privileges() {
            report
                .error("this process", "may not do what the agent does")
                .evidence(error.to_string())
                .remedy("run it as root, in a privileged container if in one");
            return Ok(());
        }
        if !Path::new(BTF).exists() {
            report
                .warning(
                    BTF,
                    "the kernel does not show its types, so that overlay cannot ask it what it can do",
                )
                .evidence(format!("{BTF} does not exist"))
                .remedy("boot a kernel with CONFIG_DEBUG_INFO_BTF, and give containers the node's /sys");
        }
        if let Some(config) = site.config()
            && let Err(error) = drift::attach_mode(&config)
        {
            report
                .error("network.attach", "asks for what this kernel does not have")
                .evidence(format!("{error:#}"))
                .remedy("set network.attach = \"auto\"");
        }
        // Absent where there is no way to turn it off.
        if sysctl::get(JIT).is_ok_and(|value| value == "0") {
            report
                .warning(JIT, "programs are interpreted instead of compiled, which is slow")
                .evidence(format!("{JIT} = 0"))
                .remedy(format!("sysctl -w {JIT}=1"));
        }
        match object::verify() {
            Ok(programs) => {
                report.saw(format!("Linux {release} loads all {} programs", programs.len()));
            }
            Err(error) => {
                report
                    .error(format!("Linux {release}"), "does not load the programs")
                    .evidence(error.to_string())
                    .remedy("boot a kernel that has been tried with this version (see the README), and report the evidence");
            }
        }
        Ok(())
    }
}
