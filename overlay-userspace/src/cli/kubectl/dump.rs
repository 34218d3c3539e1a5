//! `kubectl overlay sysdump`: the dumps of all nodes, their agents' logs and what the API says of them, in one archive.

use std::{
    io::{Read as _, Write},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use flate2::read::GzDecoder;

use super::access::{Access, Agent};
use crate::cli::sysdump::{Archive, Secrets, stamp, write_file};

/// Of each log, so many lines from the end.
const LINES: &str = "--tail=20000";

/// Collects it.
pub(super) fn run(access: &Access, agents: &[Agent], file: Option<PathBuf>) -> anyhow::Result<()> {
    let root = format!("overlay-sysdump-cluster-{}", stamp()?);
    let path = file.unwrap_or_else(|| format!("{root}.tar.gz").into());
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".kube/config"));
    let kubeconfig = access.kubeconfig.as_ref().map(PathBuf::from);
    let named = std::env::var_os("KUBECONFIG");
    let named = named.iter().flat_map(|paths| std::env::split_paths(paths).collect::<Vec<_>>());
    let kubeconfigs: Vec<_> = kubeconfig.into_iter().chain(named).chain(home).collect();
    let secrets = Secrets::gather(kubeconfigs.iter().map(PathBuf::as_path));
    write_file(&path, root, secrets, |archive| collect(access, agents, archive))
}

fn collect<W: Write>(access: &Access, agents: &[Agent], archive: &mut Archive<W>) -> anyhow::Result<()> {
    let namespace = access.namespace.as_str();
    for (name, arguments) in [
        ("cluster/version.json", &["version", "-o", "json"][..]),
        ("cluster/nodes.txt", &["get", "nodes", "-o", "wide"]),
        ("cluster/pods.txt", &["get", "pods", "-n", namespace, "-o", "wide"]),
        ("cluster/daemonsets.json", &["get", "daemonsets", "-n", namespace, "-o", "json"]),
        (
            "cluster/events.txt",
            &["get", "events", "-n", "default", "--field-selector", "involvedObject.kind=Node"],
        ),
    ] {
        archive.add(name, access.ask(arguments))?;
    }
    let command = ["sysdump", "-f", "-"].map(str::to_owned);
    for (agent, dump) in agents.iter().zip(access.ask_all(agents, &command)) {
        let node = &agent.node;
        let unpacked = dump.and_then(|dump| {
            unpack(&dump.stdout).with_context(|| format!("unpack the dump of {node}: {}", dump.complaint()))
        });
        match unpacked {
            Ok(files) => {
                for (name, content) in files {
                    archive.take(&format!("{node}/{name}"), &content)?;
                }
            }
            Err(error) => archive.add(&format!("{node}/sysdump"), Err(error))?,
        }
        let Some(pod) = &agent.pod else { continue };
        let log = |more: &[&str]| {
            access.ask(&[&["logs", "-n", namespace, pod, "--all-containers", LINES], more].concat())
        };
        archive.add(&format!("{node}/kubectl-logs.txt"), log(&[]))?;
        archive.add(&format!("{node}/kubectl-logs-previous.txt"), log(&["--previous"]))?;
    }
    Ok(())
}

/// The files of a node's dump, without the directory that they are in.
fn unpack(archive: &[u8]) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut tar = tar::Archive::new(GzDecoder::new(archive));
    let mut files = Vec::new();
    for entry in tar.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        // A node may be anybody's by now: names that lead out of the directory are left out.
        let plain = path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        let Some(name) = path.iter().skip(1).collect::<PathBuf>().to_str().map(str::to_owned) else {
            continue;
        };
        if plain && !name.is_empty() && entry.header().entry_type().is_file() {
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            files.push((name, content));
        }
    }
    Ok(files)
}
