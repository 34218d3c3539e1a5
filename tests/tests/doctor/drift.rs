//! What is not as the configuration wants it. The agent is not there to put it right, and the doctor does by the agent's
//! own code; or it is there, and does.

use std::time::Duration;

use nix::sys::signal::Signal;
use overlay_common::maps::{Addr, Local};
use overlay_tests::lab::{Network, Node, within};
use overlay_userspace::datapath::{
    pins::Pins,
    tables::{LocalTable, Nodes},
};
use serde_json::json;

use crate::bed::{Bed, configure, names};

/// How long an agent may take to take a change of its file over.
const SOON: Duration = Duration::from_secs(15);

/// Breaks several things at once on a node without an agent: each is found, nothing else is, and one pass cures them.
#[track_caller]
fn breaks(bed: &Bed, commands: &[&str], objects: &[&str]) {
    bed.a.kill_agent(Signal::SIGKILL);
    for command in commands {
        bed.run(command);
    }
    found_and_cured(bed, objects);
    bed.doctor(&[]).expect(&[("agent", "agent")]);
}

#[track_caller]
fn found_and_cured(bed: &Bed, objects: &[&str]) {
    let wanted: Vec<_> = objects.iter().map(|object| ("drift", *object)).collect();
    let findings = bed.doctor(&["--only", "drift,sysctls,firewall"]).expect(&wanted);
    assert!(
        findings.iter().all(|f| f.severity == "error" && f.fix.as_deref() == Some("own")),
        "{findings:#?}"
    );
    let seen = bed.doctor(&["--only", "drift", "--fix", "--dry-run"]);
    seen.expect(&wanted);
    assert_eq!(seen.did, "would make one pass of the agent\n");
    // What the remedy says is the fix.
    assert_eq!(findings[0].remedy, "overlay doctor --only drift --fix");
    let seen = bed.doctor(&["--only", "drift", "--fix"]);
    seen.expect_fine();
    assert_eq!(seen.did, "did make one pass of the agent\n");
    bed.expect_traffic();
}

#[test]
pub(crate) fn routes_rules_and_filters_that_are_gone_are_found() {
    let bed = Bed::start();
    breaks(
        &bed,
        &[
            "ip route del 10.244.0.0/16 dev overlay.1",
            "ip route del unreachable 10.244.1.0/24",
            "ip route flush table 79",
            "ip rule del from 10.244.1.0/24 table 79",
            "ip route add unreachable 10.99.0.0/16 proto 79",
            "nft delete table ip overlay",
        ],
        &[
            "route 10.244.0.0/16",
            "route unreachable 10.244.1.0/24",
            "route 192.0.2.2/32 in table 79",
            "rule from 10.244.1.0/24 to table 79",
            "route unreachable 10.99.0.0/16",
            "nft table ip overlay",
        ],
    );
}

#[test]
pub(crate) fn an_anchor_that_was_changed_is_found() {
    let bed = Bed::start();
    bed.a.kill_agent(Signal::SIGKILL);
    for (command, what) in [
        ("ip link set overlay.1 mtu 1300", "has MTU 1300 instead of 1450"),
        ("ip link set overlay.1 arp on", "resolves neighbours"),
        ("ip addr add 10.244.1.77/32 dev overlay.1", "holds the address 10.244.1.77/32"),
        ("ip link set overlay.1 address 02:00:00:00:00:09", "another MAC address"),
    ] {
        bed.run(command);
        let finding = &bed.doctor(&["--only", "drift"]).expect(&[("drift", "overlay.1")])[0];
        assert!(finding.what.contains(what), "{finding:?}");
        bed.follow(finding);
        bed.doctor(&["--only", "drift"]).expect_fine();
    }
    bed.expect_traffic();
}

#[test]
pub(crate) fn an_anchor_that_is_down_or_gone_is_found() {
    let bed = Bed::start();
    breaks(
        &bed,
        &["ip link set overlay.1 down"],
        // The kernel takes the routes along.
        &["overlay.1", "route 10.244.0.0/16", "route 192.0.2.2/32 in table 79"],
    );
    bed.run("ip link del overlay.1");
    // The gateway address goes with it, and so does what prefers it as source.
    let pod = format!("pod {} on {}", bed.pod_a.addr(), bed.pod_a.host_device());
    let findings = bed.doctor(&["--only", "drift"]).expect(&[("drift", "overlay.1"), ("drift", &pod)]);
    assert_eq!(findings[0].what, "the anchor device is missing");
    let seen = bed.doctor(&["--fix"]);
    seen.expect(&[("agent", "agent")]);
    bed.expect_traffic();
}

#[test]
pub(crate) fn programs_that_are_not_attached_are_found() {
    let bed = Bed::start();
    let device = bed.pod_a.host_device();
    let links = bed.a.pins().join("links");
    breaks(
        &bed,
        &[
            &format!("tc filter del dev {device} ingress"),
            &format!("rm {}/*_from_wire {0}/*_from_tunnel", links.display()),
        ],
        &[
            &format!("program from_pod on {device}"),
            "program from_wire on eth0",
            "program from_tunnel on overlay.1",
        ],
    );
}

