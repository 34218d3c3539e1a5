//! What happens to the devices of pods, and to the links that attach programs.

use std::fs;
use std::process::Command;

use overlay_tests::lab::{exec, within};
use overlay_userspace::datapath::attach::{Device, Programs, Role};
use overlay_userspace::host::netlink::Netlink;

use crate::bed::{Bed, PERIOD, SOON, expect_idle, expect_nothing_lost};

/// The host side of the pod on `a` is up, with route, neighbour entry and both programs.
fn whole(bed: &Bed) -> bool {
    let (host, device) = (bed.a.namespace(), bed.pod_a.host_device());
    let address = bed.pod_a.addr().to_string();
    let flags = host.ip_json(&format!("link show dev {device}"))[0]["flags"].clone();
    let up = flags.as_array().unwrap().iter().any(|flag| flag == "UP");
    let routes = host.ip_json(&format!("route show {address}"));
    let neighbours = host.ip_json(&format!("neigh show {address} dev {device} nud permanent"));
    up && routes[0]["dev"] == device.as_str()
        && routes[0]["prefsrc"] == "10.244.1.1"
        && neighbours.as_array().is_some_and(|list| list.len() == 1)
}

/// Names and ids of the pinned links of `a`; `None` when one goes away while they are listed.
fn try_links(bed: &Bed) -> Option<Vec<(String, u64)>> {
    let mut command = bed.a.overlay(&["links", "-o", "json"]);
    let out = exec::output(&mut command, b"", exec::COMMAND_LIMIT).unwrap();
    let links: serde_json::Value = serde_json::from_str(&out.stdout).ok()?;
    let read = |link: &serde_json::Value| {
        (link["name"].as_str().unwrap().to_owned(), link["link_id"].as_u64().unwrap())
    };
    // Pods have filters, which are no links.
    let links = links.as_array().unwrap().iter().filter(|link| !link["link_id"].is_null());
    Some(links.map(read).collect())
}

fn links(bed: &Bed) -> Vec<(String, u64)> {
    try_links(bed).expect("links are listed")
}

#[test]
fn devices_routes_and_neighbours_come_back() {
    let bed = Bed::start();
    let (host, device, address) = (bed.a.namespace(), bed.pod_a.host_device(), bed.pod_a.addr());
    for (command, limit, said) in [
        (
            format!("link set dev {device} down"),
            SOON,
            format!("pod {address}: {device} was down, is up again"),
        ),
        (format!("route del {address}"), SOON, format!("pod {address}: wrote its route to {device} again")),
        (
            format!("route replace {address} dev lo"),
            SOON,
            format!("pod {address}: wrote its route to {device} again"),
        ),
        (
            format!("neigh del {address} dev {device}"),
            PERIOD,
            format!("pod {address}: wrote its neighbour entry on {device} again"),
        ),
    ] {
        bed.heals(limit, &command, || drop(host.ip(&command)), || whole(&bed), &said);
    }
    expect_idle(&bed.a);
}

/// Whether the host side of the pod on `a` has its two programs, attached in whatever way.
fn has_programs(bed: &Bed) -> bool {
    let name = bed.pod_a.host_device();
    let links = bed.a.namespace().ip_json(&format!("link show dev {name}"));
    let ifindex = links[0]["ifindex"].as_u64().unwrap() as u32;
    bed.a.namespace().run(|| {
        let mut netlink = Netlink::open().unwrap();
        let device = Device { name: &name, ifindex };
        Role::Pod.hooks().iter().all(|&hook| Programs::is_attached(&mut netlink, device, hook).unwrap())
    })
}

