//! A start that fails on a node that has pods leaves them their network.

use std::fs;
use std::time::Duration;

use overlay_tests::lab::{Network, exec};
use overlay_tests::traffic::ping;

use crate::bed::{Bed, changes};

#[test]
fn pods_of_an_earlier_agent_keep_their_network() {
    let bed = Bed::new();
    bed.node.start_agent();
    let pods = [bed.node.add_pod(&bed.lab, "a"), bed.node.add_pod(&bed.lab, "b")];
    bed.node.stop_agent();
    let works = || {
        ping::ping(pods[0].namespace(), pods[1].addr().into()).unwrap();
        ping::ping(bed.node.namespace(), pods[0].addr().into()).unwrap();
    };
    works();

    // Before it has touched anything.
    bed.write(&Network { mtu: Some(9000), ..Network::default() });
    bed.refuses(bed.agent(), &["mtu 9000 for pods is too large"]);
    works();
    fs::write(bed.lab.cluster_file(), "").unwrap();
    bed.refuses(bed.agent(), &["missing field `network`"]);
    works();

    // In the middle: the packet filter cannot be read.
    bed.write(&Network::default());
    let empty = bed.lab.dir().join("empty");
    fs::create_dir(&empty).unwrap();
    let mut command = bed.agent();
    command.env("PATH", &empty);
    bed.refuses(command, &["nft not found in PATH", "install the package nftables"]);
    works();

    // In the middle, with the anchor device to be made: that one goes again, and nothing else.
    bed.node.namespace().ip("link del dev overlay.1");
    let before = bed.state();
    let mut command = bed.agent();
    let out = exec::output(command.env("PATH", &empty), b"", Duration::from_secs(15)).unwrap();
    assert_eq!(out.status.code(), Some(1), "{}", out.stderr);
    assert_eq!(changes(&before, &bed.state()), [""; 0], "{}", out.stderr);
    ping::ping(pods[0].namespace(), pods[1].addr().into()).unwrap();

    bed.node.start_agent();
    works();
}
