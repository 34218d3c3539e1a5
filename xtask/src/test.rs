//! `cargo xtask test`: everything that proves the project right.
//!
//! Lints, then unit and property tests, a bounded time of fuzzing, then the packet tables and namespace tests of
//! overlay-tests, which load programs into the kernel and therefore need root. They find the binary under test
//! by `OVERLAY_BIN` and the object by `OVERLAY_BPF_OBJECT`; `OVERLAY_NEXT_BIN` is a build of the same sources with the
//! rehearsal of the next schema, which costs the object and the crates of the workspace once more. A failed step does not keep later ones from running.

use std::{ffi::OsString, process::Command};

use anyhow::Result;
use clap::Args;

use crate::{
    ebpf, fuzz, lint,
    report::Report,
    setup::{self, Part},
    vm,
    workspace::{self, Profile, Workspace, execute},
};

/// Package of the tests that need a real kernel.
const KERNEL_TESTS: &str = "overlay-tests";
const UNIT: &str = "unit tests";
const FUZZ: &str = "fuzz targets (bounded)";
const KERNEL: &str = "packet tables and namespaces";

#[derive(Args)]
pub(crate) struct Options {
    /// Run only the tests whose name contains this
    filter: Option<String>,
    /// Leave out the lints
    #[arg(long)]
    no_lint: bool,
    /// Leave out the fuzz targets (a filter does as well)
    #[arg(long)]
    no_fuzz: bool,
    /// Instead: packet tables and the core of the lab on Debian's kernels, in virtual machines. Versions such as 6.1, or newest
    /// [default: 5.10 6.1 6.12 newest]
    #[arg(long, value_name = "VERSION", num_args = 0.., conflicts_with_all = ["filter", "no_lint", "no_fuzz", "arguments"])]
    vm: Option<Vec<String>>,
    /// Arguments for the test programs, such as --nocapture
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

impl Options {
    /// A filter is for tests; a fuzz target is none.
    fn fuzzes(&self) -> bool {
        !self.no_fuzz && self.filter.is_none()
    }

    /// What comes after `cargo test` and the choice of packages.
    fn pass_to(&self, command: &mut Command) {
        command.arg("--no-fail-fast").args(&self.filter).arg("--").args(&self.arguments);
    }
}

/// Runs all tests.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    if let Some(versions) = &options.vm {
        return vm::run(workspace, versions);
    }
    let mut parts = vec![Part::Host, Part::Bpf, Part::Agent, Part::Lab, Part::Test];
    if !options.no_lint {
        parts.push(Part::Lint);
    }
    if options.fuzzes() {
        parts.push(Part::Fuzz);
    }
    setup::ensure(&parts)?;

    let mut report = Report::default();
    let object = report.step("eBPF object", || ebpf::build(workspace));
    if !options.no_lint {
        lint::steps(workspace, object.as_deref(), &mut report);
    }
    let Some(object) = object else {
        for name in [UNIT, FUZZ, KERNEL] {
            report.skip(name, "the eBPF object was not built");
        }
        return report.finish();
    };
    report.step(UNIT, || {
        let mut command = workspace.host_cargo(&object);
        command.args(["test", "--workspace", "--exclude", "overlay-ebpf", "--exclude", KERNEL_TESTS]);
        options.pass_to(&mut command);
        execute(&mut command)
    });
    if options.fuzzes() {
        report.step(FUZZ, || fuzz::test(workspace, &object));
    }
    if !workspace::is_root() {
        report.skip(KERNEL, "loading programs and making namespaces needs root: run it as root");
        return report.finish();
    }
    let next = report.step("overlay binary of the next schema", || {
        let object = ebpf::build_schema(workspace, ebpf::Schema::Next)?;
        workspace.build_next(&object)
    });
    let Some([binary]) =
        report.step("overlay binary", || workspace.build(Profile::Dev, ["overlay"], &object))
    else {
        report.skip(KERNEL, "the overlay binary was not built");
        return report.finish();
    };
    report.step(KERNEL, || {
        let mut command = workspace.host_cargo(&object);
        command.env("OVERLAY_BIN", &binary);
        // The tests that need it say that it is missing.
        command.envs(next.map(|next| ("OVERLAY_NEXT_BIN", next)));
        command.args(["test", "--package", KERNEL_TESTS]);
        options.pass_to(&mut command);
        execute(&mut command)
    });
    report.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filter_and_arguments_reach_the_test_programs() {
        let options = Options {
            filter: Some("vxlan".into()),
            no_lint: true,
            no_fuzz: false,
            vm: None,
            arguments: vec!["--nocapture".into()],
        };
        assert!(!options.fuzzes());
        let mut command = Command::new("cargo");
        options.pass_to(command.arg("test"));
        assert_eq!(workspace::line(&command), "cargo test --no-fail-fast vxlan -- --nocapture");
    }
}