#[test]
fn programs_that_are_detached_are_attached_again_and_the_other_links_stay() {
    let bed = Bed::start();
    let before = links(&bed);
    let device = bed.pod_a.host_device();
    let log = bed.a.log_mark();
    assert!(has_programs(&bed));
    let broken: Vec<_> =
        before.iter().filter(|(name, _)| name.starts_with("wire_") || name.ends_with("_from_host")).collect();
    assert_eq!(broken.len(), 2, "{before:?}");
    for (name, id) in &broken {
        if name.starts_with("wire_") {
            // Detached by force: the pin stays, and leads to a link without a device.
            let mut bpftool = Command::new("bpftool");
            exec::must(bpftool.args(["link", "detach", "id", &id.to_string()]), "");
        } else {
            fs::remove_file(bed.a.pins().join("links").join(name)).unwrap();
        }
    }
    let mut tc = bed.a.namespace().command("tc");
    exec::must(tc.args(["qdisc", "del", "dev", &device, "clsact"]), "");
    let healed = within(PERIOD, "links", || {
        let right = |now: Vec<(String, u64)>| {
            let has = |name: &String| now.iter().any(|(other, _)| other == name);
            before.iter().all(|(name, _)| has(name)) && !broken.iter().any(|link| now.contains(link))
        };
        try_links(&bed).is_some_and(right) && has_programs(&bed)
    });
    println!("programs detached: healed within {} ms", healed.as_millis());
    let now = links(&bed);
    for link in before.iter().filter(|link| !broken.contains(link)) {
        assert!(now.contains(link), "{link:?} is not in {now:?}");
    }
    log.wait_for(&format!("attached the programs of {device} again"), SOON);
    log.wait_for("attached the programs of eth0", SOON);
    log.wait_for("attached the programs of overlay.1", SOON);
    bed.expect_traffic();
    expect_idle(&bed.a);
}

#[test]
fn entries_of_the_map_that_somebody_changes_are_written_again() {
    let bed = Bed::start();
    let before = crate::bed::rows(&bed.a);
    let pins = overlay_userspace::datapath::pins::Pins::new(bed.a.pins());
    let mut map = overlay_userspace::datapath::tables::Nodes::open(&pins).unwrap();
    let entries = map.entries().unwrap();
    let (key, node) = *entries.iter().find(|(key, _)| key.to_ip().to_string() == "10.244.2.0").unwrap();
    map.remove(key).unwrap();
    map.set("10.244.77.0".parse::<std::net::IpAddr>().unwrap().into(), node).unwrap();
    assert_ne!(crate::bed::rows(&bed.a), before);
    let healed = within(PERIOD, "map", || crate::bed::rows(&bed.a) == before);
    println!("map tampered with: healed within {} ms", healed.as_millis());
    bed.expect_traffic();
}

#[test]
fn pins_that_are_removed_are_made_again_and_traffic_goes_on() {
    let bed = Bed::start();
    let log = bed.a.log_mark();
    let gone = bed.a.pins().join("maps/NODES");
    fs::remove_file(&gone).unwrap();
    fs::remove_file(bed.a.pins().join("programs/from_pod")).unwrap();
    let streams = bed.streams();
    log.wait_for("loaded the programs anew", PERIOD);
    assert!(gone.exists());
    let _new = bed.a.add_pod(&bed.lab, "new");
    expect_nothing_lost(streams);
    bed.expect_traffic();
    expect_idle(&bed.a);
}

#[test]
fn a_pod_whose_device_is_gone_is_named_once_and_the_others_do_not_mind() {
    let bed = Bed::start();
    let pod = bed.a.add_pod(&bed.lab, "gone");
    let log = bed.a.log_mark();
    bed.a.namespace().ip(&format!("link del dev {}", pod.host_device()));
    let said = format!("the device of pod {} is gone", pod.addr());
    log.wait_for(&said, PERIOD);
    bed.a.namespace().ip("link set dev overlay.1 down");
    log.wait_for("overlay.1: was down, is up again", SOON);
    expect_idle(&bed.a);
    assert_eq!(log.lines().iter().filter(|line| line.contains(&said)).count(), 1, "{:#?}", log.lines());
    pod.del();
    bed.expect_traffic();
    expect_idle(&bed.a);
}
