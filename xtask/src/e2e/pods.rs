//! The pods that the cases talk with: on each node two in the pod network and one in the node's own, all of them answering.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{NAMESPACE, PROBE, Suite, cluster::wait};

/// Where probes in pods listen, and those in the nodes' own network.
pub(super) const PORT: u16 = 7000;
const HOST_PORT: u16 = 7100;
/// How long pods may take to come, on a slow machine.
const LIMIT: Duration = Duration::from_mins(3);

/// A pod that answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) name: String,
    pub(super) node: String,
    pub(super) address: String,
    /// Whether it is in the network of its node.
    pub(super) host: bool,
}

impl Pod {
    pub(super) fn port(&self) -> u16 {
        if self.host { HOST_PORT } else { PORT }
    }

    fn new(pod: &Value) -> Result<Self> {
        let text = |pointer: &str| -> Result<String> {
            let value = pod.pointer(pointer).and_then(Value::as_str);
            value.map(str::to_owned).with_context(|| format!("a pod has no {pointer}"))
        };
        Ok(Self {
            name: text("/metadata/name")?,
            node: text("/spec/nodeName")?,
            address: text("/status/podIP")?,
            host: pod.pointer("/spec/hostNetwork") == Some(&Value::Bool(true)),
        })
    }
}

/// The namespace of the tests.
pub(super) fn namespace(suite: &Suite<'_>) -> Result<()> {
    let labels = json!({ "pod-security.kubernetes.io/enforce": "privileged" });
    let object = json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE, "labels": labels },
    });
    suite.cluster.kubectl_with(&["apply", "-f", "-"], &object.to_string()).map(drop)
}

/// Makes the probes, and returns them when all answer their kubelets.
pub(super) fn probes(suite: &Suite<'_>) -> Result<Vec<Pod>> {
    namespace(suite)?;
    let sets = [("probe-a", false), ("probe-b", false), ("probe-host", true)].map(|(name, host)| {
        let port = if host { HOST_PORT } else { PORT };
        // At one address: a UDP socket for all would answer pods from the address that the route to them names, which is the
        // gateway's where a node is concerned, unless it looks where a packet came to (IP_PKTINFO).
        let mut template = template(name, &["serve", "$(ADDRESS)", &port.to_string()]);
        template["spec"]["hostNetwork"] = host.into();
        template["spec"]["containers"][0]["env"] =
            json!([{ "name": "ADDRESS", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } }]);
        // The kubelet asks: from the node to the pod.
        template["spec"]["containers"][0]["readinessProbe"] =
            json!({ "tcpSocket": { "port": port }, "periodSeconds": 1, "timeoutSeconds": 5 });
        let labels = json!({ "app": name });
        json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet",
            "metadata": { "name": name, "namespace": NAMESPACE },
            "spec": { "selector": { "matchLabels": labels }, "template": template },
        })
    });
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": sets });
    suite.cluster.kubectl_with(&["apply", "-f", "-"], &list.to_string())?;
    wait("probes on all nodes", LIMIT, || {
        for set in suite.cluster.list(&["daemonsets", "-n", NAMESPACE])? {
            let count = |key: &str| set["status"][key].as_u64().unwrap_or(0);
            if count("numberReady") == 0 || count("numberReady") != count("desiredNumberScheduled") {
                return Ok(Some(format!("{}: {}", set["metadata"]["name"], set["status"])));
            }
        }
        Ok(None)
    })?;
    let pods =
        suite.cluster.list(&["pods", "-n", NAMESPACE, "-l", "app in (probe-a, probe-b, probe-host)"])?;
    pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).map(Pod::new).collect()
}

/// What a controller makes pods from: the probe with these arguments, on every node whatever its taints.
pub(super) fn template(app: &str, arguments: &[&str]) -> Value {
    json!({
        "metadata": { "labels": { "app": app } },
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false,
            "tolerations": [{ "operator": "Exists" }],
            "nodeSelector": { "kubernetes.io/os": "linux" },
            "containers": [{
                "name": "probe", "image": PROBE, "imagePullPolicy": "IfNotPresent", "args": arguments,
            }],
        },
    })
}

/// What the probe in a pod answers to each of its questions.
pub(super) fn ask(suite: &Suite<'_>, pod: &str, arguments: &[String]) -> Result<Vec<Value>> {
    let mut command = vec!["exec", "-n", NAMESPACE, pod, "--", "/probe", "ask"];
    command.extend(arguments.iter().map(String::as_str));
    let (success, said) = suite.cluster.attempt(&command)?;
    let lines = said.lines().filter(|line| line.starts_with('{'));
    let answers: Vec<Value> =
        lines.map(serde_json::from_str).collect::<Result<_, _>>().context("read answers")?;
    ensure!(success || !answers.is_empty(), "ask from {pod}: {said}");
    Ok(answers)
}

/// A pod's addresses must be the same on both sides of what it asked.
pub(super) fn untranslated(answer: &Value) -> Result<()> {
    let target = &answer["target"];
    if let Some(error) = answer["error"].as_str() {
        bail!("{target}: {error}");
    }
    let (local, seen) = (&answer["local"], &answer["seen"]);
    let (Some(local), Some(seen)) = (local.as_str(), seen.as_str()) else { return Ok(()) };
    // A UDP socket that is not bound says 0.0.0.0 only before it is connected.
    ensure!(local == seen, "{target}: sent from {local}, seen as {seen}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_translated_address_is_found() {
        let answer = |local: &str, seen: &str| json!({ "target": "tcp:x", "local": local, "seen": seen });
        untranslated(&answer("10.244.1.2:40000", "10.244.1.2:40000")).unwrap();
        let error = untranslated(&answer("10.244.1.2:40000", "192.0.2.1:40000")).unwrap_err().to_string();
        assert!(error.contains("seen as 192.0.2.1:40000"), "{error}");
        untranslated(&json!({ "target": "ping:x", "local": null, "seen": null })).unwrap();
        assert!(untranslated(&json!({ "target": "ping:x", "error": "no echo reply" })).is_err());
    }

    #[test]
    fn a_pod_is_read_from_its_object() {
        let object = json!({
            "metadata": { "name": "a" }, "spec": { "nodeName": "n1", "hostNetwork": true },
            "status": { "podIP": "192.0.2.1" },
        });
        let pod = Pod::new(&object).unwrap();
        assert_eq!((pod.port(), pod.host), (HOST_PORT, true));
        assert!(Pod::new(&json!({ "metadata": { "name": "a" } })).is_err());
    }
}
