use std::{collections::HashSet, fs, thread};

use overlay_common::maps::{AttachMode, Endpoint};
use serde_json::json;

use super::*;
use crate::{
    cni::testing::{CLUSTER, GATEWAY, GATEWAY_MAC, Pod, attachment, conf, device, on_a_node, private_pins},
    host::{
        netns::testing::{in_fresh_netns, ip, ip_json, run},
        sysctl,
    },
};

#[test]
fn a_pod_gets_its_address_and_reaches_the_node_and_the_other_pods() {
    on_a_node("10.244.1.0/24", |node| {
        let before = node.state();
        let (one, two) = (Pod::new(), Pod::new());
        let added = node.add("one", "eth0", &one).unwrap();
        assert_eq!(added.address(), "10.244.1.2");
        assert_eq!(added.device, device("one", "eth0"));
        assert_eq!(added.routes(), ["0.0.0.0/0"]);
        node.add("two", "eth0", &two).unwrap();

        let link = &one.ip_json("address show dev eth0")[0];
        assert_eq!(link["mtu"], 1450);
        assert_eq!(link["address"], "0a:58:0a:f4:01:02");
        assert_eq!(link["operstate"], "UP");
        let addresses = link["addr_info"].as_array().unwrap();
        assert_eq!(addresses.len(), 1, "no IPv6 address: {addresses:?}");
        assert_eq!((&addresses[0]["local"], &addresses[0]["prefixlen"]), (&json!("10.244.1.2"), &json!(32)));
        // The runtime's business, and left to it.
        let flags = &one.ip_json("link show dev lo")[0]["flags"];
        assert!(!flags.as_array().unwrap().contains(&json!("UP")), "{flags}");

        let routes = one.ip_json("route show");
        assert_eq!(routes.as_array().unwrap().len(), 2, "{routes}");
        assert_eq!((&routes[0]["dst"], &routes[0]["gateway"]), (&json!("default"), &json!(GATEWAY)));
        assert_eq!(routes[0]["flags"], json!(["onlink"]));
        assert_eq!((&routes[1]["dst"], &routes[1]["scope"]), (&json!(GATEWAY), &json!("link")));
        let neighbours = one.ip_json("neighbour show");
        assert_eq!(neighbours.as_array().unwrap().len(), 1, "{neighbours}");
        assert_eq!(
            (&neighbours[0]["dst"], &neighbours[0]["lladdr"]),
            (&json!(GATEWAY), &json!("0a:6f:c0:00:02:01"))
        );
        assert_eq!(neighbours[0]["state"], json!(["PERMANENT"]));

        one.ping(GATEWAY);
        one.ping("10.244.1.3");
        two.ping("10.244.1.2");
        // 1450 bytes: 28 of headers.
        one.ping("-M do -s 1422 10.244.1.3");
        run("ping -n -c 1 -W 2 10.244.1.2");

        node.del("one", "eth0").unwrap();
        assert!(!one.has("eth0"));
        two.ping(GATEWAY);
        node.del("two", "eth0").unwrap();
        assert_eq!(node.state(), before);
    });
}

