//! Ports that come and go: with their pods, without the runtime, against each other, and against somebody's flush.

use std::thread;

use nix::sys::signal::Signal;
use overlay_tests::lab::{Cluster, exec, within};
use overlay_userspace::family::Family;
use serde_json::json;

use crate::bed::{HEALED, Protocol, both, expect_served, has_table, held, mapping, server};

#[test]
fn ports_go_with_their_pod_and_with_the_last_one_the_table() {
    let cluster = Cluster::builder().start();
    let node = cluster.node("w1");
    let (one, two) = (server(&cluster, "one", 8080), server(&cluster, "two", 8081));
    // No verb needs it.
    node.kill_agent(Signal::SIGKILL);
    expect_served(&cluster, &one, 8080);
    one.del();
    assert_eq!((held(node), has_table(node, Family::Ipv4)), (2, true));
    expect_served(&cluster, &two, 8081);
    let world = cluster.world();
    Protocol::Tcp.exchange(world.namespace(), &two, node.address().into(), 8080).unwrap_err();
    two.del();
    assert_eq!((held(node), has_table(node, Family::Ipv4)), (0, false));
}

#[test]
fn ports_of_a_pod_that_dies_without_deletion_are_given_back() {
    let cluster = Cluster::builder().start();
    let node = cluster.node("w1");
    let (dies, stays) = (server(&cluster, "dies", 8080), server(&cluster, "stays", 8081));
    node.namespace().ip(&format!("link delete {}", dies.host_device()));
    within(HEALED, "the ports of a dead pod are given back", || held(node) == 2);
    expect_served(&cluster, &stays, 8081);
    let next = server(&cluster, "next", 8080);
    expect_served(&cluster, &next, 8080);
    // The runtime's late call takes nothing that is not its own.
    dies.del();
    assert_eq!(held(node), 4);
    expect_served(&cluster, &next, 8080);
}

#[test]
fn rules_that_somebody_flushes_come_back() {
    let cluster = Cluster::builder().start();
    let node = cluster.node("w1");
    let pod = server(&cluster, "server", 8080);
    let rules = || {
        let mut nft = node.namespace().command("nft");
        nft.args(["-s", "list", "table", "ip", "overlay-ports"]);
        exec::output(&mut nft, b"", exec::COMMAND_LIMIT).unwrap().stdout
    };
    let good = rules();
    for tampering in [
        "flush ruleset",
        "flush map ip overlay-ports any",
        "delete table ip overlay-ports",
        "add element ip overlay-ports any { tcp . 9999 : 10.244.9.9 . 80 }",
        "insert rule ip overlay-ports lead accept",
    ] {
        exec::must(node.namespace().command("nft").args(tampering.split(' ')), "");
        within(HEALED, tampering, || rules() == good);
    }
    let setting = format!("net/ipv4/conf/{}/route_localnet", pod.host_device());
    node.namespace().sysctl(&setting, "0");
    within(HEALED, "route_localnet is set again", || node.namespace().read_sysctl(&setting) == "1");

    // Also what was flushed while no agent was there.
    node.kill_agent(Signal::SIGKILL);
    exec::must(node.namespace().command("nft").args(["flush", "ruleset"]), "");
    node.start_agent();
    within(HEALED, "the next agent restores the rules", || rules() == good);
    expect_served(&cluster, &pod, 8080);
}

#[test]
fn of_many_that_want_one_port_at_once_one_gets_it() {
    const RIVALS: usize = 8;
    let cluster = Cluster::builder().start();
    let node = cluster.node("w1");
    let wanted = json!({"portMappings": [mapping(Protocol::Tcp, 7000), mapping(Protocol::Udp, 8080)]});
    let mut results: Vec<_> = thread::scope(|scope| {
        let rivals: Vec<_> = (0..RIVALS)
            .map(|number| {
                let (cluster, wanted) = (&cluster, &wanted);
                scope.spawn(move || node.try_add_pod_with(cluster.lab(), &format!("p{number}"), wanted))
            })
            .collect();
        rivals.into_iter().map(|rival| rival.join().unwrap()).collect()
    });
    let winner = results.iter().position(Result::is_ok).expect("somebody gets the port");
    let winner = results.swap_remove(winner).unwrap();
    for result in results {
        let error = result.expect_err("one pod alone has the port");
        assert_eq!(error.code, 107, "{error}");
        assert!(error.message.contains(winner.namespace().name()), "the holder is named: {error}");
        assert!(error.message.contains("0.0.0.0:7000/tcp"), "the port is named: {error}");
    }
    assert_eq!((held(node), node.show("endpoints").as_array().unwrap().len()), (2, 1));
    winner.del();
    assert_eq!((held(node), has_table(node, Family::Ipv4)), (0, false));
}

#[test]
fn an_agent_that_starts_on_a_node_with_ports_leaves_them_alone() {
    let cluster = Cluster::builder().start();
    let node = cluster.node("w1");
    let pod = cluster.node("w1").add_pod_with_ports(cluster.lab(), "server", &both(8080));
    let shown = node.show("ports");
    assert_eq!(shown[0]["pod"], json!(pod.addr()));
    assert_eq!(shown[0]["container"], json!(pod.namespace().name()));
    let mark = node.log_mark();
    node.restart_agent();
    expect_served(&cluster, &pod, 8080);
    assert_eq!(node.show("ports"), shown);
    let said = mark.lines();
    assert!(!said.iter().any(|line| line.contains("host ports")), "{said:?}");
}
