//! `cargo xtask bench`: overlay beside the raw wire, plainly routed pods and Flannel's path.
//!
//! Replaces xtask by the `bench` binary of overlay-tests, which owns the options: `cargo xtask bench --help` shows them. Measured
//! is what is shipped, a release build.

use std::{ffi::OsString, process::Command};

use anyhow::Result;
use clap::Args;

use crate::{
    ebpf,
    run::{replace_by, require_root},
    setup::{self, Part},
    workspace::{OBJECT_VARIABLE, Profile, Workspace},
};

#[derive(Args)]
pub(crate) struct Options {
    /// Options of the benchmark; --help lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Builds and runs it; returns only if that could not be started.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    require_root("cargo xtask setup", "cargo xtask bench")?;
    setup::ensure(&[Part::Host, Part::Bpf, Part::Agent, Part::Lab])?;
    let object = ebpf::build(workspace)?;
    let [overlay, bench] = workspace.build(Profile::Release, ["overlay", "bench"], &object)?;
    let mut command = Command::new(bench);
    command.env("OVERLAY_BIN", overlay).env(OBJECT_VARIABLE, object);
    replace_by(command.args(&options.arguments))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    #[command(disable_help_flag = true)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn options_of_the_benchmark_are_passed_on() {
        for arguments in [&["--quick", "--only", "udp_rr", "--json", "out.json"][..], &["--help"], &[]] {
            let line = Line::try_parse_from(["bench"].iter().chain(arguments)).unwrap();
            assert_eq!(line.options.arguments, arguments);
        }
    }
}
