//! Where the configuration is, and what is said in place of it: the same for the agent and for who looks at its node.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;

use crate::config::{self, Overrides, SourceKind};

#[derive(Debug, Args)]
pub(super) struct SettingsArgs {
    /// The configuration file
    #[arg(long, env = "OVERLAY_CONFIG", value_name = "FILE", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// This node's name [default: `node` of the file, or the host name]
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    node: Option<String>,
    /// Where the list of nodes comes from [default: `source` of the file, or file]
    #[arg(long, env = "OVERLAY_SOURCE", value_name = "SOURCE")]
    source: Option<SourceKind>,
    /// Answer probes (/healthz, /readyz) on this address [default: `agent.health` of the file, or nowhere]
    #[arg(long, env = "OVERLAY_HEALTH", value_name = "ADDRESS:PORT")]
    health: Option<SocketAddr>,
    /// Measure the ways to other nodes [default: `agent.mesh.enabled` of the file, or true]
    #[arg(long, env = "OVERLAY_MESH", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
          require_equals = true)]
    mesh: Option<bool>,
    /// UDP port on which the nodes measure the ways between them [default: `agent.mesh.port` of the file, or 8473]
    #[arg(long, env = "OVERLAY_MESH_PORT", value_name = "PORT")]
    mesh_port: Option<u16>,
    /// Install the CNI plugin once the network is there [default: `cni.install` of the file, or false]
    #[arg(long, env = "OVERLAY_INSTALL_CNI", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
          require_equals = true)]
    install_cni: Option<bool>,
}

impl SettingsArgs {
    /// The file, and what is said in place of it.
    pub(super) fn split(self) -> (PathBuf, Overrides) {
        let Self { config, node, source, health, mesh, mesh_port, install_cni } = self;
        (config, Overrides { node, source, health, mesh, mesh_port, install_cni })
    }
}
