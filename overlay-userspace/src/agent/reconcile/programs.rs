//! The part of a pass that is about maps, programs and their links.

use std::{collections::HashMap, fs, path::PathBuf};

use anyhow::Context as _;
use log::{error, info};
use overlay_common::{
    maps::{Addr, Node},
    reason::Hook,
};
use tokio::io::unix::AsyncFd;

use super::{
    super::{
        anchor::is_anchor,
        families::Families,
        flows::{self, Growth},
        names,
        nodes::{self, Difference},
    },
    Reconciler, Scope,
};
use crate::{
    cni::is_pod_device,
    datapath::{
        attach::{self, Attached, Device, Programs, Role},
        flows::pinned_capacity,
        object,
        object::Constants,
        pins::Pins,
        tables::{Endpoints, Nodes},
    },
    host::netlink::{Link, Netlink},
};

impl Reconciler {
    /// Fills `NODES` and (re)loads the programs where their constants changed. Returns the keys to remove afterwards.
    pub(super) fn load_programs(
        &mut self,
        netlink: &mut Netlink,
        anchor: &Link,
        scope: Scope,
    ) -> anyhow::Result<Vec<Addr>> {
        // Of the families that outer headers are of.
        let mut main_table_only = true;
        for (family, _) in Families::of(&self.config).vteps.iter() {
            main_table_only &= !netlink.has_foreign_rules(family)?;
        }
        let constants = Constants { main_table_only, ..self.constants(anchor)? };
        if let Some(before) = &self.loaded
            && before.main_table_only != main_table_only
        {
            let by = if main_table_only { "the main table alone" } else { "policy rules" };
            info!("the way of tunnel packets is a matter of {by} now");
        }
        let lost =
            if scope == Scope::Everything { self.pinned.iter().find(|pin| !pin.exists()) } else { None };
        if let Some(lost) = lost {
            error!("{} is gone: loading the programs again", lost.display());
        } else if self.loaded.as_ref() == Some(&constants) {
            return match scope {
                Scope::Everything => self.fill_nodes(),
                // Only the agent writes there.
                Scope::Pods | Scope::Network => Ok(Vec::new()),
            };
        }
        let reload = self.loaded.is_some();
        if self.growth.is_none() {
            self.growth = Growth::begin(&self.pins, constants.flow_entries)?;
        }
        let mut loaded = object::load(&self.pins, &constants)?;
        for facts in &loaded.facts {
            log::debug!(
                "loaded {}: {} instructions verified, {} bytes of machine code",
                facts.name,
                facts.verified_instructions,
                facts.jited_bytes
            );
        }
        if let Some(migration) = &mut self.migration {
            migration.copy()?;
        }
        if let Some(growth) = &self.growth {
            growth.copy(&self.pins)?;
        }
        let stale = self.fill_nodes()?;
        self.program_log = None;
        if constants.log_level > 0 {
            // SAFETY: the logger owns the descriptor and both are dropped together.
            let log =
                unsafe { AsyncFd::register(loaded.logger()?) }.context("poll the log of the programs")?;
            self.program_log = Some(log);
        }
        self.pods.forget();
        self.loaded = Some(constants);
        self.pinned = pinned(&self.pins);
        if reload {
            info!("loaded the programs anew");
        }
        Ok(stale)
    }

    /// Writes what is missing or wrong; returns what should not be there.
    pub(super) fn fill_nodes(&self) -> anyhow::Result<Vec<Addr>> {
        let desired: HashMap<Addr, Node> = nodes::desired(&self.config);
        let mut map = Nodes::open(&self.pins)?;
        let Difference { set, remove } = Difference::read(&map, &desired)?;
        for (key, node) in set {
            map.set(key, node)?;
        }
        names::fill(&self.pins, &self.config.nodes)?;
        Ok(remove)
    }

    pub(super) fn remove_nodes(&self, keys: &[Addr]) -> anyhow::Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let mut map = Nodes::open(&self.pins)?;
        for key in keys {
            map.remove(*key)?;
        }
        Ok(names::remove_stale(&self.pins, &self.config.nodes)?)
    }

    fn constants(&self, anchor: &Link) -> anyhow::Result<Constants> {
        let network = &self.config.network;
        let own = self.config.nodes.own();
        Ok(Constants {
            vni: network.vni,
            port: network.port,
            cluster: network.cidrs.by_family(),
            subnet: own.subnets,
            node_prefix: self.config.nodes.node_prefixes(),
            vtep: Families::of(&self.config).vteps,
            anchor_ifindex: anchor.index,
            anchor_mac: own.mac(),
            plain_pods: !network.masquerade,
            stack_flows: network.stack_flows != Some(0),
            flow_entries: flows::wanted(network.stack_flows, self.flow_capacity()?),
            nodes_masqueraded: network.masquerade_to_nodes,
            main_table_only: false,
            xdp_wire: self.xdp.planned(),
            log_level: self.program_log_level,
        })
    }

    fn flow_capacity(&self) -> anyhow::Result<Option<u32>> {
        match (pinned_capacity(&self.pins)?, &self.migration) {
            (None, Some(migration)) => migration.flow_capacity(),
            (found, _) => Ok(found),
        }
    }

    /// Attaches the programs of `role` to its devices; a device of before loses them.
    pub(super) fn attach(&self, programs: &Programs, role: Role, links: &[Link]) -> anyhow::Result<()> {
        let mut keep = Vec::new();
        for link in links {
            let device = Device { name: &link.name, ifindex: link.index };
            if programs.attach_all(role, device)? == Attached::New {
                info!("attached the programs of {} (index {})", link.name, link.index);
            }
            // That of XDP is the business of `xdp`.
            let hooks = role.hooks().iter().chain((role == Role::Wire).then_some(&Hook::XdpWire));
            keep.extend(hooks.map(|hook| role.link_name(device, *hook)));
        }
        // The first part of a link's name is the same for all devices of a role.
        let of_role = |name: &str| keep.iter().any(|kept| kept.split('_').next() == name.split('_').next());
        for name in self.pins.links()?.iter().filter(|name| of_role(name) && !keep.contains(*name)) {
            self.pins.remove_link(name)?;
        }
        Ok(())
    }

    pub(super) fn reconcile_pods(
        &mut self,
        netlink: &mut Netlink,
        programs: &Programs,
        scope: Scope,
    ) -> anyhow::Result<Vec<anyhow::Error>> {
        if scope == Scope::Everything {
            self.pods.forget();
            for name in programs.remove_severed()? {
                info!("removed the link {name}, whose device is gone");
            }
        }
        let endpoints = Endpoints::open(&self.pins)?.entries()?;
        let links = netlink.links()?;
        self.pods.reconcile(netlink, programs, &endpoints, &links, &self.config.nodes.own().subnets)
    }
}

/// Filters hang on a device, not on a pin: one that no longer carries the tunnel is found by looking.
pub(super) fn forsake_wires(netlink: &mut Netlink, wires: &[Link]) -> anyhow::Result<()> {
    for link in netlink.links()? {
        let ours = is_pod_device(&link.name) || is_anchor(&link);
        let wire = wires.iter().any(|wire| wire.index == link.index);
        if !ours && !wire && attach::has_filters(netlink, link.index)? {
            attach::remove_filters(netlink, link.index)?;
            info!("detached the programs of {} (index {})", link.name, link.index);
        }
    }
    Ok(())
}

/// The pins of all maps and programs.
fn pinned(pins: &Pins) -> Vec<PathBuf> {
    ["maps", "programs"]
        .into_iter()
        .filter_map(|directory| fs::read_dir(pins.root().join(directory)).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
        .collect()
}
