//! What a pass would change: desired against actual state, by the comparisons that the pass itself makes, and nothing is
//! written. Called by `overlay doctor`, with and without an agent on the node.
//!
//! What others may have changed by their own will (sysctls, foreign chains) is not drift: these have checks of their own.

use std::fmt::Display;

use anyhow::Context as _;
use overlay_common::maps::{AttachMode, Local};

use super::{
    anchor::{Anchor, RouteDifference},
    filter, local, node_routes,
    nodes::{self, Difference},
    pods, xdp,
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
    host::{
        netlink::{Link, Netlink},
        nft::source_nat,
        underlay::Underlay,
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
        let underlay = match Underlay::find(&mut self.netlink, own.address, network.interface.as_deref()) {
            Ok(underlay) => Some(underlay),
            Err(error) => {
                self.add("underlay", error);
                None
            }
        };
        let mtu = underlay.as_ref().and_then(|underlay| underlay.pod_mtu(network.mtu).ok());
        let published = local::published(self.pins);
        // Where the underlay does not say: what it was.
        let mtu = mtu.or(published.map(|local| local.mtu)).unwrap_or_default();
        let anchor = Anchor {
            vni: network.vni,
            port: network.port,
            mac: own.mac(),
            mtu,
            cluster: network.cidr,
            subnet: own.subnet,
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
        if let Some(underlay) = &underlay {
            let attached = self.attached(mode, Role::Wire, &underlay.link);
            self.part(&underlay.link.name, attached);
            if let Some(what) = xdp::look(&mut self.netlink, self.pins, network.xdp, &underlay.link) {
                self.add(format_args!("program xdp_wire on {}", underlay.link.name), what);
            }
        }
        let pods = self.pods(mode);
        self.part("pods", pods);
        let filter = self.packet_filter();
        self.part("packet filter", filter);
        Ok(())
    }

    fn maps(&mut self) -> anyhow::Result<()> {
        check_pinned(self.pins)?;
        let desired = nodes::desired(&self.config.nodes);
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
        let RouteDifference { add, remove } =
            RouteDifference::read(&mut self.netlink, &anchor.routes(device.index))?;
        for route in add {
            self.add(format_args!("route {route}"), "is missing or wrong");
        }
        for route in remove {
            self.add(format_args!("route {route}"), "is of an earlier configuration");
        }
        let by = (!self.config.network.masquerade_to_nodes).then_some(device.index);
        let nodes = node_routes::difference(&mut self.netlink, &self.config.nodes, by)?;
        let table = node_routes::TABLE;
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
        for (_, endpoint) in &endpoints {
            if let Some(link) = links.iter().find(|link| link.index == endpoint.ifindex) {
                self.attached(mode, Role::Pod, link)?;
            }
        }
        for (object, what) in
            pods::look(&mut self.netlink, &endpoints, &links, self.config.nodes.own().subnet)?
        {
            self.add(object, what);
        }
        Ok(())
    }

    fn packet_filter(&mut self) -> anyhow::Result<()> {
        if !source_nat::is_loaded(&filter::wanted(self.config)?)? {
            self.add("nft table ip overlay", "is missing, or not as it was made");
        }
        let plan = HostPorts::lock(self.pins)?.plan(self.pins).context("read host ports")?;
        if plan.rewrite {
            self.add("nft table ip overlay-ports", "is missing, or not as it was made");
        }
        for (port, _) in plan.stale {
            self.add(format_args!("map HOST_PORTS, {port}"), "no lease stands behind it");
        }
        Ok(())
    }
}
