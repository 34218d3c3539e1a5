//! What the programs look things up in: devices, addresses and neighbours in a network namespace of this process, maps on a
//! bpffs of its own, in both families. All of it dies with the process, however that ends.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use overlay_common::maps::{Addr, Endpoint, NODE_CHECKSUM, NODE_HOST, NODE_SELF, Node, Owner};
use overlay_userspace::{
    datapath::{
        object::{self, Constants, Loaded},
        pins::Pins,
        tables::{Endpoints, Nodes},
    },
    family::ByFamily,
};

pub(crate) type Mac = [u8; 6];

/// An address of each family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Both {
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
}

const fn both(v4: [u8; 4], v6: [u16; 8]) -> Both {
    Both {
        v4: Ipv4Addr::new(v4[0], v4[1], v4[2], v4[3]),
        v6: Ipv6Addr::new(v6[0], v6[1], v6[2], v6[3], v6[4], v6[5], v6[6], v6[7]),
    }
}

pub(crate) const VTEP: Both = both([192, 0, 2, 1], [0x2001, 0xdb8, 0, 1, 0, 0, 0, 1]);
/// Reached over IPv4.
pub(crate) const PEER: Both = both([192, 0, 2, 2], [0x2001, 0xdb8, 0, 1, 0, 0, 0, 2]);
/// Reached over IPv6.
pub(crate) const PEER_V6: Both = both([192, 0, 2, 4], [0x2001, 0xdb8, 0, 1, 0, 0, 0, 4]);
/// Its neighbour is not resolved.
pub(crate) const UNRESOLVED: Both = both([192, 0, 2, 3], [0x2001, 0xdb8, 0, 1, 0, 0, 0, 3]);
pub(crate) const STRANGER: Both = both([192, 0, 2, 66], [0x2001, 0xdb8, 0, 1, 0, 0, 0, 0x66]);

pub(crate) const POD: Both = both([10, 244, 1, 5], [0xfd00, 0x244, 0, 1, 0, 0, 0, 5]);
pub(crate) const OTHER_POD: Both = both([10, 244, 1, 6], [0xfd00, 0x244, 0, 1, 0, 0, 0, 6]);
/// Leased, but its devices are not complete.
pub(crate) const UNREADY_POD: Both = both([10, 244, 1, 7], [0xfd00, 0x244, 0, 1, 0, 0, 0, 7]);
pub(crate) const NO_POD: Both = both([10, 244, 1, 99], [0xfd00, 0x244, 0, 1, 0, 0, 0, 0x99]);
pub(crate) const GATEWAY: Both = both([10, 244, 1, 1], [0xfd00, 0x244, 0, 1, 0, 0, 0, 1]);
pub(crate) const REMOTE_POD: Both = both([10, 244, 2, 9], [0xfd00, 0x244, 0, 2, 0, 0, 0, 9]);
pub(crate) const UNRESOLVED_POD: Both = both([10, 244, 3, 9], [0xfd00, 0x244, 0, 3, 0, 0, 0, 9]);
pub(crate) const V6_POD: Both = both([10, 244, 4, 9], [0xfd00, 0x244, 0, 4, 0, 0, 0, 9]);
/// Behind a node that wants outer checksums.
pub(crate) const PLAIN_POD: Both = both([10, 244, 5, 9], [0xfd00, 0x244, 0, 5, 0, 0, 0, 9]);
pub(crate) const NOWHERE: Both = both([10, 244, 77, 9], [0xfd00, 0x244, 0, 0x77, 0, 0, 0, 9]);
pub(crate) const WORLD: Both = both([198, 51, 100, 7], [0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 7]);

