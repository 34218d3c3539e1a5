//! Node subnets of different sizes: the unit of the map's keys changes while traffic goes on.

use std::thread;
use std::time::Duration;

use overlay_tests::lab::{Network, Node, within};
use overlay_tests::traffic::ping;

use crate::bed::{Bed, SOON, entry, expect_nothing_lost, has, map, on_lan};

#[test]
fn smaller_subnets_beside_larger_ones_come_and_go_without_loss() {
    let bed = Bed::start();
    let before = map(&bed.a).len();
    let streams = bed.streams();
    let log = bed.a.log_mark();

    bed.write_more(&[entry("c", "192.0.2.30", "10.244.30.0/25")]);
    within(SOON, "/25", || has(&bed.a, "10.244.30.0/25", Some("192.0.2.30")));
    thread::sleep(Duration::from_millis(400));
    bed.write_more(&[
        entry("c", "192.0.2.30", "10.244.30.0/25"),
        entry("d", "192.0.2.31", "10.244.30.128/26"),
    ]);
    within(SOON, "/26", || has(&bed.a, "10.244.30.128/26", Some("192.0.2.31")));
    log.wait_for("loaded the programs anew", SOON);
    // Two /24 of four units each, a /25 of two, a /26 of one, and four addresses.
    within(SOON, "units", || map(&bed.a).len() == 4 + 4 + 2 + 1 + 4);
    thread::sleep(Duration::from_millis(400));

    bed.write_more(&[]);
    within(SOON, "/24 alone", || map(&bed.a).len() == before);
    thread::sleep(Duration::from_millis(400));
    expect_nothing_lost(streams);
    bed.expect_traffic();
}

#[test]
fn a_node_with_a_smaller_subnet_joins_and_is_reached() {
    let bed = Bed::start();
    let small = Node::builder("c", on_lan(3), "10.244.3.64/26".parse().unwrap()).on_lan(&bed.lab, &bed.lan);
    bed.write_more(&[small.entry()]);
    small.start_agent();
    let pod = small.add_pod(&bed.lab, "pod");
    assert!(small.subnet().contains(&pod.addr()), "{}", pod.addr());
    within(SOON, "a knows", || has(&bed.a, "10.244.3.64/26", Some("192.0.2.3")));
    within(SOON, "b knows", || has(&bed.b, "10.244.3.64/26", Some("192.0.2.3")));
    for other in [&bed.pod_a, &bed.pod_b] {
        ping::ping(other.namespace(), pod.addr().into()).unwrap();
        ping::ping(pod.namespace(), other.addr().into()).unwrap();
    }
    bed.expect_traffic();
    // The same cluster in another file: the setting that all share is still the default.
    assert_eq!(small.status().unwrap()["vni"], Network::default().vni);
}
