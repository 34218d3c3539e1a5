//! What the running agent was told: its command line, its environment and the file that these name, read as the agent reads
//! them. Where there is none that can be seen, what one would be told that is started here.

use clap::Parser as _;
use serde::Serialize;

use super::{AgentArgs, Cli, Command};
use crate::{
    agent::process::{self, Process},
    config::{Overrides, Settings, Source},
    datapath::pins::Pins,
};

/// The agent, for people and machines.
#[derive(Debug, Default, Serialize)]
pub(super) struct Agent {
    pub(super) running: bool,
    pub(super) pid: Option<u32>,
    /// Where the list of nodes comes from: `file` or `kubernetes`.
    pub(super) source: Option<&'static str>,
    /// The configuration file, as the agent calls it.
    pub(super) config: Option<String>,
    /// Where it answers probes and serves metrics.
    pub(super) health: Option<String>,
}

impl Agent {
    /// Looks for it.
    pub(super) fn find(pins: &Pins) -> Self {
        let Some(process) = process::find(pins) else { return Self::default() };
        let found = Self { running: true, pid: Some(process.pid), ..Self::default() };
        let Some(args) = arguments(process) else { return found };
        let (file, overrides) = args.settings.split();
        let config = file.display().to_string();
        // It may have been changed for the worse since.
        let settings = Settings::load(&process.path(&file), &overrides).ok();
        Self {
            source: settings.as_ref().map(|settings| match settings.source {
                Source::File(_) => "file",
                Source::Kubernetes(_) => "kubernetes",
            }),
            health: settings.and_then(|settings| settings.health).map(|address| address.to_string()),
            config: Some(config),
            ..found
        }
    }
}

/// What its command line and its environment say in place of the file.
pub(super) fn overrides(process: Process) -> Option<Overrides> {
    arguments(process).map(|args| args.settings.split().1)
}

/// Its command line as clap understood it.
fn arguments(process: Process) -> Option<AgentArgs> {
    let mut words = process.arguments()?;
    // clap would take them from this process' environment; a flag of the agent comes first.
    for (name, flag) in [
        ("OVERLAY_CONFIG", "--config"),
        ("OVERLAY_SOURCE", "--source"),
        ("OVERLAY_HEALTH", "--health"),
        ("NODE_NAME", "--node"),
    ] {
        let given = words.iter().any(|word| word == flag || word.starts_with(&format!("{flag}=")));
        if let Some(value) = process.variable(name).filter(|_| !given) {
            words.push(format!("{flag}={value}"));
        }
    }
    match Cli::try_parse_from(words).ok()?.command {
        Command::Agent(args) => Some(args),
        _ => None,
    }
}
