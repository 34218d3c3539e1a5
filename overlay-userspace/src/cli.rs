//! The command line of the `overlay` binary: clap and wiring, nothing else. The work is in the library.

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::{
    agent,
    cni::{self, install},
    datapath::{DatapathError, pins::Pins, schema},
    host::bpffs,
};

mod capture;
mod cleanup;
mod doctor;
#[cfg(test)]
mod documented;
mod endpoints;
mod exit;
mod flows;
mod generate;
mod kubectl;
mod migrate;
mod monitor;
mod nodes;
mod output;
mod ports;
mod programs;
mod settings;
mod status;
mod sysdump;
mod told;
mod trace;
mod version;

use exit::Verdict;
use output::OutputArgs;
use settings::SettingsArgs;

/// Pod network for Kubernetes: VXLAN built and stripped by eBPF programs.
#[derive(Debug, Parser)]
#[command(name = "overlay", version, max_term_width = 110)]
struct Cli {
    /// Where maps, programs and links are pinned, on a bpffs [default: /sys/fs/bpf/overlay/v2, with
    /// the number of the schema]
    #[arg(long, global = true, env = "OVERLAY_PINS", value_name = "DIR")]
    pins: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent of this node in the foreground
    Agent(AgentArgs),
    /// Act as CNI plugin: parameters in CNI_* variables, configuration on standard input
    Cni(CniArgs),
    /// Show whether this node works, and what its programs have counted
    Status(status::StatusArgs),
    /// List where each node subnet and node address is reached
    Nodes(OutputArgs),
    /// List the pods of this node and who holds which address
    Endpoints(OutputArgs),
    /// List the ports of this node that lead to pods, and who holds them
    Ports(OutputArgs),
    /// List the flows that return through the node's stack, because a Service may have translated them
    Flows(OutputArgs),
    /// List the programs: where each is attached and by what, and what it costs
    #[command(visible_alias = "links")]
    Programs(programs::Programs),
    /// Mount the file system of the pins, where the node has none
    Bpffs {
        /// Where
        #[arg(default_value = "/sys/fs/bpf")]
        dir: PathBuf,
    },
    /// Print packets as the programs drop them, or let them go on
    Monitor(monitor::Monitor),
    /// Print what a pod of this node really sends and gets
    Capture(capture::Capture),
    /// Look for what is wrong with this node, and say what helps
    Doctor(doctor::Doctor),
    /// Explain what the datapath would do with a packet of a pod, step by step, without sending it
    Trace(Box<trace::Trace>),
    /// Help the agent of an older build to take this node back to its schema
    #[command(hide = true)]
    Migrate(migrate::Migrate),
    /// Remove every trace of overlay from this node
    Cleanup(cleanup::Cleanup),
    /// Collect all that there is to know of this node into one archive, without secrets
    Sysdump(sysdump::Sysdump),
    /// Run a command on the nodes of a Kubernetes cluster, by kubectl: what `kubectl overlay` does
    Kubectl(kubectl::Kubectl),
    /// Show the version, the layout of the maps and what kernel is needed
    Version(OutputArgs),
    /// Print a script that completes the command line in a shell
    Completions(generate::Completions),
    /// Write the manual pages, section 8
    Man(generate::Man),
}

impl Command {
    /// The pins to work on: those in force for who reads, this build's own for who sets up or removes.
    fn pins(&self, own: Pins) -> Result<Pins, DatapathError> {
        match self {
            Self::Agent(_) | Self::Cni(_) | Self::Bpffs { .. } | Self::Migrate(_) | Self::Cleanup(_) => {
                Ok(own)
            }
            _ => schema::readable(&own),
        }
    }
}

#[derive(Debug, Args)]
struct CniArgs {
    #[command(subcommand)]
    action: Option<install::Action>,
}