#[test]
fn the_host_side_is_complete_and_carries_the_programs() {
    on_a_node("10.244.1.0/24", |node| {
        let pod = Pod::new();
        let device = node.add("c", "eth0", &pod).unwrap().device;
        let link = &ip_json(&format!("-d link show dev {device}"))[0];
        assert_eq!((&link["mtu"], &link["address"]), (&json!(1450), &json!("0a:6f:c0:00:02:01")));
        assert_eq!(link["operstate"], "UP");

        let route = &ip_json("route show 10.244.1.2/32")[0];
        assert_eq!((&route["dev"], &route["prefsrc"]), (&json!(device), &json!(GATEWAY)));
        assert_eq!((&route["protocol"], &route["scope"]), (&json!("79"), &json!("link")));
        let neighbour = &ip_json(&format!("neighbour show dev {device}"))[0];
        assert_eq!(
            (&neighbour["dst"], &neighbour["lladdr"]),
            (&json!("10.244.1.2"), &json!("0a:58:0a:f4:01:02"))
        );
        assert_eq!(neighbour["state"], json!(["PERMANENT"]));

        let setting =
            |family: &str, name: &str| sysctl::get(&format!("net/{family}/conf/{device}/{name}")).unwrap();
        assert_eq!((setting("ipv4", "forwarding"), setting("ipv4", "proxy_arp")), ("1".into(), "0".into()));
        assert_eq!((setting("ipv6", "disable_ipv6"), setting("ipv6", "accept_ra")), ("1".into(), "0".into()));

        assert!(run(&format!("tc filter show dev {device} ingress")).contains("from_pod"));
        assert!(run(&format!("tc filter show dev {device} egress")).contains("to_pod"));
        assert!(node.pins.links().unwrap().is_empty());
        let entries = node.entries();
        assert_eq!(entries.len(), 1);
        let (address, endpoint) = entries[0];
        assert_eq!(address.to_ip().to_string(), "10.244.1.2");
        assert_eq!(u64::from(endpoint.ifindex), link["ifindex"].as_u64().unwrap());
        assert_eq!((endpoint.mac, endpoint.gateway_mac), ([0x0a, 0x58, 10, 244, 1, 2], GATEWAY_MAC));
    });
}

#[test]
fn tcx_links_serve_as_well_and_leave_room_for_an_ingress_qdisc() {
    on_a_node("10.244.1.0/24", |node| {
        let before = node.state();
        let (one, two, three) = (Pod::new(), Pod::new(), Pod::new());
        let device = node.add_with("one", "eth0", &one, json!({"attach": "tcx"})).unwrap().device;
        let mut pins = node.pins.links().unwrap();
        pins.sort();
        assert_eq!(pins, [format!("pod_{device}_from_pod"), format!("pod_{device}_to_pod")]);
        // What the plugin `bandwidth` makes; it is told to overlay where its capability is declared.
        let limits =
            json!({"runtimeConfig": {"bandwidth": {"egressRate": 1_000_000, "egressBurst": 1_000_000}}});
        let device = node.add_with("two", "eth0", &two, limits.clone()).unwrap().device;
        run(&format!("tc qdisc add dev {device} handle ffff: ingress"));
        one.ping("10.244.1.3");
        two.ping(GATEWAY);

        node.change_local(|local| local.attach_mode = AttachMode::Clsact as u32);
        for keys in [limits, json!({"attach": "tcx"})] {
            let device = node.add_with("three", "eth0", &three, keys).unwrap().device;
            assert!(run(&format!("tc filter show dev {device} ingress")).contains("from_pod"));
            node.del("three", "eth0").unwrap();
        }
        node.del("one", "eth0").unwrap();
        node.del("two", "eth0").unwrap();
        assert_eq!(node.state(), before);
    });
}

#[test]
fn address_and_mac_are_those_that_were_asked_for() {
    on_a_node("10.244.1.0/24", |node| {
        let (one, two, three) = (Pod::new(), Pod::new(), Pod::new());
        let wants = |ip: &str| json!({"runtimeConfig": {"ips": [ip], "mac": "02:00:00:00:00:07"}});
        let added = node.add_with("one", "eth0", &one, wants("10.244.1.9/24")).unwrap();
        assert_eq!((added.address().as_str(), added.mac), ("10.244.1.9", [2, 0, 0, 0, 0, 7]));
        assert_eq!(one.ip_json("link show dev eth0")[0]["address"], "02:00:00:00:00:07");
        assert_eq!(node.entries()[0].1.mac, [2, 0, 0, 0, 0, 7]);
        one.ping(GATEWAY);
        // The environment asks last.
        let conf =
            Conf::parse(conf(json!({"args": {"cni": {"ips": ["10.244.1.20"]}}})).to_string().as_bytes());
        let addresses = ByFamily { v4: Some([10, 244, 1, 21].into()), v6: None };
        let asked = Wanted { addresses, mac: Some([2, 0, 0, 0, 0, 8]) };
        let added = add(&attachment("two", "eth0"), &two.path(), asked, None, &conf.unwrap()).unwrap();
        assert_eq!((added.address().as_str(), added.mac), ("10.244.1.20", [2, 0, 0, 0, 0, 8]));
        two.ping("10.244.1.9");

        let before = node.state();
        let failure = node.add_with("three", "eth0", &three, wants("10.244.1.9")).unwrap_err();
        assert_eq!(failure.code, Code::AddressTaken, "{failure}");
        assert!(
            failure.message.contains("10.244.1.9") && failure.message.contains("container one"),
            "{failure}"
        );
        for other in [GATEWAY, "10.244.1.0", "10.244.1.255", "10.244.2.5", "0.0.0.0", "255.255.255.255"] {
            let failure = node.add_with("three", "eth0", &three, wants(other)).unwrap_err();
            assert_eq!(failure.code, Code::InvalidConfig, "{failure}");
            assert!(failure.message.contains(other), "{failure}");
        }
        assert_eq!(node.state(), before);
        // What was asked for moves no cursor.
        assert_eq!(node.add("three", "eth0", &three).unwrap().address(), "10.244.1.2");
    });
}

