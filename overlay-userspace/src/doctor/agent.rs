//! The agent: whether it runs, and what it answers to probes.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use serde_json::Value;

use super::{Check, Report, Site};

pub(super) struct Agent;

/// The longest answer that is read: `/api/status` of a large node.
const ANSWER: u64 = 4 << 20;
/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(3);

/// Seconds within which a watch tells something or is ended by the server and asked for anew (290), and some for a busy one.
const QUIET: u64 = 330;

impl Check for Agent {
    fn name(&self) -> &'static str {
        "agent"
    }

    fn run(&self, site: &Site, report: &mut Report) -> anyhow::Result<()> {
        let Some(pid) = site.agent else {
            if site.is_installed() {
                report
                    .warning("agent", "does not run: pods keep their network, but nodes that change are not taken over, and what breaks stays broken")
                    .evidence("nobody holds the agent's lock of this network namespace")
                    .remedy("start it: its pod of the DaemonSet, its systemd unit, or `overlay agent`");
            } else {
                report.skip("no agent has been started on this node");
            }
            return Ok(());
        };
        if is_stopped(pid) {
            report
                .error("agent", "is stopped: it does nothing until it is continued")
                .evidence(format!("process {pid} is in state T"))
                .remedy(format!("kill -CONT {pid}"));
            return Ok(());
        }
        let Some(address) = site.settings.as_ref().ok().and_then(|settings| settings.health) else {
            report.saw(format!("process {pid}; it answers no probes (agent.health is not set)"));
            return Ok(());
        };
        for (path, what) in [
            ("/healthz", "hangs: its run loop does not turn"),
            ("/readyz", "is not ready: new pods on this node do not start"),
        ] {
            match get(address, path) {
                Ok((200, _)) => {}
                Ok((status, text)) => {
                    report
                        .error("agent", what)
                        .evidence(format!("http://{address}{path} answers {status}: {text}"))
                        .remedy("put right what it says, or restart the agent");
                    return Ok(());
                }
                Err(error) => {
                    report
                        .error("agent", "does not answer probes")
                        .evidence(format!("http://{address}{path}: {error:#}"))
                        .remedy("restart the agent, and see its log");
                    return Ok(());
                }
            }
        }
        problems(address, report)?;
        report.saw(format!("process {pid} is healthy and ready"));
        Ok(())
    }
}

/// What the agent's last pass could not do, and whether it hears the API server.
fn problems(address: SocketAddr, report: &mut Report) -> anyhow::Result<()> {
    let (status, text) = get(address, "/api/status")?;
    // An agent that is older than this doctor.
    if status != 200 {
        return Ok(());
    }
    let state: Value = serde_json::from_str(&text).context("read /api/status of the agent")?;
    let problems: Vec<_> =
        state["problems"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if !problems.is_empty() {
        report
            .error("agent", "cannot do all that it should")
            .evidence(problems.join("; "))
            .remedy("put right what the evidence says");
    }
    if let Some(age) = state["api_server"]["heard_seconds"].as_u64().filter(|age| *age > QUIET) {
        report
            .error("agent", "has a watch of Nodes that tells nothing: nodes that come, go or move are not taken over")
            .evidence(format!("the API server last answered or told something {age} s ago; even where nothing happens it does within {QUIET} s"))
            .remedy("restart the agent");
    }
    if let Some(outage) = state["api_server"]["outage"].as_str() {
        report
            .error("agent", "does not hear the API server: it goes by the nodes that it knows")
            .evidence(outage)
            .remedy("see the check nodes; if that one is fine, restart the agent");
    }
    Ok(())
}

fn is_stopped(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which may hold anything (proc(5)).
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['T', 't']))
}

/// Status and text of an answer.
fn get(address: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT).context("connect")?;
    stream.set_read_timeout(Some(LIMIT)).context("wait for the answer")?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").context("ask")?;
    let mut answer = String::new();
    stream.take(ANSWER).read_to_string(&mut answer).context("read the answer")?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let text = answer.split_once("\r\n\r\n").map_or("", |(_, text)| text.trim());
    Ok((status.ok_or_else(|| anyhow!("not an answer of HTTP"))?, text.to_owned()))
}
