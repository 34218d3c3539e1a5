//! `cni-conformance`: a black-box conformance suite for plugins of the Container Network Interface.
//!
//! Takes any network configuration and any plugin binaries, calls them as a container runtime does, and judges what
//! they print and what the kernel shows, one sentence of the specification after another. It knows nothing about the
//! plugins but what the specification says, and shares no code with any of them. See `docs/conformance.md`.
//!
//! Exit codes: 0 no case failed, 1 a case failed, 2 the suite could not run, 130 interrupted.

mod bench;
mod case;
mod cases;
mod container;
mod exec;
mod host;
mod kernel;
mod network;
mod plugin;
mod report;
mod result;
mod signal;
mod state;
mod suite;
mod version;

use std::fs;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use serde_json::{Map, Value};

use case::{Finished, Level, Run};
use host::{Host, Scope};
use network::Network;
use report::{Counts, Format, Subject};
use suite::{Settings, Suite};
use version::Version;

/// The suite could not run.
const UNUSABLE: u8 = 2;

/// 128 + SIGINT, as a shell has it.
const INTERRUPTED: u8 = 130;

/// Checks that CNI plugins do what the CNI specification says
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Network configuration: a list, or the configuration of a single plugin
    #[arg(long, value_name = "FILE", required_unless_present = "list")]
    conflist: Option<PathBuf>,
    /// Where plugin binaries are; can be repeated [default: $CNI_PATH, else /opt/cni/bin and /usr/lib/cni]
    #[arg(long, value_name = "DIR")]
    plugin_dir: Vec<PathBuf>,
    /// Run only cases whose name contains this; can be repeated
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Run only cases of this level or a more binding one: must, should, practice
    #[arg(long, value_name = "LEVEL", default_value = "practice", value_parser = level)]
    level: Level,
    /// Speak only this version; can be repeated [default: all that every plugin claims]
    #[arg(long, value_name = "VERSION", value_parser = spec_version)]
    cni_version: Vec<Version>,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Only list the cases and their sentences
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    place: Place,
    /// With --here or --netns, run the cases of GC as well: they remove every other attachment of the network there
    #[arg(long)]
    gc: bool,
    /// Where plugins keep files: private with --isolate, always compared; can be repeated
    #[arg(long, value_name = "DIR", default_values = ["/var/lib/cni", "/run/cni"])]
    state_dir: Vec<PathBuf>,
    /// Capability arguments: a JSON object
    #[arg(long, value_name = "JSON", default_value = "{}", value_parser = object)]
    cap_args: Map<String, Value>,
    /// How long one call of a plugin may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u64,
    /// Measure instead: how long this many calls of ADD and DEL take
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    bench: Option<u32>,
    /// Measure with this many containers on the node; can be repeated
    #[arg(long, value_name = "N", default_values_t = [1, 200], requires = "bench")]
    containers: Vec<usize>,
    /// Another network to measure side by side; can be repeated
    #[arg(long, value_name = "FILE", requires = "bench")]
    against: Vec<PathBuf>,
}

/// Where the plugins run.
#[derive(Debug, clap::Args)]
struct Place {
    /// Run the plugins on a host of their own, a network namespace that is made for them (default)
    #[arg(long, conflicts_with_all = ["here", "netns"])]
    isolate: bool,
    /// Run the plugins on this host, in the current network namespace
    #[arg(long, conflicts_with = "netns")]
    here: bool,
    /// Run the plugins in this network namespace (a name below /run/netns, or a path)
    #[arg(long, value_name = "NAME")]
    netns: Option<String>,
}

fn level(text: &str) -> Result<Level, String> {
    let all = [Level::Must, Level::Should, Level::Practice];
    all.into_iter().find(|level| level.as_str() == text).ok_or_else(|| "no such level".to_owned())
}

fn spec_version(text: &str) -> Result<Version, String> {
    Version::parse(text).ok_or_else(|| format!("not one of {}", Version::ALL.map(Version::as_str).join(", ")))
}

fn object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

fn main() -> ExitCode {
    match Cli::parse().execute() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(if signal::requested() { INTERRUPTED } else { UNUSABLE })
        }
    }
}

