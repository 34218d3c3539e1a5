use serde_json::json;

use super::*;
use crate::{
    cni::testing::{Pod, SUBNET6, TestNode, attachment, conf, on_a_node, on_a_node_of},
    datapath::tables::{self, Endpoints},
    host::netns::testing::{ip, run},
};

fn read_list(list: &Value) -> Result<Vec<(String, u16)>, Failure> {
    let config = json!({ "portMappings": list });
    Ok(read(Some(&config))?.into_iter().map(|(port, to)| (port.to_string(), to.number)).collect())
}

#[test]
fn mappings_are_read_as_runtimes_write_them() {
    let list = json!([
        {"hostPort": 8080, "containerPort": 80, "protocol": "TCP", "hostIP": ""},
        {"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "192.0.2.1"},
        {"hostPort": 9, "containerPort": 9, "protocol": "Sctp", "hostIP": "::ffff:192.0.2.1", "name": "x"},
        {"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "2001:db8::1"},
        {"hostPort": 0, "containerPort": 1, "protocol": "tcp"},
        {"containerPort": 1},
        {"hostPort": 81, "containerPort": 81, "hostIP": null},
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "0.0.0.0"},
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "::"},
    ]);
    let mut read = read_list(&list).unwrap();
    read.sort();
    let expected = [
        ("0.0.0.0:8080/tcp", 80),
        ("0.0.0.0:81/tcp", 81),
        ("192.0.2.1:53/udp", 5353),
        ("192.0.2.1:9/sctp", 9),
        ("[2001:db8::1]:53/udp", 5353),
        ("[::]:8080/tcp", 80),
        ("[::]:81/tcp", 81),
    ];
    assert_eq!(read, expected.map(|(port, pod_port)| (port.to_owned(), pod_port)));
    for nothing in [json!(null), json!([])] {
        assert_eq!(read_list(&nothing), Ok(Vec::new()));
    }
    assert_eq!(super::read(None), Ok(Wanted::new()));
}

#[test]
fn what_makes_no_sense_or_cannot_be_had_is_refused_and_named() {
    let one = |mapping: Value| json!([mapping]);
    for (list, expected) in [
        (json!({}), "not an array"),
        (json!([5]), "not an object"),
        (one(json!({"hostPort": 65536, "containerPort": 80})), "65536 is no port"),
        (one(json!({"hostPort": -1, "containerPort": 80})), "-1 is no port"),
        (one(json!({"hostPort": 80})), "containerPort is missing"),
        (one(json!({"hostPort": 80, "containerPort": 80, "protocol": "icmp"})), "icmp"),
        (one(json!({"hostPort": 80, "containerPort": 80, "protocol": 6})), "protocol 6"),
        (one(json!({"hostPort": 80, "containerPort": 80, "hostIP": "node"})), "node"),
        (one(json!({"hostPort": 80, "containerPort": 80, "hostIP": "::1"})), "the kernel leads nothing"),
        (one(json!({"hostPort": 80, "containerPort": 80, "hostIP": "fe80::1"})), "the kernel leads nothing"),
        (one(json!({"hostPort": 80, "containerPort": 80, "hostIP": "fe80::1%eth0"})), "is no address"),
        (json!([{"hostPort": 80, "containerPort": 80}, {"hostPort": 80, "containerPort": 81}]), "80 and 81"),
    ] {
        let failure = read_list(&list).unwrap_err();
        assert_eq!(failure.code, Code::InvalidConfig);
        assert!(failure.message.contains(expected) && failure.message.contains(PLACE), "{failure}");
    }
}

