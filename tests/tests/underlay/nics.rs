//! Nodes with two NICs, whose tunnel packets take the one there and the other back, and NICs that the agent has no reason to
//! know; frames with an empty tag.

use overlay_tests::lab::{Lab, Lan, Link, Namespace, Node};
use overlay_tests::traffic::forge::tagged;
use overlay_userspace::family::Family;

use crate::bed::{Bed, NIC, Way};

/// The second NIC.
const SECOND: &str = "eth1";

fn first(node: &Namespace) {
    node.ip(&format!("link set dev {NIC} down"));
    node.ip(&format!("link set dev {NIC} name {}", Node::DEVICE));
    node.ip(&format!("link set dev {} up", Node::DEVICE));
}

fn plain(_lab: &Lab, _lan: &Lan, node: &Namespace) {
    first(node);
}

/// The route of node `from` to the tunnel address of the other one, of the outer family.
#[track_caller]
fn route(bed: &Bed, from: usize, verb: &str, hops: &[&str]) {
    let to = bed.nodes[1 - from].address_of(bed.outer());
    let hop = |device: &&str| {
        let via = match (*device, bed.outer()) {
            (SECOND, Family::Ipv4) => format!("203.0.113.{}", 2 - from),
            (SECOND, Family::Ipv6) => format!("2001:db8:f::{}", 2 - from),
            // A host on the link is its own next hop.
            _ => to.to_string(),
        };
        format!(" nexthop via {via} dev {device}")
    };
    let hops: Vec<_> = hops.iter().map(hop).collect();
    // The source is that of the tunnel, whatever the link has.
    bed.nodes[from].namespace().ip(&format!("route {verb} {to}{}", hops.concat()));
}

#[test]
fn every_way_to_a_peer_is_found_and_what_comes_in_elsewhere_is_the_anchors() {
    for (outer, attach) in [(Family::Ipv4, None), (Family::Ipv6, Some("clsact"))] {
        let bed = Bed::attached(attach, Link::default(), outer, plain);
        let [a, b] = bed.nodes.each_ref().map(Node::namespace);
        Link::default().connect(a, SECOND, b, SECOND);
        for (number, node) in [(1, a), (2, b)] {
            node.ip(&format!("addr add 203.0.113.{number}/24 dev {SECOND}"));
            node.ip(&format!("addr add 2001:db8:f::{number}/64 dev {SECOND} nodad"));
        }
        for number in [0, 1] {
            bed.expect_wires(number, &[Node::DEVICE]);
        }
        bed.expect_traffic([Way::Native; 2]);
        // Nobody's way leads by it.
        bed.anchor_takes(SECOND, SECOND, |frame| frame);

        // There by one, back by the other.
        route(&bed, 0, "add", &[SECOND]);
        bed.expect_wires(0, &[Node::DEVICE, SECOND]);
        bed.expect_wires(1, &[Node::DEVICE]);
        bed.expect_traffic([Way::Native, Way::Anchor]);

        // Either way is one of two.
        route(&bed, 1, "add", &[Node::DEVICE, SECOND]);
        bed.expect_wires(1, &[Node::DEVICE, SECOND]);
        bed.expect_traffic([Way::Native; 2]);
        if outer == Family::Ipv4 {
            bed.expect_doctor_is_quiet(1);
        }

        // And forgotten again.
        for number in [0, 1] {
            let to = bed.nodes[1 - number].address_of(outer);
            bed.nodes[number].namespace().ip(&format!("route del {to}"));
            bed.expect_wires(number, &[Node::DEVICE]);
        }
    }
}

/// 802.1p: a priority without a VLAN, which switches set and hosts have to take like no tag at all.
#[test]
fn a_tunnel_packet_with_a_priority_tag_is_the_anchors() {
    for outer in Family::ALL {
        let bed = Bed::start(Link::default(), outer, plain);
        bed.anchor_takes(Node::DEVICE, Node::DEVICE, |frame| tagged(&frame, 5 << 13));
    }
}