#[test]
fn what_cannot_be_given_is_refused_with_key_and_value() {
    on_a_node("10.244.1.0/24", |node| {
        let pod = Pod::new();
        for (keys, wanted) in
            [(json!({"attach": "xdp"}), "xdp"), (json!({"ipam": {"type": "host-local"}}), "host-local")]
        {
            let failure = node.add_with("c", "eth0", &pod, keys).unwrap_err();
            assert_eq!(failure.code, Code::Unsupported, "{failure}");
            assert!(failure.message.contains(wanted), "{failure}");
        }
        node.add_with("c", "eth0", &pod, json!({"attach": "auto", "ipam": {}})).unwrap();
    });
}

#[test]
fn an_attachment_is_added_once() {
    on_a_node("10.244.1.0/24", |node| {
        let pod = Pod::new();
        node.add("c", "eth0", &pod).unwrap();
        let before = node.state();
        let failure = node.add("c", "eth0", &pod).unwrap_err();
        assert_eq!(failure.code, Code::AlreadyAdded, "{failure}");
        assert!(failure.message.contains("10.244.1.2"), "{failure}");
        assert_eq!(node.state(), before);
        pod.ping(GATEWAY);
    });
}

#[test]
fn a_taken_interface_name_is_refused() {
    on_a_node("10.244.1.0/24", |node| {
        let before = node.state();
        let pod = Pod::new();
        pod.run(|| ip("link add eth0 type veth peer name other"));
        let failure = node.add("c", "eth0", &pod).unwrap_err();
        assert_eq!(failure.code, Code::InterfaceExists, "{failure}");
        assert!(failure.message.contains("eth0"), "{failure}");
        assert!(pod.has("eth0") && pod.has("other"));
        assert_eq!(node.state(), before);
    });
}

fn add_to(netns: &Path, pins: &Pins) -> Failure {
    let conf = conf(json!({"pins": pins.root()})).to_string();
    add(&attachment("c", "eth0"), netns, Wanted::default(), None, &Conf::parse(conf.as_bytes()).unwrap())
        .unwrap_err()
}

#[test]
fn namespaces_that_no_pod_can_have_are_refused() {
    on_a_node("10.244.1.0/24", |node| {
        let before = node.state();
        let tid = nix::unistd::gettid();
        let own = format!("/proc/self/task/{tid}/ns/net");
        for (path, wanted) in
            [(own.as_str(), "the node's own"), ("/nonexistent/ns", "No such file"), ("/dev/null", "not a")]
        {
            let failure = add_to(path.as_ref(), &node.pins);
            assert_eq!(failure.code, Code::InvalidNetns, "{failure}");
            assert!(failure.message.contains(wanted) && failure.message.contains(path), "{failure}");
        }
        assert_eq!(node.state(), before);
    });
}

