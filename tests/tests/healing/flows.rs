//! The table of flows that return through the stack: its size follows the setting and loses nothing on the way, and what
//! nobody tracks any more leaves it. The Service is the smallest there is: a rule that translates a destination.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use overlay_common::maps::{Flow, FlowKey};
use overlay_tests::lab::{Network, Node, exec, within};
use overlay_tests::traffic::{ping, tcp, udp};
use overlay_userspace::datapath::{flows::StackFlows, pins::Pins};

use crate::bed::{Bed, PERIOD, SOON, any_port};

/// What the agent says when no program uses the old table any more.
const CHANGED_OVER: &str = "all programs use the new table";

const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// Leads what the node's pods send to the Service to this backend.
fn serve(node: &Node, backend: Ipv4Addr) {
    let mut rules = String::from("table ip service {\n");
    let _ = writeln!(
        rules,
        "chain pre {{ type nat hook prerouting priority dstnat; ip daddr {SERVICE} dnat to {backend}; }}\n}}"
    );
    exec::must(node.namespace().command("nft").args(["-f", "-"]), &rules);
}

fn table(node: &Node) -> StackFlows {
    StackFlows::open(&Pins::new(node.pins())).unwrap()
}

/// A flow that no packet has ever been of.
fn dead(port: u16) -> FlowKey {
    FlowKey {
        src: Ipv4Addr::new(10, 244, 2, 99).into(),
        dst: Ipv4Addr::new(10, 244, 1, 99).into(),
        src_port: port,
        dst_port: port,
        protocol: 6,
        ..FlowKey::default()
    }
}

fn through_service(bed: &Bed) {
    let listen = any_port(bed.pod_b.addr());
    let dial = SocketAddr::new(IpAddr::V4(SERVICE), 0);
    let (client, server) = (bed.pod_a.namespace(), bed.pod_b.namespace());
    let seen = tcp::exchange_through(client, server, listen, dial).unwrap();
    assert_eq!(seen.server_saw.ip(), IpAddr::V4(bed.pod_a.addr()), "{seen:?}");
    assert!((1024..32768).contains(&seen.server_saw.port()), "{seen:?}");
    udp::exchange_through(client, server, listen, dial).unwrap();
}

fn capacity(node: &Node) -> u64 {
    node.status().and_then(|status| status["stack_flows"]["capacity"].as_u64()).unwrap_or(0)
}

#[test]
fn entries_survive_another_size_of_their_table() {
    let bed = Bed::start();
    serve(&bed.a, bed.pod_b.addr());
    through_service(&bed);
    for port in 1..=100 {
        table(&bed.a).record(&dead(port), Flow { recorded_ns: 1 }).unwrap();
    }
    let kept = || {
        let keys = table(&bed.a).keys().unwrap();
        (1..=100).all(|port| keys.contains(&dead(port)))
            && keys.iter().any(|key| key.src == bed.pod_b.addr().into())
    };
    assert!(kept());
    let automatic = capacity(&bed.a);
    let nodes = [bed.a.entry(), bed.b.entry()];
    for (setting, wanted) in [(Some(2048), 2048), (Some(3000), 3000), (None, automatic)] {
        let log = bed.a.log_mark();
        bed.write(&Network { stack_flows: setting, ..Network::default() }, &nodes);
        log.wait_for(CHANGED_OVER, SOON);
        assert_eq!(capacity(&bed.a), wanted);
        assert!(kept(), "{setting:?}");
        through_service(&bed);
        bed.expect_traffic();
    }
}

/// What programs still read is not let go of because others were to replace them, and could not.
#[test]
fn entries_survive_a_load_that_fails_while_their_table_changes_its_size() {
    let bed = Bed::start();
    serve(&bed.a, bed.pod_b.addr());
    through_service(&bed);
    for port in 1..=100 {
        table(&bed.a).record(&dead(port), Flow { recorded_ns: 1 }).unwrap();
    }
    // Another map in the place of one that the programs need: they cannot be loaded.
    let [pin, aside] = ["DROPS", "DROPS_aside"].map(|name| bed.a.pins().join("maps").join(name));
    fs::rename(&pin, &aside).unwrap();
    let mut bpftool = bed.a.namespace().command("bpftool");
    bpftool.args(["map", "create"]).arg(&pin);
    bpftool.args(["type", "array", "key", "4", "value", "4", "entries", "1", "name", "other"]);
    exec::must(&mut bpftool, "");
    let log = bed.a.log_mark();
    let nodes = [bed.a.entry(), bed.b.entry()];
    bed.write(&Network { stack_flows: Some(2048), ..Network::default() }, &nodes);
    log.wait_for("this build needs", SOON);
    through_service(&bed);
    let lines = log.lines();
    assert!(!lines.iter().any(|line| line.contains(CHANGED_OVER)), "{lines:#?}");

    fs::rename(&aside, &pin).unwrap();
    log.wait_for(CHANGED_OVER, PERIOD);
    assert_eq!(capacity(&bed.a), 2048);
    let keys = table(&bed.a).keys().unwrap();
    assert!((1..=100).all(|port| keys.contains(&dead(port))), "{keys:?}");
    through_service(&bed);
}

