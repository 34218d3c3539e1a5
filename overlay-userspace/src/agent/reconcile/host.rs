//! The part of a pass that is about the host: devices, addresses, routes, settings, the packet filter; each family by itself.

use anyhow::{Context as _, anyhow};
use log::log;

use super::{
    super::{
        anchor::Anchor,
        families::Families,
        forwarding, host_ports, local, names, node_routes,
        wire::{self, Found, Wire},
    },
    Pass, Reconciler, Scope,
};
use crate::{
    cni::is_pod_device,
    datapath::{settings, tables::Endpoints},
    family::Family,
    host::{
        netlink::{Link, Netlink},
        underlay::Underlay,
    },
};

impl Reconciler {
    /// The devices that carry the tunnel, that of the node's tunnel address first; none where that is not to be had.
    pub(super) fn look_at_underlay(
        &mut self,
        netlink: &mut Netlink,
        pass: &mut Pass,
        scope: Scope,
    ) -> anyhow::Result<Vec<Link>> {
        let Found { tunnel, others } = wire::find(netlink, &self.config);
        for error in others.iter().filter_map(|found| found.as_ref().err()) {
            // The one family does without the other, at the start as well.
            pass.problems.push(anyhow!("{error} (it is for peers that are reached by that family alone)"));
        }
        let Some(tunnel) = pass.step(tunnel.map_err(Into::into))? else { return Ok(Vec::new()) };
        if let Some(mtu) = pass.step(tunnel.pod_mtu(self.config.network.mtu).map_err(Into::into))? {
            self.mtu = mtu;
        }
        let mut links = vec![tunnel.link];
        for Underlay { link, .. } in others.into_iter().flatten() {
            if !links.iter().any(|known| known.index == link.index) {
                links.push(link);
            }
        }
        let wires: Vec<_> = links.iter().map(Wire::from).collect();
        for (number, wire) in wires.iter().enumerate() {
            for (level, line) in wire.news(self.wires.get(number)) {
                log!(level, "{line}");
            }
        }
        self.wires = wires;
        if scope > Scope::Pods
            && let Some(exits) = pass.step(wire::exits(netlink, &self.config, &links).map_err(Into::into))?
        {
            self.exits = exits;
        }
        links.extend_from_slice(&self.exits);
        Ok(links)
    }

    pub(super) fn say_who_is_apart(&mut self) {
        let nodes = &self.config.nodes;
        match names::list(nodes.unreachable()) {
            None => self.apart.over(),
            Some(names) => {
                let own = nodes.own().addresses;
                self.apart.is(format!(
                    "no tunnel to {names}: no tunnel address of a family that this node has ({own}); give one of the two \
                     such an address"
                ));
            }
        }
    }

    /// Device, addresses and routes. `None` where there is no device.
    pub(super) fn ensure_anchor(
        &self,
        netlink: &mut Netlink,
        pass: &mut Pass,
    ) -> anyhow::Result<Option<Link>> {
        let network = &self.config.network;
        let last_index = match &self.loaded {
            Some(constants) => Some(constants.anchor_ifindex),
            None => local::published(&self.pins).map(|local| local.anchor_ifindex),
        };
        let anchor = Anchor {
            vni: network.vni,
            port: network.port,
            mac: self.config.nodes.own().mac(),
            mtu: self.mtu,
            families: Families::of(&self.config),
            last_index,
        };
        let Some((device, made)) = pass.step(anchor.ensure(netlink))? else { return Ok(None) };
        // Gone as far as the plugin knows before it is gone.
        let local = local::desired(&self.config, device.index, self.mtu, self.attach_mode()?);
        pass.step(local::withdraw(&self.pins, &local).map_err(Into::into))?;
        for family in Family::ALL {
            pass.step(anchor.ensure_family(netlink, (&device, made), family))?;
        }
        Ok(Some(device))
    }

    /// On all devices that packets of pods pass, in the families that are used. Pods' own are left out of a pass that is
    /// about them: they have been given it when they were made.
    pub(super) fn ensure_forwarding(
        &self,
        netlink: &mut Netlink,
        pass: &mut Pass,
        anchor: Option<&Link>,
        wires: &[Link],
        scope: Scope,
    ) -> anyhow::Result<()> {
        let families = Families::of(&self.config);
        let pods: &[String] = if scope == Scope::Pods { &[] } else { self.pods.devices() };
        let note = |path: &str, before: &str| self.remember(path, before);
        for family in families.used() {
            if family == Family::Ipv6 {
                let wires = wires.iter().map(|link| link.name.as_str());
                let kept = forwarding::keep_advertised(netlink, wires, &note);
                // Without it the node may lose its default route: better no pods of this family.
                if pass.step(kept.context("keep the routes from router advertisements"))?.is_none() {
                    continue;
                }
            }
            let devices = anchor.into_iter().chain(wires).map(|link| &link.name).chain(pods);
            pass.step(forwarding::ensure(family, devices.map(String::as_str), &note))?;
        }
        if let Some(anchor) = anchor.filter(|_| families.uses(Family::Ipv4)) {
            pass.step(forwarding::without_redirects(&anchor.name, &note))?;
        }
        Ok(())
    }

    /// The ways of pods to nodes that the stack has translated.
    pub(super) fn ensure_node_routes(
        &self,
        netlink: &mut Netlink,
        pass: &mut Pass,
        anchor: &Link,
    ) -> anyhow::Result<()> {
        let by = (!self.config.network.masquerade_to_nodes).then_some(anchor.index);
        for family in Family::ALL {
            let routes = node_routes::reconcile(netlink, &self.config.nodes, family, by);
            pass.step(routes.map_err(Into::into))?;
        }
        Ok(())
    }

    /// All parts of the packet filter.
    pub(super) fn ensure_filter(&mut self, pass: &mut Pass) -> anyhow::Result<()> {
        for result in self.filter.ensure(&self.config) {
            pass.step(result)?;
        }
        Ok(())
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

    pub(super) fn reconcile_host_ports(&self, netlink: &mut Netlink) -> anyhow::Result<()> {
        let endpoints = Endpoints::open(&self.pins)?.entries()?;
        host_ports::reconcile(&self.pins, &endpoints, &netlink.links()?)
    }
}
