//! Both address families, and either alone: what ADD gives. What becomes of it is in `families/later.rs`.

use std::{
    collections::HashSet,
    net::{IpAddr, TcpListener},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use netlink_packet_core::NetlinkDeserializable as _;
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags},
};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use overlay_common::maps::Endpoint;
use serde_json::{Value, json};

use super::*;
use crate::{
    cni::{
        env::Request,
        testing::{
            GATEWAY, GATEWAY_MAC, GATEWAY6, Pod, SUBNET6, TestNode, attachment, conf, on_a_node,
            on_a_node_of, request_add,
        },
    },
    host::{
        netlink::{Netlink, Traveller, Way, messages},
        netns::testing::{ip, ip_json, run},
        sysctl,
    },
};

mod later;

const SUBNET: &str = "10.244.1.0/24";

fn addresses(added: &Added) -> Vec<String> {
    added.ips.iter().map(|ip| ip.address.to_string()).collect()
}

fn leases(node: &TestNode) -> HashSet<String> {
    node.entries().iter().map(|(address, _)| address.to_ip().to_string()).collect()
}

/// The value of one setting of IPv6.
fn setting(device: &str, name: &str) -> String {
    sysctl::get(&format!("net/ipv6/conf/{device}/{name}")).unwrap()
}

fn check(node: &TestNode, pod: &Pod, ifname: &str, result: &Value) -> Result<(), String> {
    let request = Request::Check { attachment: attachment("c", ifname), netns: pod.path() };
    let checked = node.call(&request, &conf(json!({ "prevResult": result })));
    checked.map(drop).map_err(|failure| failure.to_string())
}

#[test]
fn a_pod_gets_an_address_of_each_family_and_gives_both_back() {
    on_a_node_of(&[SUBNET, SUBNET6], |node| {
        let before = node.state();
        let pod = Pod::new();
        let added = node.add("c", "eth0", &pod).unwrap();
        assert_eq!(addresses(&added), ["10.244.1.2", "fd00:244:0:1::2"]);
        assert_eq!(added.routes(), ["0.0.0.0/0", "::/0"]);
        let gateways: Vec<_> = added.ips.iter().map(|ip| ip.gateway.to_string()).collect();
        assert_eq!(gateways, [GATEWAY, GATEWAY6]);

        // Inside.
        let link = &pod.ip_json("-6 address show dev eth0")[0];
        let held: Vec<_> = link["addr_info"].as_array().unwrap().iter().collect();
        let named = |held: &Value| (held["local"].clone(), held["prefixlen"].clone(), held["nodad"].clone());
        assert_eq!(
            held.into_iter().map(named).collect::<Vec<_>>(),
            [
                (json!("fd00:244:0:1::2"), json!(128), json!(true)),
                (json!("fe80::858:aff:fef4:102"), json!(64), json!(true))
            ]
        );
        let routes = pod.run(|| run("ip -6 route show"));
        for route in [&format!("{GATEWAY6} dev eth0"), &format!("default via {GATEWAY6} dev eth0")] {
            assert!(routes.contains(route), "{routes}");
        }
        let neighbour = &pod.ip_json(&format!("-6 neighbour show {GATEWAY6}"))[0];
        assert_eq!(
            (&neighbour["lladdr"], &neighbour["state"]),
            (&json!("0a:6f:c0:00:02:01"), &json!(["PERMANENT"]))
        );
        pod.run(|| {
            let settings = ["disable_ipv6", "accept_ra", "autoconf"].map(|name| setting("eth0", name));
            assert_eq!(settings, ["0", "0", "0"]);
        });

        // Outside.
        let device = &added.device;
        let settings = ["disable_ipv6", "accept_ra", "autoconf", "forwarding", "proxy_ndp"];
        assert_eq!(settings.map(|name| setting(device, name)), ["0", "0", "0", "1", "1"]);
        let held = ip_json(&format!("-6 address show dev {device}"));
        assert!(held[0]["addr_info"].is_null() || held.as_array().unwrap().is_empty(), "{held}");
        let route = &ip_json("-6 route show fd00:244:0:1::2")[0];
        assert_eq!(
            (&route["dev"], &route["prefsrc"], &route["protocol"]),
            (&json!(device), &json!(GATEWAY6), &json!("79"))
        );
        let neighbour = &ip_json("-6 neighbour show fd00:244:0:1::2")[0];
        assert_eq!(
            (&neighbour["lladdr"], &neighbour["state"]),
            (&json!("0a:58:0a:f4:01:02"), &json!(["PERMANENT"]))
        );
        assert!(run("ip -6 neighbour show proxy").contains(&format!("{GATEWAY6} dev {device}")));

        let index = ip_json(&format!("link show dev {device}"))[0]["ifindex"].as_u64().unwrap();
        let entries = node.entries();
        assert_eq!(leases(node), ["10.244.1.2", "fd00:244:0:1::2"].map(str::to_owned).into());
        for (_, endpoint) in &entries {
            assert_eq!(u64::from(endpoint.ifindex), index);
            assert_eq!((endpoint.mac, endpoint.gateway_mac), ([0x0a, 0x58, 10, 244, 1, 2], GATEWAY_MAC));
            assert_eq!(endpoint.owner, entries[0].1.owner);
        }
        let failure = node.add("c", "eth0", &pod).unwrap_err();
        assert_eq!(failure.code, Code::AlreadyAdded, "{failure}");
        node.del("c", "eth0").unwrap();
        assert_eq!(node.state(), before);
    });
}

