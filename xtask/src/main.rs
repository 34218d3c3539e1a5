//! `cargo xtask`: the one entry to build, run, check and test overlay.
//!
//! Each verb first makes sure that what it needs is installed ([`setup`]), so that a fresh Debian machine
//! with rustup's stable needs no preparation. Progress and diagnostics go to standard error; standard
//! output belongs to what the verb runs (`run --lab --json` prints JSON and nothing else).
//!
//! xtask depends on little so that it compiles in seconds: it is the first thing built on a new machine.

mod bench;
mod e2e;
mod ebpf;
mod fuzz;
mod image;
mod krew;
mod lint;
mod object;
mod report;
mod run;
mod setup;
mod source;
mod test;
mod toolchain;
mod vm;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{setup::Part, workspace::Workspace};

/// Build, run, check and test overlay.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Options {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Find out what is missing to build and test, and install it (Debian, Ubuntu)
    Setup {
        /// Only say what is missing; exit 1 if anything is
        #[arg(long)]
        check: bool,
    },
    /// Build the eBPF object and the overlay binary
    Build {
        /// Optimise the binary (the eBPF object always is)
        #[arg(long)]
        release: bool,
        /// Before that, both with the rehearsal of the next schema, for tests of upgrades: target/next/overlay
        #[arg(long)]
        next_schema: bool,
    },
    /// Run the agent on this node, or a three-node cluster with --lab
    Run(run::Options),
    /// Measure overlay beside the raw wire, plainly routed pods and Flannel's path
    #[command(disable_help_flag = true)]
    Bench(bench::Options),
    /// Make the container image, as an archive for ctr, podman, docker and kind
    Image(image::Options),
    /// Make the archive and the manifest of the kubectl plugin, for krew
    Krew(krew::Options),
    /// Try overlay in a real cluster, from kubectl apply to nodes that come and go
    E2e(Box<e2e::Options>),
    /// Check formatting, source rules, clippy and documentation
    Lint,
    /// Lint, build, unit tests, packet tables, namespace tests and a little fuzzing
    Test(test::Options),
    /// Feed the parsers with what nobody sends, for a given time
    Fuzz(fuzz::Options),
}

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> Result<()> {
    let workspace = Workspace::locate()?;
    match options.verb {
        Verb::Setup { check: true } => setup::check(Part::ALL),
        Verb::Setup { check: false } => setup::install(Part::ALL),
        Verb::Build { release, next_schema } => {
            setup::ensure(&[Part::Host, Part::Bpf])?;
            if next_schema {
                let object = ebpf::build_schema(&workspace, ebpf::Schema::Next)?;
                let binary = workspace.build_next(&object)?;
                eprintln!("built {} and {}", object.display(), binary.display());
            }
            let object = ebpf::build(&workspace)?;
            let profile = if release { workspace::Profile::Release } else { workspace::Profile::Dev };
            let [binary] = workspace.build(profile, ["overlay"], &object)?;
            eprintln!("built {} and {}", object.display(), binary.display());
            Ok(())
        }
        Verb::Run(options) => run::run(&workspace, &options),
        Verb::Bench(options) => bench::run(&workspace, &options),
        Verb::Image(options) => image::run(&workspace, &options),
        Verb::Krew(options) => krew::run(&workspace, &options),
        Verb::E2e(options) => e2e::run(&workspace, &options),
        Verb::Lint => lint::run(&workspace),
        Verb::Test(options) => test::run(&workspace, &options),
        Verb::Fuzz(options) => fuzz::run(&workspace, &options),
    }
}
