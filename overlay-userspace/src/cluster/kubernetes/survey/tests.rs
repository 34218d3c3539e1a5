use serde_json::json;

use super::*;

/// As the API describes it; of addresses and subnets as many as the texts have, separated by spaces.
fn kube(created: i64, address: &str, subnet: &str) -> KubeNode {
    let list = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let addresses: Vec<_> =
        list(address).iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
    let object = json!({
        "metadata": {"name": "x"}, "spec": {"podCIDRs": list(subnet)}, "status": {"addresses": addresses},
    });
    let (_, node) = KubeNode::from(serde_json::from_value(object).unwrap()).unwrap();
    KubeNode { created, ..node }
}

fn nodes(rows: &[(&str, i64, &str, &str)]) -> Nodes {
    rows.iter()
        .map(|(name, created, address, subnet)| ((*name).into(), kube(*created, address, subnet)))
        .collect()
}

fn cidrs() -> Cidrs {
    "10.244.0.0/16".parse::<IpNet>().unwrap().into()
}

fn spec(name: &str, address: &str, subnet: &str) -> NodeSpec {
    NodeSpec::of(name, &[address], &[subnet])
}

/// Names of the nodes.
type Names = Result<Vec<String>, String>;

/// Names of the nodes, and the nodes that are left out with the kinds of findings.
fn look(nodes: &Nodes, last: Option<&NodeSpec>) -> (Names, Vec<(Kind, String)>) {
    let Survey { nodes, findings } = Survey::new(nodes, "a", last, &cidrs());
    let names = nodes.map(|nodes| nodes.nodes().iter().map(|node| node.name.clone()).collect());
    (names, findings.into_iter().map(|finding| (finding.kind, finding.node)).collect())
}

fn names(names: &[&str]) -> Names {
    names.iter().map(|name| Ok((*name).to_owned())).collect()
}

const A: (&str, i64, &str, &str) = ("a", 10, "192.0.2.1", "10.244.1.0/24");
const B: (&str, i64, &str, &str) = ("b", 20, "192.0.2.2", "10.244.2.0/24");

#[test]
fn good_nodes_leave_nothing_to_say() {
    assert_eq!(look(&nodes(&[A, B]), None), (names(&["a", "b"]), vec![]));
}

#[test]
fn a_node_that_is_new_is_left_out_and_no_error() {
    let both = nodes(&[A, B, ("c", 30, "192.0.2.3", ""), ("d", 30, "", "10.244.4.0/24")]);
    let waiting = vec![(Kind::Waiting, "c".into()), (Kind::Waiting, "d".into())];
    assert_eq!(look(&both, None), (names(&["a", "b"]), waiting));
}

#[test]
fn of_two_nodes_with_one_address_the_older_stays() {
    let other = |created| ("b", created, "192.0.2.3", "10.244.2.0/24");
    let c = ("c", 20, "192.0.2.3", "10.244.3.0/24");
    assert_eq!(
        look(&nodes(&[A, other(21), c]), None),
        (names(&["a", "c"]), vec![(Kind::Conflict, "b".into())])
    );
    assert_eq!(
        look(&nodes(&[A, other(19), c]), None),
        (names(&["a", "b"]), vec![(Kind::Conflict, "c".into())])
    );
    // Of the same second, the first by name.
    assert_eq!(
        look(&nodes(&[A, other(20), c]), None),
        (names(&["a", "b"]), vec![(Kind::Conflict, "c".into())])
    );
}

#[test]
fn of_overlapping_subnets_the_older_stays_however_they_overlap() {
    for subnet in ["10.244.2.0/24", "10.244.2.128/25", "10.244.2.0/25", "10.244.0.0/22"] {
        let others = nodes(&[("a", 1, "192.0.2.1", "10.244.9.0/24"), B, ("c", 30, "192.0.2.3", subnet)]);
        let (nodes, found) = look(&others, None);
        assert_eq!((nodes, found), (names(&["a", "b"]), vec![(Kind::Conflict, "c".into())]), "{subnet}");
    }
    for subnet in ["10.244.1.0/24", "10.244.3.0/24", "10.244.4.0/22"] {
        let others = nodes(&[("a", 1, "192.0.2.1", "10.244.9.0/24"), B, ("c", 30, "192.0.2.3", subnet)]);
        assert_eq!(look(&others, None), (names(&["a", "b", "c"]), vec![]), "{subnet}");
    }
}

