//! One pass of the agent: desired state against actual state, step by step, each step idempotent.
//!
//! Order: addresses first, programs last, so that a program never runs on a map that lacks what it needs; entries that
//! are no longer wanted go after the programs that used them. [`Local`] is written last, because the CNI plugin begins
//! to work when it says so.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    path::Path,
};

use anyhow::{Context as _, anyhow, bail};
use aya_log::EbpfLogger;
use ipnet::{IpNet, Ipv4Net};
use log::{info, warn};
use overlay_common::maps::{Addr, AttachMode, FAMILY_V4, Local, Node, Subnet};
use tokio::io::unix::AsyncFd;

use super::{
    Options,
    anchor::{Anchor, reconcile_routes},
    nodes::{self, Difference},
    pods::Pods,
};
use crate::{
    cluster::gateway,
    config::{Attach, Config},
    datapath::{
        attach::{Attached, Device, Programs, Role},
        kernel, object,
        object::Constants,
        pins::{self, Pins},
        tables::{Endpoints, LocalTable, Nodes},
    },
    host::{
        monitor::Change,
        netlink::{Link, Netlink, ROUTE_PROTOCOL},
        nft::{
            forward,
            masquerade::{self, Masquerade},
        },
        underlay::Underlay,
    },
};

type ProgramLog = AsyncFd<EbpfLogger<&'static dyn log::Log>>;

/// How much a pass looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scope {
    /// What the kernel reports changes of.
    Network,
    /// All; packet filter and every pod included.
    Everything,
}

/// The state of an agent between passes. Nothing in it is needed by the next agent.
pub(super) struct Reconciler {
    pins: Pins,
    program_log_level: u8,
    config: Config,
    /// What the attached programs were loaded with; `None` until this agent has loaded them.
    loaded: Option<Constants>,
    program_log: Option<ProgramLog>,
    pods: Pods,
    underlay: Option<u32>,
    /// Made by this agent, for [`Reconciler::take_back`].
    made_anchor: Option<String>,
    warned: HashSet<String>,
}

impl Reconciler {
    pub(super) fn new(options: &Options, config: Config) -> Self {
        Self {
            pins: options.pins.clone(),
            program_log_level: options.program_log,
            config,
            loaded: None,
            program_log: None,
            pods: Pods::default(),
            underlay: None,
            made_anchor: None,
            warned: HashSet::new(),
        }
    }

    /// Takes over a new configuration; `false` when it says the same.
    pub(super) fn set_config(&mut self, config: Config) -> bool {
        if config == self.config {
            return false;
        }
        for node in config.nodes.nodes() {
            match self.config.nodes.nodes().iter().find(|old| old.name == node.name) {
                None => info!("node {} added: {} at {}", node.name, node.subnet, node.address),
                Some(old) if old != node => {
                    info!("node {} changed: {} at {}", node.name, node.subnet, node.address);
                }
                Some(_) => {}
            }
        }
        for old in self.config.nodes.nodes() {
            if !config.nodes.nodes().iter().any(|node| node.name == old.name) {
                info!("node {} removed", old.name);
            }
        }
        self.config = config;
        true
    }

