//! What happens to the underlay device: down, gone, renamed, without its address, with another MTU.

use std::thread;
use std::time::Duration;

use overlay_tests::lab::{Node, within};

use crate::bed::{Bed, SOON, entry, expect_idle, has, on_lan};

/// Long enough for the agent to notice.
const WHILE: Duration = Duration::from_millis(700);

/// The underlay device of `node` that holds `from_wire`, by its links.
fn wire_links(node: &Node) -> Vec<String> {
    let links = node.show("links");
    let names = links.as_array().unwrap().iter().filter_map(|link| link["name"].as_str().map(str::to_owned));
    names.filter(|name| name.starts_with("wire_")).collect()
}

#[test]
fn down_and_up() {
    let bed = Bed::start();
    let host = bed.a.namespace();
    let log = bed.a.log_mark();
    host.ip("link set dev eth0 down");
    log.wait_for("the underlay eth0 is down", SOON);
    // The file is followed all the same.
    bed.write_more(&[entry("c", "192.0.2.30", "10.244.30.0/24")]);
    within(SOON, "a node comes", || has(&bed.a, "10.244.30.0/24", Some("192.0.2.30")));
    host.ip("link set dev eth0 up");
    log.wait_for("the underlay eth0 is up again", SOON);
    bed.expect_traffic();
    expect_idle(&bed.a);
}

#[test]
fn deleted_and_plugged_in_again() {
    let bed = Bed::start();
    let host = bed.a.namespace();
    let old = wire_links(&bed.a);
    let log = bed.a.log_mark();
    host.ip("link del dev eth0");
    log.wait_for("no interface holds the node's address 192.0.2.1", SOON);
    bed.write_more(&[entry("c", "192.0.2.30", "10.244.30.0/24")]);
    within(SOON, "a node comes while there is no underlay", || {
        has(&bed.a, "10.244.30.0/24", Some("192.0.2.30"))
    });
    thread::sleep(WHILE);
    let lines = log.lines();
    assert_eq!(
        lines.iter().filter(|line| line.contains("no interface holds")).count(),
        1,
        "said more than once: {lines:#?}"
    );
    bed.lan.attach(host, "eth0");
    host.ip(&format!("addr add {} dev eth0", on_lan(1)));
    let healed = within(SOON, "programs", || wire_links(&bed.a).len() == 1 && wire_links(&bed.a) != old);
    println!("underlay deleted and made again: healed within {} ms", healed.as_millis());
    log.wait_for("the underlay is eth0 (index ", SOON);
    log.wait_for("over: no interface holds", SOON);
    bed.expect_traffic();
    expect_idle(&bed.a);
}

#[test]
fn renamed() {
    let bed = Bed::start();
    let host = bed.a.namespace();
    let before = wire_links(&bed.a);
    let log = bed.a.log_mark();
    host.ip("link set dev eth0 down");
    host.ip("link set dev eth0 name uplink");
    host.ip("link set dev uplink up");
    log.wait_for("the underlay eth0 is called uplink now", SOON);
    assert_eq!(wire_links(&bed.a), before);
    bed.expect_traffic();
    expect_idle(&bed.a);
}

#[test]
fn without_its_address_for_a_while() {
    let bed = Bed::start();
    let host = bed.a.namespace();
    let log = bed.a.log_mark();
    host.ip(&format!("addr del {} dev eth0", on_lan(1)));
    log.wait_for("no interface holds the node's address 192.0.2.1 (there are: ", SOON);
    thread::sleep(WHILE);
    host.ip(&format!("addr add {} dev eth0", on_lan(1)));
    let healed = log.wait_for("over: no interface holds", SOON);
    println!("address back: healed within {} ms", healed.as_millis());
    bed.expect_traffic();
    expect_idle(&bed.a);
}

#[test]
fn with_another_mtu() {
    let bed = Bed::start();
    let host = bed.a.namespace();
    let log = bed.a.log_mark();
    host.ip("link set dev eth0 mtu 1400");
    within(SOON, "status", || bed.a.status().is_some_and(|status| status["mtu"] == 1350));
    log.wait_for("new pods get MTU 1350, was 1450", SOON);
    assert_eq!(host.ip_json("link show dev overlay.1")[0]["mtu"], 1350);
    host.ip("link set dev eth0 mtu 500");
    log.wait_for("mtu 450 for pods is below the minimum", SOON);
    host.ip("link set dev eth0 mtu 1500");
    log.wait_for("over: mtu 450", SOON);
    within(SOON, "status", || bed.a.status().is_some_and(|status| status["mtu"] == 1450));
    bed.expect_traffic();
    expect_idle(&bed.a);
}
