//! The cluster under test, by `kubectl` and by commands on its nodes.
//!
//! Whatever is run has its output kept and given in the error; nothing is asked of a terminal. Waiting has a limit, and
//! says in its error what was last seen.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::Access;

/// Between two looks at something that is waited for.
const PAUSE: Duration = Duration::from_millis(250);

pub(super) struct Cluster<'a> {
    access: &'a Access,
    /// Instead of the kubeconfig that the options name.
    kubeconfig: Option<PathBuf>,
}

impl<'a> Cluster<'a> {
    pub(super) fn new(access: &'a Access) -> Self {
        Self { access, kubeconfig: None }
    }

    /// The same cluster as somebody else.
    pub(super) fn with(&self, kubeconfig: &Path) -> Self {
        Self { access: self.access, kubeconfig: Some(kubeconfig.to_path_buf()) }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = shell(&format!("{} \"$@\"", self.access.kubectl));
        command.arg("--kubeconfig").arg(self.kubeconfig.as_deref().unwrap_or(&self.access.kubeconfig));
        command.args(arguments);
        command
    }

    /// What kubectl prints.
    pub(super) fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        finish(self.command(arguments), &format!("kubectl {}", arguments.join(" ")), None)
    }

    /// As [`Self::kubectl`], with something on standard input.
    pub(super) fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<String> {
        finish(self.command(arguments), &format!("kubectl {}", arguments.join(" ")), Some(input))
    }

    /// Whether kubectl succeeds, and all that it says.
    pub(super) fn attempt(&self, arguments: &[&str]) -> Result<(bool, String)> {
        let output = output(self.command(arguments), None).context("run kubectl")?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    }

    /// An object, or a list of them, as JSON.
    pub(super) fn get(&self, arguments: &[&str]) -> Result<Value> {
        let arguments = [&["get", "-o", "json"], arguments].concat();
        let text = self.kubectl(&arguments)?;
        serde_json::from_str(&text)
            .with_context(|| format!("read the output of kubectl {}", arguments.join(" ")))
    }

    /// The items of a list.
    pub(super) fn list(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        match self.get(arguments)?["items"].take() {
            Value::Array(items) => Ok(items),
            _ => bail!("kubectl get {} gives no list", arguments.join(" ")),
        }
    }

    /// What a command prints on a node.
    pub(super) fn on_node(&self, node: &str, arguments: &[&str]) -> Result<String> {
        let prefix = self.access.node_exec.as_deref().context("needs --node-exec")?.replace("{node}", node);
        let mut command = shell(&format!("{prefix} \"$@\""));
        command.args(arguments);
        finish(command, &format!("{} on {node}", arguments.join(" ")), None)
    }

    /// Runs one of the commands that only the options know.
    pub(super) fn outside(command: &str) -> Result<String> {
        finish(shell(command), command, None)
    }

    /// Makes an image known to every node; nothing to do where they pull it.
    pub(super) fn load(&self, archive: &Path) -> Result<()> {
        match &self.access.load {
            Some(load) => Self::outside(&load.replace("{tar}", &archive.display().to_string())).map(drop),
            None => Ok(()),
        }
    }
}

/// `sh -c SCRIPT sh ARGUMENTS…`.
fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).arg("sh");
    command
}

fn output(mut command: Command, input: Option<&str>) -> Result<Output> {
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("start sh")?;
    let stdin = child.stdin.take();
    thread::scope(|scope| {
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            // One that does not read to the end says why itself.
            scope.spawn(move || stdin.write_all(input.as_bytes()));
        }
        child.wait_with_output().context("wait for a command")
    })
}

fn finish(command: Command, what: &str, input: Option<&str>) -> Result<String> {
    let output = output(command, input).with_context(|| format!("run {what}"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{what}: {} {} ({})", printed.trim(), error.trim(), output.status);
    Ok(printed)
}

/// Looks until `look` finds nothing missing; returns how long that took. `look` says what is missing.
pub(super) fn wait(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<String>>,
) -> Result<Duration> {
    let start = Instant::now();
    loop {
        // The API server may be busy, or away: that is one of the things to wait for.
        let missing = look().unwrap_or_else(|error| Some(format!("{error:#}")));
        let Some(missing) = missing else { return Ok(start.elapsed()) };
        if start.elapsed() > limit {
            bail!("{what}: not within {} s: {missing}", limit.as_secs());
        }
        thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access() -> Access {
        Access {
            kubeconfig: "/k".into(),
            kubectl: "echo".into(),
            node_exec: Some("echo on {node}:".into()),
            load: Some("test -n {tar}".into()),
        }
    }

    #[test]
    fn arguments_reach_the_programs_as_they_are() {
        let access = access();
        let cluster = Cluster::new(&access);
        assert_eq!(cluster.kubectl(&["get", "a  b", "$HOME"]).unwrap(), "--kubeconfig /k get a  b $HOME\n");
        assert_eq!(cluster.on_node("n1", &["sh", "-c", "a; b"]).unwrap(), "on n1: sh -c a; b\n");
        cluster.load(Path::new("/image.tar")).unwrap();
    }

    #[test]
    fn a_command_that_fails_says_what_it_was_and_what_it_said() {
        let access = Access { kubectl: "echo no >&2; false".into(), ..access() };
        let error = Cluster::new(&access).kubectl(&["get", "nodes"]).unwrap_err().to_string();
        assert!(error.starts_with("kubectl get nodes: ") && error.contains("no"), "{error}");
    }

    #[test]
    fn waiting_ends_when_nothing_is_missing_and_else_says_what_is() {
        let mut looks = 0;
        let look = || {
            looks += 1;
            Ok((looks < 2).then(|| "more".to_owned()))
        };
        wait("two looks", Duration::from_mins(1), look).unwrap();
        assert_eq!(looks, 2);
        let error = wait("a pod", Duration::ZERO, || Ok(Some("n1".into()))).unwrap_err().to_string();
        assert_eq!(error, "a pod: not within 0 s: n1");
    }
}