#[derive(Debug, Args)]
struct AgentArgs {
    #[command(flatten)]
    settings: SettingsArgs,
    /// A newer overlay binary, to take over from its schema [default: the installed CNI plugin]
    #[arg(long, env = "OVERLAY_NEWER_BUILD", value_name = "FILE")]
    newer_build: Option<PathBuf>,
    /// What to log
    #[arg(long, env = "OVERLAY_LOG", value_name = "LEVEL", default_value = "info")]
    log: log::LevelFilter,
    /// What the eBPF programs log of their rare paths; costs time per packet on those
    #[arg(long, env = "OVERLAY_PROGRAM_LOG", value_name = "LEVEL", default_value = "off")]
    program_log: log::LevelFilter,
}

/// Parses the command line and runs it; errors go to standard error on one line.
pub fn main() -> ExitCode {
    let name = std::env::args_os().next().map(PathBuf::from);
    if name.as_deref().and_then(Path::file_name).is_some_and(|name| name == kubectl::PLUGIN) {
        return end(kubectl::Plugin::parse().kubectl.run());
    }
    // A runtime gives a plugin no arguments, but a configuration on standard input; a person has a terminal there.
    let bare = std::env::args_os().len() == 1;
    if bare && (std::env::var_os("CNI_COMMAND").is_some() || !io::stdin().is_terminal()) {
        return cni::run();
    }
    let Cli { pins, command } = Cli::parse();
    let pins = match command.pins(pins.map_or_else(Pins::default, Pins::new)) {
        Ok(pins) => pins,
        Err(error) => {
            eprintln!("overlay: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = match command {
        Command::Cni(CniArgs { action: None }) => return cni::run(),
        Command::Cni(CniArgs { action: Some(action) }) => install::run(&action, &pins).map(fine),
        Command::Agent(args) => agent(args, pins).map(fine),
        Command::Status(args) => status::run(&pins, args),
        Command::Nodes(args) => nodes::run(&pins, args).map(fine),
        Command::Endpoints(args) => endpoints::run(&pins, args).map(fine),
        Command::Ports(args) => ports::run(&pins, args).map(fine),
        Command::Flows(args) => flows::run(&pins, args).map(fine),
        Command::Programs(args) => programs::run(&pins, &args).map(fine),
        Command::Monitor(args) => args.run(&pins).map(fine),
        Command::Capture(args) => args.run(&pins).map(fine),
        Command::Bpffs { dir } => mount(&dir).map(fine),
        Command::Doctor(args) => doctor::run(pins, args),
        Command::Trace(trace) => trace.run(&pins),
        Command::Sysdump(sysdump) => sysdump.run(&pins).map(fine),
        Command::Kubectl(kubectl) => kubectl.run(),
        Command::Version(args) => version::run(args).map(fine),
        Command::Completions(completions) => completions.run(Cli::command()).map(fine),
        Command::Man(man) => man.run(Cli::command()).map(fine),
        Command::Migrate(migrate) => migrate.run(&pins).map(fine),
        Command::Cleanup(cleanup) => cleanup.run(&pins).map(fine),
    };
    end(result)
}

fn end(result: anyhow::Result<Verdict>) -> ExitCode {
    match result {
        Ok(verdict) => verdict.into(),
        Err(error) => {
            eprintln!("overlay: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The verdict of commands that have none of their own.
const fn fine((): ()) -> Verdict {
    Verdict::Fine
}

fn mount(dir: &Path) -> anyhow::Result<()> {
    let mounted = bpffs::ensure(dir).with_context(|| format!("mount a bpffs at {}", dir.display()))?;
    writeln!(io::stdout(), "{} {}", if mounted { "mounted" } else { "there is a bpffs at" }, dir.display())?;
    Ok(())
}

fn agent(args: AgentArgs, pins: Pins) -> anyhow::Result<()> {
    let AgentArgs { settings, newer_build, log, program_log } = args;
    let (config, overrides) = settings.split();
    let mut logger = env_logger::Builder::new();
    logger.filter_level(log).format_target(false).format_timestamp_millis();
    if log < log::LevelFilter::Debug {
        // The client of the API warns of every attempt, with all of what it got; the agent says what matters of it.
        for module in ["kube_client", "kube_runtime", "tower", "hyper", "hyper_util"] {
            logger.filter_module(module, log::LevelFilter::Off);
        }
    }
    logger.init();
    agent::run(&agent::Options { config, overrides, pins, newer_build, program_log: program_log as u8 })
}