#[test]
fn ports_of_a_family_that_the_pod_lacks_are_left_out_where_the_list_has_the_other() {
    let pods = |list: &[&str]| {
        ByFamily::from_values(list.iter().map(|text| text.parse::<IpAddr>().unwrap())).unwrap()
    };
    let (both, four, six) = (pods(&["10.244.1.2", "fd00::2"]), pods(&["10.244.1.2"]), pods(&["fd00::2"]));
    let one = |host_ips: &[&str]| {
        let list: Vec<_> = host_ips.iter().map(|host_ip| mapping(80, host_ip)).collect();
        read(Some(&json!({ "portMappings": list }))).unwrap()
    };
    let local: overlay_common::maps::Local = bytemuck::Zeroable::zeroed();
    let prefix = |net: &str, prefix_len| overlay_common::maps::Subnet {
        addr: net.parse::<IpAddr>().unwrap().into(),
        prefix_len,
    };
    let mut local = overlay_common::maps::Local { ready: 1, attach_mode: 1, ..local };
    local.subnet[0] = prefix("10.244.1.0", 24);
    local.cluster[0] = prefix("10.244.1.0", 24);
    local.gateway[0] = "10.244.1.1".parse::<IpAddr>().unwrap().into();
    let node = Node::try_from(&local).unwrap();
    let owner = crate::cni::owner::owner(&attachment("c", "eth0"));
    let get = |wanted: &Wanted, pod: &ByFamily<IpAddr>| -> Result<Vec<String>, Failure> {
        let entries = entries(wanted, pod, owner, &node)?;
        Ok(entries.iter().map(|(port, target)| format!("{port} {}", target.pod.to_ip())).collect())
    };
    let (any4, any6) = ("0.0.0.0:80/tcp 10.244.1.2".to_owned(), "[::]:80/tcp fd00::2".to_owned());
    for all in [one(&[""]), one(&["0.0.0.0", "::"]), one(&["", "0.0.0.0"]), one(&["::", ""])] {
        assert_eq!(get(&all, &both), Ok(vec![any6.clone(), any4.clone()]));
        assert_eq!(get(&all, &four), Ok(vec![any4.clone()]));
        assert_eq!(get(&all, &six), Ok(vec![any6.clone()]));
    }
    // Both of localhost, as some runtimes write it.
    let localhost = one(&["127.0.0.1", "::1"]);
    assert_eq!(get(&localhost, &both), Ok(vec!["127.0.0.1:80/tcp 10.244.1.2".to_owned()]));
    for (alone, has, lacks, family) in [
        ("192.0.2.1", &four, &six, "IPv4"),
        ("2001:db8::1", &six, &four, "IPv6"),
        ("0.0.0.0", &four, &six, "IPv4"),
    ] {
        assert_eq!(get(&one(&[alone]), has).unwrap().len(), 1);
        assert_eq!(get(&one(&[alone]), &both).unwrap().len(), 1);
        let failure = get(&one(&[alone]), lacks).unwrap_err();
        assert_eq!(failure.code, Code::InvalidConfig);
        assert!(failure.message.contains(family) && failure.message.contains(alone), "{failure}");
    }
}

/// ADD of container `id` with these mappings.
fn add(node: &TestNode, id: &str, pod: &Pod, mappings: &Value) -> Result<(), Failure> {
    let keys = json!({"runtimeConfig": {"portMappings": mappings}});
    node.add_with(id, "eth0", pod, keys).map(drop)
}

fn mapping(port: u16, host_ip: &str) -> Value {
    json!({"hostPort": port, "containerPort": 80, "protocol": "tcp", "hostIP": host_ip})
}

fn held(node: &TestNode) -> Vec<String> {
    let entries = tables::HostPorts::open(&node.pins).unwrap().entries().unwrap();
    let mut held: Vec<_> = entries.iter().map(|(port, _)| port.to_string()).collect();
    held.sort();
    held
}

fn tables() -> String {
    run("nft list tables")
}

#[test]
fn a_port_that_another_pod_has_is_refused_by_name_and_the_others_are_given_back() {
    on_a_node("10.244.1.0/24", |node| {
        let (one, two) = (Pod::new(), Pod::new());
        add(node, "one", &one, &json!([mapping(8080, ""), mapping(8081, "192.0.2.1")])).unwrap();
        let (before, rules) = (node.state(), run("nft list ruleset"));
        for (ip, port) in [("", 8080), ("192.0.2.7", 8080), ("", 8081), ("192.0.2.1", 8081)] {
            let list = json!([mapping(7000, ""), mapping(port, ip), mapping(9000, "")]);
            let failure = add(node, "two", &two, &list).unwrap_err();
            assert_eq!(failure.code, Code::PortTaken, "{failure}");
            for part in [&format!(":{port}/tcp"), "eth0 of container one", "choose another port"] {
                assert!(failure.message.contains(part), "{failure}");
            }
            assert_eq!(held(node), ["0.0.0.0:8080/tcp", "192.0.2.1:8081/tcp"]);
            assert_eq!((node.state(), run("nft list ruleset")), (before.clone(), rules.clone()));
        }
        // Another address, another protocol.
        let udp = json!({"hostPort": 8080, "containerPort": 80, "protocol": "udp"});
        add(node, "two", &two, &json!([mapping(8081, "192.0.2.2"), udp])).unwrap();
        node.del("one", "eth0").unwrap();
        assert_eq!(held(node), ["0.0.0.0:8080/udp", "192.0.2.2:8081/tcp"]);
        node.del("two", "eth0").unwrap();
        assert_eq!((held(node).len(), tables().as_str()), (0, ""));
    });
}

