//! The network configuration list that `install` writes, and those that are there.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

use super::{BINARY, Chained, Install};
use crate::datapath::pins::Pins;

/// What overlay speaks, oldest first.
pub(crate) const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// What runtimes read that know no list of versions: all that are in use.
const COMMON: &str = "1.0.0";

/// The text of the list, ending in a line feed.
pub(super) fn compose(install: &Install, pins: &Pins) -> anyhow::Result<String> {
    let wanted = install.cni_version.as_deref();
    let newest = wanted.and_then(|wanted| VERSIONS.iter().position(|version| *version == wanted));
    let mut versions: Vec<_> =
        VERSIONS.into_iter().take(newest.map_or(VERSIONS.len(), |index| index + 1)).collect();
    // Runtimes take the newest of the list, whatever the plugins speak.
    for plugin in &install.chain {
        let spoken = spoken(&install.places.bin_dir, *plugin)?;
        versions.retain(|version| spoken.iter().any(|other| other == version));
        ensure!(
            wanted.is_none_or(|wanted| versions.contains(&wanted)),
            "{} does not speak CNI {}: choose one of {}",
            plugin.name(),
            wanted.unwrap_or_default(),
            spoken.join(", ")
        );
    }
    let version = wanted.or(versions.iter().rfind(|version| **version <= COMMON).copied());
    let Some(version) = version else { bail!("the plugins of the list speak no common version of CNI") };

    let mut own = json!({"type": BINARY});
    if pins.root() != Pins::default().root() {
        own["pins"] = json!(pins.root());
    }
    // So that overlay hears of a limit, and leaves the plugin its place.
    if install.chain.contains(&Chained::Bandwidth) {
        own["capabilities"] = json!({"bandwidth": true});
    }
    let mut plugins = vec![own];
    plugins.extend(install.chain.iter().map(|plugin| match plugin {
        Chained::Portmap => json!({"type": "portmap", "capabilities": {"portMappings": true}}),
        Chained::Bandwidth => json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}),
        other => json!({"type": other.name()}),
    }));
    let list = json!({
        "cniVersion": version,
        "cniVersions": versions,
        "name": "overlay",
        "plugins": plugins,
    });
    Ok(format!("{list:#}\n"))
}

/// The versions that a plugin says it speaks.
fn spoken(bin_dir: &Path, plugin: Chained) -> anyhow::Result<Vec<String>> {
    let path = bin_dir.join(plugin.name());
    let ask = || {
        let mut child = Command::new(&path)
            .env_clear()
            .env("CNI_COMMAND", "VERSION")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        // A plugin need not read it.
        let _ = child.stdin.take().map(|mut stdin| stdin.write_all(br#"{"cniVersion":"0.3.1"}"#));
        child.wait_with_output()
    };
    let output = ask().with_context(|| {
        format!(
            "run {}: put it there first (Debian has it in containernetworking-plugins), or leave it out of --chain",
            path.display()
        )
    })?;
    let answer: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("read which versions {} speaks", path.display()))?;
    let versions = answer["supportedVersions"].as_array().into_iter().flatten();
    Ok(versions.filter_map(|version| version.as_str().map(str::to_owned)).collect())
}

/// Whether a list, or a single configuration, is one of overlay.
pub(super) fn is_ours(text: &[u8]) -> bool {
    let Ok(value) = serde_json::from_slice::<Value>(text) else { return false };
    let first = value.get("plugins").and_then(|plugins| plugins.get(0)).unwrap_or(&value);
    first["type"] == BINARY
}

/// The names of all that runtimes read in a directory, in their order; none where there is no directory.
pub(super) fn others(dir: &Path) -> anyhow::Result<impl Iterator<Item = String>> {
    let mut names = Vec::new();
    match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        entries => {
            for entry in entries.with_context(|| format!("list {}", dir.display()))? {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
        }
    }
    let read = |name: &String| {
        let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
        matches!(extension, Some("conf" | "conflist" | "json"))
    };
    names.retain(read);
    names.sort();
    Ok(names.into_iter())
}
