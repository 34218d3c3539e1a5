//! One pass of the agent: desired state against actual state, step by step, each step idempotent.
//!
//! Order: addresses first, programs last, so that a program never runs on a map that lacks what it needs; entries that
//! are no longer wanted go after the programs that used them. `LOCAL` is written last of all.
//!
//! A first pass is all or nothing. A later one goes on after a step that failed: an underlay that is away for a while, say,
//! must not keep a removed node in the map.

use std::{collections::HashMap, fs, net::IpAddr, path::PathBuf};

use anyhow::{Context as _, bail};
use aya_log::EbpfLogger;
use ipnet::IpNet;
use log::{error, info, log};
use overlay_common::{
    maps::{Addr, AttachMode, Node},
    reason::Hook,
};
use tokio::io::unix::AsyncFd;

use super::{
    Options,
    anchor::{Anchor, reconcile_routes},
    filter::PacketFilter,
    flows::{self, Growth, Sweep},
    forwarding, host_ports, local,
    migration::Migration,
    names,
    news::news,
    node_routes,
    nodes::{self, Difference},
    pods::Pods,
    wire::Wire,
    xdp::XdpWire,
};
use crate::{
    cluster::Snapshot,
    cni::is_pod_device,
    config::{Attach, Config},
    datapath::{
        attach::{Attached, Device, Programs, Role},
        flows::pinned_capacity,
        kernel, object,
        object::Constants,
        pins::Pins,
        settings,
        tables::{Endpoints, Nodes},
    },
    family::ByFamily,
    host::{
        monitor::Change,
        netlink::{Link, Netlink, ROUTE_PROTOCOL},
        underlay::Underlay,
    },
};

type ProgramLog = AsyncFd<EbpfLogger<&'static dyn log::Log>>;

/// How much a pass looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scope {
    /// As the next, because of a pod's device: pods come and go in crowds, and need the agent for nothing when they do.
    Pods,
    /// What the kernel reports changes of.
    Network,
    /// All; the map of nodes, the packet filter and every pod included.
    Everything,
}

/// How one pass deals with a step that fails.
struct Pass {
    /// The first one: it fails as a whole.
    first: bool,
    problems: Vec<anyhow::Error>,
}

impl Pass {
    /// The result of a step; `None` where it failed and the pass goes on.
    fn step<T>(&mut self, result: anyhow::Result<T>) -> anyhow::Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if self.first => Err(error),
            Err(error) => {
                self.problems.push(error);
                Ok(None)
            }
        }
    }
}

/// The state of an agent between passes. Nothing in it is needed by the next agent.
pub(super) struct Reconciler {
    pins: Pins,
    program_log_level: u8,
    config: Config,
    /// What the attached programs were loaded with; `None` until this agent has loaded them.
    loaded: Option<Constants>,
    /// The maps and programs that were pinned then.
    pinned: Vec<PathBuf>,
    program_log: Option<ProgramLog>,
    pods: Pods,
    filter: PacketFilter,
    wire: Option<Wire>,
    xdp: XdpWire,
    growth: Option<Growth>,
    /// Another schema is in force until the first pass is through.
    migration: Option<Migration>,
    sweep: Sweep,
    /// The pods' MTU in bytes, from the last look at the underlay; 0 before the first.
    mtu: u32,
}

impl Reconciler {
    pub(super) fn new(options: &Options, config: Config) -> Self {
        Self {
            pins: options.pins.clone(),
            program_log_level: options.program_log,
            config,
            loaded: None,
            pinned: Vec::new(),
            program_log: None,
            pods: Pods::default(),
            filter: PacketFilter::default(),
            wire: None,
            xdp: XdpWire::default(),
            growth: None,
            migration: None,
            sweep: Sweep::default(),
            mtu: 0,
        }
    }

    /// The first pass is to take over from another schema.
    pub(super) fn migrate(&mut self, migration: Option<Migration>) {
        self.migration = migration;
    }