#[test]
fn the_primary_family_comes_first_in_results_of_every_version() {
    for (subnets, first) in [([SUBNET, SUBNET6], "10.244.1."), ([SUBNET6, SUBNET], "fd00:244:0:1::")] {
        on_a_node_of(&subnets, |node| {
            for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
                let pod = Pod::new();
                let keys = json!({ "cniVersion": version });
                let result = node.call(&request_add("c", "eth0", &pod), &conf(keys)).unwrap().unwrap();
                let ips = result["ips"].as_array().unwrap();
                assert_eq!(ips.len(), 2);
                assert!(ips[0]["address"].as_str().unwrap().starts_with(first), "{result}");
                assert!(ips.iter().all(|ip| ip["interface"] == 1), "{result}");
                assert_eq!(ips[0].get("version").is_some(), version < "1.0.0", "{result}");
                node.del("c", "eth0").unwrap();
            }
        });
    }
}

#[test]
fn ipv6_alone_leaves_ipv4_alone() {
    on_a_node_of(&[SUBNET6], |node| {
        let (before, pod) = (node.state(), Pod::new());
        sysctl::set("net/ipv4/conf/default/forwarding", "0").unwrap();
        sysctl::set("net/ipv4/conf/default/send_redirects", "1").unwrap();
        let result = node.call(&request_add("c", "eth0", &pod), &conf(json!({}))).unwrap().unwrap();
        let device = result["interfaces"][0]["name"].as_str().unwrap().to_owned();
        assert_eq!(
            (&result["ips"], &result["routes"]),
            (
                &json!([{"address": "fd00:244:0:1::2/128", "gateway": GATEWAY6, "interface": 1}]),
                &json!([{"dst": "::/0", "gw": GATEWAY6}])
            )
        );
        assert_eq!(result["interfaces"][1]["mac"], "0a:58:00:00:00:02");
        let v4 = |name: &str| sysctl::get(&format!("net/ipv4/conf/{device}/{name}")).unwrap();
        assert_eq!(["forwarding", "send_redirects"].map(v4), ["0", "1"]);
        assert_eq!(pod.run(|| run("ip -4 address show dev eth0")), "");
        assert_eq!(pod.run(|| run("ip -4 route show table all")), "");
        check(node, &pod, "eth0", &result).unwrap();
        node.del("c", "eth0").unwrap();
        assert_eq!(node.state(), before);
    });
}

/// What the kernel reports of IPv6 addresses in the namespace of the calling thread, from now on.
fn address_news() -> Socket {
    const RTNLGRP_IPV6_IFADDR: u32 = 9;
    let mut socket = Socket::new(NETLINK_ROUTE).unwrap();
    socket.bind_auto().unwrap();
    socket.add_membership(RTNLGRP_IPV6_IFADDR).unwrap();
    socket.set_non_blocking(true).unwrap();
    socket
}