#[test]
fn a_node_that_was_left_out_takes_nothing_from_others() {
    // c contradicts b by its subnet, and has the address of d: which is not taken by it.
    let all =
        nodes(&[A, B, ("c", 30, "192.0.2.4", "10.244.2.0/24"), ("d", 40, "192.0.2.4", "10.244.4.0/24")]);
    assert_eq!(look(&all, None), (names(&["a", "b", "d"]), vec![(Kind::Conflict, "c".into())]));
}

#[test]
fn nodes_outside_of_the_network_are_left_out() {
    let all = nodes(&[A, ("b", 2, "192.0.2.2", "10.245.2.0/24"), ("c", 3, "10.244.7.7", "10.244.3.0/24")]);
    assert_eq!(
        look(&all, None),
        (names(&["a"]), vec![(Kind::Invalid, "b".into()), (Kind::Invalid, "c".into())])
    );
    let text = &Survey::new(&all, "a", None, &cidrs()).findings[0].text;
    assert!(text.contains("10.245.2.0/24") && text.contains("--cluster-cidr"), "{text}");
}

#[test]
fn without_its_own_node_there_is_nothing_to_do_yet() {
    let why = |all: &Nodes| look(all, None).0.unwrap_err();
    assert!(why(&nodes(&[B])).starts_with("there is no Node a: "), "{}", why(&nodes(&[B])));
    assert_eq!(why(&nodes(&[B, ("a", 1, "192.0.2.1", "")])), "node a has no IPv4 podCIDR yet");
    assert_eq!(why(&nodes(&[B, ("a", 1, "", "10.244.1.0/24")])), "node a has no InternalIP yet");
    let twice = nodes(&[("a", 30, "192.0.2.2", "10.244.1.0/24"), B]);
    assert!(why(&twice).contains("192.0.2.2 is that of b"), "{}", why(&twice));
}

#[test]
fn a_node_with_pods_keeps_its_subnet_whatever_became_of_its_node() {
    let last = spec("a", "192.0.2.1", "10.244.1.0/24");
    assert_eq!(look(&nodes(&[B]), Some(&last)), (names(&["a", "b"]), vec![]));
    let incomplete = nodes(&[B, ("a", 1, "192.0.2.1", "")]);
    assert_eq!(look(&incomplete, Some(&last)), (names(&["a", "b"]), vec![(Kind::Waiting, "a".into())]));
    // In conflict: both are left out by the other, and the finding that all agents have is among them.
    let conflict = nodes(&[("a", 30, "192.0.2.1", "10.244.1.0/24"), ("b", 20, "192.0.2.2", "10.244.1.0/24")]);
    let (left, found) = look(&conflict, Some(&last));
    assert_eq!(left, names(&["a"]));
    assert_eq!(found, [(Kind::Conflict, "a".into()), (Kind::Conflict, "b".into())]);
}

#[test]
fn a_new_subnet_or_address_of_its_own_is_taken_over() {
    let last = spec("a", "192.0.2.1", "10.244.1.0/24");
    let moved = nodes(&[("a", 10, "192.0.2.9", "10.244.9.0/24"), B]);
    let own = Survey::new(&moved, "a", Some(&last), &cidrs()).nodes.unwrap().own().clone();
    assert_eq!(
        (own.addresses.to_string().as_str(), own.subnets.to_string().as_str()),
        ("192.0.2.9", "10.244.9.0/24")
    );
}