#[test]
fn entries_that_nobody_tracks_are_swept_and_the_others_stay() {
    let bed = Bed::start();
    let nodes = [bed.a.entry(), bed.b.entry()];
    let log = bed.a.log_mark();
    bed.write(&Network { stack_flows: Some(1024), ..Network::default() }, &nodes);
    // Until then a flow may be recorded in the old table.
    log.wait_for(CHANGED_OVER, SOON);
    assert_eq!(capacity(&bed.a), 1024);
    serve(&bed.a, bed.pod_b.addr());
    for port in 1..=100 {
        table(&bed.a).record(&dead(port), Flow { recorded_ns: 1 }).unwrap();
    }
    // One that stays, and as many others as it takes.
    let server = udp::bind(bed.pod_b.namespace(), any_port(bed.pod_b.addr())).unwrap();
    let service = SocketAddr::new(IpAddr::V4(SERVICE), server.local_addr().unwrap().port());
    let clients: Vec<_> = (0..300).map(|_| udp::connected(bed.pod_a.namespace(), service).unwrap()).collect();
    let ask = || {
        for client in &clients {
            client.send(b"?").unwrap();
            let mut buffer = [0; 16];
            let (len, from) = server.recv_from(&mut buffer).unwrap();
            server.send_to(&buffer[..len], from).unwrap();
            assert_eq!(client.recv(&mut buffer).unwrap(), 1);
        }
    };
    ask();
    within(PERIOD, "swept", || {
        !table(&bed.a).keys().unwrap().iter().any(|key| key.dst_port <= 100 && key.protocol == 6)
    });
    let flows = bed.a.show("flows");
    assert!(flows.as_array().unwrap().len() >= clients.len(), "{}", flows.as_array().unwrap().len());
    ask();
}

#[test]
fn switched_off_nothing_is_recorded() {
    let bed = Bed::start();
    let nodes = [bed.a.entry(), bed.b.entry()];
    let log = bed.a.log_mark();
    bed.write(&Network { stack_flows: Some(0), ..Network::default() }, &nodes);
    log.wait_for("network.stack_flows is 0 now, was automatic", SOON);
    log.wait_for("loaded the programs anew", SOON);
    serve(&bed.a, bed.pod_b.addr());
    let dial = SocketAddr::new(IpAddr::V4(SERVICE), 0);
    let (client, server) = (bed.pod_a.namespace(), bed.pod_b.namespace());
    within(PERIOD, "answers miss the stack", || {
        udp::exchange_through(client, server, any_port(bed.pod_b.addr()), dial).is_err()
    });
    let recorded = bed.a.show("flows").as_array().unwrap().len();
    udp::exchange_through(client, server, any_port(bed.pod_b.addr()), dial).unwrap_err();
    assert_eq!(bed.a.show("flows").as_array().unwrap().len(), recorded);
    bed.expect_traffic();
}

/// Where nobody has rules but the agent, programs ask the main table alone. Somebody's rules count all the same.
#[test]
fn policy_rules_of_others_lead_tunnel_packets() {
    let bed = Bed::start();
    let host = bed.a.namespace();
    host.ip("route add prohibit 192.0.2.2 table 200");
    for rule in ["to 192.0.2.2 table 200", "from 192.0.2.1 table 200"] {
        let log = bed.a.log_mark();
        host.ip(&format!("rule add {rule}"));
        log.wait_for("the way of tunnel packets is a matter of policy rules now", SOON);
        within(SOON, rule, || ping::ping(bed.pod_a.namespace(), bed.pod_b.addr().into()).is_err());
        host.ip(&format!("rule del {rule}"));
        log.wait_for("the way of tunnel packets is a matter of the main table alone now", SOON);
        within(SOON, "as before", || ping::ping(bed.pod_a.namespace(), bed.pod_b.addr().into()).is_ok());
        bed.expect_traffic();
    }
}

#[test]
fn the_way_to_nodes_behind_services_comes_back() {
    let bed = Bed::start();
    let host = bed.a.namespace();
    let whole = || {
        let rules = host.ip_json("rule show");
        let rule =
            rules.as_array().unwrap().iter().any(|rule| rule["src"] == "10.244.1.0" && rule["table"] == "79");
        let routes = host.ip_json("route show table 79");
        rule && routes.as_array().is_some_and(|routes| {
            routes.len() == 1 && routes[0]["dst"] == "192.0.2.2" && routes[0]["dev"] == Node::ANCHOR
        })
    };
    // The backend is the other node itself, and it sees the pod.
    let server = || {
        let listen = any_port(bed.b.address());
        let dial = SocketAddr::new(IpAddr::V4(SERVICE), 0);
        let seen = tcp::exchange_through(bed.pod_a.namespace(), bed.b.namespace(), listen, dial).unwrap();
        assert_eq!(seen.server_saw.ip(), IpAddr::V4(bed.pod_a.addr()), "{seen:?}");
    };
    serve(&bed.a, bed.b.address());
    server();
    for break_it in ["rule del from 10.244.1.0/24 table 79", "route flush table 79"] {
        assert!(whole(), "before {break_it}");
        host.ip(break_it);
        within(PERIOD, break_it, whole);
        server();
    }
}
