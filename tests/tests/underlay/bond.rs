//! The underlay is a bond of two NICs.

use overlay_tests::lab::{Lab, Lan, Link, Namespace, Node, WireMode, within};
use overlay_userspace::family::Family;

use crate::bed::{Bed, LIMIT, NIC, Way};

/// The other NIC.
const OTHER: &str = "nic1";

#[track_caller]
fn bond(lan: &Lan, node: &Namespace, mode: &str) {
    lan.attach(node, OTHER);
    node.ip(&format!("link add name {} type bond mode {mode} miimon 50", Node::DEVICE));
    for nic in [NIC, OTHER] {
        node.ip(&format!("link set dev {nic} down"));
        node.ip(&format!("link set dev {nic} master {}", Node::DEVICE));
    }
    node.ip(&format!("link set dev {} up", Node::DEVICE));
}

#[test]
#[ignore = "needs a kernel with bonding: cargo xtask test --vm"]
fn a_bond_carries_the_tunnel_and_loses_a_nic() {
    for (outer, mode) in [(Family::Ipv4, WireMode::Nic), (Family::Ipv6, WireMode::Veth)] {
        let link = Link { checksums: true, ..Link::new(mode) };
        let bed = Bed::start(link, outer, |_: &Lab, lan, node| bond(lan, node, "active-backup"));
        for number in [0, 1] {
            bed.expect_wires(number, &[Node::DEVICE]);
            bed.expect_no_xdp(number);
        }
        bed.expect_traffic([Way::Native; 2]);
        bed.expect_doctor_is_quiet(0);

        let active = || {
            let link = &bed.nodes[1].namespace().ip_json(&format!("-d link show dev {}", Node::DEVICE))[0];
            link["linkinfo"]["info_data"]["active_slave"].as_str().expect("one is active").to_owned()
        };
        let lost = active();
        bed.nodes[1].namespace().ip(&format!("link set dev {lost} down"));
        within(LIMIT, "the other NIC is active", || active() != lost);
        bed.expect_traffic([Way::Native; 2]);
        bed.expect_wires(1, &[Node::DEVICE]);
    }
}
