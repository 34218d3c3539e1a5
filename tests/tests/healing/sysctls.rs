//! The kernel settings that pods' traffic rests on, when others change them.

use std::net::{Ipv4Addr, SocketAddr};

use overlay_tests::lab::{Namespace, Node, exec};
use overlay_tests::traffic::{tcp, udp};

use crate::bed::{Bed, SOON, WORLD, expect_idle};

fn conf(device: &str, setting: &str) -> String {
    format!("net/ipv4/conf/{device}/{setting}")
}

#[test]
fn forwarding_of_each_device_comes_back() {
    let bed = Bed::start();
    let host = bed.a.namespace();
    for device in ["overlay.1", "eth0", &bed.pod_a.host_device()] {
        let path = conf(device, "forwarding");
        bed.heals(
            SOON,
            &path,
            || host.sysctl(&path, "0"),
            || host.read_sysctl(&path) == "1",
            &format!("set {path} = 1"),
        );
    }
    expect_idle(&bed.a);
}

/// Service addresses of pod a and of pod b, and of node b.
const SERVICES: [Ipv4Addr; 3] =
    [Ipv4Addr::new(10, 96, 0, 1), Ipv4Addr::new(10, 96, 0, 2), Ipv4Addr::new(10, 96, 0, 3)];

/// Sends Services to what is behind them, from the outside of the node and from itself.
fn services(node: &Node, backends: [Ipv4Addr; 3]) {
    let rules = SERVICES.iter().zip(backends);
    let rules: Vec<_> =
        rules.map(|(service, backend)| format!("ip daddr {service} dnat to {backend}")).collect();
    let rules = rules.join("\n");
    let table = format!(
        "table ip services {{
            chain prerouting {{
                type nat hook prerouting priority dstnat;
                {rules}
            }}
            chain output {{
                type nat hook output priority -100;
                {rules}
            }}
            chain postrouting {{
                type nat hook postrouting priority srcnat;
                ct status dnat ip saddr != 10.244.0.0/16 masquerade
            }}
        }}\n"
    );
    exec::must(node.namespace().command("nft").args(["-f", "-"]), &table);
}

/// Strict reverse path filtering drops what comes in by another device than the one that its source is reached by.
#[test]
fn strict_reverse_path_filtering_on_all_devices_stops_nothing() {
    let bed = Bed::start();
    let [a, b] = [&bed.a, &bed.b].map(Node::namespace);
    services(&bed.a, [bed.pod_a.addr(), bed.pod_b.addr(), bed.b.address()]);
    bed.world.ip(&format!("route add 10.96.0.0/24 via {}", bed.a.address()));
    // As a default route would: the node's own packets are translated on their way out.
    a.ip(&format!("route add 10.96.0.0/24 via {WORLD}"));
    for (host, pod) in [(a, &bed.pod_a), (b, &bed.pod_b)] {
        for device in ["all", "default", "eth0", "overlay.1", &pod.host_device()] {
            host.sysctl(&conf(device, "rp_filter"), "1");
        }
    }
    let mark = bed.a.log_mark();
    bed.expect_traffic();
    let second = bed.a.add_pod(&bed.lab, "second");
    let behind: [(&Namespace, Ipv4Addr); 3] = [
        (bed.pod_a.namespace(), bed.pod_a.addr()),
        (bed.pod_b.namespace(), bed.pod_b.addr()),
        (b, bed.b.address()),
    ];
    let any = |address: Ipv4Addr| SocketAddr::from((address, 0));
    for (name, client) in [("pod", second.namespace()), ("node", a), ("world", &bed.world)] {
        for (service, (server, address)) in SERVICES.into_iter().zip(behind) {
            // Docker's policy is against it, and it is no pod's traffic.
            if name == "world" && address == bed.b.address() {
                continue;
            }
            let what = format!("{name} to {address} by {service}");
            tcp::exchange_through(client, server, any(address), any(service)).expect(&what);
            udp::exchange_through(client, server, any(address), any(service)).expect(&what);
        }
    }
    // Nobody has loosened anything.
    for device in ["all", "eth0", "overlay.1", &bed.pod_a.host_device()] {
        assert_eq!(a.read_sysctl(&conf(device, "rp_filter")), "1", "{device}");
    }
    assert!(!mark.lines().iter().any(|line| line.contains("rp_filter")), "{:?}", mark.lines());
}