    /// After a start that failed: gives the devices back to the programs of the schema in force.
    pub(super) fn take_back_programs(&mut self) {
        if let Some(migration) = self.migration.take()
            && let Ok(mode) = self.attach_mode()
        {
            migration.take_back(mode);
        }
    }

    fn attach_mode(&self) -> anyhow::Result<AttachMode> {
        Ok(kernel::attach_mode(match self.config.network.attach {
            Attach::Auto => None,
            Attach::Tcx => Some(AttachMode::Tcx),
            Attach::Clsact => Some(AttachMode::Clsact),
        })?)
    }

    /// Takes over a new configuration; `false` when it says the same.
    pub(super) fn set_config(&mut self, config: Config) -> bool {
        if config == self.config {
            return false;
        }
        for line in news(&self.config, &config) {
            info!("{line}");
        }
        self.config = config;
        true
    }

    /// The nodes that were taken over last.
    pub(super) fn nodes(&self) -> &Snapshot {
        &self.config.nodes
    }

    /// Gives nodes that are known by their addresses only the names that a source has for them.
    pub(super) fn name_nodes(&mut self, nodes: &Snapshot) {
        self.config.nodes.name_after(nodes);
    }

    /// What has to be looked at because of a change, if it may have broken something that this agent keeps.
    pub(super) fn concerns(&self, change: &Change) -> Option<Scope> {
        match change {
            Change::Link { name, .. } if is_pod_device(name) => Some(Scope::Pods),
            Change::Link { .. } | Change::Address { .. } | Change::Forwarding | Change::Rule => {
                Some(Scope::Network)
            }
            // Other routes do not matter: the next hop of each packet comes from the kernel's FIB.
            Change::Route { dst, protocol, gone } => {
                let ours = *protocol == ROUTE_PROTOCOL;
                (ours == *gone && (ours || self.config.network.cidr.contains(dst))).then_some(Scope::Network)
            }
            Change::Filter { table, chain, base } => {
                self.filter.concerns(table, chain.as_deref(), *base).then_some(Scope::Everything)
            }
            Change::Overrun => Some(Scope::Everything),
        }
    }

    /// Hands on what the programs have logged; pending for ever where their log is off.
    pub(super) async fn program_log(&mut self) {
        let Some(log) = &mut self.program_log else { return std::future::pending().await };
        match log.readable_mut().await {
            Ok(mut guard) => {
                guard.get_inner_mut().flush();
                guard.clear_ready();
            }
            // Not possible for a map's descriptor; without this the caller's loop would spin.
            Err(_) => std::future::pending().await,
        }
    }

