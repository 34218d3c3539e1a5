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

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Deserializer, de::Error as _};

use crate::{
    cluster::{Cidrs, NodeSpec, Snapshot, SnapshotError},
    family::{ByFamily, Family, OfFamily},
};

mod list;
mod tables;

use list::OneOrMore;
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

/// How programs are attached to devices: what was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Attach {
    /// tcx where the kernel has it, clsact elsewhere.
    #[default]
    Auto,
    /// tcx links or an error.
    Tcx,
    /// Filters on a clsact qdisc.
    Clsact,
}

impl fmt::Display for Attach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

/// What an XDP program on the underlay device is for: what was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Xdp {
    /// No XDP program.
    #[default]
    Off,
    /// Drops forged packets before there is an skb.
    Guard,
    /// `Guard` where the driver loses nothing by it.
    Auto,
}

impl fmt::Display for Xdp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Guard => "guard",
            Self::Auto => "auto",
        })
    }
}

/// The family of the outer header where two nodes have tunnel addresses of both: what was asked for. The same on all nodes,
/// because a node accepts from another only what comes from the address that it would send to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outer {
    /// IPv4.
    #[default]
    Auto,
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Outer {
    /// The family that is taken where there is a choice.
    pub const fn preferred(self) -> Family {
        match self {
            Self::Auto | Self::Ipv4 => Family::Ipv4,
            Self::Ipv6 => Family::Ipv6,
        }
    }
}

impl fmt::Display for Outer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        })
    }
}

/// The `[network]` table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// The ranges that all pod subnets are taken from, of one family or both, that of the primary family first.
    #[serde(rename = "cidr", deserialize_with = "ranges")]
    pub cidrs: Cidrs,
    /// The family of the outer header where two nodes have both.
    #[serde(default)]
    pub underlay: Outer,
    /// VXLAN network identifier, 1 to 16777215.
    #[serde(default = "default_vni")]
    pub vni: u32,
    /// UDP port of the tunnel.
    #[serde(default = "default_port")]
    pub port: u16,
    /// MTU of the pods' devices; by default the underlay's less the tunnel's overhead.
    pub mtu: Option<u32>,
    /// The underlay device; by default the one that holds the node's address.
    pub interface: Option<String>,
    /// Masquerade what pods send to the world.
    #[serde(default = "default_true")]
    pub masquerade: bool,
    /// Destinations that are never masqueraded; of no effect where `masquerade` is off.
    #[serde(default)]
    pub no_masquerade: Vec<IpNet>,
    /// What pods send to other nodes' addresses leaves with this node's address, outside of the tunnel.
    #[serde(default)]
    pub masquerade_to_nodes: bool,
    /// How programs are attached.
    #[serde(default)]
    pub attach: Attach,
    /// Entries of the table of flows that return through the stack; 0 turns it off. By default as many as conntrack has.
    pub stack_flows: Option<u32>,
    /// The XDP program of the underlay device.
    #[serde(default)]
    pub xdp: Xdp,
}

fn ranges<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Cidrs, D::Error> {
    let OneOrMore(nets) = OneOrMore::deserialize(deserializer)?;
    Cidrs::new(nets).map_err(|why| D::Error::custom(format_args!("network.cidr {why}")))
}

const fn default_vni() -> u32 {
    1
}

const fn default_port() -> u16 {
    8472
}

const fn default_true() -> bool {
    true
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
        check_network(&file.network).map_err(invalid)?;
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

fn check_network(network: &Network) -> Result<(), String> {
    let Network { cidrs, vni, port, mtu, stack_flows, .. } = network;
    if *vni == 0 || *vni >= 1 << 24 {
        return Err(format!("network.vni {vni} is outside 1 to 16777215"));
    }
    if *port == 0 {
        return Err(
            "network.port 0 is no port: the VXLAN ports in use are 8472 (Linux, Flannel) and 4789 (IANA)"
                .into(),
        );
    }
    if let Some(mtu) = mtu
        && !(576..=65_485).contains(mtu)
    {
        return Err(format!("network.mtu {mtu} is outside 576 to 65485"));
    }
    if let Some(entries) = stack_flows
        && *entries != 0
        && !(1024..=1 << 24).contains(entries)
    {
        return Err(format!(
            "network.stack_flows {entries} is neither 0 (off) nor within 1024 to 16777216: leave it out to follow \
             nf_conntrack_max"
        ));
    }
    if network.masquerade_to_nodes && !network.masquerade {
        return Err("network.masquerade_to_nodes needs network.masquerade: remove one of the two".into());
    }
    for net in &network.no_masquerade {
        if net.addr() != net.network() {
            return Err(format!("network.no_masquerade {net} has host bits set: write {}", net.trunc()));
        }
        if cidrs.get(net.family()).is_none() {
            return Err(format!(
                "network.no_masquerade {net} is {family}, network.cidr has no range of {family}: remove it",
                family = net.family()
            ));
        }
        if net.prefix_len() == 0 {
            return Err(format!(
                "network.no_masquerade {net} is everything: write masquerade = false instead"
            ));
        }
    }
    Ok(())
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

    /// The cluster's range and this node's subnet, for what carries IPv4 alone.
    pub(crate) fn ipv4(&self) -> anyhow::Result<(Ipv4Net, Ipv4Net)> {
        let own = self.nodes.own();
        match (self.network.cidrs.by_family().v4, own.subnets.v4) {
            (Some(IpNet::V4(cluster)), Some(IpNet::V4(subnet))) => Ok((cluster, subnet)),
            _ => anyhow::bail!("node {}: this version carries IPv4 only", own.name),
        }
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
