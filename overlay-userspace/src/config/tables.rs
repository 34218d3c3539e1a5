//! The tables of the file beside `[network]`: `[kubernetes]`, `[agent]` and `[cni]`.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use clap::ValueEnum;
use hyper::Uri;
use serde::Deserialize;

use crate::{
    cluster::Snapshot,
    cni::install::{Chained, VERSIONS, file_name},
    mesh,
};

/// Where the list of nodes comes from: the key `source`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    /// The `[[nodes]]` of the configuration file.
    #[default]
    File,
    /// The Nodes of a Kubernetes API.
    Kubernetes,
}

/// Where the list of nodes comes from, with what it takes to get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The file's own list.
    File(Snapshot),
    /// A Kubernetes API.
    Kubernetes(Kubernetes),
}

/// The `[kubernetes]` table: how the API server is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kubernetes {
    /// By default the pod's service account, or, outside of a pod, the file that KUBECONFIG names.
    pub kubeconfig: Option<PathBuf>,
    /// In place of the address that the service account or the kubeconfig gives: `https://host:port`.
    pub api_server: Option<String>,
    /// Set the condition `NetworkUnavailable` of the own Node to False once the network is there.
    #[serde(default)]
    pub network_available: bool,
}

impl Kubernetes {
    pub(super) fn check(&self) -> Result<(), String> {
        if let Some(text) = &self.api_server {
            let usable = text.parse::<Uri>().is_ok_and(|uri| {
                matches!(uri.scheme_str(), Some("http" | "https"))
                    && uri.host().is_some_and(|h| !h.is_empty())
            });
            if !usable {
                return Err(format!(
                    "kubernetes.api_server {text:?} is no address of an API server: write it as https://192.0.2.10:6443"
                ));
            }
        }
        Ok(())
    }
}

/// The `[agent]` table.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AgentTable {
    pub(super) health: Option<SocketAddr>,
    #[serde(default)]
    pub(super) mesh: Mesh,
}

/// The `[agent.mesh]` table: how the nodes measure the ways between them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mesh {
    /// Whether this node asks its peers and answers them.
    pub enabled: bool,
    /// UDP port, the same on all nodes.
    pub port: u16,
    /// Probes a second that this node sends, in all.
    pub rate: u32,
}

impl Default for Mesh {
    fn default() -> Self {
        Self { enabled: true, port: mesh::PORT, rate: 10 }
    }
}

impl Mesh {
    pub(super) fn check(&self, tunnel: u16) -> Result<(), String> {
        if self.port == 0 || self.port == tunnel {
            return Err(format!(
                "agent.mesh.port {} is no port, or the tunnel's: leave it out for {}",
                self.port,
                mesh::PORT
            ));
        }
        if !(1..=1000).contains(&self.rate) {
            return Err(format!(
                "agent.mesh.rate {} is outside 1 to 1000: write enabled = false to switch the mesh off",
                self.rate
            ));
        }
        Ok(())
    }
}

/// The `[cni]` table: what the agent installs for container runtimes, and where.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cni {
    /// Whether the agent installs anything.
    pub install: bool,
    /// Where the runtime looks for plugins.
    pub bin: PathBuf,
    /// Where the runtime looks for network configurations.
    pub conf: PathBuf,
    /// The name of the network configuration list.
    pub name: String,
    /// The newest CNI version to use; by default the newest that all plugins of the list speak.
    pub version: Option<String>,
    /// Plugins of containernetworking after this one, in this order.
    pub chain: Vec<Chained>,
}

impl Default for Cni {
    fn default() -> Self {
        Self {
            install: false,
            bin: "/opt/cni/bin".into(),
            conf: "/etc/cni/net.d".into(),
            name: "10-overlay.conflist".into(),
            version: None,
            chain: Vec::new(),
        }
    }
}

impl Cni {
    pub(super) fn check(&self) -> Result<(), String> {
        file_name(&self.name).map_err(|why| format!("cni.name {:?} {why}", self.name))?;
        for (key, dir) in [("bin", &self.bin), ("conf", &self.conf)] {
            if !Path::is_absolute(dir) {
                return Err(format!(
                    "cni.{key} {:?} is not an absolute path: write the whole of it",
                    dir.display().to_string()
                ));
            }
        }
        if let Some(version) = &self.version
            && !VERSIONS.contains(&version.as_str())
        {
            return Err(format!("cni.version {version:?} is none of {}", VERSIONS.join(", ")));
        }
        Ok(())
    }
}