    /// One pass. Returns what could not be done; an error is the end of the first one, or of any that could not begin.
    pub(super) fn run(&mut self, scope: Scope) -> anyhow::Result<Vec<anyhow::Error>> {
        let mut pass = Pass { first: self.loaded.is_none(), problems: Vec::new() };
        let mut netlink = Netlink::open()?;
        let mode = self.attach_mode()?;
        let wire = self.look_at_underlay(&mut netlink, &mut pass)?;
        if pass.first {
            // Before anything is made: a map that does not fit ends the start.
            object::check_pinned(&self.pins)?;
        }
        // Pods' devices have no say in it; without an underlay it stays as it is.
        if let Some(link) = &wire
            && scope != Scope::Pods
        {
            self.xdp.plan(&mut netlink, &self.pins, self.config.network.xdp, link);
        }

        let anchor = pass.step(self.ensure_anchor(&mut netlink))?;
        // The likeliest to fail, and the slowest: first of all at the start, last of all later.
        if pass.first {
            self.filter.ensure(&self.config)?;
        }
        let loaded = if let Some(anchor) = &anchor {
            pass.step(self.load_programs(&mut netlink, anchor, scope))?
        } else {
            // The programs stay as they are, and so does what they look up.
            pass.step(self.fill_nodes())?;
            None
        };
        let programs = Programs::new(&self.pins, mode);
        let mut all_run_it = loaded.is_some();
        for (role, link) in [(Role::Anchor, &anchor), (Role::Wire, &wire)] {
            if let Some(link) = link {
                all_run_it &= pass.step(self.attach(&programs, role, link))?.is_some();
            }
        }
        if let Some(link) = &wire {
            pass.step(self.xdp.apply(&mut netlink, &self.pins, link))?;
        }
        let pods = self.reconcile_pods(&mut netlink, &programs, scope);
        // A pod that cannot be helped is no reason not to start.
        let unhelped = pass.step(pods)?.unwrap_or_default();
        pass.problems.extend(unhelped);
        // Until then some program may read and write the old table.
        if let Some(growth) = self.growth.take_if(|_| all_run_it) {
            pass.step(growth.end(&self.pins).map_err(Into::into))?;
        }
        if let Some(migration) = &self.migration {
            migration.copy_flows()?;
        }
        pass.step(self.remove_nodes(&loaded.unwrap_or_default()))?;
        let pods: &[String] = if scope == Scope::Pods { &[] } else { self.pods.devices() };
        let devices = anchor.iter().chain(&wire).map(|link| &link.name).chain(pods);
        let note = |path: &str, before: &str| self.remember(path, before);
        pass.step(forwarding::ensure(devices.map(String::as_str), &note))?;
        if let Some(anchor) = &anchor {
            pass.step(forwarding::without_redirects(&anchor.name, &note))?;
            let local = local::desired(&self.config, anchor.index, self.mtu, mode);
            pass.step(local::publish(&self.pins, &local).map_err(Into::into))?;
        }
        if scope == Scope::Everything {
            if let Some(anchor) = &anchor {
                let by = (!self.config.network.masquerade_to_nodes).then_some(anchor.index);
                let routes = node_routes::reconcile(&mut netlink, &self.config.nodes, by);
                pass.step(routes.map_err(Into::into))?;
            }
            // Without conntrack there is nothing to compare with, and nothing that translates.
            if let Err(e) = self.sweep.run(&self.pins) {
                log::debug!("sweep the flows of the stack: {e:#}");
            }
        }
        if !pass.first && scope == Scope::Everything {
            pass.step(self.filter.ensure(&self.config))?;
        }
        if let Some(migration) = &self.migration {
            migration.commit()?;
            // The plugin goes on.
            self.migration = None;
        }
        // Last, because nothing takes it back: it is the pods'.
        if scope == Scope::Everything
            && let Err(error) = self.reconcile_host_ports(&mut netlink)
        {
            pass.problems.push(error);
        }
        Ok(pass.problems)
    }

    fn look_at_underlay(&mut self, netlink: &mut Netlink, pass: &mut Pass) -> anyhow::Result<Option<Link>> {
        let network = &self.config.network;
        let found = Underlay::find(netlink, self.config.nodes.own().address, network.interface.as_deref());
        let Some(underlay) = pass.step(found.map_err(Into::into))? else { return Ok(None) };
        if let Some(mtu) = pass.step(underlay.pod_mtu(network.mtu).map_err(Into::into))? {
            self.mtu = mtu;
        }
        let wire = Wire::from(&underlay.link);
        for (level, line) in wire.news(self.wire.as_ref()) {
            log!(level, "{line}");
        }
        self.wire = Some(wire);
        Ok(Some(underlay.link))
    }

    fn ensure_anchor(&self, netlink: &mut Netlink) -> anyhow::Result<Link> {
        let own = self.config.nodes.own();
        let network = &self.config.network;
        let last_index = match &self.loaded {
            Some(constants) => Some(constants.anchor_ifindex),
            None => local::published(&self.pins).map(|local| local.anchor_ifindex),
        };
        let anchor = Anchor {
            vni: network.vni,
            port: network.port,
            mac: own.mac(),
            mtu: self.mtu,
            cluster: network.cidr,
            subnet: own.subnet,
            last_index,
        };
        let device = anchor.ensure(netlink)?;
        reconcile_routes(netlink, &anchor.routes(device.index))?;
        Ok(device)
    }

