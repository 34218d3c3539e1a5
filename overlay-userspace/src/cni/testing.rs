//! A node for tests: a network and a mount namespace of its own, with a bpffs, the loaded programs, a `LOCAL` entry that
//! says ready, and the gateway address. All of it is gone when the test ends, however it ends.

use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd as _, AsRawFd as _},
    path::PathBuf,
};

use ipnet::IpNet;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use overlay_common::maps::{Addr, AttachMode, Endpoint, Local, Subnet};
use serde_json::{Value, json};

use super::{
    add, answer, del,
    env::{Attachment, Request},
    failure::Failure,
    owner,
    types::{Conf, result::Added},
    wanted::Wanted,
};
use crate::{
    datapath::{
        attach::{Device, Programs, Role},
        object::{self, Constants},
        pins::Pins,
        tables::{Endpoints, LocalTable},
    },
    family::{ByFamily, OfFamily as _},
    host::netns::{
        NetNs,
        testing::{fresh_netns, in_fresh_netns, ip, ip_json, run},
    },
};

pub(super) const CLUSTER: &str = "10.244.0.0/16";
pub(super) const GATEWAY: &str = "10.244.1.1";
/// A subnet of the IPv6 range of the cluster, and its gateway.
pub(super) const SUBNET6: &str = "fd00:244:0:1::/64";
pub(super) const GATEWAY6: &str = "fd00:244:0:1::1";
const CLUSTER6: &str = "fd00:244::/48";
pub(super) const GATEWAY_MAC: [u8; 6] = [0x0a, 0x6f, 192, 0, 2, 1];
const MTU: u32 = 1450;

pub(super) struct TestNode {
    pub(super) pins: Pins,
}

/// Runs a test on a node whose pods live in `subnet`, which begins at 10.244.1.0.
pub(super) fn on_a_node(subnet: &str, test: impl FnOnce(&TestNode) + Send) {
    on_a_node_of(&[subnet], test);
}

/// The address, the range, and the first host of a pod subnet, as the tests have it.
fn ranges(subnet: IpNet) -> (IpNet, IpAddr) {
    let (cluster, gateway) = match subnet {
        IpNet::V4(_) => (CLUSTER, GATEWAY),
        IpNet::V6(_) => (CLUSTER6, GATEWAY6),
    };
    (cluster.parse().unwrap(), gateway.parse().unwrap())
}

/// Runs a test on a node whose pods live in these subnets, which begin at 10.244.1.0 and at fd00:244:0:1::; that of the
/// primary family first.
pub(super) fn on_a_node_of(subnets: &[&str], test: impl FnOnce(&TestNode) + Send) {
    let subnets: Vec<IpNet> = subnets.iter().map(|subnet| subnet.parse().unwrap()).collect();
    in_fresh_netns(|| {
        let node = TestNode { pins: private_pins() };
        // Stands for the anchor device: something that holds the gateway addresses.
        ip("link add gw0 type veth peer name gw0p");
        let by_family = ByFamily::from_values(subnets.iter().copied()).unwrap();
        run("sysctl -qw net.ipv6.conf.gw0p.disable_ipv6=1");
        if by_family.v4.is_some() {
            run("sysctl -qw net.ipv4.ip_forward=1");
        }
        if by_family.v6.is_some() {
            run("sysctl -qw net.ipv6.conf.gw0.addr_gen_mode=1 net.ipv6.conf.all.forwarding=1");
        } else {
            run("sysctl -qw net.ipv6.conf.gw0.disable_ipv6=1");
        }
        for subnet in &subnets {
            add_gateway(ranges(*subnet).1);
        }
        ip("link set gw0 up");
        let vtep = Ipv4Addr::new(192, 0, 2, 1);
        let constants = Constants {
            vni: 1,
            port: 8472,
            cluster: by_family.map(|_, subnet| ranges(*subnet).0),
            subnet: by_family,
            node_prefix: by_family.map(|_, subnet| subnet.prefix_len()),
            vtep: ByFamily { v4: Some(vtep.into()), v6: None },
            anchor_ifindex: 1,
            anchor_mac: GATEWAY_MAC,
            plain_pods: false,
            stack_flows: true,
            flow_entries: 1024,
            main_table_only: false,
            nodes_masqueraded: false,
            xdp_wire: None,
            log_level: 0,
        };
        object::load(&node.pins, &constants).unwrap();
        // As filters, because tcx links would cost each test two grace periods.
        let anchor = ip_json("link show dev gw0")[0]["ifindex"].as_u64().unwrap() as u32;
        let programs = Programs::new(&node.pins, AttachMode::Clsact);
        programs.attach_all(Role::Anchor, Device { name: "gw0", ifindex: anchor }).unwrap();
        node.change_local(|local| {
            local.ready = 1;
            local.anchor_ifindex = anchor;
            local.attach_mode = AttachMode::Auto as u32;
            local.mtu = MTU;
            local.vtep = vtep.into();
            local.gateway_mac = GATEWAY_MAC;
        });
        node.carry(&subnets);
        test(&node);
    });
}

fn add_gateway(gateway: IpAddr) {
    let nodad = if gateway.is_ipv6() { "nodad" } else { "" };
    ip(&format!("address replace {}/{} dev gw0 {nodad}", gateway, IpNet::from(gateway).prefix_len()));
}