#[test]
fn the_first_of_a_containers_interfaces_has_its_ports() {
    on_a_node("10.244.1.0/24", |node| {
        let (pod, other) = (Pod::new(), Pod::new());
        let config = |ports: &Value| json!({"runtimeConfig": {"portMappings": ports}});
        let both = json!([mapping(8080, ""), mapping(8081, "192.0.2.1")]);
        node.add_with("c", "eth0", &pod, config(&both)).unwrap();
        let more = json!([mapping(8080, "192.0.2.1"), mapping(8081, "192.0.2.1"), mapping(8082, "")]);
        let second = crate::cni::env::Request::Add {
            attachment: attachment("c", "net1"),
            netns: pod.path(),
            wanted: crate::cni::wanted::Wanted::default(),
            pod: None,
        };
        let result = node.call(&second, &conf(config(&more))).unwrap().unwrap();
        assert_eq!(held(node), ["0.0.0.0:8080/tcp", "0.0.0.0:8082/tcp", "192.0.2.1:8081/tcp"]);
        let check =
            crate::cni::env::Request::Check { attachment: attachment("c", "net1"), netns: pod.path() };
        let keys = json!({"prevResult": result, "runtimeConfig": {"portMappings": more}});
        assert_eq!(node.call(&check, &conf(keys)), Ok(None));
        assert_eq!(add(node, "other", &other, &both).unwrap_err().code, Code::PortTaken);

        // One that has none of its own gets no way to the loopback of the node.
        let device = node.add_with("c", "net2", &pod, config(&both)).unwrap().device;
        let setting = format!("net/ipv4/conf/{device}/route_localnet");
        assert_eq!(crate::host::sysctl::get(&setting).unwrap(), "0");
        node.del("c", "net1").unwrap();
        assert_eq!(held(node), ["0.0.0.0:8080/tcp", "192.0.2.1:8081/tcp"]);
        node.del("c", "eth0").unwrap();
        assert_eq!((held(node).len(), tables().as_str()), (0, ""));
    });
}

#[test]
fn the_tunnels_port_is_no_host_port() {
    on_a_node("10.244.1.0/24", |node| {
        node.change_local(|local| local.port = 8472);
        let before = node.state();
        let list = json!([{"hostPort": 8472, "containerPort": 80, "protocol": "udp"}]);
        let failure = add(node, "c", &Pod::new(), &list).unwrap_err();
        assert_eq!(failure.code, Code::InvalidConfig, "{failure}");
        assert!(failure.message.contains("8472/udp is the tunnel's"), "{failure}");
        assert_eq!(node.state(), before);
        add(node, "c", &Pod::new(), &json!([mapping(8472, "")])).unwrap();
    });
}

#[test]
fn ports_of_the_dead_are_free_without_an_agent() {
    on_a_node("10.244.1.0/24", |node| {
        let (one, two) = (Pod::new(), Pod::new());
        let list = json!([mapping(8080, "")]);
        add(node, "one", &one, &list).unwrap();
        // Its device goes with its namespace, by a kernel worker; here by hand, for it to be at once.
        ip(&format!("link delete {}", crate::cni::testing::device("one", "eth0")));
        add(node, "two", &two, &list).unwrap();
        assert_eq!(held(node).len(), 1);
        // What the late DEL gives back is not the other's.
        node.del("one", "eth0").unwrap();
        assert_eq!(held(node).len(), 1);
        assert!(run("nft list table ip overlay-ports").contains("tcp . 8080 : 10.244.1.3 . 80"));

        // An entry whose lease somebody has removed.
        let mut endpoints = Endpoints::open(&node.pins).unwrap();
        endpoints.release("10.244.1.3".parse::<IpAddr>().unwrap().into()).unwrap();
        add(node, "three", &Pod::new(), &list).unwrap();
        node.del("three", "eth0").unwrap();
        assert_eq!((held(node).len(), tables().as_str()), (0, ""));
    });
}

