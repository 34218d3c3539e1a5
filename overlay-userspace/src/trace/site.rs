//! The node that is asked: its maps, devices and names, read once, and how it speaks of them.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
};

use overlay_common::maps::{Addr, Endpoint, FAMILY_V4, Local, NODE_SELF, Node, Subnet};

use super::{TraceError, mac};
use crate::{
    cni::owner_text,
    datapath::{
        pins::Pins,
        replica::Frozen,
        tables::{Endpoints, LocalTable, Nodes},
    },
    host::netlink::{Link, Netlink},
    observe::names,
};

/// How many pods an error offers.
const OFFERED: usize = 8;

pub(super) struct Site {
    pub(super) pins: Pins,
    pub(super) netlink: Netlink,
    pub(super) local: Local,
    endpoints: Vec<(Addr, Endpoint)>,
    nodes: Vec<(Addr, Node)>,
    /// What Kubernetes calls the pods of this node, and the agent the nodes, by their tunnel addresses.
    pod_names: HashMap<IpAddr, String>,
    node_names: HashMap<IpAddr, String>,
}

/// A pod of this node.
#[derive(Clone)]
pub(super) struct Pod {
    pub(super) addr: Ipv4Addr,
    pub(super) endpoint: Endpoint,
    name: Option<String>,
}

/// An entry of `NODES`.
#[derive(Clone, Copy)]
pub(super) struct Peer {
    /// Its key.
    pub(super) key: Ipv4Addr,
    pub(super) node: Node,
}

fn v4(addr: IpAddr) -> Ipv4Addr {
    match addr {
        IpAddr::V4(addr) => addr,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    }
}

fn contains(subnet: &Subnet, addr: Ipv4Addr) -> bool {
    let net = ipnet::Ipv4Net::new(v4(subnet.addr.to_ip()), subnet.prefix_len as u8);
    net.is_ok_and(|net| net.contains(&addr))
}

impl Pod {
    /// For people: `pod 10.244.1.2 (shop/web-0)`, or where Kubernetes' name is not known, `(container 3f2a…, eth0)`.
    pub(super) fn text(&self) -> String {
        if let Some(name) = &self.name {
            return format!("pod {} ({name})", self.addr);
        }
        let (container, ifname) = owner_text(&self.endpoint.owner);
        format!("pod {} (container {}, {ifname})", self.addr, short(&container))
    }

    pub(super) fn facts(&self) -> serde_json::Value {
        let (container, ifname) = owner_text(&self.endpoint.owner);
        serde_json::json!({
            "address": self.addr, "name": self.name, "container": container, "ifname": ifname,
            "ifindex": self.endpoint.ifindex, "mac": mac(self.endpoint.mac),
        })
    }
}

impl Peer {
    pub(super) fn vtep(&self) -> Ipv4Addr {
        v4(self.node.vtep.to_ip())
    }

    pub(super) fn is_own(&self) -> bool {
        self.node.flags & NODE_SELF != 0
    }

    pub(super) fn facts(&self) -> serde_json::Value {
        serde_json::json!({
            "key": self.key, "prefix_len": self.node.prefix_len, "vtep": self.vtep(),
            "vtep_mac": mac(self.node.vtep_mac), "self": self.is_own(),
        })
    }
}

/// The beginning of a container's id, as runtimes show it.
fn short(container: &str) -> String {
    container.chars().take(13).collect()
}

impl Site {
    pub(super) fn read(pins: &Pins) -> Result<Self, TraceError> {
        let named = names::pods(pins)?.into_iter();
        Ok(Self {
            pod_names: named.filter_map(|pod| Some((pod.address, pod.full_name()?))).collect(),
            node_names: names::node_names(pins)?,
            pins: pins.clone(),
            local: LocalTable::open(pins)?.get()?,
            endpoints: Endpoints::open(pins)?.entries()?,
            nodes: Nodes::open(pins)?.entries()?,
            netlink: Netlink::open()?,
        })
    }

    /// This node's name.
    pub(super) fn name(&self) -> String {
        let name = self.local.node_name.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(name).into_owned()
    }

    pub(super) fn vtep(&self) -> Ipv4Addr {
        v4(self.local.vtep.to_ip())
    }

    /// How people speak of the node with this tunnel address.
    pub(super) fn node_text(&self, vtep: Ipv4Addr) -> String {
        let own = || (vtep == self.vtep()).then(|| self.name());
        match self.node_names.get(&vtep.into()).cloned().or_else(own) {
            Some(name) => format!("node {name} ({vtep})"),
            None => format!("node {vtep}"),
        }
    }

