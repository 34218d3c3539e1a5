//! Pods by name, for commands that know addresses: which node a pod is on, and its address.

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::access::Access;

/// Of `trace POD DESTINATION …`: the node of POD, and the command with the addresses of what is named `NAMESPACE/NAME`.
pub(super) fn locate(access: &Access, command: &[String]) -> anyhow::Result<(String, Vec<String>)> {
    let mut command = command.to_vec();
    let Some(word) = command.get(1).filter(|word| !word.starts_with('-')).cloned() else {
        bail!("write the pod first, as NAMESPACE/NAME or by its address, or name the node with -N");
    };
    let pod = find(access, &word)?;
    let node =
        pod["spec"]["nodeName"].as_str().with_context(|| format!("pod {word} is on no node yet"))?.to_owned();
    command[1] = address(&pod, &word)?;
    if let Some(target) = command.get(2).filter(|word| word.contains('/') && !word.starts_with('-')).cloned()
    {
        command[2] = address(&find(access, &target)?, &target)?;
    }
    Ok((node, command))
}

fn find(access: &Access, word: &str) -> anyhow::Result<Value> {
    if let Some((namespace, name)) = word.split_once('/') {
        return access.get(&["pod", "--namespace", namespace, name]);
    }
    let selector = format!("status.podIP={word}");
    let mut pods = access.get(&["pods", "--all-namespaces", "--field-selector", &selector])?;
    // Pods that share their node's namespace have its address.
    match pods["items"].as_array_mut().and_then(Vec::pop) {
        Some(pod) => Ok(pod),
        None => bail!("no pod has the address {word}: write it as NAMESPACE/NAME, or name the node with -N"),
    }
}

fn address(pod: &Value, word: &str) -> anyhow::Result<String> {
    let address = pod["status"]["podIP"].as_str();
    Ok(address.with_context(|| format!("pod {word} has no address yet"))?.to_owned())
}
