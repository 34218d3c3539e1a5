//! The node's address is on a bridge, the NIC is one of its ports: what hypervisors and hand-made hosts have.

use std::path::Path;
use std::process::Command;

use overlay_tests::lab::{Lab, Lan, Link, Namespace, Node, WireMode, device_feature, exec};
use overlay_userspace::family::Family;

use crate::bed::{Bed, NIC, Way};

fn bridge(_lab: &Lab, _lan: &Lan, node: &Namespace) {
    node.ip(&format!("link add name {} type bridge stp_state 0 mcast_snooping 0", Node::DEVICE));
    node.ip(&format!("link set dev {NIC} master {}", Node::DEVICE));
    node.ip(&format!("link set dev {} up", Node::DEVICE));
}

#[test]
fn a_bridge_carries_the_tunnel_over_either_family() {
    for (outer, mode) in [(Family::Ipv4, WireMode::Nic), (Family::Ipv6, WireMode::Veth)] {
        let bed = Bed::start(Link { checksums: true, ..Link::new(mode) }, outer, bridge);
        for number in [0, 1] {
            bed.expect_wires(number, &[Node::DEVICE]);
            // It would take the port's merging away (`dev_xdp_install`, and drivers).
            bed.expect_no_xdp(number);
            let merges = device_feature(bed.nodes[number].namespace(), NIC, "generic-receive-offload");
            assert_eq!(merges.as_deref(), Some(if mode == WireMode::Nic { "on" } else { "off" }));
        }
        bed.expect_traffic([Way::Native; 2]);
        if outer == Family::Ipv4 {
            bed.expect_doctor_is_quiet(0);
        }
        // As Docker and Kubernetes set it: what the bridge receives passes the packet filter of IP first, and is tracked there.
        if !Path::new("/proc/sys/net/bridge").exists() {
            // A module of most kernels, which namespaces cannot ask for.
            exec::must(Command::new("modprobe").arg("br_netfilter"), "");
        }
        for node in &bed.nodes {
            node.namespace().sysctl("net.bridge.bridge-nf-call-iptables", "1");
            node.namespace().sysctl("net.bridge.bridge-nf-call-ip6tables", "1");
            tracked(node.namespace());
        }
        // A pod that translates: a proxy beside it, say. It goes by what its own stack has tracked, not the node's.
        for pod in &bed.pods {
            tracked(pod.namespace());
        }
        bed.expect_traffic([Way::Native; 2]);
    }
}

/// Rules that make the stack of a namespace track, and refuse what it cannot, but for neighbour discovery, which it never does.
#[track_caller]
fn tracked(place: &Namespace) {
    let table = "table inet tracked { chain input { type filter hook input priority 0; \
                 icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept; ct state invalid,untracked drop; \
                 ct state new,established,related accept; drop; }; };\n";
    exec::must(place.command("nft").args(["-f", "-"]), table);
}