/// A pin root on a bpffs that only the calling thread and its children see; empty.
pub(super) fn private_pins() -> Pins {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none).unwrap();
    Pins::default()
}

impl TestNode {
    /// From now on the node carries the families of these subnets, the primary one first.
    pub(super) fn carry(&self, subnets: &[IpNet]) {
        self.change_local(|local| {
            (local.subnet, local.cluster) = ([Subnet::default(); 2], [Subnet::default(); 2]);
            local.gateway = [Addr::UNSPECIFIED; 2];
            for subnet in subnets {
                let family = subnet.family().index();
                let (cluster, gateway) = ranges(*subnet);
                add_gateway(gateway);
                let prefix =
                    |net: IpNet| Subnet { addr: net.network().into(), prefix_len: net.prefix_len().into() };
                (local.subnet[family], local.cluster[family]) = (prefix(*subnet), prefix(cluster));
                local.gateway[family] = gateway.into();
            }
            local.primary = subnets[0].family().index() as u8;
        });
    }

    pub(super) fn change_local(&self, change: impl FnOnce(&mut Local)) {
        let mut table = LocalTable::open(&self.pins).unwrap();
        let mut local = table.get().unwrap();
        change(&mut local);
        table.set(&local).unwrap();
    }

    pub(super) fn add(&self, container: &str, ifname: &str, pod: &Pod) -> Result<Added, Failure> {
        self.add_with(container, ifname, pod, json!({}))
    }

    /// ADD with more keys in the configuration.
    pub(super) fn add_with(
        &self,
        container: &str,
        ifname: &str,
        pod: &Pod,
        keys: Value,
    ) -> Result<Added, Failure> {
        let conf = Conf::parse(self.pinned(conf(keys)).to_string().as_bytes())?;
        add::add(&attachment(container, ifname), &pod.path(), Wanted::default(), None, &conf)
    }

    /// Any verb, as the entry point answers it.
    pub(super) fn call(&self, request: &Request, conf: &Value) -> Result<Option<Value>, Failure> {
        answer(request, self.pinned(conf.clone()).to_string().as_bytes())
    }

    fn pinned(&self, mut conf: Value) -> Value {
        conf["pins"] = json!(self.pins.root());
        conf
    }

    pub(super) fn del(&self, container: &str, ifname: &str) -> Result<(), Failure> {
        del::del(&attachment(container, ifname), &self.pins)
    }

    pub(super) fn entries(&self) -> Vec<(Addr, Endpoint)> {
        Endpoints::open(&self.pins).unwrap().entries().unwrap()
    }

    /// Everything that ADD changes on a node, to be compared.
    pub(super) fn state(&self) -> Value {
        let mut links = self.pins.links().unwrap();
        links.sort();
        let mut devices: Vec<_> =
            ip_json("link show").as_array().unwrap().iter().map(|link| link["ifname"].clone()).collect();
        devices.sort_by_key(ToString::to_string);
        json!({
            "devices": devices,
            "routes": [ip_json("route show"), ip_json("-6 route show")],
            "neighbours": ip_json("neighbour show"),
            "rules": ip_json("rule show"),
            "proxies": run("ip -6 neighbour show proxy"),
            "links": links,
            "endpoints": self.entries().iter().map(|(addr, _)| addr.to_ip().to_string()).collect::<Vec<_>>(),
        })
    }
}

impl Added {
    /// The first address.
    pub(super) fn address(&self) -> String {
        self.ips[0].address.to_string()
    }

    /// What the pod reaches by the gateways.
    pub(super) fn routes(&self) -> Vec<String> {
        self.ips.iter().flat_map(|ip| &ip.routes).map(ToString::to_string).collect()
    }
}

pub(super) fn attachment(container: &str, ifname: &str) -> Attachment {
    Attachment::new(container.into(), ifname.into()).unwrap()
}

pub(super) fn device(container: &str, ifname: &str) -> String {
    owner::device_name(&owner::owner(&attachment(container, ifname)))
}

/// A configuration of the newest version with more keys.
pub(super) fn conf(keys: Value) -> Value {
    let mut conf = json!({"cniVersion": "1.1.0", "name": "overlay", "type": "overlay"});
    if let (Value::Object(conf), Value::Object(keys)) = (&mut conf, keys) {
        conf.extend(keys);
    }
    conf
}

pub(super) fn request_add(container: &str, ifname: &str, pod: &Pod) -> Request {
    let attachment = attachment(container, ifname);
    Request::Add { attachment, netns: pod.path(), wanted: Wanted::default(), pod: None }
}

/// A network namespace without a name.
pub(super) struct Pod {
    ns: NetNs,
}

impl Pod {
    pub(super) fn new() -> Self {
        Self { ns: fresh_netns() }
    }

    pub(super) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.ns.as_fd().as_raw_fd()).into()
    }

    pub(super) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.ns.run(work).unwrap()
    }

    pub(super) fn ip_json(&self, command: &str) -> Value {
        self.run(|| ip_json(command))
    }

    /// One echo request has to be answered.
    pub(super) fn ping(&self, options: &str) {
        self.run(|| run(&format!("ping -n -c 1 -W 2 {options}")));
    }

    pub(super) fn has(&self, ifname: &str) -> bool {
        self.ip_json("link show").as_array().unwrap().iter().any(|link| link["ifname"] == ifname)
    }
}
