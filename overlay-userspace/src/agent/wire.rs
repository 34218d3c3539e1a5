//! The underlay: the devices that hold this node's tunnel addresses, those that the routes to its peers lead by, and what has
//! become of the former since the last pass, which is worth a line in the log.
//!
//! A peer's packets may come in by any device. Those that leave by a device are the only hint that others come in there; what
//! comes in elsewhere is decapsulated by the anchor, with the same checks.

use std::{collections::BTreeSet, net::IpAddr};

use log::Level;

use crate::{
    cni::is_pod_device,
    config::Config,
    family::OfFamily as _,
    host::{
        netlink::{Link, Netlink, NetlinkError},
        underlay::{Underlay, UnderlayError},
    },
};

/// Where the tunnel addresses are that are in use.
pub(super) struct Found {
    /// The one that decides about the pods' MTU, and without which there is no tunnel.
    pub(super) tunnel: Result<Underlay, UnderlayError>,
    /// That of the other family, where some peer needs it.
    pub(super) others: Vec<Result<Underlay, UnderlayError>>,
}

/// Looks for them.
pub(super) fn find(netlink: &mut Netlink, config: &Config) -> Found {
    let mut find = |address| Underlay::find(netlink, address, config.network.interface.as_deref());
    let vtep = config.vtep();
    Found {
        tunnel: find(vtep),
        others: config.vteps().into_iter().filter(|address| *address != vtep).map(find).collect(),
    }
}

/// The Ethernet devices by which packets to peers leave, beside those of [`find`] (`known`): of a node with several NICs whose
/// routes use more than the one that holds its address. A configured interface is the only one.
pub(super) fn exits(
    netlink: &mut Netlink,
    config: &Config,
    known: &[Link],
) -> Result<Vec<Link>, NetlinkError> {
    if config.network.interface.is_some() {
        return Ok(Vec::new());
    }
    let mut links = netlink.links()?;
    // No way to a peer leads through the tunnel, or by a pod.
    links.retain(|link| {
        let other = known.iter().all(|known| known.index != link.index);
        let tunnel = link.kind.as_deref() == Some("vxlan");
        other && link.mac.is_some() && !link.loopback && !tunnel && !is_pod_device(&link.name)
    });
    // Most nodes have one NIC: nothing to ask for.
    if links.is_empty() {
        return Ok(links);
    }
    let own = config.nodes.own().addresses;
    let mut indices = BTreeSet::new();
    for vtep in peers(config) {
        if let Some(address) = own.get(vtep.family()) {
            indices.extend(netlink.exits(*address, vtep)?);
        }
    }
    links.retain(|link| indices.contains(&link.index));
    Ok(links)
}

/// The addresses that tunnel packets to peers go to.
pub(super) fn peers(config: &Config) -> impl Iterator<Item = IpAddr> {
    let (own, preferred) = (config.nodes.own(), config.network.underlay.preferred());
    let families = config.network.cidrs.by_family();
    config.nodes.peers().flat_map(move |peer| {
        let vteps: BTreeSet<_> = families
            .iter()
            .filter_map(|(family, _)| Some(peer.tunnel(family, own, preferred)?.vtep))
            .collect();
        vteps
    })
}

/// The device that carries the tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wire {
    name: String,
    index: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Up,
    NoCarrier,
    Down,
}

impl From<&Link> for Wire {
    fn from(link: &Link) -> Self {
        let state = match (link.up, link.running) {
            (false, _) => State::Down,
            (true, false) => State::NoCarrier,
            (true, true) => State::Up,
        };
        Self { name: link.name.clone(), index: link.index, state }
    }
}

impl Wire {
    /// What is new compared with `before`, which is `None` on the first look.
    pub(super) fn news(&self, before: Option<&Self>) -> Vec<(Level, String)> {
        let Self { name, index, state } = self;
        let mut news = Vec::new();
        if let Some(before) = before {
            if before.index != *index {
                news.push((
                    Level::Info,
                    format!("the underlay is {name} (index {index}) now, was index {}", before.index),
                ));
            } else if before.name != *name {
                news.push((Level::Info, format!("the underlay {} is called {name} now", before.name)));
            }
        }
        if before.map_or(State::Up, |before| before.state) != *state {
            news.push(match state {
                State::Up => (Level::Info, format!("the underlay {name} is up again")),
                State::NoCarrier => (Level::Warn, format!("the underlay {name} has no carrier")),
                State::Down => (Level::Warn, format!("the underlay {name} is down")),
            });
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(name: &str, index: u32, state: State) -> Wire {
        Wire { name: name.into(), index, state }
    }

    #[track_caller]
    fn said(before: Option<&Wire>, now: &Wire, expected: &[&str]) {
        let news: Vec<_> = now.news(before).into_iter().map(|(_, text)| text).collect();
        assert_eq!(news, expected);
    }

    #[test]
    fn each_change_is_said_and_nothing_else() {
        let up = wire("eth0", 3, State::Up);
        let down = wire("eth0", 3, State::Down);
        said(None, &up, &[]);
        said(None, &down, &["the underlay eth0 is down"]);
        said(Some(&up), &up, &[]);
        said(Some(&up), &down, &["the underlay eth0 is down"]);
        said(Some(&down), &up, &["the underlay eth0 is up again"]);
        said(Some(&up), &wire("eth0", 3, State::NoCarrier), &["the underlay eth0 has no carrier"]);
        said(Some(&up), &wire("eth1", 3, State::Up), &["the underlay eth0 is called eth1 now"]);
        said(Some(&up), &wire("eth0", 9, State::Up), &["the underlay is eth0 (index 9) now, was index 3"]);
        said(
            Some(&down),
            &wire("eth1", 9, State::Up),
            &["the underlay is eth1 (index 9) now, was index 3", "the underlay eth1 is up again"],
        );
    }
}
