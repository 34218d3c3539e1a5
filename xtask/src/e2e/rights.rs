//! The agent's pod may do exactly what the manifest says: the rest is tried with its own token, and refused.

use std::{env, fs, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{
    SYSTEM, Suite,
    fresh::{agents, name},
};

/// The case.
pub(super) fn run(suite: &Suite<'_>) -> Result<()> {
    let agents = agents(suite)?;
    let (node, agent) = agents.first().context("find an agent")?;
    let token = token(suite, node, agent)?;
    let kubeconfig = Kubeconfig::write(suite, token.trim())?;
    let agent = suite.cluster.with(&kubeconfig.0);

    let allowed = agent.kubectl(&["get", "nodes", "-o", "name"])?;
    ensure!(allowed.lines().count() >= agents.len(), "the agent sees {allowed:?}");
    let other = agents.iter().map(|(node, _)| node).find(|other| *other != node).unwrap_or(node);
    let patch = r#"{"metadata":{"annotations":{"overlay.network/tunnel-address":"192.0.2.66"}}}"#;
    let tries: [&[&str]; 7] = [
        &["patch", "node", other, "-p", patch],
        &["patch", "node", node, "-p", patch],
        &["delete", "node", other],
        &["get", "pods", "-A"],
        &["get", "secrets", "-n", SYSTEM],
        &["get", "configmaps", "-n", SYSTEM],
        &["delete", "daemonset", "overlay", "-n", SYSTEM],
    ];
    for arguments in tries {
        let (success, said) = agent.attempt(arguments)?;
        ensure!(!success, "kubectl {} succeeds with the agent's token", arguments.join(" "));
        let refusal = said.lines().find(|line| line.contains("orbidden"));
        match refusal {
            Some(line) => eprintln!("kubectl {}: {line}", arguments[..3.min(arguments.len())].join(" ")),
            None => bail!("kubectl {} is not refused, but fails: {said}", arguments.join(" ")),
        }
    }
    let account = format!("system:serviceaccount:{SYSTEM}:overlay");
    for (verb, resource, wanted) in [
        ("list", "nodes", "yes"),
        ("watch", "nodes", "yes"),
        ("create", "events.events.k8s.io", "yes"),
        ("patch", "events.events.k8s.io", "yes"),
        ("update", "nodes", "no"),
        ("patch", "nodes/status", "no"),
        ("create", "pods", "no"),
        ("get", "secrets", "no"),
        ("escalate", "clusterroles.rbac.authorization.k8s.io", "no"),
    ] {
        let (_, said) = suite.cluster.attempt(&["auth", "can-i", verb, resource, "--as", &account])?;
        // Warnings of kubectl are beside it.
        let answered = said.lines().any(|line| line.split_whitespace().next() == Some(wanted));
        ensure!(answered, "may the agent {verb} {resource}? {said:?} instead of {wanted}");
    }
    Ok(())
}

/// The token that the agent's pod is given, as it is on the node.
pub(super) fn token(suite: &Suite<'_>, node: &str, agent: &Value) -> Result<String> {
    let uid = agent["metadata"]["uid"].as_str().context("the agent's pod has no uid")?;
    let script = format!("cat /var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~*/*/token");
    let token = suite.cluster.on_node(node, &["sh", "-c", &script])?;
    ensure!(!token.trim().is_empty(), "{} has no token", name(agent));
    Ok(token)
}

/// A file that only its owner can read, as long as this lives.
struct Kubeconfig(PathBuf);

impl Kubeconfig {
    /// The cluster of the options with this token instead of their user.
    fn write(suite: &Suite<'_>, token: &str) -> Result<Self> {
        let text =
            suite.cluster.kubectl(&["config", "view", "--raw", "--minify", "--flatten", "-o", "json"])?;
        let mut config: Value = serde_json::from_str(&text).context("read the kubeconfig")?;
        let users = config["users"].as_array_mut().context("the kubeconfig has no user")?;
        for user in users {
            // Certificates would be believed before the token.
            user["user"] = json!({ "token": token });
        }
        let path = env::temp_dir().join(format!("overlay-e2e-{}.kubeconfig", std::process::id()));
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&path);
        let mut file = file.with_context(|| format!("create {}", path.display()))?;
        let written = Self(path);
        file.write_all(config.to_string().as_bytes()).context("write the kubeconfig")?;
        Ok(written)
    }
}

impl Drop for Kubeconfig {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
