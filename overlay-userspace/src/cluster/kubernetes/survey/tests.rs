use super::*;

fn kube(created: i64, address: &str, subnet: &str) -> KubeNode {
    KubeNode {
        uid: String::new(),
        created,
        subnet: (!subnet.is_empty()).then(|| Ok(subnet.parse().unwrap())),
        address: (!address.is_empty()).then(|| Ok(address.parse().unwrap())),
        vtep_mac: None,
        unavailable: None,
    }
}

fn nodes(rows: &[(&str, i64, &str, &str)]) -> Nodes {
    rows.iter()
        .map(|(name, created, address, subnet)| ((*name).into(), kube(*created, address, subnet)))
        .collect()
}

fn cidr() -> IpNet {
    "10.244.0.0/16".parse().unwrap()
}

fn spec(name: &str, address: &str, subnet: &str) -> NodeSpec {
    NodeSpec {
        name: name.into(),
        address: address.parse().unwrap(),
        subnet: subnet.parse().unwrap(),
        vtep_mac: None,
    }
}

/// Names of the nodes.
type Names = Result<Vec<String>, String>;

/// Names of the nodes, and the nodes that are left out with the kinds of findings.
fn look(nodes: &Nodes, last: Option<&NodeSpec>) -> (Names, Vec<(Kind, String)>) {
    let Survey { nodes, findings } = Survey::new(nodes, "a", last, cidr());
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
    let text = &Survey::new(&all, "a", None, cidr()).findings[0].text;
    assert!(text.contains("10.245.2.0/24") && text.contains("--cluster-cidr"), "{text}");
}

#[test]
fn without_its_own_node_there_is_nothing_to_do_yet() {
    let why = |all: &Nodes| look(all, None).0.unwrap_err();
    assert!(why(&nodes(&[B])).starts_with("there is no Node a: "), "{}", why(&nodes(&[B])));
    assert_eq!(why(&nodes(&[B, ("a", 1, "192.0.2.1", "")])), "node a has no IPv4 podCIDR yet");
    assert_eq!(why(&nodes(&[B, ("a", 1, "", "10.244.1.0/24")])), "node a has no IPv4 InternalIP yet");
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
    let own = Survey::new(&moved, "a", Some(&last), cidr()).nodes.unwrap().own().clone();
    assert_eq!(
        (own.address.to_string().as_str(), own.subnet.to_string().as_str()),
        ("192.0.2.9", "10.244.9.0/24")
    );
}

#[test]
fn conflicts_are_reported_by_both_sides_and_by_nobody_else() {
    let all = nodes(&[A, B, ("c", 30, "192.0.2.2", "10.244.3.0/24")]);
    let findings = Survey::new(&all, "a", None, cidr()).findings;
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
    let survey = Survey::new(&all, "n7", None, "10.0.0.0/8".parse().unwrap());
    assert_eq!(survey.nodes.unwrap().nodes().len(), 5000);
    assert_eq!(survey.findings, []);
}
