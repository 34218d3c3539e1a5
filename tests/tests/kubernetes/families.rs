//! Nodes of both families: in any order, lacking one, with one that is wrong.

use overlay_tests::api::{node, younger};
use overlay_tests::lab::within;
use serde_json::Value;

use crate::bed::{Bed, LIMIT, own};

/// A Node with subnets and addresses of both families.
fn dual(name: &str, number: u8) -> Value {
    let addresses = format!("192.0.2.{number} 2001:db8::{number}");
    node(name, &addresses, &format!("10.244.{number}.0/24 fd00:10:244:{number}::/64"))
}

/// The agent running in a network of both families, with these Nodes besides its own.
#[track_caller]
fn start(others: &[Value]) -> Bed {
    let bed = Bed::dual();
    bed.api.put(dual("a", 1));
    for other in others {
        bed.api.put(other.clone());
    }
    bed.node.start_agent();
    bed
}

#[test]
fn nodes_of_both_families_of_one_and_of_different_ones_are_all_in_the_map() {
    let bed = start(&[
        node("b", "2001:db8::2 192.0.2.2", "fd00:10:244:2::/64 10.244.2.0/24"),
        node("c", "192.0.2.3", "fd00:10:244:3::/64"),
        node("d", "2001:db8::4", "10.244.4.0/24"),
    ]);
    bed.settles("the first list");
    let map = bed.map();
    assert_eq!(map.get("fd00:10:244:2::/64").map(String::as_str), Some("192.0.2.2"));
    assert_eq!(map.get("2001:db8::2/128").map(String::as_str), Some("192.0.2.2"));
    assert_eq!(map.get("10.244.4.0/24").map(String::as_str), Some("2001:db8::4"));
    let local = bed.node.show("status");
    assert_eq!(local["mtu"], 1450, "the tunnel goes over IPv4: {local}");

    // A family comes and goes, and nothing else happens to the other.
    bed.api.put(dual("c", 3));
    bed.settles("a node gets the other family");
    bed.api.put(node("d", "192.0.2.4", "10.244.4.0/24"));
    bed.settles("a node has another address, of the other family");
    assert!(!bed.map().contains_key("2001:db8::4/128"), "{:?}", bed.map());
}

#[test]
fn a_conflict_in_one_family_leaves_the_other_alone() {
    let bed = start(&[dual("b", 2)]);
    bed.settles("the first list");
    bed.api.put(younger(node("c", "192.0.2.3 2001:db8::2", "10.244.3.0/24 fd00:10:244:2::/64"), 40));
    within(LIMIT, "its IPv4 is in the map", || bed.map().contains_key("10.244.3.0/24"));
    let map = bed.map();
    assert_eq!(map.get("fd00:10:244:2::/64").map(String::as_str), Some("192.0.2.2"));
    assert_eq!(map.get("2001:db8::2/128").map(String::as_str), Some("192.0.2.2"));
    assert_eq!(map.get("192.0.2.3/32").map(String::as_str), Some("192.0.2.3"));
    for what in
        ["podCIDR fd00:10:244:2::/64 overlaps fd00:10:244:2::/64 of b", "address 2001:db8::2 is that of b"]
    {
        let said =
            format!("{what}, which is older: the IPv6 of c is left out until one of them has another one");
        assert_eq!(bed.said(&said), 1, "{}", bed.node.log());
    }
    bed.api.put(younger(dual("c", 3), 40));
    bed.settles("it is corrected");
}

#[test]
fn a_node_that_shares_no_family_is_named_and_affects_no_other() {
    let bed = Bed::new();
    bed.api.put(own());
    bed.api.put(node("b", "192.0.2.2", "10.244.2.0/24"));
    bed.api.put(node("apart", "2001:db8::9", "10.244.9.0/24"));
    bed.node.start_agent();
    bed.settles_without("the first list", &["apart"]);
    within(LIMIT, "it is named", || bed.said("no tunnel to apart") == 1);
    bed.api.put(node("apart", "192.0.2.9 2001:db8::9", "10.244.9.0/24"));
    bed.settles("it has an address of this node's family");
    within(LIMIT, "it is over", || bed.said("over: no tunnel to apart") == 1);
    assert_eq!(bed.said("no tunnel to apart"), 2, "once, and that it is over: {}", bed.node.log());
}

#[test]
fn while_the_api_is_away_both_families_are_known_from_the_pins() {
    let bed = start(&[dual("b", 2), node("d", "2001:db8::4", "fd00:10:244:4::/64")]);
    bed.settles("the first list");
    let before = bed.map();
    bed.node.stop_agent();
    bed.api.stop();
    bed.node.start_agent();
    assert_eq!(bed.map(), before);
    let pod = bed.node.add_pod(&bed.lab, "pod");
    assert_eq!(pod.addr().octets()[..3], [10, 244, 1]);
    drop(pod);
    bed.api.start();
    bed.api.put(dual("c", 3));
    bed.settles("the API is there again");
}
