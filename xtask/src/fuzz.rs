//! `cargo xtask fuzz`: the fuzz targets of tests/fuzz, for a bounded time each, or the loaded programs (`--programs`).
//!
//! They are ordinary cargo-fuzz targets; cargo-fuzz itself is not needed. It would take a minute to build and passes
//! flags that stable compilers take as well, but for sanitizers, which code without unsafe memory accesses of its own
//! gains little from. Results are in `fuzz/` of the target directory: what was learnt (`corpus/`), what failed
//! (`artifacts/`). Seeds and dictionaries are in the checkout, and never written to.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    ebpf,
    run::require_root,
    setup::{self, Part},
    workspace::{self, Profile, Workspace, execute},
};

/// The targets: binaries of the package in [`DIR`].
const TARGETS: [&str; 3] = ["cni", "conf", "wire"];

/// Package of the targets. It is a workspace of its own.
const DIR: &str = "tests/fuzz";

/// Time for each target in `cargo xtask test`, seconds.
pub(crate) const TEST_SECONDS: u32 = 20;

/// What cargo-fuzz passes to the compiler, so that libFuzzer learns which code an input reaches and what it is
/// compared with.
const INSTRUMENTATION: [&str; 8] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-sanitizer-coverage-stack-depth",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "--cfg=fuzzing",
];

/// Bounds of one input: bytes, seconds, MiB of memory.
const BOUNDS: [&str; 3] = ["-max_len=16384", "-timeout=5", "-rss_limit_mb=2048"];

#[derive(Args)]
pub(crate) struct Options {
    /// The target: all of them, one after the other, if not given
    #[arg(value_parser = TARGETS)]
    target: Option<String>,
    /// How long to run each target
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    seconds: u32,
    /// Instead: the programs as they are loaded, with random and damaged packets; all of them, in turn. Needs root
    #[arg(long, conflicts_with = "target")]
    programs: bool,
    /// What the packets of --programs are made from; by default another one each time, and printed
    #[arg(long, requires = "programs")]
    seed: Option<u64>,
    /// More arguments for libFuzzer, such as -jobs=2, or for the fuzzer of the programs, such as --hook=from_pod
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

/// Builds and runs what the options ask for.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    if options.programs {
        return programs(workspace, options);
    }
    setup::ensure(&[Part::Host, Part::Bpf, Part::Fuzz])?;
    let object = ebpf::build(workspace)?;
    let built = build(workspace, &object)?;
    let wanted = |name: &&str| options.target.as_deref().is_none_or(|target| target == *name);
    for target in TARGETS.into_iter().filter(wanted) {
        let mut command = fuzzer(workspace, &built, target, options.seconds)?;
        execute(command.args(&options.arguments)).with_context(|| advice(workspace, &built, target))?;
    }
    Ok(())
}

/// The loaded programs: a binary of overlay-tests, which says what it has found and how to see it again.
fn programs(workspace: &Workspace, options: &Options) -> Result<()> {
    require_root("cargo xtask setup", "cargo xtask fuzz --programs")?;
    setup::ensure(&[Part::Host, Part::Bpf, Part::Lab])?;
    let object = ebpf::build(workspace)?;
    let [fuzzer] = workspace.build(Profile::Dev, ["fuzz-programs"], &object)?;
    let seed = options.seed.unwrap_or_else(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::from(since.subsec_nanos()) ^ since.as_secs()
    });
    let mut command = Command::new(fuzzer);
    command.arg("--seconds").arg(options.seconds.to_string()).arg("--seed").arg(seed.to_string());
    execute(command.args(&options.arguments))
}

/// All targets, quietly, as a step of the tests.
pub(crate) fn test(workspace: &Workspace, object: &Path) -> Result<()> {
    let built = build(workspace, object)?;
    for target in TARGETS {
        let mut command = fuzzer(workspace, &built, target, TEST_SECONDS)?;
        command.arg("-print_final_stats=1").stdin(Stdio::null());
        let output = command.output().with_context(|| format!("start {}", workspace::line(&command)))?;
        let text = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            eprint!("{text}");
            return Err(advice(workspace, &built, target));
        }
        let runs = executed(&text).with_context(|| format!("{target} does not say how much it ran"))?;
        eprintln!("{target}: {runs} inputs in {TEST_SECONDS} s");
    }
    Ok(())
}

