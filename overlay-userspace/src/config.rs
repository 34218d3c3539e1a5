//! The configuration file, `/etc/overlay/overlay.toml`: how this node's network is set up, and, for the `file` source,
//! the nodes of the cluster.
//!
//! Parsing and validation in one place: a [`Config`] that exists is consistent. Unknown keys are errors, so that a typo
//! does not silently leave a default in force.

use std::{
    fmt, fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use serde::Deserialize;

use crate::cluster::{NodeSpec, Snapshot, SnapshotError};

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

/// The `[network]` table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// The range that all pod subnets are taken from.
    pub cidr: IpNet,
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
    network: Network,
    #[serde(default)]
    nodes: Vec<FileNode>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileNode {
    name: String,
    address: IpAddr,
    subnet: IpNet,
    vtep_mac: Option<String>,
}

/// A valid configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This node's name.
    pub node: String,
    /// The network.
    pub network: Network,
    /// The nodes, this one among them.
    pub nodes: Snapshot,
}

impl Config {
    /// Reads and validates a file. `node` overrides the name in the file, which overrides the host name.
    pub fn load(path: &Path, node: Option<&str>) -> Result<Self, ConfigError> {
        let text =
            fs::read_to_string(path).map_err(|cause| ConfigError::Read { path: path.to_owned(), cause })?;
        Self::parse(&text, path, node)
    }

