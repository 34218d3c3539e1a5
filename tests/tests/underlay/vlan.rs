//! The underlay is a VLAN of a NIC.

use overlay_tests::lab::{Lab, Lan, Link, Namespace, Node, WireMode, device_feature};
use overlay_tests::traffic::capture::Capture;
use overlay_userspace::family::Family;

use crate::bed::{Bed, NIC, Way};

fn vlan(_lab: &Lab, _lan: &Lan, node: &Namespace) {
    node.ip(&format!("link add link {NIC} name {} type vlan id 100", Node::DEVICE));
    node.ip(&format!("link set dev {} up", Node::DEVICE));
}

#[test]
#[ignore = "needs a kernel with 8021q: cargo xtask test --vm"]
fn a_vlan_carries_the_tunnel_over_either_family() {
    for (outer, mode) in [(Family::Ipv4, WireMode::Nic), (Family::Ipv6, WireMode::Veth)] {
        let bed = Bed::start(Link { checksums: true, ..Link::new(mode) }, outer, vlan);
        for number in [0, 1] {
            bed.expect_wires(number, &[Node::DEVICE]);
            bed.expect_no_xdp(number);
            let merges = device_feature(bed.nodes[number].namespace(), NIC, "generic-receive-offload");
            assert_eq!(merges.as_deref(), Some(if mode == WireMode::Nic { "on" } else { "off" }));
        }
        let capture = Capture::start(bed.nodes[1].namespace(), NIC);
        bed.expect_traffic([Way::Native; 2]);
        assert!(!capture.stop().is_empty(), "nothing came by the NIC");
        bed.expect_doctor_is_quiet(0);
    }
}