#[test]
fn rules_that_somebody_has_removed_are_no_obstacle() {
    on_a_node("10.244.1.0/24", |node| {
        let (one, two) = (Pod::new(), Pod::new());
        add(node, "one", &one, &json!([mapping(8080, "")])).unwrap();
        run("nft flush ruleset");
        add(node, "two", &two, &json!([mapping(8081, "")])).unwrap();
        // What is not there cannot be deleted: the table is written anew.
        node.del("one", "eth0").unwrap();
        assert_eq!(held(node), ["0.0.0.0:8081/tcp"]);
        let rules = run("nft list table ip overlay-ports");
        assert!(rules.contains("tcp . 8081") && !rules.contains("8080"), "{rules}");
        run("nft flush ruleset");
        node.del("two", "eth0").unwrap();
        assert_eq!((held(node).len(), tables().as_str()), (0, ""));
    });
}

#[test]
fn reconciling_removes_what_nobody_holds_and_restores_the_rules() {
    on_a_node("10.244.1.0/24", |node| {
        let (one, two) = (Pod::new(), Pod::new());
        add(node, "one", &one, &json!([mapping(8080, ""), mapping(8081, "")])).unwrap();
        add(node, "two", &two, &json!([mapping(8082, "")])).unwrap();
        let good = run("nft -s list table ip overlay-ports");
        let reconcile = || HostPorts::lock(&node.pins).unwrap().reconcile(&node.pins).unwrap();
        let quiet = reconcile();
        assert_eq!((quiet.removed.len(), quiet.rewritten, quiet.pods.len()), (0, false, 2));
        run("nft flush ruleset");
        assert!(reconcile().rewritten && !reconcile().rewritten);
        assert_eq!(run("nft -s list table ip overlay-ports"), good);
        run("nft add table ip overlay-ports { flags dormant; }");
        assert!(reconcile().rewritten && !reconcile().rewritten);
        assert_eq!(run("nft -s list table ip overlay-ports"), good);

        ip(&format!("link delete {}", crate::cni::testing::device("one", "eth0")));
        let done = reconcile();
        assert_eq!((done.removed.len(), done.rewritten, done.pods.len()), (2, true, 1));
        assert_eq!(held(node), ["0.0.0.0:8082/tcp"]);
        node.del("two", "eth0").unwrap();
        node.del("one", "eth0").unwrap();
        run("nft add table ip overlay-ports");
        assert!(reconcile().rewritten);
        assert_eq!(tables(), "");
    });
}

#[test]
fn check_finds_what_is_missing() {
    on_a_node("10.244.1.0/24", |node| {
        let pod = Pod::new();
        let ports = json!({"portMappings": [mapping(8080, ""), mapping(8081, "192.0.2.1")]});
        let add = crate::cni::testing::request_add("c", "eth0", &pod);
        let result = node.call(&add, &conf(json!({"runtimeConfig": ports}))).unwrap().unwrap();
        let request =
            crate::cni::env::Request::Check { attachment: attachment("c", "eth0"), netns: pod.path() };
        let check = || {
            let keys = json!({"prevResult": result, "runtimeConfig": ports});
            node.call(&request, &conf(keys)).map_err(|failure| failure.to_string())
        };
        let finds = |expected: &str| {
            let found = check().unwrap_err();
            assert!(found.contains(expected), "{found}");
        };
        check().unwrap();
        let setting = format!("net/ipv4/conf/{}/route_localnet", crate::cni::testing::device("c", "eth0"));
        crate::host::sysctl::set(&setting, "0").unwrap();
        finds("route_localnet is not 1");
        crate::host::sysctl::set(&setting, "1").unwrap();
        run("nft delete element ip overlay-ports any { tcp . 8080 }");
        finds("host port 0.0.0.0:8080/tcp is not in the table");
        run("nft flush chain ip overlay-ports output");
        finds("not as they were made");
        run("nft flush ruleset");
        finds("table ip overlay-ports is missing");
        let mut table = tables::HostPorts::open(&node.pins).unwrap();
        let port = table.entries().unwrap().into_iter().find(|(port, _)| port.port == 8081).unwrap().0;
        table.release(port).unwrap();
        finds("host port 192.0.2.1:8081/tcp is missing in HOST_PORTS");
    });
}

#[test]
fn pods_without_host_ports_leave_the_packet_filter_and_the_settings_alone() {
    on_a_node("10.244.1.0/24", |node| {
        let pod = Pod::new();
        add(node, "c", &pod, &json!([])).unwrap();
        let setting = format!("net/ipv4/conf/{}/route_localnet", crate::cni::testing::device("c", "eth0"));
        assert_eq!(crate::host::sysctl::get(&setting).unwrap(), "0");
        assert_eq!(tables(), "");
    });
}

