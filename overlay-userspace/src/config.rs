//! The configuration file, `/etc/overlay/overlay.toml`: how this node's network is set up, where the list of nodes comes
//! from, and, for the `file` source, the nodes themselves.
//!
//! Parsing and validation in one place: [`Settings`] that exist are consistent, and so is a [`Config`], which is settings
//! with a list of nodes. Unknown keys are errors, so that a typo
//! does not silently leave a default in force.

use std::{
    fmt, fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use serde::Deserialize;

use crate::{
    cluster::{NodeSpec, Snapshot, SnapshotError},
    family::{ByFamily, OfFamily},
};

mod list;
mod network;
mod tables;

use list::OneOrMore;
pub use network::{Attach, Network, Outer, Xdp};
use tables::AgentTable;
pub use tables::{Cni, Kubernetes, Mesh, Source, SourceKind};

/// Where the configuration is looked for without `--config`.
pub const DEFAULT_PATH: &str = "/etc/overlay/overlay.toml";

/// What is wrong with a configuration file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("read {path}: {cause}; write it, or name another file with --config")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: std::io::Error,
    },
    /// It is not TOML, or has unknown, missing or mistyped keys.
    #[error("{path}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, column and cause, on one line.
        message: String,
    },
    /// A value makes no sense.
    #[error("{path}: {message}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Which value, why, and what to do.
        message: String,
    },
    /// The list of nodes is inconsistent.
    #[error("{path}: {cause}")]
    Nodes {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: SnapshotError,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    node: Option<String>,
    #[serde(default)]
    source: SourceKind,
    network: Network,
    kubernetes: Option<Kubernetes>,
    #[serde(default)]
    agent: AgentTable,
    #[serde(default)]
    cni: Cni,
    #[serde(default)]
    nodes: Vec<FileNode>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileNode {
    name: String,
    address: OneOrMore<IpAddr>,
    subnet: OneOrMore<IpNet>,
    vtep_mac: Option<OneOrMore<String>>,
}

/// What the command line and the environment say in place of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// This node's name.
    pub node: Option<String>,
    /// Where the list of nodes comes from.
    pub source: Option<SourceKind>,
    /// Where the agent answers probes.
    pub health: Option<SocketAddr>,
    /// Whether the agent takes part in the health mesh.
    pub mesh: Option<bool>,
    /// The port of the health mesh.
    pub mesh_port: Option<u16>,
    /// Whether the agent installs the CNI plugin.
    pub install_cni: Option<bool>,
}

/// A valid file: how the node is set up, and where the list of nodes comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// This node's name.
    pub node: String,
    /// The network.
    pub network: Network,
    /// Where the list of nodes comes from.
    pub source: Source,
    /// Where the agent answers probes; nowhere when `None`.
    pub health: Option<SocketAddr>,
    /// The health mesh.
    pub mesh: Mesh,
    /// What the agent installs.
    pub cni: Cni,
}

/// What a node is to be like: the settings with a list of nodes, whatever source it is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This node's name.
    pub node: String,
    /// The network.
    pub network: Network,
    /// The nodes, this one among them.
    pub nodes: Snapshot,
}

impl Settings {
    /// Reads and validates a file. Without a name anywhere, the node has the host's.
    pub fn load(path: &Path, overrides: &Overrides) -> Result<Self, ConfigError> {
        let text =
            fs::read_to_string(path).map_err(|cause| ConfigError::Read { path: path.to_owned(), cause })?;
        Self::parse(&text, path, overrides)
    }

    /// As [`Settings::load`], from the text of a file; `path` is for messages.
    pub fn parse(text: &str, path: &Path, overrides: &Overrides) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text)
            .map_err(|e| ConfigError::Parse { path: path.to_owned(), message: on_one_line(text, &e) })?;
        let invalid = |message: String| ConfigError::Invalid { path: path.to_owned(), message };
        let node = match overrides.node.clone().or(file.node) {
            Some(node) => node,
            None => host_name()
                .map_err(|e| invalid(format!("no `node` given, and the host name is unknown: {e}")))?,
        };
        file.network.check().map_err(invalid)?;
        let mut cni = file.cni;
        cni.install = overrides.install_cni.unwrap_or(cni.install);
        cni.check().map_err(invalid)?;
        let source = match overrides.source.unwrap_or(file.source) {
            SourceKind::Kubernetes if !file.nodes.is_empty() => {
                return Err(invalid(
                    "[[nodes]] and source = \"kubernetes\": the nodes come from one of them, remove the other".into(),
                ));
            }
            SourceKind::Kubernetes => {
                let kubernetes = file.kubernetes.unwrap_or_default();
                kubernetes.check().map_err(invalid)?;
                Source::Kubernetes(kubernetes)
            }
            SourceKind::File if file.kubernetes.is_some() => {
                return Err(invalid("the table [kubernetes] needs source = \"kubernetes\"".into()));
            }
            SourceKind::File => {
                let nodes = file_nodes(file.nodes).map_err(invalid)?;
                let nodes = Snapshot::new(nodes, &node, &file.network.cidrs)
                    .map_err(|cause| ConfigError::Nodes { path: path.to_owned(), cause })?;
                Source::File(nodes)
            }
        };
        let health = overrides.health.or(file.agent.health);
        let mut mesh = file.agent.mesh;
        mesh.enabled = overrides.mesh.unwrap_or(mesh.enabled);
        mesh.port = overrides.mesh_port.unwrap_or(mesh.port);
        mesh.check(file.network.port).map_err(invalid)?;
        Ok(Self { node, network: file.network, source, health, mesh, cni })
    }

    /// What the node is to be like with these nodes.
    pub fn with(&self, nodes: Snapshot) -> Config {
        Config { node: self.node.clone(), network: self.network.clone(), nodes }
    }
}

