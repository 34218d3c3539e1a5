//! What a pass would change: desired against actual state, by the comparisons that the pass itself makes, and nothing is
//! written. Called by `overlay doctor`, with and without an agent on the node.
//!
//! What others may have changed by their own will (sysctls, foreign chains) is not drift: these have checks of their own.

use std::{collections::HashSet, fmt::Display};

use anyhow::Context as _;
use overlay_common::maps::{AttachMode, Local};

use super::{
    anchor::{Anchor, RouteDifference},
    families::Families,
    filter, local, node_routes,
    nodes::{self, Difference},
    pods,
    wire::{self, Found},
    xdp,
};
use crate::{
    config::{Attach, Config},
    datapath::{
        attach::{Attachment, Device, Programs, Role},
        kernel,
        object::check_pinned,
        pins::Pins,
        tables::{Endpoints, Nodes},
    },
    family::Family,
    host::{
        netlink::{Link, Netlink},
        nft::source_nat,
    },
    ports::HostPorts,
};

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Drift {
    /// What it is about.
    pub(crate) object: String,
    /// What is wrong with it.
    pub(crate) what: String,
}

/// The differences that were found.
struct Look<'a> {
    pins: &'a Pins,
    config: &'a Config,
    netlink: Netlink,
    found: Vec<Drift>,
}

/// Looks at everything. What cannot be looked at is found as well, since a pass would fail there.
pub(crate) fn look(pins: &Pins, config: &Config) -> anyhow::Result<Vec<Drift>> {
    let mut look = Look { pins, config, netlink: Netlink::open()?, found: Vec::new() };
    look.run()?;
    Ok(look.found)
}

/// How programs are attached on this kernel by this configuration.
pub(crate) fn attach_mode(config: &Config) -> anyhow::Result<AttachMode> {
    Ok(kernel::attach_mode(match config.network.attach {
        Attach::Auto => None,
        Attach::Tcx => Some(AttachMode::Tcx),
        Attach::Clsact => Some(AttachMode::Clsact),
    })?)
}