#[test]
fn each_family_has_a_table_of_its_own_that_comes_and_goes_with_its_ports() {
    on_a_node_of(&["10.244.1.0/24", SUBNET6], |node| {
        let (one, two, three) = (Pod::new(), Pod::new(), Pod::new());
        add(node, "one", &one, &json!([mapping(8080, "")])).unwrap();
        assert_eq!(held(node), ["0.0.0.0:8080/tcp", "[::]:8080/tcp"]);
        for (family, target) in [("ip", "10.244.1.2 . 80"), ("ip6", "fd00:244:0:1::2 . 80")] {
            let rules = run(&format!("nft list table {family} overlay-ports"));
            assert!(rules.contains(&format!("tcp . 8080 : {target}")), "{rules}");
        }
        // The same port of one family is not that of the other.
        add(node, "two", &two, &json!([mapping(8081, "::"), mapping(8082, "0.0.0.0")])).unwrap();
        add(node, "three", &three, &json!([mapping(8081, "0.0.0.0"), mapping(8082, "2001:db8::1")])).unwrap();
        for (list, holder) in [
            (json!([mapping(8082, "::")]), "three"),
            (json!([mapping(8081, "2001:db8::7")]), "two"),
            (json!([mapping(8081, "")]), "two"),
        ] {
            let before = (node.state(), run("nft -s list ruleset"));
            let failure = add(node, "four", &Pod::new(), &list).unwrap_err();
            assert_eq!(failure.code, Code::PortTaken, "{failure}");
            assert!(failure.message.contains(&format!("container {holder}")), "{failure}");
            assert_eq!((node.state(), run("nft -s list ruleset")), before);
        }
        // Only devices of pods that 127.0.0.1 leads to answer to it.
        let setting = |id: &str| {
            let device = crate::cni::testing::device(id, "eth0");
            crate::host::sysctl::get(&format!("net/ipv4/conf/{device}/route_localnet")).unwrap()
        };
        assert_eq!(["one", "two", "three"].map(setting), ["1", "1", "1"]);
        add(node, "four", &Pod::new(), &json!([mapping(9000, "::")])).unwrap();
        assert_eq!(setting("four"), "0");
        for id in ["one", "three"] {
            node.del(id, "eth0").unwrap();
        }
        assert_eq!(held(node), ["0.0.0.0:8082/tcp", "[::]:8081/tcp", "[::]:9000/tcp"]);
        let reconcile = || HostPorts::lock(&node.pins).unwrap().reconcile(&node.pins).unwrap();
        run("nft delete table ip6 overlay-ports");
        assert!(reconcile().rewritten && !reconcile().rewritten);
        // The last one of a family takes its table along.
        let mut endpoints = Endpoints::open(&node.pins).unwrap();
        endpoints.release("10.244.1.3".parse::<IpAddr>().unwrap().into()).unwrap();
        assert_eq!(reconcile().removed.len(), 1);
        assert_eq!(tables(), "table ip6 overlay-ports\n");
        node.del("four", "eth0").unwrap();
        node.del("two", "eth0").unwrap();
        assert_eq!((held(node).len(), tables().as_str()), (0, ""));
    });
}

#[test]
fn check_finds_what_is_missing_in_either_family() {
    on_a_node_of(&[SUBNET6, "10.244.1.0/24"], |node| {
        let pod = Pod::new();
        let ports = json!({"portMappings": [mapping(8080, "")]});
        let add = crate::cni::testing::request_add("c", "eth0", &pod);
        let result = node.call(&add, &conf(json!({"runtimeConfig": ports}))).unwrap().unwrap();
        let check = || {
            let request =
                crate::cni::env::Request::Check { attachment: attachment("c", "eth0"), netns: pod.path() };
            let keys = json!({"prevResult": result, "runtimeConfig": ports});
            node.call(&request, &conf(keys)).map_err(|failure| failure.to_string())
        };
        check().unwrap();
        for (family, port) in [("ip", "0.0.0.0:8080/tcp"), ("ip6", "[::]:8080/tcp")] {
            run(&format!("nft delete element {family} overlay-ports any {{ tcp . 8080 }}"));
            let found = check().unwrap_err();
            assert!(found.contains(&format!("host port {port} is not in the table {family}")), "{found}");
            run(&format!("nft delete table {family} overlay-ports"));
            let found = check().unwrap_err();
            assert!(found.contains(&format!("table {family} overlay-ports is missing")), "{found}");
            HostPorts::lock(&node.pins).unwrap().reconcile(&node.pins).unwrap();
            check().unwrap();
        }
    });
}