    fn pods(&self) -> impl Iterator<Item = Pod> {
        self.endpoints.iter().map(|(addr, endpoint)| {
            let addr = addr.to_ip();
            Pod { addr: v4(addr), endpoint: *endpoint, name: self.pod_names.get(&addr).cloned() }
        })
    }

    /// The pod that has this address, its devices complete or not.
    pub(super) fn pod_at(&self, addr: Ipv4Addr) -> Option<Pod> {
        self.pods().find(|pod| pod.addr == addr)
    }

    /// The pod that is called so: by its address, or the beginning of its container's id.
    pub(super) fn pod_called(&self, asked: &str) -> Result<Pod, TraceError> {
        if let Ok(addr) = asked.parse::<Ipv4Addr>()
            && let Some(pod) = self.pod_at(addr)
        {
            return Ok(pod);
        }
        let named = names::pods(&self.pins)?.into_iter().filter(|pod| pod.is_called(asked));
        let mut found: Vec<_> = named.filter_map(|pod| self.pod_at(v4(pod.address))).collect();
        if found.is_empty() {
            found = self.pods().filter(|pod| pod.is_called(asked)).collect();
        }
        match found.as_slice() {
            [pod] => Ok(pod.clone()),
            [] => Err(TraceError::NoPod { asked: asked.to_owned(), near: self.near(asked) }),
            several => Err(TraceError::Ambiguous {
                asked: asked.to_owned(),
                found: several.iter().take(OFFERED).map(Pod::text).collect(),
            }),
        }
    }

    /// Pods whose address or container begins most like what was asked for.
    fn near(&self, asked: &str) -> Vec<String> {
        let common = |text: &str| text.bytes().zip(asked.bytes()).take_while(|(a, b)| a == b).count();
        let mut pods: Vec<_> = self
            .pods()
            .map(|pod| {
                let (container, _) = owner_text(&pod.endpoint.owner);
                (common(&pod.addr.to_string()).max(common(&container)), pod)
            })
            .collect();
        pods.sort_by_key(|(common, pod)| (std::cmp::Reverse(*common), pod.addr));
        pods.iter().take(OFFERED).map(|(_, pod)| pod.text()).collect()
    }

    /// The entry of `NODES` that the programs find for an address.
    pub(super) fn peer_of(&self, frozen: &Frozen, addr: Ipv4Addr) -> Option<Peer> {
        self.peer_at(frozen.node_key(addr))
    }

    /// The entry of `NODES` with this very key.
    pub(super) fn peer_at(&self, key: Ipv4Addr) -> Option<Peer> {
        let found = self.nodes.iter().find(|(addr, _)| addr.to_ip() == key);
        found.map(|(_, node)| Peer { key, node: *node })
    }

    /// How many nodes there are, this one included.
    pub(super) fn node_count(&self) -> usize {
        let vteps: std::collections::BTreeSet<_> = self.nodes.iter().map(|(_, node)| node.vtep).collect();
        vteps.len()
    }

    /// Is this address of this node's own pod subnet?
    pub(super) fn is_of_pods(&self, addr: Ipv4Addr) -> bool {
        contains(&self.local.subnet[FAMILY_V4], addr)
    }

    /// Is this address of another node's pods?
    pub(super) fn is_remote(&self, addr: Ipv4Addr) -> bool {
        contains(&self.local.cluster[FAMILY_V4], addr) && !self.is_of_pods(addr)
    }

    /// A link by its index; none where it is gone.
    pub(super) fn link(&mut self, index: u32) -> Result<Option<Link>, TraceError> {
        Ok(self.netlink.link_by_index(index)?)
    }

    /// A link's name, or its number where it is gone.
    pub(super) fn device(&mut self, index: u32) -> Result<String, TraceError> {
        Ok(self.link(index)?.map_or_else(|| format!("#{index}"), |link| link.name))
    }

    /// The link that holds an address of this node.
    pub(super) fn holder(&mut self, addr: Ipv4Addr) -> Result<Option<Link>, TraceError> {
        let addresses = self.netlink.addresses(None)?;
        match addresses.iter().find(|address| address.net.addr() == addr) {
            Some(address) => self.link(address.index),
            None => Ok(None),
        }
    }
}

impl Pod {
    fn is_called(&self, asked: &str) -> bool {
        let (container, _) = owner_text(&self.endpoint.owner);
        !asked.is_empty() && container.starts_with(asked)
    }
}
