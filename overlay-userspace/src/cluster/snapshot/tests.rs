use SnapshotError as E;

use super::*;

fn node(name: &str, address: &str, subnet: &str) -> NodeSpec {
    NodeSpec::of(name, &[address], &[subnet])
}

fn cidrs(text: &[&str]) -> Cidrs {
    Cidrs::new(text.iter().map(|net| net.parse().unwrap())).unwrap()
}

fn dual() -> Cidrs {
    cidrs(&["10.244.0.0/16", "fd00:10:244::/48"])
}

fn snapshot(nodes: Vec<NodeSpec>) -> Result<Snapshot, E> {
    Snapshot::new(nodes, "a", &cidrs(&["10.244.0.0/16"]))
}

fn two(address: &str, subnet: &str) -> Result<Snapshot, E> {
    snapshot(vec![node("a", "192.0.2.1", "10.244.1.0/24"), node("b", address, subnet)])
}

fn two6(address: &str, subnet: &str) -> Result<Snapshot, E> {
    let a = NodeSpec::of("a", &["192.0.2.1", "2001:db8::1"], &["10.244.1.0/24", "fd00:10:244:1::/64"]);
    Snapshot::new(vec![a, node("b", address, subnet)], "a", &dual())
}

#[track_caller]
fn is(result: Result<Snapshot, E>, wanted: fn(&E) -> bool) {
    let error = result.unwrap_err();
    assert!(wanted(&error), "{error}");
}

#[test]
fn a_good_list_knows_its_own_node_and_its_peers() {
    let s = two("192.0.2.2", "10.244.2.0/24").unwrap();
    assert_eq!(s.own().name, "a");
    assert_eq!(s.peers().map(|n| n.name.as_str()).collect::<Vec<_>>(), ["b"]);
    assert_eq!(s.node_prefixes(), ByFamily { v4: Some(24), v6: None });
    assert_eq!(s.unreachable().count(), 0);
}

#[test]
fn inconsistent_lists_are_refused_by_name() {
    is(
        snapshot(vec![node("b", "192.0.2.1", "10.244.1.0/24")]),
        |e| matches!(e, E::OwnNodeAbsent(n) if n == "a"),
    );
    is(two("192.0.2.1", "10.244.2.0/24"), |e| matches!(e, E::DuplicateAddress(..)));
    is(two("192.0.2.2", "10.244.1.0/24"), |e| matches!(e, E::Overlap(..)));
    is(two("192.0.2.2", "10.244.1.128/25"), |e| matches!(e, E::Overlap(..)));
    is(two("192.0.2.2", "10.244.0.0/22"), |e| matches!(e, E::Overlap(..)));
    is(two("192.0.2.2", "10.245.1.0/24"), |e| matches!(e, E::OutsideNetwork(..)));
    is(two("192.0.2.2", "10.0.0.0/8"), |e| matches!(e, E::OutsideNetwork(..)));
    is(two("192.0.2.2", "10.244.2.1/24"), |e| matches!(e, E::HostBits { .. }));
    is(two("192.0.2.2", "10.244.2.0/31"), |e| matches!(e, E::TooSmall(..)));
    is(two("10.244.9.1", "10.244.2.0/24"), |e| matches!(e, E::AddressInPodNetwork(..)));
    is(two("192.0.2.2", "fd00::/64"), |e| matches!(e, E::NoNetwork(..)));
    for bad in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "169.254.0.1"] {
        is(two(bad, "10.244.2.0/24"), |e| matches!(e, E::BadAddress(..)));
    }
    is(
        snapshot(vec![node("a", "192.0.2.1", "10.244.1.0/24"), node("a", "192.0.2.2", "10.244.2.0/24")]),
        |e| matches!(e, E::DuplicateName(..)),
    );
    let lacks = |addresses: &[&str], subnets: &[&str]| snapshot(vec![NodeSpec::of("a", addresses, subnets)]);
    is(lacks(&[], &["10.244.1.0/24"]), |e| matches!(e, E::NoAddress(..)));
    is(lacks(&["192.0.2.1"], &[]), |e| matches!(e, E::NoSubnet(..)));
    let far_apart = vec![node("a", "192.0.2.1", "10.0.0.0/9"), node("b", "192.0.2.2", "10.128.0.0/30")];
    is(Snapshot::new(far_apart, "a", &cidrs(&["10.0.0.0/8"])), |e| matches!(e, E::TooManyEntries { .. }));
}

#[test]
fn the_same_holds_in_ipv6() {
    two6("2001:db8::2", "fd00:10:244:2::/64").unwrap();
    is(two6("2001:db8::1", "fd00:10:244:2::/64"), |e| matches!(e, E::DuplicateAddress(..)));
    is(two6("2001:db8::2", "fd00:10:244:1::/64"), |e| matches!(e, E::Overlap(..)));
    is(two6("2001:db8::2", "fd00:10:244:1:8000::/65"), |e| matches!(e, E::Overlap(..)));
    is(two6("2001:db8::2", "fd00:10:244::/62"), |e| matches!(e, E::Overlap(..)));
    is(two6("2001:db8::2", "fd00:10:245::/64"), |e| matches!(e, E::OutsideNetwork(..)));
    is(two6("2001:db8::2", "fd00:10:244:2::1/64"), |e| matches!(e, E::HostBits { .. }));
    is(two6("2001:db8::2", "fd00:10:244:2::/127"), |e| {
        matches!(e, E::TooSmall(..)) && e.to_string().contains("(prefix length 126 or less)")
    });
    is(two6("fd00:10:244:9::1", "fd00:10:244:2::/64"), |e| matches!(e, E::AddressInPodNetwork(..)));
    for bad in ["::", "::1", "ff02::1", "fe80::1", "::ffff:192.0.2.9"] {
        is(two6(bad, "fd00:10:244:2::/64"), |e| matches!(e, E::BadAddress(..)));
    }
    is(two6("2001:db8::2", "fd00:10:244:2::/96"), |e| {
        // A /64 in units of a /96 is more than any table holds.
        matches!(e, E::TooManyEntries { shortest: 64, longest: 96, .. })
    });
}

#[test]
fn a_node_may_lack_a_family_and_one_that_shares_none_is_known() {
    let a = NodeSpec::of("a", &["192.0.2.1"], &["10.244.1.0/24", "fd00:10:244:1::/64"]);
    let b = NodeSpec::of("b", &["2001:db8::2"], &["10.244.2.0/24"]);
    let c = NodeSpec::of("c", &["192.0.2.3", "2001:db8::3"], &["fd00:10:244:3::/80"]);
    let s = Snapshot::new(vec![c, b, a], "a", &dual());
    // The three prefix lengths: 2^16 units of /80 in a /64.
    is(s, |e| matches!(e, E::TooManyEntries { .. }));
    let a = NodeSpec::of("a", &["192.0.2.1"], &["10.244.1.0/24", "fd00:10:244:1::/78"]);
    let b = NodeSpec::of("b", &["2001:db8::2"], &["10.244.2.0/24"]);
    let c = NodeSpec::of("c", &["192.0.2.3", "2001:db8::3"], &["fd00:10:244:3::/80"]);
    let s = Snapshot::new(vec![c, b, a], "a", &dual()).unwrap();
    assert_eq!(s.node_prefixes(), ByFamily { v4: Some(24), v6: Some(80) });
    assert_eq!(s.unreachable().map(|node| node.name.as_str()).collect::<Vec<_>>(), ["b"]);
}
