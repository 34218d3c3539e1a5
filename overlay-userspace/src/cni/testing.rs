//! A node for tests: a network and a mount namespace of its own, with a bpffs, the loaded programs, a `LOCAL` entry that
//! says ready, and the gateway address. All of it is gone when the test ends, however it ends.

use std::{
    net::Ipv4Addr,
    os::fd::{AsFd as _, AsRawFd as _},
    path::PathBuf,
};

use ipnet::Ipv4Net;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use overlay_common::maps::{Addr, AttachMode, Endpoint, FAMILY_V4, Local, Subnet};
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
    family::ByFamily,
    host::netns::{
        NetNs,
        testing::{fresh_netns, in_fresh_netns, ip, ip_json, run},
    },
};

pub(super) const CLUSTER: &str = "10.244.0.0/16";
pub(super) const GATEWAY: &str = "10.244.1.1";
pub(super) const GATEWAY_MAC: [u8; 6] = [0x0a, 0x6f, 192, 0, 2, 1];
const MTU: u32 = 1450;

pub(super) struct TestNode {
    pub(super) pins: Pins,
}

/// Runs a test on a node whose pods live in `subnet`, which begins at 10.244.1.0.
pub(super) fn on_a_node(subnet: &str, test: impl FnOnce(&TestNode) + Send) {
    in_fresh_netns(|| {
        let node = TestNode { pins: private_pins() };
        // Stands for the anchor device: something that holds the gateway address.
        ip("link add gw0 type veth peer name gw0p");
        run(
            "sysctl -qw net.ipv6.conf.gw0.disable_ipv6=1 net.ipv6.conf.gw0p.disable_ipv6=1 net.ipv4.ip_forward=1",
        );
        ip(&format!("address add {GATEWAY}/32 dev gw0"));
        ip("link set gw0 up");
        let (subnet, cluster): (Ipv4Net, Ipv4Net) = (subnet.parse().unwrap(), CLUSTER.parse().unwrap());
        let vtep = Ipv4Addr::new(192, 0, 2, 1);
        let constants = Constants {
            vni: 1,
            port: 8472,
            cluster: ByFamily { v4: Some(cluster.into()), v6: None },
            subnet: ByFamily { v4: Some(subnet.into()), v6: None },
            node_prefix: ByFamily { v4: Some(subnet.prefix_len()), v6: None },
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
        let prefix =
            |net: Ipv4Net| Subnet { addr: net.network().into(), prefix_len: net.prefix_len().into() };
        node.change_local(|local| {
            local.ready = 1;
            local.anchor_ifindex = anchor;
            local.attach_mode = AttachMode::Auto as u32;
            local.mtu = MTU;
            local.subnet[FAMILY_V4] = prefix(subnet);
            local.gateway[FAMILY_V4] = GATEWAY.parse::<Ipv4Addr>().unwrap().into();
            local.cluster[FAMILY_V4] = prefix(cluster);
            local.vtep = vtep.into();
            local.gateway_mac = GATEWAY_MAC;
        });
        test(&node);
    });
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
            "routes": ip_json("route show"),
            "neighbours": ip_json("neighbour show"),
            "rules": ip_json("rule show"),
            "links": links,
            "endpoints": self.entries().iter().map(|(addr, _)| addr.to_ip().to_string()).collect::<Vec<_>>(),
        })
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
