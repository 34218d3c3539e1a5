//! The `bench` binary, which `cargo xtask bench` runs: overlay beside the raw wire, plainly routed pods and Flannel's path, in one run.
//!
//! All contenders are alive at once and take turns round by round; what counts is the ratio to the raw wire in the same round, as the
//! median over rounds with an interval. docs/performance.md says how to read it.
//!
//! - [`contenders`] builds what is measured, [`sockets`] opens what it is measured by
//! - [`workloads`] generates load, with its servers at the [`far`] end; [`placement`] says where, [`rounds`] in what order
//! - [`scaling`] and [`programs`] measure overlay alone
//! - [`statistics`] turns rounds into [`results`]; [`report`] and [`plot`] show them; [`machine`] says where they come from

#![allow(
    clippy::cast_precision_loss,
    reason = "counts of packets, bytes and nanoseconds in a turn are far from 2^52"
)]

mod contenders;
mod far;
mod machine;
mod perf;
mod placement;
mod plan;
mod plot;
mod programs;
mod report;
mod results;
mod rounds;
mod scaling;
mod sockets;
mod statistics;
mod workloads;

use std::any::Any;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;
use overlay_tests::lab::interrupt::{self, Interrupted};

use crate::placement::Placement;
use crate::plan::{Plan, Subject};

/// Exit code after Ctrl-C or SIGTERM: 128 + SIGINT, as a shell has it.
const INTERRUPTED: u8 = 130;

/// Measure overlay beside the raw wire, plainly routed pods and Flannel's path.
#[derive(Debug, Parser)]
#[command(version, bin_name = "cargo xtask bench")]
struct Options {
    /// Under two minutes: one CPU only, short turns. Without it under thirty
    #[arg(long)]
    quick: bool,
    /// Write everything that was found to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the ratios to the raw wire
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Measure only this; may be given several times
    #[arg(long, value_name = "WORKLOAD", value_parser = Subject::parse)]
    only: Vec<Subject>,
    /// Only this kind of wire: w1 is a veth pair as the kernel makes it, w2 is like a network card
    #[arg(long, value_enum)]
    wire: Option<plan::Wire>,
    /// Only this placement of threads
    #[arg(long, value_enum)]
    cpus: Option<Placement>,
    /// Rounds at most; else as many as the time allows
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Length of a turn in milliseconds
    #[arg(long, value_name = "MILLISECONDS", value_parser = clap::value_parser!(u64).range(1..=500))]
    turn: Option<u64>,
}

fn main() -> ExitCode {
    if far::is_far_end() {
        return far::main();
    }
    let options = Options::parse();
    interrupt::on_signals();
    // What the lab panics with is a message for people; the place in the lab's code is of no interest here.
    panic::set_hook(Box::new(|info| {
        if !info.payload().is::<Interrupted>() {
            eprintln!("error: {}", message(info.payload()));
        }
    }));
    match panic::catch_unwind(AssertUnwindSafe(|| run(&options))) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
        Err(payload) if payload.is::<Interrupted>() => {
            eprintln!("interrupted; the lab is removed");
            ExitCode::from(INTERRUPTED)
        }
        Err(_) => ExitCode::FAILURE,
    }
}

fn run(options: &Options) -> Result<()> {
    let results = Plan::new(options).execute()?;
    print!("{}", report::tables(&results));
    if let Some(path) = &options.json {
        let mut json = serde_json::to_string_pretty(&results).context("write results as JSON")?;
        json.push('\n');
        write(path, &json)?;
    }
    if let Some(path) = &options.svg {
        write(path, &plot::svg(&results))?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

fn message(payload: &dyn Any) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("the lab failed without a message")
}
