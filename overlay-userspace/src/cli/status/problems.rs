//! What keeps this node, or one of its pods, from working, as far as pins and kernel tell: what `overlay status` calls
//! problems.
//!
//! Pods come and go while this looks: what is wrong with one counts only when a second look finds it again.

use overlay_common::{maps::Local, reason::Hook};

use crate::{
    agent::is_anchor,
    datapath::{attached::Inventory, pins::Pins, tables::Endpoints},
    host::netlink::Netlink,
};

/// One line each, with its remedy.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Problems {
    /// Of the node: it is not ready.
    pub(super) node: Vec<String>,
    /// Of single pods.
    pub(super) pods: Vec<String>,
}

/// What helps against most of them.
const REMEDY: &str = "a running agent puts that right";

impl Problems {
    /// Looks for them.
    pub(super) fn look(pins: &Pins, local: &Local) -> Self {
        if local.ready != 1 {
            let why = "the agent has not completed its first start on this node: its log says why";
            return Self { node: vec![why.into()], pods: Vec::new() };
        }
        let first = Self::once(pins, local);
        if first == Self::default() {
            return first;
        }
        let mut again = Self::once(pins, local);
        again.node.retain(|problem| first.node.contains(problem));
        again.pods.retain(|problem| first.pods.contains(problem));
        again
    }

    fn once(pins: &Pins, local: &Local) -> Self {
        let mut found = Self::default();
        if let Err(error) = found.compare(pins, local) {
            found.node.push(format!("{error:#}"));
        }
        found
    }

    fn compare(&mut self, pins: &Pins, local: &Local) -> anyhow::Result<()> {
        // Before the programs: a pod that is added meanwhile is not missed there.
        let endpoints = Endpoints::open(pins)?.entries()?;
        let inventory = Inventory::read(pins)?;
        let mut netlink = Netlink::open()?;
        // XDP is a guard that the settings may leave out.
        for hook in Hook::ALL.into_iter().filter(|hook| *hook != Hook::XdpWire) {
            if !inventory.programs.values().any(|program| program.pinned && program.name == hook.name()) {
                self.node.push(format!("the program {} is not pinned: {REMEDY}", hook.name()));
            }
        }
        let links = netlink.links()?;
        let anchor = links.iter().find(|link| link.index == local.anchor_ifindex && is_anchor(link));
        if let Some(anchor) = anchor {
            if !anchor.up {
                self.node.push(format!("the anchor device {} is down: {REMEDY}", anchor.name));
            }
            let addresses = netlink.addresses(Some(anchor.index))?;
            let with_subnet =
                local.gateway.iter().zip(local.subnet).filter(|(_, subnet)| subnet.prefix_len != 0);
            for gateway in with_subnet.map(|(gateway, _)| gateway.to_ip()) {
                if !addresses.iter().any(|address| address.net.addr() == gateway) {
                    self.node.push(format!("{} lacks the gateway address {gateway}: {REMEDY}", anchor.name));
                }
            }
            for hook in [Hook::FromHost, Hook::FromTunnel] {
                if !inventory.has(hook, anchor.index) {
                    self.node.push(format!("{} is not attached to {}: {REMEDY}", hook.name(), anchor.name));
                }
            }
        } else {
            self.node.push(format!(
                "the anchor device (index {}) is not in this network namespace: {REMEDY}, or run this in the node's",
                local.anchor_ifindex
            ));
        }
        let from_wire = Hook::FromWire.name();
        let wire = inventory.attachments.iter().any(|one| one.program == from_wire && one.device.is_some());
        if !wire {
            self.node.push(format!("{from_wire} is attached to no underlay device: {REMEDY}"));
        }
        for (address, endpoint) in endpoints.iter().filter(|(_, endpoint)| endpoint.ifindex != 0) {
            let address = address.to_ip();
            let Some(link) = links.iter().find(|link| link.index == endpoint.ifindex) else {
                self.pods.push(format!(
                    "pod {address}: its device (index {}) is gone: delete the pod",
                    endpoint.ifindex
                ));
                continue;
            };
            if !link.up {
                self.pods.push(format!("pod {address}: {} is down: {REMEDY}", link.name));
            }
            for hook in [Hook::FromPod, Hook::ToPod] {
                if !inventory.has(hook, link.index) {
                    let program = hook.name();
                    self.pods
                        .push(format!("pod {address}: {program} is not attached to {}: {REMEDY}", link.name));
                }
            }
        }
        Ok(())
    }
}
