//! The kubectl plugin: what it says of all nodes at once is what each node says of itself.
//!
//! The binary is the one that the images are made of; it runs here and uses the same kubectl as everything else.

use std::{
    env, fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    Suite,
    fresh::{agents, overlay},
};

/// A directory with `kubectl` and `kubectl-overlay`, as on a user's path; removed when dropped.
struct Desk(PathBuf);

impl Drop for Desk {
    fn drop(&mut self) {
        // What is left is a script and a link in a directory of temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Desk {
    fn new(suite: &Suite<'_>) -> Result<Self> {
        let dir = env::temp_dir().join(format!("overlay-plugin-{}", std::process::id()));
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let desk = Self(dir);
        let access = &suite.options.access;
        // The prefix may have blanks of its own.
        let script = format!(
            "#!/bin/sh\nPATH={:?}\nexec {} --kubeconfig {} \"$@\"\n",
            env::var("PATH").unwrap_or_default(),
            access.kubectl,
            access.kubeconfig.display()
        );
        let kubectl = desk.0.join("kubectl");
        fs::write(&kubectl, script).context("write a kubectl for the plugin")?;
        fs::set_permissions(&kubectl, fs::Permissions::from_mode(0o755)).context("make it executable")?;
        symlink(&suite.binary, desk.0.join("kubectl-overlay")).context("link the plugin")?;
        Ok(desk)
    }

    /// What the plugin prints, and its exit status.
    fn plugin(&self, arguments: &[&str]) -> Result<(Option<i32>, String)> {
        let mut command = Command::new(self.0.join("kubectl-overlay"));
        let path = format!("{}:{}", self.0.display(), env::var("PATH").unwrap_or_default());
        let output = command.args(arguments).env("PATH", path).output().context("run kubectl-overlay")?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            matches!(output.status.code(), Some(0 | 3)),
            "kubectl overlay {}: {printed}{said}",
            arguments.join(" ")
        );
        Ok((output.status.code(), printed))
    }

    fn json(&self, arguments: &[&str]) -> Result<Value> {
        let (_, printed) = self.plugin(arguments)?;
        serde_json::from_str(&printed).with_context(|| format!("read {printed}"))
    }
}

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

    let archive = desk.0.join("dump.tar.gz");
    let (_, said) = desk.plugin(&["sysdump", "-f", &archive.display().to_string()])?;
    eprint!("{}", said.replace(&desk.0.display().to_string(), ""));
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
