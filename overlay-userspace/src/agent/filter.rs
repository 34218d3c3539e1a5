//! The packet filter: masquerade towards the world, and the slow path's way through foreign chains that drop. Each family
//! has a table of its own, and what cannot be done in one is done in the other all the same.

use std::collections::HashSet;

use anyhow::Context as _;
use log::{info, warn};

use super::{anchor::Anchor, families::Families};
use crate::{
    config::Config,
    family::{Family, OfFamily as _},
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
    /// Families that are not in use, and of which nothing of ours is left.
    clear: HashSet<Family>,
    /// This agent has written a table, or an accept.
    made: bool,
}

impl PacketFilter {
    /// Brings the packet filter into the wanted state; what becomes of each part of it. Forks `nft`.
    pub(super) fn ensure(&mut self, config: &Config) -> Vec<anyhow::Result<()>> {
        let families = Families::of(config);
        let mut results: Vec<_> = Family::ALL
            .into_iter()
            .map(|family| match wanted(config, &families, family) {
                Some(nat) => self.translate(&nat),
                None => self.retire(family),
            })
            .collect();
        results.push(self.open(config, &families));
        results
    }

    fn translate(&mut self, nat: &SourceNat) -> anyhow::Result<()> {
        self.clear.remove(&nat.family());
        if source_nat::ensure(nat)? {
            self.made = true;
            let masquerade = if nat.masquerade.is_some() { "set" } else { "off" };
            match nat.family() {
                Family::Ipv4 => info!("masquerade to the world: {masquerade}"),
                Family::Ipv6 => info!("masquerade of IPv6 to the world: {masquerade}"),
            }
        }
        Ok(())
    }

    /// Takes back what a family has that is not in use any more, once.
    fn retire(&mut self, family: Family) -> anyhow::Result<()> {
        if self.clear.contains(&family) {
            return Ok(());
        }
        let retired = source_nat::remove(family).and_then(|_| foreign::release(family));
        retired.with_context(|| format!("take back what {family} had of the packet filter"))?;
        self.clear.insert(family);
        Ok(())
    }

    fn open(&mut self, config: &Config, families: &Families) -> anyhow::Result<()> {
        let found = foreign::ensure(&families.carried(config.network.port))?;
        for chain in found.chains.iter().filter(|chain| chain.changed) {
            self.made = true;
            let nets: Vec<_> = chain.of(&families.clusters).map(|net| net.to_string()).collect();
            warn!("chain {chain} drops what is forwarded: inserted accepts for {}", nets.join(", "));
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
        let tables = Family::ALL.map(|family| source_nat::remove(family).map(drop));
        for result in tables.into_iter().chain([foreign::remove().map(drop)]) {
            if let Err(e) = result {
                warn!("take back the packet filter rules: {e}");
            }
        }
    }
}

/// What the table `overlay` of a family should be made from; `None` where the pods have no addresses of it.
pub(super) fn wanted(config: &Config, families: &Families, family: Family) -> Option<SourceNat> {
    let Config { network, nodes, .. } = config;
    let (cluster, subnet) = families.clusters.get(family).zip(families.subnets.get(family))?;
    Some(SourceNat {
        subnets: vec![*subnet],
        cluster: *cluster,
        anchor: Anchor::name_of(network.vni),
        masquerade: network.masquerade.then(|| Masquerade {
            nodes: nodes.nodes().iter().filter_map(|node| node.addresses.get(family)).copied().collect(),
            never: network.no_masquerade.iter().copied().filter(|net| net.family() == family).collect(),
            port: network.port,
        }),
    })
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
