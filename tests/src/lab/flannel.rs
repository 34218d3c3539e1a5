//! A node without overlay: what Flannel makes of a node, with the kernel's own vxlan devices, for tests that both
//! understand each other.
//!
//! For each family a vxlan device (VNI and port as given, no learning) with fixed forwarding, neighbour and route entries for each
//! peer, and a `cni0` bridge for the pods: the commands that flanneld and its plugins issue, by `ip` and `bridge`. Pods of a
//! family are reached over the underlay of the same family. Checksums of the devices are the kernel's defaults: over IPv6 the
//! outer UDP checksum is computed, and packets without one are dropped.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use overlay_userspace::family::{ByFamily, Family};

use super::families::{self, first_host, host};
use super::{Families, Lab, Lan, Listed, Namespace, Node, NodeEntry, exec};

/// Outer IP header, UDP (8), VXLAN (8) and inner Ethernet (14).
const fn overhead(family: Family) -> u32 {
    match family {
        Family::Ipv4 => 50,
        Family::Ipv6 => 70,
    }
}

/// A node that runs Flannel's data path.
#[derive(Debug)]
pub struct FlannelNode {
    name: String,
    namespace: Namespace,
    addresses: ByFamily<IpAddr>,
    subnets: ByFamily<IpNet>,
    /// That of pods, which Flannel takes from the underlay and the overhead of IPv4 in either family.
    mtu: u32,
    /// Host number of the next pod in the subnets.
    next_pod: u32,
}

/// A pod behind a [`FlannelNode`]'s bridge.
#[derive(Debug)]
pub struct FlannelPod {
    namespace: Namespace,
    addrs: ByFamily<IpAddr>,
}

impl FlannelPod {
    /// Its namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its addresses.
    pub fn addrs(&self) -> ByFamily<IpAddr> {
        self.addrs
    }

    /// Its address of this family, which it must have.
    #[track_caller]
    pub fn addr_of(&self, family: Family) -> IpAddr {
        *self.addrs.get(family).unwrap_or_else(|| panic!("{} has no {family} address", self.namespace.name()))
    }

    /// Its IPv4 address, which it must have.
    #[track_caller]
    pub fn addr(&self) -> Ipv4Addr {
        let IpAddr::V4(addr) = self.addr_of(Family::Ipv4) else { unreachable!("an IPv4 address") };
        addr
    }
}

