//! The cluster file as the agents of a lab read it. Written from types of its own: the agent's are under test.

use std::fmt::{self, Display};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use overlay_userspace::family::{ByFamily, Family, OfFamily};
use serde::{Serialize, Serializer};

/// The cluster CIDR of labs with IPv4.
pub const CIDR_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16);

/// The cluster CIDR of labs with IPv6. (RFC 4193)
pub const CIDR_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0), 56);

/// One value, or one for each family in any order: in the file a single value or a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed<T>(Vec<T>);

impl<T> Listed<T> {
    /// These, in this order.
    pub fn new(values: impl IntoIterator<Item = T>) -> Self {
        Self(values.into_iter().collect())
    }

    /// All of them.
    pub fn all(&self) -> &[T] {
        &self.0
    }
}

impl<T: Copy + OfFamily> Listed<T> {
    /// The values of `each`, that of `first` first.
    pub fn ordered(each: &ByFamily<T>, first: Family) -> Self {
        let mut values: Vec<T> = each.values().copied().collect();
        values.sort_by_key(|value| value.family() != first);
        Self(values)
    }

    /// The one of this family.
    pub fn of(&self, family: Family) -> Option<T> {
        self.0.iter().copied().find(|value| value.family() == family)
    }

    /// The one of this family, which there must be.
    #[track_caller]
    pub fn expect(&self, family: Family) -> T {
        self.of(family).unwrap_or_else(|| panic!("there is no {family} in the list"))
    }
}

impl<T> From<T> for Listed<T> {
    fn from(value: T) -> Self {
        Self(vec![value])
    }
}

impl From<Ipv4Net> for Listed<IpNet> {
    fn from(value: Ipv4Net) -> Self {
        Self(vec![value.into()])
    }
}

impl From<Ipv4Addr> for Listed<IpAddr> {
    fn from(value: Ipv4Addr) -> Self {
        Self(vec![value.into()])
    }
}

impl<T: FromStr> FromStr for Listed<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        text.split(',').map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

impl<T: Display> Display for Listed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self.0.iter().map(T::to_string).collect();
        f.write_str(&words.join(","))
    }
}

impl<T: Serialize> Serialize for Listed<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => one.serialize(serializer),
            many => many.serialize(serializer),
        }
    }
}

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
    /// The cluster CIDRs; the first one's family is the primary one.
    pub cidr: Listed<IpNet>,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port of the tunnel.
    pub port: u16,
    /// Family of the outer header between nodes that have both: `auto`, `ipv4` or `ipv6`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub underlay: Option<String>,
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
    pub no_masquerade: Vec<IpNet>,
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
            cidr: CIDR_V4.into(),
            vni: 1,
            port: 8472,
            underlay: None,
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
    /// Its underlay addresses, the VTEPs.
    pub address: Listed<IpAddr>,
    /// The subnets of its pods.
    pub subnet: Listed<IpNet>,
    /// The MACs of a peer that is a plain kernel vxlan device, one for each of its subnets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vtep_mac: Option<Listed<String>>,
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
            address: Ipv4Addr::new(192, 0, 2, 11).into(),
            subnet: "10.244.1.0/24".parse().unwrap(),
            vtep_mac: None,
        };
        let text = ClusterFile { network: Network::default(), nodes: vec![node] }.to_toml();
        let expected = "[network]\ncidr = \"10.244.0.0/16\"\nvni = 1\nport = 8472\nmasquerade = true\n\n\
                        [[nodes]]\nname = \"n1\"\naddress = \"192.0.2.11\"\nsubnet = \"10.244.1.0/24\"\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn two_families_are_a_list_in_the_order_asked_for() {
        let both = ByFamily { v4: Some(CIDR_V4.into()), v6: Some(IpNet::from(CIDR_V6)) };
        for (first, expected) in [
            (Family::Ipv4, "cidr = [\"10.244.0.0/16\", \"fd00:10:244::/56\"]"),
            (Family::Ipv6, "cidr = [\"fd00:10:244::/56\", \"10.244.0.0/16\"]"),
        ] {
            let network = Network { cidr: Listed::ordered(&both, first), ..Network::default() };
            let text = ClusterFile { network, nodes: Vec::new() }.to_toml();
            assert!(text.contains(expected), "{text}");
        }
    }
}