#[test]
fn conflicts_are_reported_by_both_sides_and_by_nobody_else() {
    let all = nodes(&[A, B, ("c", 30, "192.0.2.2", "10.244.3.0/24")]);
    let findings = Survey::new(&all, "a", None, &cidrs()).findings;
    let concerned: Vec<_> = ["a", "b", "c"].iter().filter(|name| findings[0].concerns(name)).collect();
    assert_eq!(concerned, [&"b", &"c"]);
}

#[test]
fn five_thousand_nodes_are_surveyed_in_no_time() {
    let all: Nodes = (0..5000_u32)
        .map(|i| {
            let (hi, lo) = (i / 250, i % 250);
            (
                format!("n{i}"),
                kube(i64::from(i), &format!("192.0.{hi}.{lo}"), &format!("10.{}.{lo}.0/24", 64 + hi)),
            )
        })
        .collect();
    let survey = Survey::new(&all, "n7", None, &"10.0.0.0/8".parse::<IpNet>().unwrap().into());
    assert_eq!(survey.nodes.unwrap().nodes().len(), 5000);
    assert_eq!(survey.findings, []);
}

fn dual() -> Cidrs {
    Cidrs::new(["10.244.0.0/16", "fd00:10:244::/48"].map(|net| net.parse().unwrap())).unwrap()
}

const V6: [&str; 2] = ["2001:db8::1", "fd00:10:244:1::/64"];

/// Addresses and subnets of each node, and the texts of the findings.
fn look6(
    rows: &[(&str, i64, &str, &str)],
    last: Option<&NodeSpec>,
) -> (Result<Vec<String>, String>, Vec<String>) {
    let Survey { nodes, findings } = Survey::new(&nodes(rows), "a", last, &dual());
    let line = |node: &NodeSpec| format!("{}: {} at {}", node.name, node.subnets, node.addresses);
    (
        nodes.map(|nodes| nodes.nodes().iter().map(line).collect()),
        findings.into_iter().map(|finding| finding.text).collect(),
    )
}

#[test]
fn both_families_in_any_order_and_nodes_that_lack_one() {
    let rows = [
        ("a", 1, "192.0.2.1 2001:db8::1", "10.244.1.0/24 fd00:10:244:1::/64"),
        ("b", 2, "2001:db8::2 192.0.2.2", "fd00:10:244:2::/64 10.244.2.0/24"),
        ("c", 3, "192.0.2.3", "fd00:10:244:3::/64"),
        ("d", 4, "2001:db8::4", "10.244.4.0/24"),
    ];
    let (nodes, findings) = look6(&rows, None);
    assert_eq!(
        nodes.unwrap(),
        [
            "a: 10.244.1.0/24, fd00:10:244:1::/64 at 192.0.2.1, 2001:db8::1",
            "b: 10.244.2.0/24, fd00:10:244:2::/64 at 192.0.2.2, 2001:db8::2",
            "c: fd00:10:244:3::/64 at 192.0.2.3",
            "d: 10.244.4.0/24 at 2001:db8::4",
        ]
    );
    assert!(findings.is_empty(), "{findings:?}");
    let (why, _) = look6(&[("a", 1, "192.0.2.1", "")], None);
    assert_eq!(why.unwrap_err(), "node a has no IPv4 or IPv6 podCIDR yet");
}

#[test]
fn a_family_that_the_network_lacks_is_nobodys_business() {
    let all = nodes(&[
        ("a", 1, "192.0.2.1 2001:db8::1", "10.244.1.0/24 fd00:10:244:1::/64"),
        ("b", 2, "192.0.2.2 2001:db8::2", "fd00:10:244:1::/64 10.244.2.0/24"),
    ]);
    let Survey { nodes, findings } = Survey::new(&all, "a", None, &cidrs());
    let subnets: Vec<_> = nodes.unwrap().nodes().iter().map(|node| node.subnets.to_string()).collect();
    assert_eq!((subnets, findings), (vec!["10.244.1.0/24".to_owned(), "10.244.2.0/24".to_owned()], vec![]));
}

