//! A node without overlay: what Flannel makes of a node, with the kernel's own vxlan device, for tests that both
//! understand each other.
//!
//! A vxlan device (VNI and port as given, no learning) with fixed forwarding, neighbour and route entries for each
//! peer, and a `cni0` bridge for the pods: the commands that flanneld and its plugins issue, by `ip` and `bridge`.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::{Lab, Lan, Namespace, Node, NodeEntry, exec};

/// IPv4 (20) + UDP (8) + VXLAN (8) + inner Ethernet (14).
const OVERHEAD: u32 = 50;

/// A node that runs Flannel's data path.
#[derive(Debug)]
pub struct FlannelNode {
    name: String,
    namespace: Namespace,
    address: Ipv4Addr,
    subnet: Ipv4Net,
    mtu: u32,
    /// Host number of the next pod in the subnet.
    next_pod: u32,
}

/// A pod behind a [`FlannelNode`]'s bridge.
#[derive(Debug)]
pub struct FlannelPod {
    namespace: Namespace,
    addr: Ipv4Addr,
}

impl FlannelPod {
    /// Its namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its address.
    pub fn addr(&self) -> Ipv4Addr {
        self.addr
    }
}

impl FlannelNode {
    /// The vxlan device.
    pub const DEVICE: &'static str = "flannel.1";

    /// A node with the underlay address and prefix length `underlay` on `lan`, whose pods live in `subnet`.
    #[track_caller]
    pub fn new(
        lab: &Lab,
        lan: &Lan,
        name: &str,
        underlay: Ipv4Net,
        subnet: Ipv4Net,
        wire: FlannelWire,
    ) -> Self {
        let namespace = lab.namespace(name);
        lan.attach(&namespace, Node::DEVICE);
        Self::in_namespace(&namespace, name, underlay, subnet, wire)
    }

    /// As [`FlannelNode::new`], of a namespace that has its `eth0` already.
    #[track_caller]
    pub fn in_namespace(
        namespace: &Namespace,
        name: &str,
        underlay: Ipv4Net,
        subnet: Ipv4Net,
        wire: FlannelWire,
    ) -> Self {
        let namespace = namespace.clone();
        namespace.sysctl("net.ipv4.ip_forward", "1");
        let (device, address) = (Self::DEVICE, underlay.addr());
        let link = namespace.ip_json(&format!("link show dev {}", Node::DEVICE));
        let underlay_mtu = link[0]["mtu"].as_u64().expect("a device has an MTU");
        let mtu = u32::try_from(underlay_mtu).expect("an MTU is small") - OVERHEAD;
        let FlannelWire { vni, port } = wire;
        let first = subnet.hosts().next().expect("a node subnet has host addresses");
        namespace.ip_batch(&format!(
            "addr add {underlay} dev {eth}\n\
             link add name {device} mtu {mtu} txqueuelen 0 type vxlan id {vni} dev {eth} local {address} \
                dstport {port} nolearning\n\
             addr add {network}/32 dev {device}\n\
             link set dev {device} up\n\
             link add name cni0 mtu {mtu} type bridge\n\
             addr add {first}/{prefix} dev cni0\n\
             link set dev cni0 up\n",
            eth = Node::DEVICE,
            network = subnet.network(),
            prefix = subnet.prefix_len(),
        ));
        Self { name: name.to_owned(), namespace, address, subnet, mtu, next_pod: 2 }
    }

    /// Makes `peer` known, as flanneld does for each node: its VTEP's MAC, where it is, and its subnet.
    #[track_caller]
    pub fn add_peer(&self, peer: &NodeEntry, vtep_mac: &str) {
        let (device, network) = (Self::DEVICE, peer.subnet.network());
        self.namespace.ip(&format!("neigh replace {network} lladdr {vtep_mac} dev {device} nud permanent"));
        let mut fdb = self.namespace.command("bridge");
        fdb.args(["fdb", "replace", vtep_mac, "dev", device, "dst"]).arg(peer.address.to_string());
        exec::must(fdb.args(["self", "permanent"]), "");
        self.namespace.ip(&format!("route replace {} via {network} dev {device} onlink", peer.subnet));
    }