/// Builds the targets; returns the directory with their binaries.
fn build(workspace: &Workspace, object: &Path) -> Result<PathBuf> {
    let dir = dir(workspace);
    let mut command = workspace.host_cargo(object);
    for variable in ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET", "CARGO_BUILD_TARGET_DIR", "RUSTFLAGS"] {
        command.env_remove(variable);
    }
    command.env("CARGO_ENCODED_RUSTFLAGS", INSTRUMENTATION.join("\x1f"));
    // With a target named, build scripts and macros are not instrumented.
    command.args(["build", "--quiet", "--release", "--target", "host-tuple", "--manifest-path"]);
    command.arg(manifest(workspace)).arg("--target-dir").arg(&dir);
    execute(&mut command).context("build the fuzz targets")?;
    let host = workspace.host()?;
    Ok(dir.join(host).join("release"))
}

/// The command that runs a target for that many seconds.
fn fuzzer(workspace: &Workspace, built: &Path, target: &str, seconds: u32) -> Result<Command> {
    let corpus = dir(workspace).join("corpus").join(target);
    let artifacts = artifacts(workspace, target);
    for dir in [&corpus, &artifacts] {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    let mut command = Command::new(built.join(target));
    // What is new goes to the first directory.
    command.current_dir(workspace.root()).arg(corpus);
    let package = workspace.root().join(DIR);
    let seeds = package.join("seeds").join(target);
    if seeds.is_dir() {
        command.arg(seeds);
    }
    let dictionary = package.join(format!("{target}.dict"));
    if dictionary.is_file() {
        command.arg(prefixed("-dict=", &dictionary));
    }
    // The prefix of a file name: the slash makes it one in that directory.
    command.arg(prefixed("-artifact_prefix=", &artifacts.join("")));
    command.args(BOUNDS).arg(format!("-max_total_time={seconds}"));
    Ok(command)
}

/// What to say of a target that failed.
fn advice(workspace: &Workspace, built: &Path, target: &str) -> anyhow::Error {
    anyhow::anyhow!(
        "{target} failed: the input is in {}; run {} with it to see it again",
        artifacts(workspace, target).display(),
        built.join(target).display()
    )
}

fn dir(workspace: &Workspace) -> PathBuf {
    workspace.target().join("fuzz")
}

fn artifacts(workspace: &Workspace, target: &str) -> PathBuf {
    dir(workspace).join("artifacts").join(target)
}

/// Cargo.toml of the targets.
pub(crate) fn manifest(workspace: &Workspace) -> PathBuf {
    workspace.root().join(DIR).join("Cargo.toml")
}

fn prefixed(prefix: &str, path: &Path) -> OsString {
    let mut argument = OsString::from(prefix);
    argument.push(path);
    argument
}

/// The number of inputs that libFuzzer says it has run.
fn executed(statistics: &str) -> Option<u64> {
    let line = statistics.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_a_binary_of_the_package() {
        let manifest = include_str!("../../tests/fuzz/Cargo.toml");
        let binaries: Vec<_> =
            manifest.split("[[bin]]\nname = \"").skip(1).filter_map(|bin| bin.split('"').next()).collect();
        assert_eq!(binaries, TARGETS);
    }

    #[test]
    fn the_number_of_inputs_is_read_from_the_statistics() {
        let text =
            "Done 7 runs in 1 second(s)\nstat::number_of_executed_units: 389050\nstat::peak_rss_mb: 30\n";
        assert_eq!(executed(text), Some(389_050));
        assert_eq!(executed("==1== ERROR: libFuzzer: deadly signal\n"), None);
    }
}