/// The addresses that are reported until there are as many, and whether each was tentative then. A kernel worker reports them,
/// which may be a moment after they are there.
fn reported(socket: &Socket, count: usize) -> Vec<(IpAddr, bool)> {
    let mut reported = Vec::new();
    let mut buffer = Vec::with_capacity(1 << 16);
    let deadline = Instant::now() + Duration::from_secs(10);
    let addresses = |reported: &[(IpAddr, bool)]| {
        reported.iter().map(|(address, _)| *address).collect::<HashSet<_>>().len()
    };
    while addresses(&reported) < count && Instant::now() < deadline {
        buffer.clear();
        if socket.recv(&mut buffer, 0).is_err() {
            thread::sleep(Duration::from_millis(2));
            continue;
        }
        for message in messages(&buffer) {
            let message = message.unwrap();
            let parsed = RouteNetlinkMessage::deserialize(&message.header, message.payload).unwrap();
            let RouteNetlinkMessage::NewAddress(news) = parsed else { continue };
            let mut tentative = news.header.flags.contains(AddressHeaderFlags::Tentative);
            let mut address = None;
            for attribute in news.attributes {
                match attribute {
                    AddressAttribute::Address(found) => address = Some(found),
                    AddressAttribute::Flags(flags) => tentative |= flags.contains(AddressFlags::Tentative),
                    _ => {}
                }
            }
            reported.push((address.unwrap(), tentative));
        }
    }
    reported
}

#[test]
fn no_address_is_tentative_at_any_time_and_a_server_can_bind_its_own_at_once() {
    on_a_node_of(&[SUBNET, SUBNET6], |node| {
        let (one, two) = (Pod::new(), Pod::new());
        let news = one.run(address_news);
        let added = node.add("one", "eth0", &one).unwrap();
        for ip in &added.ips {
            one.run(|| drop(TcpListener::bind((ip.address, 0)).unwrap()));
        }
        assert_eq!(one.run(|| run("ip -o address show tentative")), "");
        let seen = reported(&news, 2);
        assert_eq!(
            seen.iter().map(|(address, _)| address.to_string()).collect::<HashSet<_>>(),
            ["fd00:244:0:1::2", "fe80::858:aff:fef4:102"].map(str::to_owned).into()
        );
        assert!(seen.iter().all(|(_, tentative)| !tentative), "{seen:?}");
        // Neither because a pod asks for detection: its other addresses are its own business.
        let news = two.run(|| {
            run("sysctl -qw net.ipv6.conf.all.accept_dad=1 net.ipv6.conf.default.accept_dad=2");
            run("sysctl -qw net.ipv6.conf.default.dad_transmits=3");
            address_news()
        });
        node.add("two", "eth0", &two).unwrap();
        assert_eq!(two.run(|| run("ip -o address show tentative")), "");
        let seen = reported(&news, 2);
        assert!(seen.len() >= 2 && seen.iter().all(|(_, tentative)| !tentative), "{seen:?}");
    });
}

/// Says that it is over, also when a test fails.
struct Until<'a>(&'a AtomicBool);

impl Drop for Until<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The kernel's worker that puts addresses to use waits for the lock of all changes to the network, which others have here.
#[test]
fn what_is_sent_to_a_new_pod_is_the_pods_at_once() {
    on_a_node_of(&[SUBNET, SUBNET6], |node| {
        let done = AtomicBool::new(false);
        let busy = Pod::new();
        thread::scope(|scope| {
            for end in 1..=3_u8 {
                let (done, busy) = (&done, &busy);
                scope.spawn(move || {
                    busy.run(|| {
                        let mut netlink = Netlink::open().unwrap();
                        let lo = netlink.link("lo").unwrap().unwrap().index;
                        let net = format!("192.0.2.{end}/32").parse().unwrap();
                        while !done.load(Ordering::Relaxed) {
                            netlink.replace_address(lo, net).unwrap();
                            netlink.delete_address(lo, net).unwrap();
                        }
                    });
                });
            }
            let _until = Until(&done);
            let mut wrong = Vec::new();
            for round in 0..20 {
                let (id, pod) = (format!("c{round}"), Pod::new());
                let mut inside = pod.run(|| Netlink::open().unwrap());
                for ip in &node.add(&id, "eth0", &pod).unwrap().ips {
                    let to = Traveller { src: None, dst: ip.address, iif: None, transport: None };
                    let way = inside.way(to).unwrap();
                    if !matches!(way, Way::Local(_)) {
                        wrong.push(format!("{round}: {} {way:?}", ip.address));
                    }
                }
                node.del(&id, "eth0").unwrap();
            }
            assert_eq!(wrong, Vec::<String>::new());
        });
    });
}

