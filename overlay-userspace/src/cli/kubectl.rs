//! `kubectl overlay`, also `overlay kubectl`: the commands of this binary on the nodes of a cluster, from the desk of whoever
//! may `kubectl exec` into the agents' pods.
//!
//! kubectl does all of it, with the user's own kubeconfig: nothing is opened on the nodes and nothing installed, and what the
//! user may not, this may not. kubectl finds it as a plugin under the name `kubectl-overlay`.

use std::{collections::BTreeMap, io, io::IsTerminal as _, io::Write as _, path::PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Parser};

use super::{exit::Verdict, output::OutputArgs};

mod access;
mod dump;
mod pod;
mod status;

use access::{Access, Agent};

/// The name that kubectl looks for.
pub(super) const PLUGIN: &str = "kubectl-overlay";

/// The plugin's command line, where it is called by its own name.
#[derive(Debug, Parser)]
#[command(name = "kubectl-overlay", bin_name = "kubectl overlay", version, max_term_width = 110)]
pub(super) struct Plugin {
    #[command(flatten)]
    pub(super) kubectl: Kubectl,
}

#[derive(Debug, Args)]
#[command(
    about = "Run a command on the nodes of a Kubernetes cluster, by kubectl",
    after_help = "status: a row for each node. sysdump [-f FILE]: one archive of all nodes. trace POD DESTINATION …: on the pod's node; \
                  POD is NAMESPACE/NAME or an address. Any other command of overlay: on all nodes, or on the one that -N names."
)]
pub(super) struct Kubectl {
    #[command(flatten)]
    access: Access,
    /// Only on this node, as if typed there
    #[arg(short = 'N', long, value_name = "NODE")]
    node: Option<String>,
    /// What to run, with its options
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// What `status` takes.
#[derive(Debug, Parser)]
#[command(name = "status", bin_name = "kubectl overlay status")]
struct StatusLine {
    #[command(flatten)]
    output: OutputArgs,
}

/// What `sysdump` takes.
#[derive(Debug, Parser)]
#[command(name = "sysdump", bin_name = "kubectl overlay sysdump")]
struct DumpLine {
    /// The archive [default: overlay-sysdump-cluster-<time>.tar.gz]
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
}

impl Kubectl {
    /// Does it. The verdict is the worst of all nodes.
    pub(super) fn run(&self) -> anyhow::Result<Verdict> {
        let agents = self.access.agents()?;
        if let Some(node) = &self.node {
            return through(&self.access, agent_of(&agents, node)?, &self.command);
        }
        match self.command[0].as_str() {
            "status" => status::run(&self.access, &agents, StatusLine::parse_from(&self.command).output),
            "sysdump" => dump::run(&self.access, &agents, DumpLine::parse_from(&self.command).file)
                .map(|()| Verdict::Fine),
            "trace" => {
                let (node, command) = pod::locate(&self.access, &self.command)?;
                through(&self.access, agent_of(&agents, &node)?, &command)
            }
            _ if wants_json(&self.command) => everywhere_as_json(&self.access, &agents, &self.command),
            _ => everywhere(&self.access, &agents, &self.command),
        }
    }
}

fn agent_of<'a>(agents: &'a [Agent], node: &str) -> anyhow::Result<&'a Agent> {
    let Some(agent) = agents.iter().find(|agent| agent.node == node) else {
        let known: Vec<_> = agents.iter().map(|agent| agent.node.as_str()).collect();
        bail!("there is no node {node}: there are {}", known.join(", "));
    };
    Ok(agent)
}

/// What the command ended with on a node: 0 or 3 are answers, all else is a failure that has been told already.
fn verdict(code: Option<i32>, node: &str) -> anyhow::Result<Verdict> {
    match code {
        Some(0) => Ok(Verdict::Fine),
        Some(3) => Ok(Verdict::Wrong),
        _ => bail!("the command failed on node {node}"),
    }
}

/// On one node, with this process' own input and output.
fn through(access: &Access, agent: &Agent, command: &[String]) -> anyhow::Result<Verdict> {
    let terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    let reads = command.iter().any(|word| word == "-");
    let options: &[&str] = match (terminal, reads) {
        (true, _) => &["--stdin", "--tty"],
        (false, true) => &["--stdin"],
        (false, false) => &[],
    };
    let status = access.exec(agent, options, command)?.status().context("run kubectl")?;
    verdict(status.code(), &agent.node)
}

/// On every node, one after the other, each under its name.
fn everywhere(access: &Access, agents: &[Agent], command: &[String]) -> anyhow::Result<Verdict> {
    let (mut worst, mut failed) = (Verdict::Fine, Vec::new());
    for agent in agents {
        writeln!(io::stdout(), "== {}", agent.node).context("write to standard output")?;
        match through(access, agent, command) {
            Ok(Verdict::Fine) => {}
            Ok(Verdict::Wrong) => worst = Verdict::Wrong,
            Err(error) => {
                eprintln!("overlay: {error:#}");
                failed.push(agent.node.as_str());
            }
        }
    }
    if failed.is_empty() { Ok(worst) } else { bail!("failed on {}", failed.join(", ")) }
}

fn wants_json(command: &[String]) -> bool {
    let long = command.iter().any(|word| matches!(word.as_str(), "-ojson" | "-o=json" | "--output=json"));
    let pair = |words: &[String]| matches!(words[0].as_str(), "-o" | "--output") && words[1] == "json";
    long || command.windows(2).any(pair)
}

/// On every node; one object, with what each node has printed.
fn everywhere_as_json(access: &Access, agents: &[Agent], command: &[String]) -> anyhow::Result<Verdict> {
    let (mut worst, mut all) = (Verdict::Fine, BTreeMap::new());
    for (agent, output) in agents.iter().zip(access.ask_all(agents, command)) {
        let output = output.with_context(|| format!("ask node {}", agent.node))?;
        if output.code == Some(3) {
            worst = Verdict::Wrong;
        }
        let value: serde_json::Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("read what node {} answers: {}", agent.node, output.complaint()))?;
        all.insert(agent.node.as_str(), value);
    }
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &all).context("write to standard output")?;
    writeln!(out).context("write to standard output")?;
    Ok(worst)
}
