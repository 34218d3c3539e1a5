//! What addresses and devices of this node are called: pods and nodes by their names (`POD_NAMES`, `NODE_NAMES`), devices
//! by the kernel's.
//!
//! A snapshot, which is read anew when it is old and something is asked. Pods of other nodes have no name here, but the name
//! of their node.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use overlay_common::maps::{Addr, Endpoint, FAMILY_V4, NODE_HOST};

use crate::{
    cni::owner_text,
    datapath::{
        DatapathError,
        pins::Pins,
        tables::{Endpoints, LocalTable, NodeNames, Nodes, PodNames},
    },
    host::netlink::Netlink,
};

/// After this a snapshot is read anew.
const OLD: Duration = Duration::from_secs(10);
/// As often as that, for a device that is not in it.
const AGAIN: Duration = Duration::from_millis(500);

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its address.
    pub address: IpAddr,
    /// Kubernetes' namespace and name, where the runtime has told them.
    pub name: Option<(String, String)>,
    /// The CNI container id, abbreviated where it is longer than 64 bytes.
    pub container: String,
    /// The device inside of the pod.
    pub ifname: String,
    /// The device on the node; 0 while the pod is being connected.
    pub ifindex: u32,
}

impl Pod {
    fn new(address: Addr, endpoint: &Endpoint, name: Option<(String, String)>) -> Self {
        let (container, ifname) = owner_text(&endpoint.owner);
        Self { address: address.to_ip(), name, container, ifname, ifindex: endpoint.ifindex }
    }

    /// `namespace/name`, where it is known.
    pub fn full_name(&self) -> Option<String> {
        self.name.as_ref().map(|(namespace, name)| format!("{namespace}/{name}"))
    }

    /// Is this what a person calls it: address, name, namespace and name, or container id (or its beginning, as runtimes
    /// abbreviate it)?
    pub fn is_called(&self, text: &str) -> bool {
        let named = |(namespace, name): &(String, String)| match text.split_once('/') {
            Some((wanted, rest)) => namespace == wanted && name == rest,
            None => name == text,
        };
        text.parse() == Ok(self.address)
            || self.name.as_ref().is_some_and(named)
            || self.container == text
            || text.len() >= 12 && self.container.starts_with(text)
    }
}

/// The names of this node's surroundings.
pub struct Names {
    pins: Pins,
    /// This node's own name.
    own: String,
    pods: HashMap<IpAddr, Pod>,
    devices: HashMap<u32, String>,
    /// Names of nodes by subnet and address.
    nodes: HashMap<IpNet, String>,
    /// The lengths of prefixes among these, and the longest first.
    prefixes: BTreeSet<std::cmp::Reverse<u8>>,
    read: Instant,
}

impl Names {
    /// Reads what is pinned.
    pub fn read(pins: &Pins) -> anyhow::Result<Self> {
        let mut names = Self {
            pins: pins.clone(),
            own: String::new(),
            pods: HashMap::new(),
            devices: HashMap::new(),
            nodes: HashMap::new(),
            prefixes: BTreeSet::new(),
            read: Instant::now(),
        };
        names.reread()?;
        Ok(names)
    }

    fn reread(&mut self) -> anyhow::Result<()> {
        let local = LocalTable::open(&self.pins)?.get()?;
        let own: Vec<u8> = local.node_name.into_iter().take_while(|byte| *byte != 0).collect();
        self.own = String::from_utf8_lossy(&own).into_owned();
        self.pods = pods(&self.pins)?.into_iter().map(|pod| (pod.address, pod)).collect();
        self.devices = Netlink::open()?.links()?.into_iter().map(|link| (link.index, link.name)).collect();
        let called: HashMap<Addr, String> =
            node_names(&self.pins)?.into_iter().map(|(vtep, name)| (vtep.into(), name)).collect();
        self.nodes.clear();
        self.prefixes.clear();
        for (key, node) in Nodes::open(&self.pins)?.entries()? {
            let Ok(net) = IpNet::new(key.to_ip(), node.prefix_len) else { continue };
            let name = called.get(&node.vtep).cloned().unwrap_or_else(|| node.vtep.to_ip().to_string());
            self.prefixes.insert(std::cmp::Reverse(net.prefix_len()));
            self.nodes.insert(net.trunc(), name);
        }
        // Before the agent has filled the map.
        let subnet = local.subnet[FAMILY_V4];
        if let Ok(net) = IpNet::new(subnet.addr.to_ip(), subnet.prefix_len as u8) {
            self.prefixes.insert(std::cmp::Reverse(net.prefix_len()));
            self.nodes.entry(net.trunc()).or_insert_with(|| self.own.clone());
        }
        self.read = Instant::now();
        Ok(())
    }

