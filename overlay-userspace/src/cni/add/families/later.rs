//! What becomes of a pod in two families: the node gains or loses one, a call is killed, something of one goes missing.

use super::*;

#[test]
fn a_pod_from_before_a_family_was_switched_on_or_off_stays_sound() {
    on_a_node(SUBNET, |node| {
        let (old, new) = (Pod::new(), Pod::new());
        let add = |id: &str, pod: &Pod| {
            node.call(&request_add(id, "eth0", pod), &conf(json!({}))).unwrap().unwrap()
        };
        let result = add("c", &old);
        run("sysctl -qw net.ipv6.conf.all.forwarding=1 net.ipv6.conf.gw0.disable_ipv6=0");
        node.carry(&[SUBNET6.parse().unwrap(), SUBNET.parse().unwrap()]);
        check(node, &old, "eth0", &result).unwrap();
        assert_eq!(addresses(&node.add("new", "eth0", &new).unwrap()), ["fd00:244:0:1::2", "10.244.1.3"]);
        old.ping("10.244.1.3");
        old.ping(GATEWAY);
        node.del("c", "eth0").unwrap();

        let result = add("c", &old);
        node.carry(&[SUBNET.parse().unwrap()]);
        let found = check(node, &old, "eth0", &result).unwrap_err();
        assert!(found.contains("carries no IPv6 any more"), "{found}");
        old.ping("10.244.1.3");
        node.del("c", "eth0").unwrap();
        node.del("new", "eth0").unwrap();
        assert_eq!(leases(node), HashSet::new());
    });
}

#[test]
fn what_a_killed_call_left_in_either_family_is_cleared() {
    on_a_node_of(&[SUBNET, SUBNET6], |node| {
        let (empty, pod) = (node.state(), Pod::new());
        let endpoints = || Endpoints::open(&node.pins).unwrap();
        let of = |family: &str| {
            let mut entries = node.entries().into_iter();
            entries.find(|(address, _)| address.to_ip().is_ipv4() == (family == "IPv4")).unwrap()
        };
        let killed_at: [&dyn Fn(&str); 3] = [
            // Between the two leases.
            &|family| {
                ip(&format!("link delete {}", crate::cni::testing::device("c", "eth0")));
                endpoints().release(of(family).0).unwrap();
                let (address, endpoint) = node.entries()[0];
                endpoints().update(address, Endpoint { ifindex: 0, ..endpoint }).unwrap();
            },
            // Between the two completions.
            &|family| {
                let (address, endpoint) = of(family);
                endpoints().update(address, Endpoint { ifindex: 0, ..endpoint }).unwrap();
            },
            // DEL, between the two releases.
            &|family| {
                ip(&format!("link delete {}", crate::cni::testing::device("c", "eth0")));
                endpoints().release(of(family).0).unwrap();
            },
        ];
        for kill in killed_at {
            for family in ["IPv4", "IPv6"] {
                node.add("c", "eth0", &pod).unwrap();
                kill(family);
                node.del("c", "eth0").unwrap();
                assert_eq!(node.state(), empty, "{family}");
                node.add("c", "eth0", &pod).unwrap();
                kill(family);
                assert_eq!(node.add("c", "eth0", &pod).unwrap().ips.len(), 2, "{family}");
                kill(family);
                node.call(&Request::Gc, &conf(json!({"cni.dev/valid-attachments": []}))).unwrap();
                assert_eq!(node.state(), empty, "{family}");
            }
        }
    });
}

#[test]
fn check_names_what_is_missing_of_ipv6() {
    on_a_node_of(&[SUBNET, SUBNET6], |node| {
        let pod = Pod::new();
        let result = node.call(&request_add("c", "eth0", &pod), &conf(json!({}))).unwrap().unwrap();
        let device = result["interfaces"][0]["name"].as_str().unwrap().to_owned();
        let finds = |wanted: &str| {
            let found = check(node, &pod, "eth0", &result).expect_err(wanted);
            assert!(found.contains(wanted), "{wanted}: {found}");
        };
        let sound = || check(node, &pod, "eth0", &result).unwrap();
        sound();
        let inside = |spoil: &str, mend: &str, wanted: &str| {
            pod.run(|| ip(spoil));
            finds(wanted);
            pod.run(|| ip(mend));
            sound();
        };
        inside(
            "address delete fd00:244:0:1::2/128 dev eth0",
            "address add fd00:244:0:1::2/128 dev eth0 nodad",
            "address fd00:244:0:1::2 is missing",
        );
        inside(
            "-6 route delete default",
            &format!("-6 route add default via {GATEWAY6} dev eth0"),
            "route to ::/0 is missing",
        );
        inside(
            &format!("-6 neighbour delete {GATEWAY6} dev eth0"),
            &format!("-6 neighbour replace {GATEWAY6} lladdr 0a:6f:c0:00:02:01 dev eth0 nud permanent"),
            &format!("neighbour entry of the gateway {GATEWAY6}"),
        );
        let outside = |spoil: &str, mend: &str, wanted: &str| {
            ip(&spoil.replace("DEV", &device));
            finds(wanted);
            ip(&mend.replace("DEV", &device));
            sound();
        };
        outside(
            "-6 route delete fd00:244:0:1::2",
            "-6 route add fd00:244:0:1::2 dev DEV",
            "route fd00:244:0:1::2/128",
        );
        outside(
            "-6 neighbour delete fd00:244:0:1::2 dev DEV",
            "-6 neighbour replace fd00:244:0:1::2 lladdr 0a:58:0a:f4:01:02 dev DEV nud permanent",
            "neighbour entry of fd00:244:0:1::2",
        );
        sysctl::set(&format!("net/ipv6/conf/{device}/forwarding"), "0").unwrap();
        finds("forwarding is 0 instead of 1");
        sysctl::set(&format!("net/ipv6/conf/{device}/forwarding"), "1").unwrap();
        let (address, _) = node.entries().into_iter().find(|(address, _)| address.to_ip().is_ipv6()).unwrap();
        Endpoints::open(&node.pins).unwrap().release(address).unwrap();
        finds("the endpoint entry of fd00:244:0:1::2 is missing");
    });
}