#[test]
fn a_node_that_is_not_ready_asks_to_come_again() {
    on_a_node("10.244.1.0/24", |node| {
        node.change_local(|local| local.ready = 0);
        let before = node.state();
        let pod = Pod::new();
        let failure = node.add("c", "eth0", &pod).unwrap_err();
        assert_eq!(failure.code, Code::TryAgainLater, "{failure}");
        assert_eq!(node.state(), before);
    });
    in_fresh_netns(|| {
        let pins = private_pins();
        let failure = add_to(&Pod::new().path(), &pins);
        assert_eq!(failure.code, Code::TryAgainLater, "{failure}");
        assert!(failure.message.contains("LOCAL"), "{failure}");
    });
}

#[test]
fn each_step_that_fails_is_named_and_the_ones_before_it_are_undone() {
    on_a_node("10.244.1.0/24", |node| {
        let pod = Pod::new();
        let before = node.state();
        let fails = |code, wanted: &[&str]| {
            let failure = node.add("c", "eth0", &pod).unwrap_err();
            assert_eq!(failure.code, code, "{failure}");
            assert!(wanted.iter().all(|part| failure.message.contains(part)), "{failure}");
            assert_eq!(failure.details, "");
            assert!(!pod.has("eth0"));
        };
        // Less than IPv4 needs, less than the kernel takes.
        node.change_local(|local| local.mtu = 60);
        fails(Code::Step, &["create the veth pair", "os error 22"]);
        node.change_local(|local| local.mtu = 1450);
        assert_eq!(node.state(), before);

        for program in ["to_pod", "from_pod"] {
            fs::rename(node.pins.program(program), node.pins.program("elsewhere")).unwrap();
            fails(Code::TryAgainLater, &["attach the programs", program]);
            fs::rename(node.pins.program("elsewhere"), node.pins.program(program)).unwrap();
            assert_eq!(node.state(), before);
        }

        ip(&format!("address delete {GATEWAY}/32 dev gw0"));
        fails(Code::Step, &["connect the host side", "10.244.1.", "os error 22"]);
        ip(&format!("address add {GATEWAY}/32 dev gw0"));
        assert_eq!(node.state(), before);

        // A sandbox whose addresses are somebody else's business, say.
        pod.run(|| run("sysctl -qw net.ipv6.conf.default.disable_ipv6=0"));
        node.add("c", "eth0", &pod).unwrap();
        pod.ping(GATEWAY);
    });
}

#[test]
fn what_a_killed_call_left_is_cleared_by_the_next() {
    on_a_node("10.244.1.0/24", |node| {
        let empty = node.state();
        let pod = Pod::new();
        let killed_at: [&dyn Fn(&str); 4] = [
            // Before the entry was complete.
            &|_| {
                let (address, endpoint) = node.entries()[0];
                let mut endpoints = Endpoints::open(&node.pins).unwrap();
                endpoints.update(address, Endpoint { ifindex: 0, ..endpoint }).unwrap();
            },
            // Before there was a device.
            &|device| {
                let (address, endpoint) = node.entries()[0];
                let mut endpoints = Endpoints::open(&node.pins).unwrap();
                endpoints.update(address, Endpoint { ifindex: 0, ..endpoint }).unwrap();
                ip(&format!("link delete {device}"));
            },
            // DEL, before it released the lease.
            &|device| ip(&format!("link delete {device}")),
            // Pins removed by hand, pods left running.
            &|_| {
                let mut endpoints = Endpoints::open(&node.pins).unwrap();
                endpoints.release(node.entries()[0].0).unwrap();
            },
        ];
        for kill in killed_at {
            let device = node.add("c", "eth0", &pod).unwrap().device;
            kill(&device);
            let added = node.add("c", "eth0", &pod).unwrap();
            let entries = node.entries();
            assert_eq!(entries.len(), 1);
            assert_eq!(entries[0].0.to_ip().to_string(), added.address());
            pod.ping(GATEWAY);

            kill(&device);
            node.del("c", "eth0").unwrap();
            assert_eq!(node.state(), empty);
        }
    });
}

