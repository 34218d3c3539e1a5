//! A desk with kubectl and its plugin `kubectl overlay`, as people have it who look at a cluster.
//!
//! The binary is the one that the images are made of; it runs here and uses the same kubectl as everything else.

use std::{
    env, fs,
    io::Write as _,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::Suite;

/// A directory with `kubectl` and `kubectl-overlay`, as on a user's path; removed when dropped.
pub(super) struct Desk(PathBuf);

impl Drop for Desk {
    fn drop(&mut self) {
        // What is left is a script and a link in a directory of temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Desk {
    pub(super) fn new(suite: &Suite<'_>) -> Result<Self> {
        static DESKS: AtomicUsize = AtomicUsize::new(0);
        let number = DESKS.fetch_add(1, Ordering::Relaxed);
        let dir = env::temp_dir().join(format!("overlay-desk-{}-{number}", std::process::id()));
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

    /// Where files of whoever sits here are.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// What the plugin prints, and its exit status, which is 0 or 3 (it has found something).
    pub(super) fn plugin(&self, arguments: &[&str]) -> Result<(Option<i32>, String)> {
        self.plugin_with(arguments, "")
    }

    /// As [`Self::plugin`], with something on standard input.
    pub(super) fn plugin_with(&self, arguments: &[&str], input: &str) -> Result<(Option<i32>, String)> {
        let mut command = Command::new(self.0.join("kubectl-overlay"));
        let path = format!("{}:{}", self.0.display(), env::var("PATH").unwrap_or_default());
        command.args(arguments).env("PATH", path);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start kubectl-overlay")?;
        let stdin = child.stdin.take();
        let output = thread::scope(|scope| {
            if let Some(mut stdin) = stdin {
                // Who reads nothing has said why.
                scope.spawn(move || stdin.write_all(input.as_bytes()));
            }
            child.wait_with_output().context("wait for kubectl-overlay")
        })?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            matches!(output.status.code(), Some(0 | 3)),
            "kubectl overlay {}: {printed}{said}",
            arguments.join(" ")
        );
        Ok((output.status.code(), printed))
    }

    /// What the plugin prints with `-o json`, which is among the arguments.
    pub(super) fn json(&self, arguments: &[&str]) -> Result<Value> {
        let (_, printed) = self.plugin(arguments)?;
        serde_json::from_str(&printed).with_context(|| format!("read {printed}"))
    }

    /// A list that the plugin prints of one node with `-o json`.
    pub(super) fn list(&self, node: &str, command: &str) -> Result<Vec<Value>> {
        match self.json(&["-N", node, command, "-o", "json"])? {
            Value::Array(rows) => Ok(rows),
            other => anyhow::bail!("overlay {command} prints no list on {node}: {other}"),
        }
    }
}