    /// May this change have broken something that this agent keeps?
    pub(super) fn concerns(change: &Change) -> bool {
        match change {
            Change::Link { .. } | Change::Address { .. } | Change::Overrun => true,
            // Routes of others do not matter: the next hop of each packet comes from the kernel's FIB.
            Change::Route { protocol, gone, .. } => *gone && *protocol == ROUTE_PROTOCOL,
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

    /// One pass.
    pub(super) fn run(&mut self, scope: Scope) -> anyhow::Result<()> {
        let mut netlink = Netlink::open()?;
        let network = &self.config.network;
        let own = self.config.nodes.own().clone();
        let underlay = Underlay::find(&mut netlink, own.address, network.interface.as_deref())?;
        let mtu = underlay.pod_mtu(network.mtu)?;
        let mode = kernel::attach_mode(match network.attach {
            Attach::Auto => None,
            Attach::Tcx => Some(AttachMode::Tcx),
            Attach::Clsact => Some(AttachMode::Clsact),
        })?;

        // Before anything is made: a map that does not fit ends the start.
        object::check_pinned(&self.pins)?;
        let last_index = self
            .loaded
            .as_ref()
            .map(|constants| constants.anchor_ifindex)
            .or_else(|| Some(LocalTable::open(&self.pins).ok()?.get().ok()?.anchor_ifindex))
            .filter(|index| *index != 0);
        let anchor = Anchor {
            vni: network.vni,
            port: network.port,
            mac: own.mac(),
            mtu,
            cluster: network.cidr,
            subnet: own.subnet,
            last_index,
        };
        let (device, created) = anchor.ensure(&mut netlink)?;
        if created {
            self.made_anchor = Some(device.name.clone());
        }
        reconcile_routes(&mut netlink, &anchor.routes(device.index))?;

        let stale = self.load_programs(&device)?;
        let programs = Programs::new(&self.pins, mode);
        self.attach(&programs, &device, &underlay.link)?;
        if scope == Scope::Everything {
            self.pods.forget();
            for name in programs.remove_severed()? {
                info!("removed the link {name}, whose device is gone");
            }
        }
        let endpoints = Endpoints::open(&self.pins)?.entries()?;
        let links = netlink.links()?;
        self.pods.reconcile(&mut netlink, &programs, &endpoints, &links, own.subnet)?;
        let mut nodes = Nodes::open(&self.pins)?;
        for key in stale {
            nodes.remove(key)?;
        }
        if scope == Scope::Everything {
            self.packet_filter()?;
        }
        self.publish(&device, mtu, mode)
    }

    /// Fills `NODES` and (re)loads the programs where their constants changed. Returns the keys to remove afterwards.
    fn load_programs(&mut self, anchor: &Link) -> anyhow::Result<Vec<Addr>> {
        let constants = self.constants(anchor)?;
        let desired = nodes::desired(&self.config.nodes);
        if self.loaded.as_ref() == Some(&constants) {
            return self.fill_nodes(&desired);
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
        let stale = self.fill_nodes(&desired)?;
        self.program_log = None;
        if constants.log_level > 0 {
            // SAFETY: the logger owns the descriptor and both are dropped together.
            let log =
                unsafe { AsyncFd::register(loaded.logger()?) }.context("poll the log of the programs")?;
            self.program_log = Some(log);
        }
        self.pods.forget();
        self.loaded = Some(constants);
        Ok(stale)
    }

    fn fill_nodes(&self, desired: &HashMap<Addr, Node>) -> anyhow::Result<Vec<Addr>> {
        let mut map = Nodes::open(&self.pins)?;
        let Difference { set, remove } = Difference::read(&map, desired)?;
        for (key, node) in set {
            map.set(key, node)?;
        }
        Ok(remove)
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
            cluster: (cluster.network(), cluster.prefix_len()),
            subnet: (subnet.network(), subnet.prefix_len()),
            node_prefix: self.config.nodes.node_prefix(),
            vtep,
            anchor_ifindex: anchor.index,
            anchor_mac: own.mac(),
            log_level: self.program_log_level,
        })
    }

    /// Anchor and underlay get their programs; an underlay device of before loses them.
    fn attach(&mut self, programs: &Programs, anchor: &Link, wire: &Link) -> anyhow::Result<()> {
        for (role, link) in [(Role::Anchor, anchor), (Role::Wire, wire)] {
            let device = Device { name: &link.name, ifindex: link.index };
            if programs.attach_all(role, device)? == Attached::New {
                info!("attached to {} (index {})", link.name, link.index);
            }
        }
        if let Some(before) = self.underlay.replace(wire.index)
            && before != wire.index
        {
            info!("the underlay is {} now", wire.name);
        }
        let keep =
            Role::Wire.link_name(Device { name: &wire.name, ifindex: wire.index }, Role::Wire.hooks()[0]);
        for name in self.pins.links()? {
            if name.starts_with("wire_") && name != keep {
                self.pins.remove_link(&name)?;
            }
        }
        Ok(())
    }

    /// Masquerade towards the world, and the slow path's way through foreign chains that drop.
    fn packet_filter(&mut self) -> anyhow::Result<()> {
        let network = &self.config.network;
        let v4 = |net: IpNet| -> Option<Ipv4Net> {
            match net {
                IpNet::V4(net) => Some(net),
                IpNet::V6(_) => None,
            }
        };
        let cluster =
            v4(network.cidr).ok_or_else(|| anyhow!("network.cidr: this version carries IPv4 only"))?;
        let changed = if network.masquerade {
            masquerade::ensure(&Masquerade {
                subnets: v4(self.config.nodes.own().subnet).into_iter().collect(),
                cluster,
                nodes: self
                    .config
                    .nodes
                    .nodes()
                    .iter()
                    .filter_map(|node| match node.address {
                        IpAddr::V4(v4) => Some(v4),
                        IpAddr::V6(_) => None,
                    })
                    .collect(),
                port: network.port,
            })?
        } else {
            masquerade::remove()?
        };
        if changed {
            info!("masquerade to the world: {}", if network.masquerade { "set" } else { "removed" });
        }
        let found = forward::ensure(network.cidr)?;
        for chain in found.chains.iter().filter(|chain| chain.changed) {
            warn!("chain {chain} drops what is forwarded: inserted accepts for {}", network.cidr);
        }
        for warning in found.warnings {
            if self.warned.insert(warning.clone()) {
                warn!("{warning}");
            }
        }
        Ok(())
    }

    /// Tells the CNI plugin; written only when it differs.
    fn publish(&self, anchor: &Link, mtu: u32, mode: AttachMode) -> anyhow::Result<()> {
        let network = &self.config.network;
        let own = self.config.nodes.own();
        let subnet =
            |net: IpNet| Subnet { addr: net.network().into(), prefix_len: u32::from(net.prefix_len()) };
        let mut local = Local {
            ready: 1,
            attach_mode: mode as u32,
            mtu,
            anchor_ifindex: anchor.index,
            vni: network.vni,
            port: u32::from(network.port),
            subnet: [Subnet::default(); 2],
            gateway: [Addr::UNSPECIFIED; 2],
            cluster: [Subnet::default(); 2],
            vtep: own.address.into(),
            gateway_mac: own.mac(),
            node_name: [0; 62],
        };
        local.subnet[FAMILY_V4] = subnet(own.subnet);
        local.gateway[FAMILY_V4] = gateway(own.subnet).into();
        local.cluster[FAMILY_V4] = subnet(network.cidr);
        for (to, from) in local.node_name.iter_mut().zip(own.name.bytes()) {
            *to = from;
        }
        let mut table = LocalTable::open(&self.pins)?;
        if table.get()? != local {
            table.set(&local)?;
        }
        Ok(())
    }

    /// After a start that failed: removes what this agent has made, and nothing that was there before. `made` is the
    /// directory of pins that did not exist.
    pub(super) fn take_back(&mut self, made: Option<&Path>) {
        let report = |what: &str, error: &dyn std::fmt::Display| warn!("take back {what}: {error}");
        if let Some(name) = self.made_anchor.take() {
            match Netlink::open() {
                Ok(mut netlink) => {
                    if let Err(e) = netlink.delete_link(&name) {
                        report(&name, &e);
                    }
                    // The route to the anchor has gone with it.
                    if let Err(e) = netlink.delete_route(&crate::host::netlink::Route::unreachable(
                        self.config.nodes.own().subnet,
                    )) {
                        report("the route of the own subnet", &e);
                    }
                }
                Err(e) => report(&name, &e),
            }
        }
        if let Some(made) = made {
            if let Err(e) = pins::remove(made) {
                report("the pins", &e);
            }
            for result in [masquerade::remove().map(|_| ()), forward::remove().map(|_| ())] {
                if let Err(e) = result {
                    report("the packet filter rules", &e);
                }
            }
        }
    }
}