    /// Reads anew what is old, or lacks this device.
    pub fn refresh(&mut self, ifindex: u32) -> anyhow::Result<()> {
        let age = self.read.elapsed();
        if age > OLD || age > AGAIN && !self.devices.contains_key(&ifindex) {
            self.reread()?;
        }
        Ok(())
    }

    /// This node's name.
    pub fn own(&self) -> &str {
        &self.own
    }

    /// The pod of this node that has an address.
    pub fn pod(&self, address: IpAddr) -> Option<&Pod> {
        self.pods.get(&address)
    }

    /// The pod behind a device of this node.
    pub fn pod_of(&self, ifindex: u32) -> Option<&Pod> {
        self.pods.values().find(|pod| pod.ifindex == ifindex)
    }

    /// The pods that a person may mean.
    pub fn pods_called<'a>(&'a self, text: &'a str) -> impl Iterator<Item = &'a Pod> {
        self.pods.values().filter(move |pod| pod.is_called(text))
    }

    /// All pods of this node.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    /// The name of the node to which an address belongs, its own or one of its pods'.
    pub fn node(&self, address: IpAddr) -> Option<&str> {
        let nets = self.prefixes.iter().filter_map(|prefix| IpNet::new(address, prefix.0).ok());
        nets.map(|net| net.trunc()).find_map(|net| self.nodes.get(&net)).map(String::as_str)
    }

    /// Whether a node is called so.
    pub fn is_node(&self, name: &str) -> bool {
        self.own == name || self.nodes.values().any(|node| node == name)
    }

    /// The name of a device.
    pub fn device(&self, ifindex: u32) -> Option<&str> {
        self.devices.get(&ifindex).map(String::as_str)
    }
}

/// The pods of this node, with their names.
pub fn pods(pins: &Pins) -> Result<Vec<Pod>, DatapathError> {
    let mut names: HashMap<Addr, (String, String)> = HashMap::new();
    for (address, name) in PodNames::all(pins)? {
        let (namespace, name) = name.as_strs();
        names.insert(address, (namespace.to_owned(), name.to_owned()));
    }
    let entries = Endpoints::open(pins)?.entries()?;
    Ok(entries
        .iter()
        .map(|(address, endpoint)| Pod::new(*address, endpoint, names.remove(address)))
        .collect())
}

/// What nodes are called, by their tunnel addresses. Such that the agent knows by their addresses alone are missing.
pub fn node_names(pins: &Pins) -> Result<HashMap<IpAddr, String>, DatapathError> {
    let vteps = Nodes::open(pins)?.entries()?;
    let vteps: BTreeSet<Addr> = vteps
        .into_iter()
        .filter(|(_, node)| node.flags & NODE_HOST != 0)
        .map(|(_, node)| node.vtep)
        .collect();
    let names = NodeNames::all(pins)?.into_iter().filter(|(vtep, _)| vteps.contains(vtep));
    Ok(names.map(|(vtep, name)| (vtep.to_ip(), name.as_str().to_owned())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_known_by_everything_that_people_call_it() {
        let pod = Pod {
            address: [10, 244, 0, 2].into(),
            name: Some(("shop".into(), "web-0".into())),
            container: "0123456789abcdef0123".into(),
            ifname: "eth0".into(),
            ifindex: 7,
        };
        for text in ["10.244.0.2", "web-0", "shop/web-0", "0123456789abcdef0123", "0123456789ab"] {
            assert!(pod.is_called(text), "{text}");
        }
        for text in ["", "10.244.0.3", "web", "other/web-0", "shop/web", "01234567"] {
            assert!(!pod.is_called(text), "{text}");
        }
        let nameless = Pod { name: None, ..pod };
        assert!(!nameless.is_called("web-0"));
    }
}
