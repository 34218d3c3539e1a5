//! One pass of the agent: desired state against actual state, step by step, each step idempotent.
//!
//! Order: addresses first, programs last, so that a program never runs on a map that lacks what it needs; entries that
//! are no longer wanted go after the programs that used them. `LOCAL` is written last of all; a family that pods are to
//! have no more goes out of it first of all.
//!
//! A first pass is all or nothing. A later one goes on after a step that failed: an underlay that is away for a while, say,
//! must not keep a removed node in the map. What is done to the host in one family and in the other are steps of their own:
//! what cannot be had in one leaves the other alone.
//!
//! - `programs`: maps, programs and their links
//! - `host`: devices, routes, settings, the packet filter

use std::path::PathBuf;

use aya_log::EbpfLogger;
use log::{Level, info};
use overlay_common::maps::AttachMode;
use tokio::io::unix::AsyncFd;

use super::{
    Options, Trouble,
    anchor::Anchor,
    families::Families,
    filter::PacketFilter,
    flows::{Growth, Sweep},
    local,
    migration::Migration,
    news::news,
    pods::Pods,
    wire::{self, Wire},
    xdp::XdpWire,
};
use crate::{
    cluster::Snapshot,
    cni::is_pod_device,
    config::{Attach, Config},
    datapath::{
        attach::{Programs, Role},
        kernel, object,
        object::Constants,
        pins::Pins,
    },
    host::{
        monitor::Change,
        netlink::{Link, Netlink, ROUTE_PROTOCOL},
    },
};

mod host;
mod programs;

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
    /// The devices of the underlay, that of the node's tunnel address first.
    wires: Vec<Wire>,
    /// Those that the routes to peers lead by as well.
    exits: Vec<Link>,
    xdp: XdpWire,
    growth: Option<Growth>,
    /// Another schema is in force until the first pass is through.
    migration: Option<Migration>,
    sweep: Sweep,
    /// Nodes to which there is no tunnel.
    apart: Trouble,
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
            wires: Vec::new(),
            exits: Vec::new(),
            xdp: XdpWire::default(),
            growth: None,
            migration: None,
            sweep: Sweep::default(),
            apart: Trouble::new(Level::Warn),
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
            Change::Link { .. } | Change::Address { .. } => Some(Scope::Network),
            Change::Forwarding(family) | Change::Rule(family) => {
                Families::of(&self.config).uses(*family).then_some(Scope::Network)
            }
            // Other routes do not matter: the next hop of each packet comes from the kernel's FIB.
            Change::Route { dst, protocol, gone } => {
                let ours = *protocol == ROUTE_PROTOCOL;
                let broken = ours == *gone && (ours || self.config.network.cidrs.holder(*dst).is_some());
                let leads_to_peer = || !ours && wire::peers(&self.config).any(|vtep| dst.contains(&vtep));
                (broken || leads_to_peer()).then_some(Scope::Network)
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
        let wires = self.look_at_underlay(&mut netlink, &mut pass, scope)?;
        let wire = wires.first();
        if pass.first {
            // Before anything is made: a map that does not fit ends the start.
            object::check_pinned(&self.pins)?;
        }
        // Pods' devices have no say in it; without an underlay it stays as it is.
        if let Some(link) = wire
            && scope != Scope::Pods
        {
            self.xdp.plan(&mut netlink, &self.pins, self.config.network.xdp, link);
        }

        let anchor = self.ensure_anchor(&mut netlink, &mut pass)?;
        // The likeliest to fail, and the slowest: first of all at the start, last of all later.
        if pass.first {
            self.ensure_filter(&mut pass)?;
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
        for (role, links) in [(Role::Anchor, anchor.as_slice()), (Role::Wire, &wires)] {
            if !links.is_empty() {
                all_run_it &= pass.step(self.attach(&programs, role, links))?.is_some();
            }
        }
        if scope > Scope::Pods && !wires.is_empty() {
            pass.step(programs::forsake_wires(&mut netlink, &wires))?;
        }
        if let Some(link) = wire {
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
        self.ensure_forwarding(&mut netlink, &mut pass, anchor.as_ref(), &wires, scope)?;
        if let Some(anchor) = &anchor {
            let local = local::desired(&self.config, anchor.index, self.mtu, mode);
            pass.step(local::publish(&self.pins, &local).map_err(Into::into))?;
        }
        if let Some(anchor) = &anchor
            && scope != Scope::Pods
        {
            self.ensure_node_routes(&mut netlink, &mut pass, anchor)?;
        }
        if scope == Scope::Everything {
            self.say_who_is_apart();
            // Without conntrack there is nothing to compare with, and nothing that translates.
            if let Err(e) = self.sweep.run(&self.pins) {
                log::debug!("sweep the flows of the stack: {e:#}");
            }
        }
        if !pass.first && scope == Scope::Everything {
            self.ensure_filter(&mut pass)?;
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

    /// The name of the anchor device.
    pub(super) fn anchor_name(&self) -> String {
        Anchor::name_of(self.config.network.vni)
    }

    /// After a start that failed: removes what has been written to the packet filter.
    pub(super) fn take_back_filter(&mut self) {
        self.filter.take_back();
    }
}
