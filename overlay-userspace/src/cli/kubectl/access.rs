//! The user's kubectl: which agents there are, and how to run something beside them.

use std::{
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use serde_json::Value;

/// Nodes that are asked at a time.
const TOGETHER: usize = 8;

/// What the manifests call the agents' pods, and their container.
const LABEL: &str = "app.kubernetes.io/name=overlay";
const CONTAINER: &str = "agent";
/// Where the image has the binary.
const BINARY: &str = "/overlay";

/// How to reach the cluster.
#[derive(Debug, Args)]
pub(super) struct Access {
    /// The context of the kubeconfig to use
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// Where the agents are
    #[arg(short, long, value_name = "NAMESPACE", default_value = "kube-overlay")]
    pub(super) namespace: String,
    /// The kubeconfig to use
    #[arg(long, value_name = "FILE")]
    pub(super) kubeconfig: Option<String>,
    /// The program
    #[arg(long, env = "OVERLAY_KUBECTL", value_name = "PROGRAM", default_value = "kubectl")]
    kubectl: String,
}

/// The agent of a node.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Agent {
    pub(super) node: String,
    /// Its pod; `None` where the node has none, or none that runs.
    pub(super) pod: Option<String>,
}

/// What a command printed on a node.
pub(super) struct Output {
    pub(super) code: Option<i32>,
    pub(super) stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Output {
    /// Why it failed, on one line.
    pub(super) fn complaint(&self) -> String {
        let said = String::from_utf8_lossy(&self.stderr);
        let line = said.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it says nothing");
        line.strip_prefix("overlay: ").unwrap_or(line).to_owned()
    }
}

impl Access {
    fn kubectl(&self) -> Command {
        let mut command = Command::new(&self.kubectl);
        for (flag, value) in [("--context", &self.context), ("--kubeconfig", &self.kubeconfig)] {
            if let Some(value) = value {
                command.arg(format!("{flag}={value}"));
            }
        }
        command
    }

    /// What kubectl prints.
    pub(super) fn ask(&self, arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
        let output = self.run(self.kubectl().args(arguments))?;
        ensure!(output.code == Some(0), "kubectl {}: {}", arguments.join(" "), output.complaint());
        Ok(output.stdout)
    }

    fn run(&self, command: &mut Command) -> anyhow::Result<Output> {
        let output = command
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("run {}: install kubectl, or name it with --kubectl", self.kubectl))?;
        Ok(Output { code: output.status.code(), stdout: output.stdout, stderr: output.stderr })
    }

    /// Objects, or one, as JSON.
    pub(super) fn get(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let arguments = [&["get", "--request-timeout=30s", "-o", "json"], arguments].concat();
        let text = self.ask(&arguments)?;
        serde_json::from_slice(&text)
            .with_context(|| format!("read what kubectl {} prints", arguments.join(" ")))
    }

    /// All nodes with their agents, by name. Who may not list nodes gets those that have an agent.
    pub(super) fn agents(&self) -> anyhow::Result<Vec<Agent>> {
        let pods = self.get(&["pods", "--namespace", &self.namespace, "--selector", LABEL])?;
        let nodes = self.get(&["nodes"]).ok();
        let agents = agents(&pods, nodes.as_ref());
        if agents.iter().all(|agent| agent.pod.is_none()) {
            bail!("no agent runs in the namespace {}: name another one with --namespace", self.namespace);
        }
        Ok(agents)
    }

    /// What runs `overlay COMMAND` beside an agent.
    pub(super) fn exec(
        &self,
        agent: &Agent,
        options: &[&str],
        command: &[String],
    ) -> anyhow::Result<Command> {
        let Some(pod) = &agent.pod else { bail!("no agent runs on node {}", agent.node) };
        let mut exec = self.kubectl();
        exec.args(["exec", "--namespace", &self.namespace]).args(options);
        exec.args([pod.as_str(), "--container", CONTAINER, "--", BINARY]).args(command);
        Ok(exec)
    }

    /// What `overlay COMMAND` prints beside each of these agents; several are asked at a time.
    pub(super) fn ask_all(&self, agents: &[Agent], command: &[String]) -> Vec<anyhow::Result<Output>> {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            while let index = next.fetch_add(1, Ordering::Relaxed)
                && let Some(agent) = agents.get(index)
            {
                let output = self.exec(agent, &[], command).and_then(|mut command| self.run(&mut command));
                done.push((index, output));
            }
            done
        };
        let mut all = thread::scope(|scope| {
            let workers: Vec<_> = (0..TOGETHER.min(agents.len())).map(|_| scope.spawn(work)).collect();
            workers.into_iter().flat_map(|worker| worker.join().unwrap_or_default()).collect::<Vec<_>>()
        });
        all.sort_by_key(|(index, _)| *index);
        all.into_iter().map(|(_, output)| output).collect()
    }
}

/// The agents by node; of several pods of one node that which runs.
fn agents(pods: &Value, nodes: Option<&Value>) -> Vec<Agent> {
    let items = |list: &Value| list["items"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut agents: Vec<Agent> = Vec::new();
    for node in nodes.map(items).unwrap_or_default() {
        agents.push(Agent { node: text(&node["metadata"]["name"]), pod: None });
    }
    for pod in items(pods) {
        let (node, name) = (text(&pod["spec"]["nodeName"]), text(&pod["metadata"]["name"]));
        let runs = pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null();
        if node.is_empty() {
            continue;
        }
        let pod = runs.then_some(name);
        match agents.iter_mut().find(|agent| agent.node == node) {
            Some(agent) if agent.pod.is_none() => agent.pod = pod,
            Some(_) => {}
            // Of a node that has been deleted: Kubernetes has not come to it yet.
            None if nodes.is_some() => {}
            None => agents.push(Agent { node, pod }),
        }
    }
    agents.sort_by(|a, b| a.node.cmp(&b.node));
    agents
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, node: Option<&str>, phase: &str, deleted: bool) -> Value {
        let mut pod = json!({
            "metadata": { "name": name }, "spec": { "nodeName": node }, "status": { "phase": phase },
        });
        if deleted {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        pod
    }

    #[test]
    fn each_node_has_the_pod_that_runs_there() {
        let pods = json!({ "items": [
            pod("old", Some("b"), "Running", true),
            pod("new", Some("b"), "Running", false),
            pod("waits", None, "Pending", false),
            pod("starts", Some("c"), "Pending", false),
            pod("orphan", Some("d"), "Running", false),
        ]});
        let node = |name| json!({ "metadata": { "name": name } });
        let nodes = json!({ "items": [node("a"), node("b"), node("c")] });
        let agent = |node: &str, pod: Option<&str>| Agent { node: node.into(), pod: pod.map(str::to_owned) };
        let [a, b, c] = [agent("a", None), agent("b", Some("new")), agent("c", None)];
        assert_eq!(agents(&pods, Some(&nodes)), [a, b, c], "d has been deleted");
        let [b, c, d] = [agent("b", Some("new")), agent("c", None), agent("d", Some("orphan"))];
        assert_eq!(agents(&pods, None), [b, c, d]);
    }
}
