//! The packet filter: masquerade towards the world, and the slow path's way through foreign chains that drop.

use std::{collections::HashSet, net::IpAddr};

use ipnet::{IpNet, Ipv4Net};
use log::{info, warn};

use super::anchor::Anchor;
use crate::{
    cluster::NodeSpec,
    config::Config,
    host::nft::{
        TABLE, foreign, ports,
        source_nat::{self, Masquerade, SourceNat},
    },
};

/// What the agent knows of the packet filter between passes.
#[derive(Default)]
pub(super) struct PacketFilter {
    /// Foreign chains that decide what is dropped, by table and name.
    examined: HashSet<(String, String)>,
    warned: HashSet<String>,
    /// This agent has written the table, or an accept.
    made: bool,
}

impl PacketFilter {
    /// Brings the packet filter into the wanted state. Forks `nft`.
    pub(super) fn ensure(&mut self, config: &Config) -> anyhow::Result<()> {
        let network = &config.network;
        let changed = source_nat::ensure(&wanted(config)?)?;
        if changed {
            self.made = true;
            info!("masquerade to the world: {}", if network.masquerade { "set" } else { "off" });
        }
        let found = foreign::ensure(config.ipv4()?.0.into(), network.port)?;
        for chain in found.chains.iter().filter(|chain| chain.changed) {
            self.made = true;
            warn!("chain {chain} drops what is forwarded: inserted accepts for {}", network.cidrs);
        }
        self.examined = found.examined;
        for warning in found.warnings.iter().map(ToString::to_string) {
            if self.warned.insert(warning.clone()) {
                warn!("{warning}");
            }
        }
        Ok(())
    }

    /// May a change there have broken what [`PacketFilter::ensure`] keeps? Others change their own chains all the time.
    pub(super) fn concerns(&self, table: &str, chain: Option<&str>, base: bool) -> bool {
        let examined = |chain: &str| self.examined.contains(&(table.to_owned(), chain.to_owned()));
        table == TABLE || table == ports::TABLE || base || chain.is_some_and(examined)
    }

    /// After a start that failed: removes what this agent has written.
    pub(super) fn take_back(&mut self) {
        if !std::mem::take(&mut self.made) {
            return;
        }
        for result in [source_nat::remove().map(drop), foreign::remove().map(drop)] {
            if let Err(e) = result {
                warn!("take back the packet filter rules: {e}");
            }
        }
    }
}

/// What the table `ip overlay` should be made from.
pub(super) fn wanted(config: &Config) -> anyhow::Result<SourceNat> {
    let Config { network, nodes, .. } = config;
    let (cluster, subnet) = config.ipv4()?;
    let address = |node: &NodeSpec| match node.addresses.v4 {
        Some(IpAddr::V4(v4)) => Some(v4),
        _ => None,
    };
    Ok(SourceNat {
        subnets: vec![subnet],
        cluster,
        anchor: Anchor::name_of(network.vni),
        masquerade: network.masquerade.then(|| Masquerade {
            nodes: nodes.nodes().iter().filter_map(address).collect(),
            never: network.no_masquerade.iter().copied().filter_map(v4).collect(),
            port: network.port,
        }),
    })
}

fn v4(net: IpNet) -> Option<Ipv4Net> {
    match net {
        IpNet::V4(net) => Some(net),
        IpNet::V6(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_have_been_broken_is_looked_at() {
        let examined = [("filter".to_owned(), "FORWARD".to_owned())].into();
        let filter = PacketFilter { examined, ..PacketFilter::default() };
        assert!(filter.concerns("overlay", Some("postrouting"), false));
        assert!(filter.concerns("overlay", None, false));
        assert!(filter.concerns("overlay-ports", Some("prerouting"), false));
        assert!(filter.concerns("filter", Some("FORWARD"), false));
        assert!(filter.concerns("firewall", Some("forward"), true), "a new base chain may drop");
        assert!(!filter.concerns("filter", Some("KUBE-FORWARD"), false));
        assert!(!filter.concerns("nat", Some("KUBE-SERVICES"), false));
        assert!(!filter.concerns("nat", None, false));
    }
}