    /// Fills `NODES` and (re)loads the programs where their constants changed. Returns the keys to remove afterwards.
    fn load_programs(
        &mut self,
        netlink: &mut Netlink,
        anchor: &Link,
        scope: Scope,
    ) -> anyhow::Result<Vec<Addr>> {
        let main_table_only = !netlink.has_foreign_rules()?;
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
    fn fill_nodes(&self) -> anyhow::Result<Vec<Addr>> {
        let desired: HashMap<Addr, Node> = nodes::desired(&self.config.nodes);
        let mut map = Nodes::open(&self.pins)?;
        let Difference { set, remove } = Difference::read(&map, &desired)?;
        for (key, node) in set {
            map.set(key, node)?;
        }
        names::fill(&self.pins, &self.config.nodes)?;
        Ok(remove)
    }

    fn remove_nodes(&self, keys: &[Addr]) -> anyhow::Result<()> {
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
        let (IpNet::V4(cluster), IpNet::V4(subnet), IpAddr::V4(vtep)) =
            (network.cidr, own.subnet, own.address)
        else {
            bail!("node {}: this version carries IPv4 only", own.name);
        };
        Ok(Constants {
            vni: network.vni,
            port: network.port,
            cluster: ByFamily { v4: Some(cluster.into()), v6: None },
            subnet: ByFamily { v4: Some(subnet.into()), v6: None },
            node_prefix: ByFamily { v4: Some(self.config.nodes.node_prefix()), v6: None },
            vtep: ByFamily { v4: Some(vtep.into()), v6: None },
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

    /// Attaches the programs of `role` to its device; a device of before loses them.
    fn attach(&self, programs: &Programs, role: Role, link: &Link) -> anyhow::Result<()> {
        let device = Device { name: &link.name, ifindex: link.index };
        if programs.attach_all(role, device)? == Attached::New {
            info!("attached the programs of {} (index {})", link.name, link.index);
        }
        // That of XDP is the business of `xdp`.
        let hooks = role.hooks().iter().chain((role == Role::Wire).then_some(&Hook::XdpWire));
        let keep: Vec<_> = hooks.map(|hook| role.link_name(device, *hook)).collect();
        // The first part of a link's name is the same for all devices of a role.
        let of_role = |name: &str| keep.iter().any(|kept| kept.split('_').next() == name.split('_').next());
        for name in self.pins.links()?.iter().filter(|name| of_role(name) && !keep.contains(*name)) {
            self.pins.remove_link(name)?;
        }
        Ok(())
    }

    fn reconcile_pods(
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
        self.pods.reconcile(netlink, programs, &endpoints, &links, self.config.nodes.own().subnet)
    }

    /// Notes what a setting of the node was, for who takes overlay off it. Those of our own devices go with them.
    fn remember(&self, path: &str, before: &str) {
        let device = path.rsplit('/').nth(1).unwrap_or_default();
        if is_pod_device(device) || device == self.anchor_name() {
            return;
        }
        if let Err(error) = settings::remember(&self.pins, path, before) {
            log::warn!("{error}: it will not be put back");
        }
    }

    fn reconcile_host_ports(&self, netlink: &mut Netlink) -> anyhow::Result<()> {
        let endpoints = Endpoints::open(&self.pins)?.entries()?;
        host_ports::reconcile(&self.pins, &endpoints, &netlink.links()?)
    }

    /// The name of the anchor device.
    pub(super) fn anchor_name(&self) -> String {
        Anchor::name_of(self.config.network.vni)
    }

    /// After a start that failed: removes what has been written to the packet filter.
    pub(super) fn take_back_filter(&mut self) {
        self.filter.take_back();
    }
}

/// The pins of all maps and programs.
fn pinned(pins: &Pins) -> Vec<PathBuf> {
    ["maps", "programs"]
        .into_iter()
        .filter_map(|directory| fs::read_dir(pins.root().join(directory)).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
        .collect()
}
