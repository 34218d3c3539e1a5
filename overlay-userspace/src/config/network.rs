//! The `[network]` table: the pod network, and how it is carried.

use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de::Error as _};

use super::list::OneOrMore;
use crate::{
    cluster::Cidrs,
    family::{Family, OfFamily as _},
};

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

/// What every link that carries IPv6 has to carry, in bytes (RFC 8200, 5).
const IPV6_MIN_MTU: u32 = 1280;

impl Network {
    /// What makes no sense, and what to do.
    pub(super) fn check(&self) -> Result<(), String> {
        let Self { cidrs, vni, port, mtu, stack_flows, .. } = self;
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
        if let Some(mtu) = mtu
            && *mtu < IPV6_MIN_MTU
            && let Some(range) = cidrs.get(Family::Ipv6)
        {
            return Err(format!(
                "network.mtu {mtu} is too small for IPv6, which needs {IPV6_MIN_MTU}: raise it, or take {range} out of \
                 network.cidr"
            ));
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
        if self.masquerade_to_nodes && !self.masquerade {
            return Err("network.masquerade_to_nodes needs network.masquerade: remove one of the two".into());
        }
        for net in &self.no_masquerade {
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
}