    /// As [`Config::load`], from the text of a file; `path` is for messages.
    pub fn parse(text: &str, path: &Path, node: Option<&str>) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text)
            .map_err(|e| ConfigError::Parse { path: path.to_owned(), message: on_one_line(text, &e) })?;
        let invalid = |message: String| ConfigError::Invalid { path: path.to_owned(), message };
        let node = match node.map(str::to_owned).or(file.node) {
            Some(node) => node,
            None => host_name()
                .map_err(|e| invalid(format!("no `node` given, and the host name is unknown: {e}")))?,
        };
        check_network(&file.network).map_err(invalid)?;
        let mut nodes = Vec::new();
        for FileNode { name, address, subnet, vtep_mac } in file.nodes {
            let vtep_mac = match vtep_mac {
                None => None,
                Some(text) => Some(parse_mac(&text).ok_or_else(|| {
                    invalid(format!("node {name}: vtep_mac {text:?} is no unicast MAC address: write it as 02:00:00:00:00:01"))
                })?),
            };
            nodes.push(NodeSpec { name, address, subnet, vtep_mac });
        }
        let nodes = Snapshot::new(nodes, &node, file.network.cidr)
            .map_err(|cause| ConfigError::Nodes { path: path.to_owned(), cause })?;
        Ok(Self { node, network: file.network, nodes })
    }
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
    let Network { cidr, vni, port, mtu, stack_flows, .. } = network;
    if cidr.addr() != cidr.network() {
        return Err(format!("network.cidr {cidr} has host bits set: write {}", cidr.trunc()));
    }
    if cidr.addr().is_ipv6() {
        return Err(format!("network.cidr {cidr}: this version carries IPv4 only"));
    }
    if cidr.prefix_len() == 0 || cidr.addr().is_multicast() || cidr.addr().is_loopback() {
        return Err(format!(
            "network.cidr {cidr} cannot be a pod network: use a private range such as 10.244.0.0/16"
        ));
    }
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
        if net.addr().is_ipv6() {
            return Err(format!("network.no_masquerade {net}: this version carries IPv4 only"));
        }
        if net.prefix_len() == 0 {
            return Err(format!(
                "network.no_masquerade {net} is everything: write masquerade = false instead"
            ));
        }
    }
    Ok(())
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
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

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        node = "n1"
        [network]
        cidr = "10.244.0.0/16"
        [[nodes]]
        name = "n1"
        address = "192.0.2.1"
        subnet = "10.244.1.0/24"
        [[nodes]]
        name = "n2"
        address = "192.0.2.2"
        subnet = "10.244.2.0/24"
        vtep_mac = "02:aa:00:00:00:01"
    "#;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("overlay.toml"), None)
    }

    #[track_caller]
    fn refused(text: &str, wanted: &str) {
        let message = parse(text).unwrap_err().to_string();
        assert!(message.starts_with("overlay.toml: "), "{message}");
        assert!(message.contains(wanted), "{message:?} does not say {wanted:?}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }

    #[test]
    fn a_small_file_gets_the_documented_defaults() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.node, "n1");
        let Network {
            cidr,
            vni,
            port,
            mtu,
            interface,
            masquerade,
            no_masquerade,
            masquerade_to_nodes,
            attach,
            stack_flows,
        } = config.network;
        assert_eq!(
            (cidr.to_string().as_str(), vni, port, mtu, interface),
            ("10.244.0.0/16", 1, 8472, None, None)
        );
        assert!(masquerade && no_masquerade.is_empty() && !masquerade_to_nodes);
        assert_eq!((attach, stack_flows), (Attach::Auto, None));
        assert_eq!(config.nodes.peers().next().unwrap().vtep_mac, Some([2, 0xaa, 0, 0, 0, 1]));
    }

    #[test]
    fn the_name_given_by_the_caller_wins() {
        assert_eq!(Config::parse(GOOD, Path::new("x"), Some("n2")).unwrap().node, "n2");
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        refused("node = ", "line 1, column 8: ");
        refused("\nnode = \"n1", "line 2, column ");
        refused("[network]\ncidr = 7\n", "line 2, column 8: ");
        refused(&GOOD.replace("vtep_mac", "vtep-mac"), "unknown field `vtep-mac`");
        refused(&GOOD.replace("[network]", "[network]\nmtu = \"x\""), "mtu");
        refused(&GOOD.replace("10.244.0.0/16", "10.244.1.0/16"), "write 10.244.0.0/16");
        refused(&GOOD.replace("10.244.0.0/16", "fd00::/48"), "IPv4 only");
        refused(&GOOD.replace("[network]", "[network]\nvni = 16777216"), "16777215");
        refused(&GOOD.replace("[network]", "[network]\nvni = 0"), "network.vni 0");
        refused(&GOOD.replace("[network]", "[network]\nport = 0"), "network.port 0");
        refused(&GOOD.replace("[network]", "[network]\nmtu = 500"), "576");
        refused(&GOOD.replace("[network]", "[network]\nstack_flows = 7"), "network.stack_flows 7");
        let never = |net: &str| GOOD.replace("[network]", &format!("[network]\nno_masquerade = [\"{net}\"]"));
        refused(
            &never("192.168.1.0/16"),
            "network.no_masquerade 192.168.1.0/16 has host bits set: write 192.168.0.0/16",
        );
        refused(&never("fd00::/48"), "network.no_masquerade fd00::/48: this version carries IPv4 only");
        refused(&never("0.0.0.0/0"), "write masquerade = false instead");
        refused(&never("192.168.0.0"), "no_masquerade");
        let nodes_only =
            GOOD.replace("[network]", "[network]\nmasquerade = false\nmasquerade_to_nodes = true");
        refused(&nodes_only, "masquerade_to_nodes needs network.masquerade");
        refused(&GOOD.replace("02:aa", "03:aa"), "n2: vtep_mac");
        refused(&GOOD.replace("02:aa", "2:aa"), "n2: vtep_mac");
        refused(&GOOD.replace("\"n1\"\n        [network]", "\"nx\"\n        [network]"), "nx");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error =
            anyhow::Error::from(Config::load(Path::new("/nonexistent/overlay.toml"), None).unwrap_err());
        assert_eq!(
            format!("{error:#}"),
            "read /nonexistent/overlay.toml: No such file or directory (os error 2); \
             write it, or name another file with --config"
        );
    }
}