impl FlannelNode {
    /// The vxlan device of a family.
    pub const fn device(family: Family) -> &'static str {
        match family {
            Family::Ipv4 => "flannel.1",
            Family::Ipv6 => "flannel-v6.1",
        }
    }

    /// A node with the underlay addresses and prefix lengths `underlay` on `lan`, whose pods live in `subnets`.
    #[track_caller]
    pub fn new(
        lab: &Lab,
        lan: &Lan,
        name: &str,
        underlay: ByFamily<IpNet>,
        subnets: ByFamily<IpNet>,
        wire: FlannelWire,
    ) -> Self {
        let namespace = lab.namespace(name);
        lan.attach(&namespace, Node::DEVICE);
        Self::in_namespace(&namespace, name, underlay, subnets, wire)
    }

    /// As [`FlannelNode::new`], of a namespace that has its `eth0` already.
    #[track_caller]
    pub fn in_namespace(
        namespace: &Namespace,
        name: &str,
        underlay: ByFamily<IpNet>,
        subnets: ByFamily<IpNet>,
        FlannelWire { vni, port }: FlannelWire,
    ) -> Self {
        let namespace = namespace.clone();
        let link = namespace.ip_json(&format!("link show dev {}", Node::DEVICE));
        let underlay_mtu = link[0]["mtu"].as_u64().expect("a device has an MTU");
        let underlay_mtu = u32::try_from(underlay_mtu).expect("an MTU is small");
        let families = Families::of(&subnets);
        let mtu =
            underlay_mtu - overhead(if families.has(Family::Ipv4) { Family::Ipv4 } else { Family::Ipv6 });
        namespace.ip_batch(&format!("link add name cni0 mtu {mtu} type bridge\nlink set dev cni0 up\n"));
        let addresses = underlay.map(|_, net| net.addr());
        for (family, subnet) in subnets.iter() {
            let device = Self::device(family);
            let address = underlay.get(family).unwrap_or_else(|| panic!("{name} has no {family} address"));
            namespace.sysctl(forwarding(family), "1");
            let nodad = if family == Family::Ipv6 { " nodad" } else { "" };
            namespace.ip_batch(&format!(
                "addr add {address} dev {eth}{nodad}\n\
                 link add name {device} mtu {mtu} txqueuelen 0 type vxlan id {vni} dev {eth} local {local} \
                    dstport {port} nolearning\n\
                 addr add {network}/{whole} dev {device}{nodad}\n\
                 link set dev {device} up\n\
                 addr add {first}/{prefix} dev cni0{nodad}\n",
                eth = Node::DEVICE,
                mtu = underlay_mtu - overhead(family),
                local = address.addr(),
                network = subnet.network(),
                whole = subnet.max_prefix_len(),
                first = first_host(*subnet),
                prefix = subnet.prefix_len(),
            ));
        }
        Self { name: name.to_owned(), namespace, addresses, subnets, mtu, next_pod: 2 }
    }

    /// Makes `peer` known, as flanneld does for each node: in each family that both have the MAC of its VTEP, where it is, and its
    /// subnet.
    #[track_caller]
    pub fn add_peer(&self, peer: &NodeEntry, vtep_macs: &ByFamily<String>) {
        for (family, _) in self.subnets.iter() {
            let (Some(subnet), Some(address)) = (peer.subnet.of(family), peer.address.of(family)) else {
                continue;
            };
            let (device, option) = (Self::device(family), families::option(family));
            let mac = vtep_macs.get(family).unwrap_or_else(|| panic!("{} has no {family} VTEP", peer.name));
            let network = subnet.network();
            self.namespace
                .ip(&format!("{option} neigh replace {network} lladdr {mac} dev {device} nud permanent"));
            let mut fdb = self.namespace.command("bridge");
            fdb.args(["fdb", "replace", mac, "dev", device, "dst"]).arg(address.to_string());
            exec::must(fdb.args(["self", "permanent"]), "");
            self.namespace.ip(&format!("{option} route replace {subnet} via {network} dev {device} onlink"));
        }
    }

    /// Adds flanneld's rules (its iptables mode) in the family of `cluster`: masquerade towards everything that is no pod of
    /// `cluster`, and accepts for forwarded packets of pods.
    #[track_caller]
    pub fn masquerade(&self, cluster: IpNet) {
        let (program, family, multicast) = match cluster {
            IpNet::V4(_) => ("iptables-nft-restore", Family::Ipv4, "224.0.0.0/4"),
            IpNet::V6(_) => ("ip6tables-nft-restore", Family::Ipv6, "ff00::/8"),
        };
        let own = self.subnet_of(family);
        let rules = format!(
            "*filter\n:FLANNEL-FWD - [0:0]\n-A FORWARD -j FLANNEL-FWD\n\
             -A FLANNEL-FWD -s {cluster} -j ACCEPT\n-A FLANNEL-FWD -d {cluster} -j ACCEPT\nCOMMIT\n\
             *nat\n:FLANNEL-POSTRTG - [0:0]\n-A POSTROUTING -j FLANNEL-POSTRTG\n\
             -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN\n\
             -A FLANNEL-POSTRTG -s {own} -d {cluster} -j RETURN\n\
             -A FLANNEL-POSTRTG -s {cluster} -d {own} -j RETURN\n\
             -A FLANNEL-POSTRTG ! -s {cluster} -d {own} -j RETURN\n\
             -A FLANNEL-POSTRTG -s {cluster} ! -d {multicast} -j MASQUERADE --random-fully\n\
             -A FLANNEL-POSTRTG ! -s {cluster} -d {cluster} -j MASQUERADE --random-fully\nCOMMIT\n"
        );
        exec::must(self.namespace.command(program).arg("--noflush"), &rules);
    }

    /// Its row in the cluster file, with the MACs that peers have to send to.
    #[track_caller]
    pub fn entry(&self) -> NodeEntry {
        let (first, macs) = (Family::Ipv4, self.vtep_macs());
        NodeEntry {
            name: self.name.clone(),
            address: Listed::ordered(&self.addresses, first),
            subnet: Listed::ordered(&self.subnets, first),
            vtep_mac: Some(Listed::new(macs.values().cloned())),
        }
    }

    /// The MACs of its vxlan devices.
    #[track_caller]
    pub fn vtep_macs(&self) -> ByFamily<String> {
        self.subnets.map(|family, _| {
            let link = self.namespace.ip_json(&format!("link show dev {}", Self::device(family)));
            link[0]["address"].as_str().expect("a vxlan device has a MAC").to_owned()
        })
    }

    /// Adds a pod behind the bridge, as the `bridge` plugin does with Flannel's configuration (`hairpinMode`).
    #[track_caller]
    pub fn add_pod(&mut self, lab: &Lab, name: &str) -> FlannelPod {
        let namespace = lab.namespace(&format!("{}-{name}", self.name));
        let number = self.next_pod;
        self.next_pod += 1;
        let (mtu, veth) = (self.mtu, format!("veth{number}"));
        let pod = namespace.name();
        self.namespace.ip_batch(&format!(
            "link add name {veth} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {pod}\n\
             link set dev {veth} master cni0\n\
             link set dev {veth} type bridge_slave hairpin on\n\
             link set dev {veth} up\n"
        ));
        namespace.ip("link set dev eth0 up");
        for (family, subnet) in self.subnets.iter() {
            let (addr, gateway) = (host(*subnet, number), first_host(*subnet));
            namespace.ip(&format!("addr add {addr}/{} dev eth0", subnet.prefix_len()));
            let option = families::option(family);
            namespace.ip(&format!("{option} route add default via {gateway} dev eth0"));
        }
        FlannelPod { namespace, addrs: self.subnets.map(|_, subnet| host(*subnet, number)) }
    }

    /// Its host namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its families.
    pub fn families(&self) -> Families {
        Families::of(&self.subnets)
    }

    /// Its underlay address of this family, which it must have.
    #[track_caller]
    pub fn address_of(&self, family: Family) -> IpAddr {
        *self.addresses.get(family).unwrap_or_else(|| panic!("{} has no {family} address", self.name))
    }

    /// The subnet of its pods in this family, which it must have.
    #[track_caller]
    pub fn subnet_of(&self, family: Family) -> IpNet {
        *self.subnets.get(family).unwrap_or_else(|| panic!("{} has no {family} subnet", self.name))
    }

    /// The IPv4 subnet of its pods, which it must have.
    #[track_caller]
    pub fn subnet(&self) -> Ipv4Net {
        let IpNet::V4(subnet) = self.subnet_of(Family::Ipv4) else { unreachable!("an IPv4 subnet") };
        subnet
    }
}

/// The sysctl by which a node forwards packets.
const fn forwarding(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "net.ipv4.ip_forward",
        Family::Ipv6 => "net.ipv6.conf.all.forwarding",
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