pub(crate) const ANCHOR_MAC: Mac = [0x0a, 0x6f, 192, 0, 2, 1];
pub(crate) const PEER_MAC: Mac = [0x0a, 0x6f, 192, 0, 2, 2];
pub(crate) const WIRE_MAC: Mac = [0x02, 0, 0, 0, 0, 0x11];
pub(crate) const NEXT_HOP_MAC: Mac = [0x02, 0, 0, 0, 0, 0x22];
pub(crate) const POD_MAC: Mac = [0x0a, 0x58, 10, 244, 1, 5];
pub(crate) const OTHER_POD_MAC: Mac = [0x0a, 0x58, 10, 244, 1, 6];

pub(crate) const PORT: u16 = 8472;
pub(crate) const VNI: u32 = 1;

/// Devices by interface index.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Devices {
    pub(crate) pod: u32,
    pub(crate) wire: u32,
    pub(crate) anchor: u32,
}

/// Everything, loaded and filled.
pub(crate) struct Bed {
    pub(crate) devices: Devices,
    pub(crate) pins: Pins,
    /// Keys of `NODES` that are not this node's, with where they lead.
    nodes: Vec<(IpNet, IpAddr, Mac)>,
    _loaded: Loaded,
}

impl Bed {
    /// Moves this process, which must have one thread, into namespaces of its own.
    pub(crate) fn new() -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
            .context("make namespaces: run it as root")?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .context("keep mounts to this process")?;
        // Over a directory that is there on every machine; nobody else sees it.
        let root = PathBuf::from("/sys/fs/bpf");
        mount(Some("bpf"), &root, Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mount bpffs on {}", root.display()))?;
        network()?;
        let devices = Devices { pod: ifindex("pod")?, wire: ifindex("wire")?, anchor: ifindex("overlay.1")? };
        let pins = Pins::new(root.join("fuzz"));
        let loaded = object::load(&pins, &constants(devices.anchor)?).context("load the programs")?;
        let nodes = fill(&pins, devices)?;
        Ok(Self { devices, pins, nodes, _loaded: loaded })
    }

    /// VTEP and inner MAC of the other node that an inner destination belongs to.
    pub(crate) fn way(&self, inner: IpAddr) -> Option<(IpAddr, Mac)> {
        let of = self.nodes.iter().find(|(net, ..)| net.contains(&inner));
        of.map(|(_, vtep, mac)| (*vtep, *mac))
    }
}

fn constants(anchor_ifindex: u32) -> Result<Constants> {
    let net = |text: &str| text.parse::<IpNet>().with_context(|| format!("parse {text}"));
    Ok(Constants {
        vni: VNI,
        port: PORT,
        cluster: ByFamily { v4: Some(net("10.244.0.0/16")?), v6: Some(net("fd00:244::/48")?) },
        subnet: ByFamily { v4: Some(net("10.244.1.0/24")?), v6: Some(net("fd00:244:0:1::/64")?) },
        node_prefix: ByFamily { v4: Some(24), v6: Some(64) },
        vtep: ByFamily { v4: Some(VTEP.v4.into()), v6: Some(VTEP.v6.into()) },
        anchor_ifindex,
        anchor_mac: ANCHOR_MAC,
        plain_pods: false,
        stack_flows: true,
        flow_entries: 4096,
        main_table_only: true,
        nodes_masqueraded: false,
        xdp_wire: Some(WIRE_MAC),
        log_level: 0,
    })
}

