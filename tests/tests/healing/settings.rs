//! Settings that change at run time: all agents take them over, say so, and traffic goes on under the new ones.

use std::fs;
use std::time::Duration;

use overlay_tests::lab::{Network, Node, NodeEntry, exec, within};
use overlay_tests::traffic::capture::Capture;
use overlay_tests::traffic::ping;
use overlay_tests::traffic::vxlan::Tunnel;

use crate::bed::{Bed, SOON, entry, expect_idle, has};

/// The chains of the agent's table.
fn chains(node: &Node) -> Vec<String> {
    let list = exec::must(node.namespace().command("nft").args(["-j", "list", "table", "ip", "overlay"]), "");
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let objects = list["nftables"].as_array().unwrap();
    let chains = objects.iter().filter_map(|object| object["chain"]["name"].as_str());
    chains.map(str::to_owned).collect()
}

#[test]
fn vni_and_port_change_on_all_nodes() {
    let bed = Bed::start();
    let logs = [bed.a.log_mark(), bed.b.log_mark()];
    let network = Network { vni: 77, port: 4789, ..Network::default() };
    bed.write(&network, &[bed.a.entry(), bed.b.entry()]);
    for (node, log) in [&bed.a, &bed.b].into_iter().zip(logs) {
        within(SOON, "status", || {
            node.status().is_some_and(|status| status["vni"] == 77 && status["port"] == 4789)
        });
        log.wait_for("network.vni is 77 now, was 1", SOON);
        log.wait_for("network.port is 4789 now, was 8472", SOON);
        let links = node.namespace().ip_json("-d link show type vxlan");
        assert_eq!(links.as_array().unwrap().len(), 1, "{links}");
        assert_eq!(
            (&links[0]["ifname"], &links[0]["linkinfo"]["info_data"]["port"]),
            (&"overlay.77".into(), &4789.into())
        );
    }
    let capture = Capture::start(bed.lan.switch(), "port1");
    bed.expect_traffic();
    let nodes = [bed.a.address(), bed.b.address()].map(std::net::IpAddr::from);
    // What pods send to the world is UDP, too.
    let tunnels: Vec<_> = capture
        .stop()
        .iter()
        .filter_map(|frame| Tunnel::decode(&frame.bytes))
        .filter(|tunnel| nodes.contains(&tunnel.source.ip()) && nodes.contains(&tunnel.destination.ip()))
        .collect();
    assert!(!tunnels.is_empty());
    assert!(tunnels.iter().all(|tunnel| (tunnel.vni, tunnel.destination.port()) == (77, 4789)));
    for node in [&bed.a, &bed.b] {
        expect_idle(node);
    }
}

#[test]
fn masquerade_is_switched_off_and_on() {
    let bed = Bed::start();
    let log = bed.a.log_mark();
    let nodes = [bed.a.entry(), bed.b.entry()];
    let both = [&bed.a, &bed.b];
    let on = |node| chains(node) == ["postrouting", "services"];
    assert!(both.into_iter().all(on));
    bed.write(&Network { masquerade: false, ..Network::default() }, &nodes);
    // What Services need stays.
    within(SOON, "no masquerade", || both.into_iter().all(|node| chains(node) == ["services"]));
    log.wait_for("network.masquerade is false now, was true", SOON);
    // The world has no way to answer a pod's own address.
    ping::ping(bed.pod_a.namespace(), crate::bed::WORLD.into()).unwrap_err();
    bed.write(&Network::default(), &nodes);
    within(SOON, "masquerade", || both.into_iter().all(on));
    bed.expect_traffic();
}