impl Place {
    fn scope(&self) -> Scope {
        match (&self.netns, self.here) {
            (Some(name), _) => Scope::Netns(name.clone()),
            (None, true) => Scope::Here,
            (None, false) => Scope::Isolated,
        }
    }
}

impl Cli {
    fn execute(&self) -> Result<ExitCode> {
        let Some(conflist) = &self.conflist else {
            print_all(&report::list(&self.chosen(&Version::ALL)))?;
            return Ok(ExitCode::SUCCESS);
        };
        let networks: Result<Vec<Network>> =
            std::iter::once(conflist).chain(&self.against).map(|path| read(path)).collect();
        let settings = Settings {
            plugin_dirs: self.plugin_dirs()?,
            capabilities: self.cap_args.clone(),
            versions: self.cni_version.clone(),
            collect: self.gc || self.place.scope() == Scope::Isolated,
            limit: Duration::from_secs(self.timeout),
        };
        let networks = networks?;
        let host = Host::enter(&self.place.scope(), self.state_dir.clone())?;
        signal::install().context("install signal handlers")?;
        let suites: Result<Vec<Suite<'_>>> =
            networks.into_iter().map(|network| Suite::new(&host, network, &settings)).collect();
        let suites = suites?;
        if let Some(rounds) = self.bench {
            let mut populations = self.containers.clone();
            populations.sort_unstable();
            let plan = bench::Plan { rounds: usize::try_from(rounds)?, populations };
            suites.iter().try_for_each(Suite::warm_up)?;
            bench::run(&plan, &suites, self.format())?;
            return Ok(ExitCode::SUCCESS);
        }
        let suite = suites.first().context("no network")?;
        let runs = self.chosen(&suite.versions);
        if self.list {
            print_all(&report::list(&runs))?;
            return Ok(ExitCode::SUCCESS);
        }
        ensure!(!runs.is_empty(), "no case has a name as in --only and a level as in --level");
        self.judge(suite, &runs)
    }

    fn judge(&self, suite: &Suite<'_>, runs: &[Run]) -> Result<ExitCode> {
        suite.warm_up()?;
        let mut finished: Vec<Finished> = Vec::new();
        for (number, run) in (1..).zip(runs) {
            if signal::requested() {
                break;
            }
            progress(&format!("{number}/{} {}", runs.len(), run.name));
            finished.push(run.execute(suite));
        }
        progress("");
        let subject =
            Subject { network: &suite.network.name, plugins: &suite.plugins, versions: &suite.versions };
        report::print(self.format(), subject, &finished).context("print the report")?;
        Ok(if finished.len() < runs.len() {
            ExitCode::from(INTERRUPTED)
        } else if Counts::of(&finished).failed > 0 {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        })
    }

    /// The cases that the options leave.
    fn chosen(&self, versions: &[Version]) -> Vec<Run> {
        let mut runs = case::plan(&cases::all(), versions);
        runs.retain(|run| {
            let named = self.only.is_empty() || self.only.iter().any(|text| run.name.contains(text.as_str()));
            named && run.case.level <= self.level
        });
        runs
    }

    fn format(&self) -> Format {
        if self.json { Format::Json } else { self.format }
    }

    /// Absolute: plugins are called with these in `CNI_PATH`.
    fn plugin_dirs(&self) -> Result<Vec<PathBuf>> {
        let dirs = match std::env::var_os("CNI_PATH") {
            _ if !self.plugin_dir.is_empty() => self.plugin_dir.clone(),
            Some(path) => std::env::split_paths(&path).collect(),
            None => vec![PathBuf::from("/opt/cni/bin"), PathBuf::from("/usr/lib/cni")],
        };
        let absolute = |dir: &PathBuf| {
            std::path::absolute(dir).with_context(|| format!("find plugin directory {}", dir.display()))
        };
        dirs.iter().map(absolute).collect()
    }
}

fn read(path: &Path) -> Result<Network> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    Network::parse(&text).with_context(|| format!("read network configuration {}", path.display()))
}

fn print_all(text: &str) -> Result<()> {
    io::stdout().lock().write_all(text.as_bytes()).context("print")
}

/// Says what is being done, on a terminal only, in a line that the next one replaces.
fn progress(text: &str) {
    if io::stderr().is_terminal() {
        eprint!("\r\x1b[K{text}");
    }
}