fn file_nodes(nodes: Vec<FileNode>) -> Result<Vec<NodeSpec>, String> {
    nodes
        .into_iter()
        .map(|FileNode { name, address: OneOrMore(addresses), subnet: OneOrMore(subnets), vtep_mac }| {
            let vtep_macs = match vtep_mac {
                None => ByFamily::default(),
                Some(OneOrMore(macs)) => vtep_macs(&name, &macs, &addresses)?,
            };
            Ok(NodeSpec {
                addresses: one_of_each(&name, "address", &addresses)?,
                subnets: one_of_each(&name, "subnet", &subnets)?,
                vtep_macs,
                name,
            })
        })
        .collect()
}

/// At most one value for each family.
fn one_of_each<T: OfFamily + Copy + fmt::Display>(
    node: &str,
    key: &str,
    values: &[T],
) -> Result<ByFamily<T>, String> {
    ByFamily::from_values(values.iter().copied()).map_err(|second| {
        let family = second.family();
        format!("node {node}: {key} {second} is the second of {family}: give one for each family")
    })
}

/// One MAC for all tunnel addresses, or one for each, in their order.
fn vtep_macs(node: &str, macs: &[String], addresses: &[IpAddr]) -> Result<ByFamily<[u8; 6]>, String> {
    if macs.len() != 1 && macs.len() != addresses.len() {
        return Err(format!(
            "node {node}: {} of vtep_mac for {} of address: give one MAC, or one for each address in the same order",
            macs.len(),
            addresses.len()
        ));
    }
    let mut all = ByFamily::default();
    for (address, text) in addresses.iter().zip(macs.iter().cycle()) {
        let mac = parse_mac(text).ok_or_else(|| {
            format!("node {node}: vtep_mac {text:?} is no unicast MAC address: write it as 02:00:00:00:00:01")
        })?;
        all.set(address.family(), mac);
    }
    Ok(all)
}

/// What is wrong with the text, where. The error's own display draws the place on several lines.
fn on_one_line(text: &str, error: &toml::de::Error) -> String {
    let cause = error.message().lines().map(str::trim).collect::<Vec<_>>().join(", ");
    let Some(before) = error.span().and_then(|span| text.get(..span.start)) else { return cause };
    let number = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    let place = format!("line {number}, column {column}: {cause}");
    match text.lines().nth(number - 1).map(str::trim) {
        Some(line) if !line.is_empty() => format!("{place}, in `{line}`"),
        _ => place,
    }
}

/// A unicast MAC address in the usual form, `02:00:00:00:00:01`.
pub(crate) fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next().filter(|p| p.len() == 2)?, 16).ok()?;
    }
    (parts.next().is_none() && mac[0] & 1 == 0 && mac != [0; 6]).then_some(mac)
}

/// An address with a port: `192.0.2.1:9879`, `[2001:db8::1]:9879`, and the latter without its brackets, as it comes from where
/// the address is put in by somebody who does not know its family (a Kubernetes manifest).
///
/// # Errors
///
/// That it is none, for people.
pub fn socket_address(text: &str) -> Result<SocketAddr, String> {
    let apart = || {
        let (address, port) = text.rsplit_once(':')?;
        Some(SocketAddr::new(address.parse().ok()?, port.parse().ok()?))
    };
    let address = text.parse().ok().or_else(apart);
    address.ok_or_else(|| {
        format!("{text:?} is no address with a port: write it as 192.0.2.1:9879 or [2001:db8::1]:9879")
    })
}

fn host_name() -> Result<String, nix::Error> {
    Ok(nix::sys::utsname::uname()?.nodename().to_string_lossy().into_owned())
}

impl Config {
    /// This node's tunnel address: of the preferred family where it has both.
    pub fn vtep(&self) -> IpAddr {
        let address = self.nodes.own().address(self.network.underlay.preferred());
        // A snapshot has no node without an address.
        address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
    }

    /// This node's tunnel addresses that are in use, [`Config::vtep`] first: another one for peers that have no address of
    /// its family, or, as Flannel's nodes, take packets of each family by an address of their own.
    pub fn vteps(&self) -> Vec<IpAddr> {
        let (own, preferred) = (self.nodes.own(), self.network.underlay.preferred());
        let mut vteps = vec![self.vtep()];
        let families = self.network.cidrs.by_family();
        for (peer, (inner, _)) in
            self.nodes.peers().flat_map(|peer| families.iter().map(move |of| (peer, of)))
        {
            if let Some(tunnel) = peer.tunnel(inner, own, preferred)
                && let Some(address) = own.addresses.get(tunnel.vtep.family())
                && !vteps.contains(address)
            {
                vteps.push(*address);
            }
        }
        vteps
    }
}

#[cfg(test)]
impl Config {
    /// The configuration in a file that lists its nodes.
    pub(crate) fn parse(text: &str, path: &Path, node: Option<&str>) -> Result<Self, ConfigError> {
        let overrides = Overrides { node: node.map(str::to_owned), ..Overrides::default() };
        let settings = Settings::parse(text, path, &overrides)?;
        match &settings.source {
            Source::File(nodes) => Ok(settings.with(nodes.clone())),
            Source::Kubernetes(_) => unreachable!("the file lists its nodes"),
        }
    }
}

#[cfg(test)]
mod tests;