fn network() -> Result<()> {
    let mac = |mac: Mac| mac.map(|byte| format!("{byte:02x}")).join(":");
    // Before any device is made: none of them sends on its own.
    for (setting, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv6/conf/default/forwarding", "1"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/default/addr_gen_mode", "1"),
    ] {
        let path = Path::new("/proc/sys/net").join(setting);
        std::fs::write(&path, value).with_context(|| format!("write {}", path.display()))?;
    }
    ip("link set lo up")?;
    ip(&format!("link add wire address {} type veth peer name far", mac(WIRE_MAC)))?;
    ip("link add pod type veth peer name inside")?;
    ip("link add other type veth peer name inside2")?;
    ip(&format!("link add overlay.1 address {} type vxlan external dstport {PORT}", mac(ANCHOR_MAC)))?;
    for device in ["wire", "far", "pod", "inside", "other", "inside2", "overlay.1"] {
        ip(&format!("link set {device} up"))?;
    }
    ip(&format!("addr add {}/24 dev wire", VTEP.v4))?;
    ip(&format!("addr add {}/64 dev wire nodad", VTEP.v6))?;
    for peer in [PEER, PEER_V6] {
        for address in [IpAddr::from(peer.v4), peer.v6.into()] {
            ip(&format!("neigh replace {address} lladdr {} dev wire nud permanent", mac(NEXT_HOP_MAC)))?;
        }
    }
    Ok(())
}

/// Fills the maps; the ways to other nodes, narrowest first.
fn fill(pins: &Pins, devices: Devices) -> Result<Vec<(IpNet, IpAddr, Mac)>> {
    let mut nodes = Nodes::open(pins)?;
    let mut ways = Vec::new();
    let mut set = |net: IpNet, vtep: IpAddr, mac: Mac, flags: u8| -> Result<()> {
        let prefix_len = net.prefix_len();
        let node = Node { vtep: vtep.into(), vtep_mac: mac, prefix_len, flags, neigh_epoch: 0 };
        nodes.set(net.network().into(), node)?;
        if flags & NODE_SELF == 0 {
            ways.push((net, vtep, mac));
        }
        Ok(())
    };
    let mut node = |subnet: u8, addresses: Both, vtep: IpAddr, mac: Mac, flags: u8| -> Result<()> {
        for address in [IpAddr::from(addresses.v4), addresses.v6.into()] {
            set(address.into(), vtep, mac, flags | NODE_HOST)?;
        }
        let v4 = IpNet::new(Ipv4Addr::new(10, 244, subnet, 0).into(), 24).context("make a subnet")?;
        let v6 = Ipv6Addr::new(0xfd00, 0x244, 0, subnet.into(), 0, 0, 0, 0);
        set(v4, vtep, mac, flags)?;
        set(IpNet::new(v6.into(), 64).context("make a subnet")?, vtep, mac, flags)
    };
    node(1, VTEP, VTEP.v4.into(), ANCHOR_MAC, NODE_SELF)?;
    node(2, PEER, PEER.v4.into(), PEER_MAC, 0)?;
    node(3, UNRESOLVED, UNRESOLVED.v4.into(), [0x0a, 0x6f, 192, 0, 2, 3], 0)?;
    node(4, PEER_V6, PEER_V6.v6.into(), [0x0a, 0x6f, 192, 0, 2, 4], 0)?;
    let plain = both([192, 0, 2, 5], [0x2001, 0xdb8, 0, 1, 0, 0, 0, 5]);
    node(5, plain, plain.v6.into(), [0x0a, 0x6f, 192, 0, 2, 5], NODE_CHECKSUM)?;

    let mut endpoints = Endpoints::open(pins)?;
    let mut pod = |addresses: Both, ifindex: u32, mac: Mac| -> Result<()> {
        let owner = Owner { container: [0; 64], ifname: [0; 16] };
        let endpoint = Endpoint { ifindex, network: 0, mac, gateway_mac: ANCHOR_MAC, owner };
        for address in [Addr::from(IpAddr::from(addresses.v4)), Addr::from(IpAddr::from(addresses.v6))] {
            ensure!(endpoints.lease(address, endpoint)?, "the address is taken");
        }
        Ok(())
    };
    pod(POD, devices.pod, POD_MAC)?;
    pod(OTHER_POD, ifindex("other")?, OTHER_POD_MAC)?;
    pod(UNREADY_POD, 0, [0; 6])?;
    Ok(ways)
}

fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().context("start ip")?;
    ensure!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(())
}

fn ifindex(name: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(name).with_context(|| format!("find the device {name}"))
}
