//! Which address families this node uses, and what for: addresses of its pods, outer headers of its tunnels, or both.
//!
//! What the agent does to the host it does for each family that is used, and undoes for one that is not any more. Nothing
//! is written for a family that a node does not use: a node without IPv4 needs no setting of IPv4, and the reverse.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{
    cluster::gateway,
    config::Config,
    family::{ByFamily, Family, OfFamily as _},
    host::nft::foreign::Carried,
};

/// What there is of each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Families {
    /// The cluster's ranges of which this node has a subnet: its pods have addresses of these families.
    pub(crate) clusters: ByFamily<IpNet>,
    /// This node's subnets.
    pub(crate) subnets: ByFamily<IpNet>,
    /// Its tunnel addresses that some peer is reached by.
    pub(crate) vteps: ByFamily<IpAddr>,
}

impl Families {
    pub(crate) fn of(config: &Config) -> Self {
        let (own, network) = (config.nodes.own(), &config.network);
        let mut all = Self { subnets: own.subnets, ..Self::default() };
        for (family, _) in own.subnets.iter() {
            if let Some(cluster) = network.cidrs.get(family) {
                all.clusters.set(family, cluster);
            }
        }
        for vtep in config.vteps() {
            all.vteps.set(vtep.family(), vtep);
        }
        all
    }

    /// Those that are used, for whatever.
    pub(crate) fn used(&self) -> impl Iterator<Item = Family> {
        Family::ALL.into_iter().filter(|family| self.uses(*family))
    }

    /// Whether the node has something to do with it.
    pub(crate) const fn uses(&self, family: Family) -> bool {
        self.subnets.get(family).is_some() || self.vteps.get(family).is_some()
    }

    /// The addresses of the node in its pods' subnets.
    pub(crate) fn gateways(&self) -> ByFamily<IpAddr> {
        self.subnets.map(|_, subnet| gateway(*subnet))
    }

    /// What foreign chains have to let through.
    pub(crate) const fn carried(&self, port: u16) -> Carried {
        Carried { clusters: self.clusters, vteps: self.vteps, port }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn families(cidr: &str, underlay: &str, own: &str, peer: &str) -> Families {
        let file = format!(
            "node = \"a\"\n[network]\ncidr = {cidr}\nunderlay = \"{underlay}\"\n\
             [[nodes]]\nname = \"a\"\n{own}\n[[nodes]]\nname = \"b\"\n{peer}\n"
        );
        Families::of(&Config::parse(&file, Path::new("overlay.toml"), None).unwrap())
    }

    const DUAL: &str = r#"["10.244.0.0/16", "fd00:244::/48"]"#;
    const OWN: &str =
        "address = [\"192.0.2.1\", \"2001:db8::1\"]\nsubnet = [\"10.244.1.0/24\", \"fd00:244:0:1::/64\"]";
    const PEER: &str = "address = [\"192.0.2.2\", \"2001:db8::2\"]\nsubnet = \"10.244.2.0/24\"";

    fn vteps(families: &Families) -> [bool; 2] {
        Family::ALL.map(|family| families.vteps.get(family).is_some())
    }

    #[test]
    fn a_family_is_used_for_pods_for_the_tunnel_or_not_at_all() {
        let v4 = r#""10.244.0.0/16""#;
        let own = OWN.replace(", \"fd00:244:0:1::/64\"", "");
        let one = families(v4, "auto", &own, PEER);
        assert_eq!(one.used().collect::<Vec<_>>(), [Family::Ipv4], "addresses of nodes alone are no use");
        let outer = families(v4, "ipv6", &own, PEER);
        assert_eq!((outer.used().count(), vteps(&outer)), (2, [false, true]));
        assert!(outer.clusters.v6.is_none() && outer.gateways().v6.is_none());

        let dual = families(DUAL, "auto", OWN, PEER);
        assert_eq!((dual.used().count(), vteps(&dual)), (2, [true, false]));
        assert_eq!(dual.gateways().v6.unwrap().to_string(), "fd00:244:0:1::1");
        // A peer that has IPv6 alone, and one that runs no overlay.
        let only = PEER.replace("\"192.0.2.2\", ", "");
        assert_eq!(vteps(&families(DUAL, "auto", OWN, &only)), [true, true]);
        let plain = format!("{PEER}\nvtep_mac = \"02:00:00:00:00:02\"");
        assert_eq!(vteps(&families(DUAL, "auto", OWN, &plain)), [true, true]);
    }

    #[test]
    fn a_node_without_a_family_in_a_cluster_that_has_it_does_not_use_it() {
        let own = "address = \"192.0.2.1\"\nsubnet = \"10.244.1.0/24\"";
        let families = families(DUAL, "auto", own, PEER);
        assert_eq!(families.used().collect::<Vec<_>>(), [Family::Ipv4]);
        assert!(families.clusters.v6.is_none());
    }
}