impl Look<'_> {
    fn add(&mut self, object: impl Display, what: impl Display) {
        self.found.push(Drift { object: object.to_string(), what: what.to_string() });
    }

    /// A part that fails does not hide the others.
    fn part(&mut self, object: &str, result: anyhow::Result<()>) {
        if let Err(error) = result {
            self.add(object, format_args!("cannot be compared: {error:#}"));
        }
    }

    fn run(&mut self) -> anyhow::Result<()> {
        let mode = attach_mode(self.config)?;
        let network = &self.config.network;
        let own = self.config.nodes.own().clone();
        let Found { tunnel, others } = wire::find(&mut self.netlink, self.config);
        let mtu = tunnel.as_ref().ok().and_then(|underlay| underlay.pod_mtu(network.mtu).ok());
        let mut underlays = Vec::new();
        for found in [tunnel].into_iter().chain(others) {
            match found {
                Ok(underlay) => underlays.push(underlay),
                Err(error) => self.add("underlay", error),
            }
        }
        let published = local::published(self.pins);
        // Where the underlay does not say: what it was.
        let mtu = mtu.or(published.map(|local| local.mtu)).unwrap_or_default();
        let anchor = Anchor {
            vni: network.vni,
            port: network.port,
            mac: own.mac(),
            mtu,
            families: Families::of(self.config),
            last_index: None,
        };
        let (device, faults) = anchor.look(&mut self.netlink)?;
        for (object, what) in faults {
            self.add(object, what);
        }
        let maps = self.maps();
        self.part("pinned maps", maps);
        if let Some(device) = &device {
            self.routes(&anchor, device)?;
            let attached = self.attached(mode, Role::Anchor, device);
            self.part(&device.name, attached);
            self.local(published.as_ref(), &local::desired(self.config, device.index, mtu, mode));
        }
        underlays.dedup_by_key(|underlay| underlay.link.index);
        let mut wires: Vec<_> = underlays.into_iter().map(|underlay| underlay.link).collect();
        // Of the first alone.
        if let Some(link) = wires.first()
            && let Some(what) = xdp::look(&mut self.netlink, self.pins, network.xdp, link)
        {
            self.add(format_args!("program xdp_wire on {}", link.name), what);
        }
        wires.extend(wire::exits(&mut self.netlink, self.config, &wires)?);
        for link in &wires {
            let attached = self.attached(mode, Role::Wire, link);
            self.part(&link.name, attached);
        }
        let pods = self.pods(mode);
        self.part("pods", pods);
        let filter = self.packet_filter();
        self.part("packet filter", filter);
        Ok(())
    }

    fn maps(&mut self) -> anyhow::Result<()> {
        check_pinned(self.pins)?;
        let desired = nodes::desired(self.config);
        let Difference { set, remove } = Difference::read(&Nodes::open(self.pins)?, &desired)?;
        for (key, node) in set {
            let (key, vtep) = (key.to_ip(), node.vtep.to_ip());
            self.add(
                format_args!("map NODES, {key}"),
                format_args!("the entry that leads to VTEP {vtep} is missing or wrong"),
            );
        }
        for key in remove {
            self.add(format_args!("map NODES, {}", key.to_ip()), "is of no node of the cluster");
        }
        Ok(())
    }

    fn local(&mut self, published: Option<&Local>, wanted: &Local) {
        match published {
            None => self.add("map LOCAL", "no agent has published this node: new pods cannot start"),
            Some(found) if found != wanted => {
                self.add("map LOCAL", "new pods get other settings than the configuration says");
            }
            Some(_) => {}
        }
    }

    fn routes(&mut self, anchor: &Anchor, device: &Link) -> anyhow::Result<()> {
        let by = (!self.config.network.masquerade_to_nodes).then_some(device.index);
        let table = node_routes::TABLE;
        for family in Family::ALL {
            let wanted = anchor.routes(family, device.index);
            let RouteDifference { add, remove } = RouteDifference::read(&mut self.netlink, family, &wanted)?;
            for route in add {
                self.add(format_args!("route {route}"), "is missing or wrong");
            }
            for route in remove {
                self.add(format_args!("route {route}"), "is of an earlier configuration");
            }
            let nodes = node_routes::difference(&mut self.netlink, &self.config.nodes, family, by)?;
            for route in nodes.add {
                self.add(format_args!("route {route} in table {table}"), "is missing or wrong");
            }
            for route in nodes.remove {
                self.add(format_args!("route {route} in table {table}"), "is of no node of the cluster");
            }
            if let Some(source) = nodes.lead {
                self.add(format_args!("rule from {source} to table {table}"), "is missing");
            }
            for source in nodes.release {
                self.add(format_args!("rule from {source} to table {table}"), "is not of this node's subnet");
            }
        }
        Ok(())
    }

    fn attached(&mut self, mode: AttachMode, role: Role, link: &Link) -> anyhow::Result<()> {
        let programs = Programs::new(self.pins, mode);
        let device = Device { name: &link.name, ifindex: link.index };
        for &hook in role.hooks() {
            let what = match programs.look(&mut self.netlink, role, device, hook)? {
                Attachment::Current => continue,
                Attachment::Absent => "is not attached",
                Attachment::Outdated => "is one of an earlier load",
                Attachment::OtherMode => "is attached by the other of tcx and clsact",
            };
            self.add(format_args!("program {} on {}", hook.name(), link.name), what);
        }
        Ok(())
    }

    fn pods(&mut self, mode: AttachMode) -> anyhow::Result<()> {
        let endpoints = Endpoints::open(self.pins)?.entries()?;
        let links = self.netlink.links()?;
        // A pod has an entry for each of its addresses.
        let devices: HashSet<u32> = endpoints.iter().map(|(_, endpoint)| endpoint.ifindex).collect();
        for link in links.iter().filter(|link| devices.contains(&link.index)) {
            self.attached(mode, Role::Pod, link)?;
        }
        let subnets = self.config.nodes.own().subnets;
        for (object, what) in pods::look(&mut self.netlink, &endpoints, &links, &subnets)? {
            self.add(object, what);
        }
        Ok(())
    }

    fn packet_filter(&mut self) -> anyhow::Result<()> {
        let families = Families::of(self.config);
        for nat in Family::ALL.into_iter().filter_map(|family| filter::wanted(self.config, &families, family))
        {
            if !source_nat::is_loaded(&nat)? {
                let table = format!("nft table {} overlay", nat.family().nft());
                self.add(table, "is missing, or not as it was made");
            }
        }
        let plan = HostPorts::lock(self.pins)?.plan(self.pins).context("read host ports")?;
        for family in plan.rewrite {
            let table = format!("nft table {} overlay-ports", family.nft());
            self.add(table, "is missing, or not as it was made");
        }
        for (port, _) in plan.stale {
            self.add(format_args!("map HOST_PORTS, {port}"), "no lease stands behind it");
        }
        Ok(())
    }
}