#[test]
fn ipv6_that_the_runtime_has_switched_off_is_switched_on_for_the_pods_device_and_its_loopback() {
    on_a_node_of(&[SUBNET, SUBNET6], |node| {
        let pod = Pod::new();
        pod.run(|| run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1"));
        let added = node.add("c", "eth0", &pod).unwrap();
        pod.run(|| {
            ip("link set lo up");
            assert_eq!(
                ["eth0", "lo", "default"].map(|device| setting(device, "disable_ipv6")),
                ["0", "0", "1"]
            );
            run(&format!("ping -n -c 1 -W 2 {}", added.ips[1].address));
        });
    });
    // As it was where the node carries none.
    on_a_node(SUBNET, |node| {
        let pod = Pod::new();
        pod.run(|| run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1"));
        node.add("c", "eth0", &pod).unwrap();
        pod.run(|| assert_eq!(["eth0", "lo"].map(|device| setting(device, "disable_ipv6")), ["1", "1"]));
    });
}

#[test]
fn a_family_without_a_free_address_costs_none_of_the_other() {
    // Two addresses for pods in IPv6.
    on_a_node_of(&[SUBNET, "fd00:244:0:1::/126"], |node| {
        let pods = [(); 2].map(|()| Pod::new());
        for (number, pod) in pods.iter().enumerate() {
            node.add(&format!("c{number}"), "eth0", pod).unwrap();
        }
        let full = node.state();
        let failure = node.add("late", "eth0", &Pod::new()).unwrap_err();
        assert_eq!(failure.code, Code::PoolExhausted, "{failure}");
        assert!(failure.message.contains("fd00:244:0:1::/126: 2 of 2 are held"), "{failure}");
        assert!(failure.details.contains("fd00:244:0:1::2 by eth0 of container c0"), "{failure}");
        assert_eq!(node.state(), full);
        let status = node.call(&Request::Status, &conf(json!({}))).unwrap_err();
        assert_eq!(status.code, Code::Unavailable, "{status}");
        assert!(status.message.contains("fd00:244:0:1::/126"), "{status}");
        node.del("c0", "eth0").unwrap();
        let added = node.add("late", "eth0", &Pod::new()).unwrap();
        assert_eq!(addresses(&added), ["10.244.1.5", "fd00:244:0:1::2"]);
    });
}

#[test]
fn an_mtu_that_is_too_small_for_ipv6_is_refused_with_the_remedy() {
    on_a_node_of(&[SUBNET, SUBNET6], |node| {
        let before = node.state();
        node.change_local(|local| local.mtu = 1279);
        let failure = node.add("c", "eth0", &Pod::new()).unwrap_err();
        assert_eq!(failure.code, Code::Step, "{failure}");
        assert!(failure.message.contains("1279") && failure.message.contains("network.mtu"), "{failure}");
        assert_eq!(node.state(), before);
        node.carry(&[SUBNET.parse().unwrap()]);
        node.add("c", "eth0", &Pod::new()).unwrap();
    });
}

#[test]
fn addresses_of_either_family_can_be_asked_for() {
    on_a_node_of(&[SUBNET, SUBNET6], |node| {
        let (one, two, three) = (Pod::new(), Pod::new(), Pod::new());
        let wants = |ips: &[&str]| json!({"runtimeConfig": {"ips": ips}});
        let added =
            node.add_with("one", "eth0", &one, wants(&["fd00:244:0:1::abcd/64", "10.244.1.9"])).unwrap();
        assert_eq!(addresses(&added), ["10.244.1.9", "fd00:244:0:1::abcd"]);
        // Of the other family it is any.
        let added = node.add_with("two", "eth0", &two, wants(&["fd00:244:0:1:ffff::1"])).unwrap();
        assert_eq!(addresses(&added), ["10.244.1.2", "fd00:244:0:1:ffff::1"]);
        let before = node.state();
        for (ips, code, named) in [
            (["10.244.1.20", "fd00:244:0:1::abcd"], Code::AddressTaken, "container one"),
            (["10.244.1.20", GATEWAY6], Code::InvalidConfig, GATEWAY6),
            (["10.244.1.20", "fd00:244:0:2::5"], Code::InvalidConfig, "fd00:244:0:2::5"),
            (["10.244.1.20", "fd00:244:0:1::"], Code::InvalidConfig, "other than its first and"),
            (["fd00:244:0:1::77", "fd00:244:0:1::78"], Code::InvalidConfig, "one IPv6 address"),
        ] {
            let failure = node.add_with("three", "eth0", &three, wants(&ips)).unwrap_err();
            assert_eq!(failure.code, code, "{failure}");
            assert!(failure.message.contains(named), "{failure}");
            assert_eq!(node.state(), before, "an address that was taken for nothing is given back");
        }
    });
    on_a_node(SUBNET, |node| {
        let before = node.state();
        let keys = json!({"runtimeConfig": {"ips": ["fd00:244:0:1::5"]}});
        let failure = node.add_with("c", "eth0", &Pod::new(), keys).unwrap_err();
        assert_eq!(failure.code, Code::InvalidConfig, "{failure}");
        assert!(failure.message.contains("carries no IPv6"), "{failure}");
        assert_eq!(node.state(), before);
    });
}

#[test]
fn a_second_interface_sends_from_each_of_its_addresses_by_its_own_device() {
    on_a_node_of(&[SUBNET, SUBNET6], |node| {
        let pod = Pod::new();
        let add =
            |ifname: &str| node.call(&request_add("c", ifname, &pod), &conf(json!({}))).unwrap().unwrap();
        let (first, before) = (add("eth0"), node.state());
        let second = add("net1");
        assert_eq!((&second["routes"], second["ips"].as_array().unwrap().len()), (&json!([]), 2));
        for (flag, from, to) in [("", "10.244.1.3", "192.0.2.9"), ("-6 ", "fd00:244:0:1::3", "2001:db8::9")] {
            let way = pod.run(|| run(&format!("ip {flag}route get {to} from {from}")));
            assert!(way.contains("dev net1"), "{way}");
            let default = &pod.ip_json(&format!("{flag}route show default"))[0];
            assert_eq!(default["dev"], "eth0");
        }
        for (ifname, result) in [("eth0", &first), ("net1", &second)] {
            check(node, &pod, ifname, result).unwrap();
        }
        pod.run(|| ip("-6 rule delete from fd00:244:0:1::3"));
        let found = check(node, &pod, "net1", &second).unwrap_err();
        assert!(found.contains("rule for what it sends from fd00:244:0:1::3"), "{found}");
        node.del("c", "net1").unwrap();
        assert_eq!(node.state(), before);
        check(node, &pod, "eth0", &first).unwrap();
    });
}

#[test]
fn parallel_calls_get_different_addresses_of_both_families_and_leave_nothing() {
    on_a_node_of(&["10.244.1.0/27", "fd00:244:0:1::/123"], |node| {
        let before = node.state();
        let pods: Vec<_> = (0..24).map(|number| (format!("c{number}"), Pod::new())).collect();
        let found: HashSet<_> = thread::scope(|scope| {
            let calls: Vec<_> =
                pods.iter().map(|(id, pod)| scope.spawn(|| node.add(id, "eth0", pod))).collect();
            calls.into_iter().flat_map(|call| addresses(&call.join().unwrap().unwrap())).collect()
        });
        assert_eq!((found.len(), leases(node)), (2 * pods.len(), found));
        thread::scope(|scope| {
            for (id, _) in &pods {
                scope.spawn(|| node.del(id, "eth0").unwrap());
            }
        });
        assert_eq!(node.state(), before);
    });
}