#[test]
fn a_second_network_leaves_the_first_ones_routes_alone() {
    on_a_node("10.244.1.0/24", |node| {
        let pod = Pod::new();
        pod.run(|| {
            ip("link add net0 type veth peer name net0p");
            ip("address add 192.0.2.5/24 dev net0");
            ip("link set net0 up");
            ip("route add default via 192.0.2.1");
        });
        assert_eq!(node.add("c", "eth0", &pod).unwrap().routes(), [CLUSTER]);
        assert_eq!(pod.ip_json("route show default")[0]["dev"], "net0");
        let route = &pod.ip_json(&format!("route show {CLUSTER}"))[0];
        assert_eq!((&route["dev"], &route["gateway"]), (&json!("eth0"), &json!(GATEWAY)));
        pod.ping(GATEWAY);

        // The same network a second time: another address, no route.
        assert!(node.add("c", "net1", &pod).unwrap().routes().is_empty());
        assert_eq!(pod.ip_json(&format!("route show {GATEWAY}/32"))[0]["dev"], "eth0");
        assert_eq!(node.entries().len(), 2);
        pod.ping(GATEWAY);
        node.del("c", "net1").unwrap();
        assert!(pod.has("eth0") && !pod.has("net1"));
        pod.ping(GATEWAY);
    });
}

#[test]
fn parallel_calls_get_different_addresses_and_leave_nothing() {
    on_a_node("10.244.1.0/27", |node| {
        let before = node.state();
        let pods: Vec<_> = (0..24).map(|number| (format!("c{number}"), Pod::new())).collect();
        let addresses: HashSet<_> = thread::scope(|scope| {
            let calls: Vec<_> =
                pods.iter().map(|(id, pod)| scope.spawn(|| node.add(id, "eth0", pod))).collect();
            calls.into_iter().map(|call| call.join().unwrap().unwrap().address()).collect()
        });
        assert_eq!(addresses.len(), pods.len());
        assert_eq!(node.entries().len(), pods.len());
        for (_, pod) in &pods {
            pod.ping(GATEWAY);
        }
        thread::scope(|scope| {
            for (id, _) in &pods {
                scope.spawn(|| node.del(id, "eth0").unwrap());
            }
        });
        assert_eq!(node.state(), before);
    });
}

#[test]
fn a_full_subnet_says_so_and_takes_pods_again_when_one_is_gone() {
    on_a_node("10.244.1.0/29", |node| {
        let pods: Vec<_> = (0..5).map(|_| Pod::new()).collect();
        for (number, pod) in pods.iter().enumerate() {
            node.add(&format!("c{number}"), "eth0", pod).unwrap();
        }
        let full = node.state();
        let late = Pod::new();
        let failure = node.add("late", "eth0", &late).unwrap_err();
        assert_eq!(failure.code, Code::PoolExhausted, "{failure}");
        assert!(failure.message.contains("10.244.1.0/29") && failure.message.contains("5 of 5"), "{failure}");
        assert!(failure.details.contains("10.244.1.2 by eth0 of container c0"), "{failure}");
        assert_eq!(node.state(), full);

        node.del("c2", "eth0").unwrap();
        assert_eq!(node.add("late", "eth0", &late).unwrap().address(), "10.244.1.4");
        late.ping("10.244.1.2");
    });
}

#[test]
fn an_address_that_was_given_back_is_not_the_next_one() {
    on_a_node("10.244.1.0/24", |node| {
        let pod = Pod::new();
        let next = || {
            let address = node.add("c", "eth0", &pod).unwrap().address();
            node.del("c", "eth0").unwrap();
            address
        };
        assert_eq!([next(), next(), next()], ["10.244.1.2", "10.244.1.3", "10.244.1.4"]);
    });
}

#[test]
fn a_device_name_that_another_pod_holds_is_left_alone() {
    on_a_node("10.244.1.0/24", |node| {
        let (mine, other) = (Pod::new(), Pod::new());
        let taken = node.add("other", "eth0", &other).unwrap().device;
        // As if both hashed to one name.
        let name = device("mine", "eth0");
        ip(&format!("link set {taken} name {name}"));
        let before = node.state();
        let failure = node.add("mine", "eth0", &mine).unwrap_err();
        assert_eq!(failure.code, Code::Step, "{failure}");
        assert!(failure.message.contains(&name), "{failure}");
        node.del("mine", "eth0").unwrap();
        assert_eq!(node.state(), before);
        other.ping(GATEWAY);
    });
}
