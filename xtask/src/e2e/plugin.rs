//! The kubectl plugin: what it says of all nodes at once is what each node says of itself.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::{
    Suite,
    desk::Desk,
    fresh::{agents, overlay},
};

/// The case.
pub(super) fn run(suite: &Suite<'_>) -> Result<()> {
    let desk = Desk::new(suite)?;
    let agents = agents(suite)?;
    let rows = desk.json(&["status", "-o", "json"])?;
    let rows = rows.as_array().context("status is no list")?;
    for (node, agent) in &agents {
        let row = rows.iter().find(|row| row["node"] == node.as_str());
        let row = row.with_context(|| format!("no row for {node}"))?;
        ensure!(row["ready"] == true && row["error"].is_null(), "{row}");
        let own = overlay(suite, agent, "status")?;
        for key in ["version", "peers", "problems"] {
            ensure!(row[key] == own[key], "{key}: {row}, but {node} says {own}");
        }
        let listed = desk.json(&["-N", node, "nodes", "-o", "json"])?;
        ensure!(listed == overlay(suite, agent, "nodes")?, "nodes of {node}");
    }
    let (code, table) = desk.plugin(&["status"])?;
    eprint!("{table}");
    ensure!(
        code == Some(0) || rows.iter().any(|row| row["problems"] != serde_json::json!([])),
        "exit status {code:?}"
    );

    let archive = desk.path("dump.tar.gz");
    let (_, said) = desk.plugin(&["sysdump", "-f", &archive.display().to_string()])?;
    eprint!("{}", said.replace(&desk.path("").display().to_string(), ""));
    let listing = Command::new("tar").arg("-tzf").arg(&archive).output().context("list the dump")?;
    let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
    for (node, _) in &agents {
        for file in ["status.json", "programs.json", "maps/NODES.json", "kubectl-logs.txt"] {
            let path = format!("/{node}/{file}");
            ensure!(listing.lines().any(|line| line.ends_with(&path)), "the dump lacks {path}: {listing}");
        }
    }
    Ok(())
}
