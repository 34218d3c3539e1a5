//! `cargo xtask lint`: formatting, rules on source text, clippy, compiler warnings and documentation.
//!
//! Its steps are part of `cargo xtask test` too. Userspace embeds the eBPF object, so that is built first.

use std::path::Path;

use anyhow::Result;

use crate::{
    ebpf, fuzz,
    report::Report,
    setup::{self, Part},
    source,
    workspace::{Workspace, execute},
};

/// Runs all lints.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    setup::ensure(&[Part::Host, Part::Bpf, Part::Lint])?;
    let mut report = Report::default();
    let object = report.step("eBPF object", || ebpf::build(workspace));
    steps(workspace, object.as_deref(), &mut report);
    report.finish()
}

/// Every lint as a step of `report`; without `object` those that can do without.
pub(crate) fn steps(workspace: &Workspace, object: Option<&Path>, report: &mut Report) {
    report.step("formatting", || {
        execute(workspace.cargo().args(["fmt", "--all", "--", "--check"]))?;
        let fuzz = fuzz::manifest(workspace);
        execute(workspace.cargo().args(["fmt", "--manifest-path"]).arg(fuzz).args(["--", "--check"]))
    });
    report.step("source rules", || source::check(workspace.root()));
    report.step("clippy, eBPF programs (checked for the host's target)", || ebpf::clippy(workspace));
    report.step("documentation, eBPF programs", || ebpf::document(workspace));
    let Some(object) = object else {
        for name in ["compiler warnings, eBPF target", "clippy", "documentation"] {
            report.skip(name, "the eBPF object was not built");
        }
        return;
    };
    report.step("compiler warnings, eBPF target", || ebpf::deny_warnings(workspace));
    report.step("clippy", || {
        let arguments = ["clippy", "--quiet", "--all-targets", "--", "--deny", "warnings"];
        execute(workspace.host_cargo(object).args(arguments))?;
        // Another workspace, most of it checked by the line above: in the same directory for results.
        let mut command = workspace.host_cargo(object);
        command.args(["clippy", "--quiet", "--manifest-path"]).arg(fuzz::manifest(workspace));
        command.arg("--target-dir").arg(workspace.target()).args(["--", "--deny", "warnings"]);
        execute(&mut command)
    });
    report.step("documentation", || {
        let mut command = workspace.host_cargo(object);
        execute(command.env("RUSTDOCFLAGS", "-Dwarnings").args(["doc", "--quiet", "--no-deps"]))
    });
}