    /// Adds flanneld's rules (its iptables mode): masquerade towards everything that is no pod of `cluster`, and accepts
    /// for forwarded packets of pods.
    #[track_caller]
    pub fn masquerade(&self, cluster: Ipv4Net) {
        let own = self.subnet;
        let rules = format!(
            "*filter\n:FLANNEL-FWD - [0:0]\n-A FORWARD -j FLANNEL-FWD\n\
             -A FLANNEL-FWD -s {cluster} -j ACCEPT\n-A FLANNEL-FWD -d {cluster} -j ACCEPT\nCOMMIT\n\
             *nat\n:FLANNEL-POSTRTG - [0:0]\n-A POSTROUTING -j FLANNEL-POSTRTG\n\
             -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN\n\
             -A FLANNEL-POSTRTG -s {own} -d {cluster} -j RETURN\n\
             -A FLANNEL-POSTRTG -s {cluster} -d {own} -j RETURN\n\
             -A FLANNEL-POSTRTG ! -s {cluster} -d {own} -j RETURN\n\
             -A FLANNEL-POSTRTG -s {cluster} ! -d 224.0.0.0/4 -j MASQUERADE --random-fully\n\
             -A FLANNEL-POSTRTG ! -s {cluster} -d {cluster} -j MASQUERADE --random-fully\nCOMMIT\n"
        );
        exec::must(self.namespace.command("iptables-nft-restore").arg("--noflush"), &rules);
    }

    /// Its row in the cluster file, with the MAC that peers have to send to.
    #[track_caller]
    pub fn entry(&self) -> NodeEntry {
        NodeEntry {
            name: self.name.clone(),
            address: self.address,
            subnet: self.subnet,
            vtep_mac: Some(self.vtep_mac()),
        }
    }

    /// The MAC of its vxlan device.
    #[track_caller]
    pub fn vtep_mac(&self) -> String {
        let link = self.namespace.ip_json(&format!("link show dev {}", Self::DEVICE));
        link[0]["address"].as_str().expect("a vxlan device has a MAC").to_owned()
    }

    /// Adds a pod behind the bridge, as the `bridge` plugin does with Flannel's configuration (`hairpinMode`).
    #[track_caller]
    pub fn add_pod(&mut self, lab: &Lab, name: &str) -> FlannelPod {
        let namespace = lab.namespace(&format!("{}-{name}", self.name));
        let number = self.next_pod;
        self.next_pod += 1;
        let addr = Ipv4Addr::from(u32::from(self.subnet.network()) + number);
        let gateway = self.subnet.hosts().next().expect("a node subnet has host addresses");
        let (mtu, veth) = (self.mtu, format!("veth{number}"));
        let pod = namespace.name();
        self.namespace.ip_batch(&format!(
            "link add name {veth} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {pod}\n\
             link set dev {veth} master cni0\n\
             link set dev {veth} type bridge_slave hairpin on\n\
             link set dev {veth} up\n"
        ));
        namespace.ip_batch(&format!(
            "addr add {addr}/{prefix} dev eth0\n\
             link set dev eth0 up\n\
             route add default via {gateway} dev eth0\n",
            prefix = self.subnet.prefix_len(),
        ));
        FlannelPod { namespace, addr }
    }

    /// Its host namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its underlay address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The subnet of its pods.
    pub fn subnet(&self) -> Ipv4Net {
        self.subnet
    }
}

/// What both ends of the tunnel have to agree on.
#[derive(Debug, Clone, Copy)]
pub struct FlannelWire {
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
}

impl Default for FlannelWire {
    fn default() -> Self {
        Self { vni: 1, port: 8472 }
    }
}