#[test]
fn the_mtu_of_new_pods_changes() {
    let bed = Bed::start();
    let log = bed.a.log_mark();
    bed.write(&Network { mtu: Some(1300), ..Network::default() }, &[bed.a.entry(), bed.b.entry()]);
    within(SOON, "status", || bed.a.status().is_some_and(|status| status["mtu"] == 1300));
    log.wait_for("new pods get MTU 1300, was 1450: pods that run keep theirs", SOON);
    let pod = bed.a.add_pod(&bed.lab, "small");
    let mtu = |pod: &overlay_tests::lab::Pod| pod.namespace().ip_json("link show dev eth0")[0]["mtu"].clone();
    assert_eq!((mtu(&pod), mtu(&bed.pod_a)), (1300.into(), 1450.into()));
    ping::ping(pod.namespace(), bed.pod_b.addr().into()).unwrap();
    bed.expect_traffic();

    // More than the underlay carries: said, everything else goes on.
    let log = bed.a.log_mark();
    let nodes: [NodeEntry; 3] = [bed.a.entry(), bed.b.entry(), entry("c", "192.0.2.30", "10.244.30.0/24")];
    bed.write(&Network { mtu: Some(9000), ..Network::default() }, &nodes);
    log.wait_for("mtu 9000 for pods is too large: eth0 carries 1500 bytes", SOON);
    within(SOON, "a node comes all the same", || has(&bed.a, "10.244.30.0/24", Some("192.0.2.30")));
    assert_eq!(bed.a.status().unwrap()["mtu"], 1300);
    bed.write_more(&[]);
    log.wait_for("over: mtu 9000 for pods is too large", SOON);
    bed.expect_traffic();
}

#[test]
fn the_own_subnet_changes_for_new_pods_and_old_ones_are_named() {
    let bed = Bed::start();
    let log = bed.b.log_mark();
    let moved = entry("b", "192.0.2.2", "10.244.99.0/24");
    bed.write(&Network::default(), &[bed.a.entry(), moved]);
    within(SOON, "a knows", || has(&bed.a, "10.244.99.0/24", Some("192.0.2.2")));
    within(SOON, "b knows", || bed.b.status().is_some_and(|status| status["subnet"] == "10.244.99.0/24"));
    log.wait_for("node b changed: 10.244.99.0/24 at 192.0.2.2", SOON);
    let old = format!("pod {} is outside of this node's subnet 10.244.99.0/24", bed.pod_b.addr());
    log.wait_for(&old, SOON);
    let pod = bed.b.add_pod(&bed.lab, "new");
    assert!(pod.addr().octets().starts_with(&[10, 244, 99]), "{}", pod.addr());
    ping::ping(bed.pod_a.namespace(), pod.addr().into()).unwrap();
    ping::ping(pod.namespace(), bed.pod_a.addr().into()).unwrap();
    ping::ping(bed.b.namespace(), pod.addr().into()).unwrap();
    let gateways = bed.b.namespace().ip_json("addr show dev overlay.1");
    let gateways = gateways[0]["addr_info"].as_array().unwrap();
    assert_eq!(gateways.len(), 1, "{gateways:?}");
    assert_eq!(gateways[0]["local"], "10.244.99.1");

    // And back: the old pod has its network again.
    bed.write_more(&[]);
    within(SOON, "back", || ping::ping(bed.pod_a.namespace(), bed.pod_b.addr().into()).is_ok());
    drop(pod);
    std::thread::sleep(Duration::from_millis(100));
    bed.expect_traffic();
}

/// Attached in both ways, programs would see packets twice, and of the way that was left an old version.
#[test]
fn another_way_to_attach_is_taken_over_while_traffic_goes_on() {
    let bed = Bed::start();
    let nodes = [bed.a.entry(), bed.b.entry()];
    let attached = || {
        let links = fs::read_dir(bed.a.pins().join("links")).unwrap().count();
        let filters = ["eth0", "overlay.1"].map(|device| {
            let mut tc = bed.a.namespace().command("tc");
            let ingress = exec::must(tc.args(["filter", "show", "dev", device, "ingress"]), "");
            ingress.matches("direct-action").count()
        });
        (links, filters)
    };
    let before = attached();
    let streams = bed.streams();
    for (attach, expected) in [(Some("clsact"), (0, [1, 1])), (None, before)] {
        let log = bed.a.log_mark();
        bed.write(&Network { attach: attach.map(str::to_owned), ..Network::default() }, &nodes);
        log.wait_for("network.attach is ", SOON);
        within(SOON, &format!("{attach:?}: {expected:?}"), || attached() == expected);
        bed.expect_traffic();
    }
    // A new qdisc deactivates its device for a moment (`qdisc_graft`, net/sched/sch_api.c), which a busy machine makes longer.
    for (kind, stream) in streams {
        let outcome = stream.stop();
        assert!(outcome.lost <= 50 && outcome.error.is_none(), "{kind:?}: {outcome:?}");
    }
    expect_idle(&bed.a);
}
