//! A node that Flannel has, or had.

use overlay_tests::lab::AgentOptions;

use crate::bed::{Bed, own, peer};

#[test]
fn while_flannel_lives_the_agent_waits_and_says_what_to_do() {
    let bed = Bed::new();
    let host = bed.node.namespace();
    host.ip("link add name flannel.1 type vxlan id 1 local 192.0.2.1 dev eth0 dstport 8472 nolearning");
    host.ip("link set dev flannel.1 up");
    host.ip("link add name cni0 type bridge");
    host.ip("link add name veth1 type veth peer name veth2");
    host.ip("link set dev veth1 master cni0");
    bed.api.put(own());
    bed.api.put(peer("b", 2));
    bed.node.spawn_agent(&AgentOptions::default());
    bed.answers_ready(503, "Flannel is on this node (with 1 pods on cni0): UDP port 8472");
    assert!(bed.event("OverlayStartFailed")["note"].as_str().unwrap().contains("ip link del flannel.1"));
    assert!(!bed.node.pins().exists());
    host.ip("link del flannel.1");
    bed.settles("Flannel is gone");
    bed.node.wait_agent_ready();
    assert_eq!(bed.said("1 pods are still on cni0"), 1, "{}", bed.node.log());
    assert_eq!(host.ip_json("link show dev cni0")[0]["ifname"], "cni0");
}
