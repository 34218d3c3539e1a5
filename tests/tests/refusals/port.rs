//! Somebody else has the tunnel's port.

use std::net::UdpSocket;

use overlay_tests::lab::Network;

use crate::bed::Bed;

#[test]
fn a_process() {
    let bed = Bed::new();
    let socket = bed.node.namespace().run(|| UdpSocket::bind(("0.0.0.0", 8472)).unwrap());
    bed.refuses(bed.agent(), &["UDP port 8472 is taken by a process", "ss -lunp", "network.port"]);
    drop(socket);
    bed.node.start_agent();
}

#[test]
fn the_device_of_flannel() {
    let bed = Bed::new();
    let host = bed.node.namespace();
    host.ip("link add name flannel.1 type vxlan id 1 local 192.0.2.1 dev eth0 dstport 8472 nolearning");
    host.ip("link set dev flannel.1 up");
    let words =
        ["UDP port 8472 is taken by the vxlan device flannel.1", "ip link del flannel.1", "network.port"];
    bed.refuses(bed.agent(), &words);
    // Another port will do.
    bed.write(&Network { port: 4789, ..Network::default() });
    bed.node.start_agent();
    assert_eq!(host.ip_json("link show dev flannel.1")[0]["ifname"], "flannel.1");
}

#[test]
fn another_device_in_external_mode() {
    let bed = Bed::new();
    let host = bed.node.namespace();
    host.ip("link add name cilium_vxlan type vxlan external dstport 8472");
    host.ip("link set dev cilium_vxlan up");
    bed.refuses(bed.agent(), &["UDP port 8472 is taken by the vxlan device cilium_vxlan", "network.port"]);
}
