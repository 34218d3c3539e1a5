//! What happens to the anchor device and to the route that leads to it.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overlay_tests::lab::Node;

use crate::bed::{Bed, SOON, expect_idle};

const ANCHOR: &str = Node::ANCHOR;

/// The anchor is up with MAC, address and route.
fn whole(bed: &Bed) -> bool {
    let host = bed.a.namespace();
    let links = host.ip_json("-d addr show");
    let Some(anchor) = links.as_array().unwrap().iter().find(|link| link["ifname"] == ANCHOR) else {
        return false;
    };
    let up = anchor["flags"].as_array().unwrap().iter().any(|flag| flag == "UP");
    let addresses = anchor["addr_info"].as_array().unwrap();
    let routes = host.ip_json("route show proto 79");
    let has_route = |dst: &str, key: &str, value: &str| {
        routes.as_array().unwrap().iter().any(|route| route["dst"] == dst && route[key] == value)
    };
    up && anchor["address"] == "0a:6f:c0:00:02:01"
        && anchor["mtu"] == 1450
        && addresses.len() == 1
        && addresses[0]["local"] == "10.244.1.1"
        && has_route("10.244.0.0/16", "dev", ANCHOR)
        && has_route("10.244.1.0/24", "type", "unreachable")
        && has_route(&bed.pod_a.addr().to_string(), "dev", &bed.pod_a.host_device())
}

fn index(bed: &Bed) -> u64 {
    bed.a.namespace().ip_json(&format!("link show dev {ANCHOR}"))[0]["ifindex"].as_u64().unwrap()
}

#[test]
fn settings_addresses_and_routes_come_back() {
    let bed = Bed::start();
    let host = bed.a.namespace();
    for (break_it, said) in [
        ("link set dev overlay.1 down", "overlay.1: was down, is up again"),
        ("link set dev overlay.1 address 02:00:00:00:00:01", "overlay.1: set its MAC address again"),
        ("link set dev overlay.1 mtu 1000", "overlay.1: set its MTU to 1450, it was 1000"),
        ("link set dev overlay.1 arp on", "overlay.1: turned neighbour resolution off again"),
        ("addr del 10.244.1.1/32 dev overlay.1", "overlay.1: added address 10.244.1.1/32"),
        ("addr add 198.51.100.9/32 dev overlay.1", "overlay.1: removed address 198.51.100.9/32"),
        ("route del 10.244.0.0/16", "adding route 10.244.0.0/16"),
        ("route replace 10.244.0.0/16 dev lo", "adding route 10.244.0.0/16"),
        ("route del unreachable 10.244.1.0/24", "adding route unreachable 10.244.1.0/24"),
        ("route flush proto 79", "adding route 10.244.0.0/16"),
    ] {
        // The device is back in an instant: broken is what the log says.
        bed.heals(SOON, break_it, || drop(host.ip(break_it)), || whole(&bed), said);
    }
    expect_idle(&bed.a);
}

#[test]
fn deleted_it_comes_back_with_its_index_and_nothing_is_loaded_anew() {
    let bed = Bed::start();
    let host = bed.a.namespace();
    let before = index(&bed);
    let log = bed.a.log_mark();
    bed.heals(
        SOON,
        "anchor deleted",
        || drop(host.ip("link del dev overlay.1")),
        || whole(&bed),
        &format!("made overlay.1 (index {before}"),
    );
    assert_eq!(index(&bed), before);
    assert!(!log.lines().iter().any(|line| line.contains("loaded the programs anew")), "{:#?}", log.lines());
    log.wait_for(&format!("attached the programs of overlay.1 (index {before})"), SOON);
    expect_idle(&bed.a);
}

#[test]
fn deleted_with_its_index_taken_the_programs_learn_the_new_one() {
    let bed = Bed::start();
    let host = bed.a.namespace();
    let before = index(&bed);
    let log = bed.a.log_mark();
    // The agent must not come in between.
    let agent = Pid::from_raw(bed.a.agent_pid().unwrap());
    kill(agent, Signal::SIGSTOP).unwrap();
    host.ip_batch(&format!("link del dev overlay.1\nlink add name squatter index {before} type bridge\n"));
    kill(agent, Signal::SIGCONT).unwrap();
    log.wait_for("loaded the programs anew", SOON);
    expect_idle(&bed.a);
    assert!(whole(&bed));
    assert_ne!(index(&bed), before);
    assert_eq!(host.ip_json("link show dev squatter")[0]["ifindex"], before);
    bed.expect_traffic();
    let links = bed.a.show("links");
    let anchors: Vec<_> = links
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|link| link["name"].as_str())
        .filter(|name| name.starts_with("anchor_"))
        .collect();
    let own = format!("anchor_{}_", index(&bed));
    assert!(anchors.len() == 2 && anchors.iter().all(|name| name.starts_with(&own)), "{anchors:?}");
}

#[test]
fn with_its_port_taken_it_says_who_has_it_and_recovers() {
    let bed = Bed::start();
    let host = bed.a.namespace();
    let log = bed.a.log_mark();
    let agent = Pid::from_raw(bed.a.agent_pid().unwrap());
    kill(agent, Signal::SIGSTOP).unwrap();
    host.ip_batch(
        "link set dev overlay.1 down\n\
         link add name flannel.1 type vxlan id 1 local 192.0.2.1 dstport 8472 nolearning\n\
         link set dev flannel.1 up\n",
    );
    kill(agent, Signal::SIGCONT).unwrap();
    log.wait_for("UDP port 8472 is taken by the vxlan device flannel.1", SOON);
    expect_idle(&bed.a);
    let said = log.lines().iter().filter(|line| line.contains("is taken by")).count();
    assert_eq!(said, 1, "{:#?}", log.lines());
    host.ip("link del dev flannel.1");
    let healed = overlay_tests::lab::within(SOON, "anchor is up", || whole(&bed));
    println!("port free again: healed within {} ms", healed.as_millis());
    log.wait_for("over: UDP port 8472 is taken", SOON);
    bed.expect_traffic();
    expect_idle(&bed.a);
}