#[test]
pub(crate) fn a_guard_that_is_gone_of_another_load_or_not_wanted_is_found() {
    let bed = Bed::start();
    let guarded = |xdp: &str| {
        let network = Network { xdp: Some(xdp.into()), ..Network::default() };
        configure(&bed.lab, &[&bed.a, &bed.b], network, "");
    };
    let links = bed.a.pins().join("links");
    let attached = || names(&links).iter().any(|name| name.ends_with("_xdp_wire"));
    guarded("guard");
    within(SOON, "attached", attached);
    bed.doctor(&["--only", "drift"]).expect_fine();
    bed.a.kill_agent(Signal::SIGKILL);
    let found = |what: &str| {
        let finding = &bed.doctor(&["--only", "drift"]).expect(&[("drift", "program xdp_wire on eth0")])[0];
        assert_eq!(finding.what, what);
        bed.follow(finding);
        bed.doctor(&["--only", "drift"]).expect_fine();
    };
    bed.run(&format!("rm {}/*_xdp_wire", links.display()));
    found("is not attached");
    let program = bed.a.pins().join("programs/xdp_wire");
    let other = bed.b.pins().join("programs/xdp_wire");
    bed.run(&format!(
        "rm {0}; bpftool prog pin id $(bpftool -j prog show pinned {1} | jq .id) {0}",
        program.display(),
        other.display()
    ));
    found("is one of an earlier load");
    guarded("off");
    found("is attached, although it should not be");
    assert!(!attached());
    bed.expect_traffic();
}

#[test]
pub(crate) fn programs_of_another_load_are_found() {
    let bed = Bed::start();
    let device = bed.pod_a.host_device();
    let other = bed.b.pins().join("programs/to_pod");
    // The key of overlay's own filters.
    let replace = format!(
        "tc filter replace dev {device} egress prio 28534 handle 1 protocol all bpf da pinned {}",
        other.display()
    );
    breaks(&bed, &[&replace], &[&format!("program to_pod on {device}")]);
}

#[test]
pub(crate) fn a_node_that_nobody_has_published_is_found() {
    let bed = Bed::start();
    bed.a.kill_agent(Signal::SIGKILL);
    let mut table = LocalTable::open(&Pins::new(bed.a.pins())).unwrap();
    let local = table.get().unwrap();
    table.set(&Local { ready: 0, ..local }).unwrap();
    assert!(bed.a.try_add_pod(&bed.lab, "more").is_err());
    found_and_cured(&bed, &["map LOCAL"]);
    bed.doctor(&[]).expect(&[("agent", "agent")]);
    bed.a.add_pod(&bed.lab, "more");
}

#[test]
pub(crate) fn rules_of_host_ports_that_are_gone_are_found() {
    let bed = Bed::start();
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    let _pod = bed.a.add_pod_with_ports(&bed.lab, "web", &ports);
    breaks(&bed, &["nft delete table ip overlay-ports"], &["nft table ip overlay-ports"]);
}

#[test]
pub(crate) fn entries_that_are_missing_wrong_or_too_many_are_found() {
    let bed = Bed::start();
    bed.a.kill_agent(Signal::SIGKILL);
    let mut nodes = Nodes::open(&Pins::new(bed.a.pins())).unwrap();
    let key = |text: &str| Addr::from(text.parse::<std::net::IpAddr>().unwrap());
    let (_, mut entry) = *nodes.entries().unwrap().iter().find(|(at, _)| *at == key("10.244.2.0")).unwrap();
    nodes.remove(key("192.0.2.2")).unwrap();
    nodes.set(key("10.244.9.0"), entry).unwrap();
    entry.vtep = key("192.0.2.99");
    nodes.set(key("10.244.2.0"), entry).unwrap();
    found_and_cured(&bed, &["map NODES, 10.244.2.0", "map NODES, 192.0.2.2", "map NODES, 10.244.9.0"]);
}

#[test]
pub(crate) fn the_ways_to_a_pod_that_were_removed_are_found() {
    let bed = Bed::start();
    let (device, address) = (bed.pod_a.host_device(), bed.pod_a.addr());
    breaks(
        &bed,
        &[
            &format!("ip neigh del {address} dev {device}"),
            &format!("ip route del {address}/32 dev {device}"),
        ],
        &[&format!("pod {address} on {device}"), &format!("pod {address} on {device}")],
    );
    bed.run(&format!("ip link set {device} down"));
    let seen = bed.doctor(&["--only", "drift"]);
    assert!(seen.problems().iter().any(|f| f.what == "its device is down"), "{seen:#?}");
    bed.doctor(&["--only", "drift", "--fix"]).expect_fine();
    bed.expect_traffic();
}

#[test]
pub(crate) fn a_configuration_that_nobody_has_taken_over_is_found() {
    let bed = Bed::start();
    bed.a.kill_agent(Signal::SIGKILL);
    let third = Node::builder("c", "192.0.2.3/24".parse().unwrap(), "10.244.3.0/24".parse().unwrap());
    let third = third.on_lan(&bed.lab, &bed.lan);
    let network = Network { mtu: Some(1400), ..Network::default() };
    configure(&bed.lab, &[&bed.a, &bed.b, &third], network, "");
    found_and_cured(
        &bed,
        &[
            "overlay.1",
            "map LOCAL",
            "map NODES, 10.244.3.0",
            "map NODES, 192.0.2.3",
            "route 192.0.2.3/32 in table 79",
        ],
    );
}

#[test]
pub(crate) fn an_agent_that_runs_puts_it_right_before_anybody_asks() {
    let bed = Bed::start();
    bed.run("nft delete table ip overlay; ip route del 10.244.0.0/16 dev overlay.1");
    let seen = bed.doctor(&["--fix"]);
    seen.expect_fine();
    assert!(seen.did.is_empty() || seen.did.starts_with("did wait for a pass of the agent"), "{seen:?}");
    bed.expect_traffic();
}
