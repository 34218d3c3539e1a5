//! The cluster file as the agents of a lab read it. Written from types of its own: the agent's are under test.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use ipnet::Ipv4Net;
use serde::Serialize;

/// The whole file.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ClusterFile {
    /// Table `[network]`.
    pub network: Network,
    /// Tables `[[nodes]]`.
    pub nodes: Vec<NodeEntry>,
}

/// Settings that hold for the whole cluster; what is `None` is left out of the file.
#[derive(Debug, Clone, Serialize)]
pub struct Network {
    /// The cluster CIDR.
    pub cidr: Ipv4Net,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port of the tunnel.
    pub port: u16,
    /// MTU of the pods, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The underlay interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Whether pods reach the world under their node's address.
    pub masquerade: bool,
    /// Destinations that are never masqueraded.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub no_masquerade: Vec<Ipv4Net>,
    /// Whether pods reach other nodes under their node's address, past the tunnel; left out of the file when not.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub masquerade_to_nodes: bool,
    /// `auto`, `tcx` or `clsact`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attach: Option<String>,
    /// Entries of the table of flows that return through the stack; 0 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack_flows: Option<u32>,
    /// `off`, `guard` or `auto`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xdp: Option<String>,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16),
            vni: 1,
            port: 8472,
            mtu: None,
            interface: None,
            masquerade: true,
            no_masquerade: Vec::new(),
            masquerade_to_nodes: false,
            attach: None,
            stack_flows: None,
            xdp: None,
        }
    }
}

/// One node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeEntry {
    /// Its name.
    pub name: String,
    /// Its underlay address, the VTEP.
    pub address: Ipv4Addr,
    /// The subnet of its pods.
    pub subnet: Ipv4Net,
    /// The MAC of a peer that is a plain kernel vxlan device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vtep_mac: Option<String>,
}

impl ClusterFile {
    /// The file's text.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a cluster file is plain tables and strings")
    }

    /// Writes the file beside `path` and renames it over it.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let new = path.with_extension("toml.new");
        fs::write(&new, self.to_toml())?;
        fs::rename(new, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_file_uses_the_documented_keys() {
        let node = NodeEntry {
            name: "n1".into(),
            address: Ipv4Addr::new(192, 0, 2, 11),
            subnet: "10.244.1.0/24".parse().unwrap(),
            vtep_mac: None,
        };
        let text = ClusterFile { network: Network::default(), nodes: vec![node] }.to_toml();
        let expected = "[network]\ncidr = \"10.244.0.0/16\"\nvni = 1\nport = 8472\nmasquerade = true\n\n\
                        [[nodes]]\nname = \"n1\"\naddress = \"192.0.2.11\"\nsubnet = \"10.244.1.0/24\"\n";
        assert_eq!(text, expected);
    }
}