#[test]
fn what_is_wrong_in_one_family_leaves_the_other_alone() {
    let a = ("a", 1, "192.0.2.1 2001:db8::1", "10.244.1.0/24 fd00:10:244:1::/64");
    let with = |address: &str, subnet: &str| {
        let (nodes, findings) = look6(&[a, ("b", 2, address, subnet)], None);
        (nodes.unwrap().get(1).cloned().unwrap_or_default(), findings.join("; "))
    };
    for (address, subnet, left, said) in [
        (
            "192.0.2.2 2001:db8::2",
            "10.244.2.0/24 fd00:10:244:1::/64",
            "b: 10.244.2.0/24 at 192.0.2.2, 2001:db8::2",
            "node b: podCIDR fd00:10:244:1::/64 overlaps fd00:10:244:1::/64 of a, which is older: the IPv6 of b is left out \
             until one of them has another one",
        ),
        (
            "192.0.2.1 2001:db8::2",
            "10.244.2.0/24 fd00:10:244:2::/64",
            "b: 10.244.2.0/24, fd00:10:244:2::/64 at 2001:db8::2",
            "node b: address 192.0.2.1 is that of a, which is older: the IPv4 of b is left out until one of them has \
             another one",
        ),
        (
            "192.0.2.2",
            "10.244.2.0/24 fd00:10:245:2::/64",
            "b: 10.244.2.0/24 at 192.0.2.2",
            "node b: podCIDR fd00:10:245:2::/64 is not inside network.cidr fd00:10:244::/48: set it to the controller \
             manager's --cluster-cidr",
        ),
        (
            "192.0.2.2",
            "10.244.2.0 fd00:10:244:2::/64",
            "b: fd00:10:244:2::/64 at 192.0.2.2",
            "node b: cannot make sense of the podCIDR \"10.244.2.0\"",
        ),
        (
            "192.0.2.2 fe80::2",
            "10.244.2.0/24",
            "b: 10.244.2.0/24 at 192.0.2.2",
            "node b: fe80::2 cannot be a tunnel address: give the unicast address under which the other nodes reach it",
        ),
        (
            "192.0.2.1 2001:db8::1",
            "10.244.2.0/24",
            "",
            "node b: address 192.0.2.1 is that of a, which is older: b is left out until one of them has another one; \
             node b: address 2001:db8::1 is that of a, which is older: b is left out until one of them has another one",
        ),
    ] {
        assert_eq!(with(address, subnet), (left.to_owned(), said.to_owned()));
    }
}

#[test]
fn pods_keep_the_family_that_their_node_has_lost() {
    let last = NodeSpec::of("a", &["192.0.2.1", V6[0]], &["10.244.1.0/24", V6[1]]);
    let own = |rows: &[(&str, i64, &str, &str)]| look6(rows, Some(&last)).0.unwrap()[0].clone();
    let whole = "a: 10.244.1.0/24, fd00:10:244:1::/64 at 192.0.2.1, 2001:db8::1";
    // Gone, or not complete.
    assert_eq!(own(&[]), whole);
    assert_eq!(own(&[("a", 1, "192.0.2.1 2001:db8::1", "")]), whole);
    // Its own address is as its Node has it, because the peers go by that.
    let b = ("b", 0, "192.0.2.2", "fd00:10:244:1::/64");
    assert_eq!(
        own(&[("a", 1, "192.0.2.1", "10.244.1.0/24 fd00:10:244:1::/64"), b]),
        "a: 10.244.1.0/24, fd00:10:244:1::/64 at 192.0.2.1"
    );
    assert_eq!(own(&[("a", 1, "", "10.244.1.0/24")]), whole, "not complete");
    // Given podCIDRs of the one family: there is nothing to wait for.
    assert_eq!(own(&[("a", 1, "192.0.2.1", "10.244.1.0/24")]), "a: 10.244.1.0/24 at 192.0.2.1");
    // The network has no such family any more.
    let v4_only = Survey::new(&nodes(&[]), "a", Some(&last), &cidrs()).nodes.unwrap();
    assert_eq!(v4_only.own().subnets.to_string(), "10.244.1.0/24");
}
