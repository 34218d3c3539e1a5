//! Whatever the Nodes say: all agents come to the same result, and it is one that holds together.

use proptest::{collection::vec, option, prelude::*};
use serde_json::json;

use super::*;
use crate::cluster::Tunnel;

const RANGES: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/48"];

fn cidrs() -> Cidrs {
    Cidrs::new(RANGES.map(|net| net.parse().unwrap())).unwrap()
}

/// What a podCIDR says: few different ones, so that they meet; some that are wrong.
fn subnet() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => (0..6_u8, 23..26_u8).prop_map(|(n, len)| format!("10.244.{}.0/{len}", n * 2)),
        4 => (0..6_u16, 62..66_u8).prop_map(|(n, len)| format!("fd00:10:244:{:x}::/{len}", n * 4)),
        1 => Just("10.244.1.1/24".to_owned()),
        1 => Just("10.9.0.0/24".to_owned()),
        1 => Just("fd00:9::/64".to_owned()),
        1 => Just("nothing".to_owned()),
    ]
}

fn address() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => (1..8_u8).prop_map(|n| format!("192.0.2.{n}")),
        4 => (1..8_u8).prop_map(|n| format!("2001:db8::{n}")),
        1 => Just("fe80::1".to_owned()),
        1 => Just("10.244.0.9".to_owned()),
    ]
}

/// When a node was created, its subnets and addresses, the last byte of its MAC.
type Made = (i64, Vec<String>, Vec<String>, Option<u8>);

fn nodes() -> impl Strategy<Value = Nodes> {
    let node = (0..4_i64, vec(subnet(), 0..3), vec(address(), 0..3), option::weighted(0.2, 1..200_u8));
    vec(node, 1..8).prop_map(|nodes| {
        let made = |(number, (created, subnets, addresses, mac)): (usize, Made)| {
            let name = format!("n{number}");
            let internal: Vec<_> =
                addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
            let annotations =
                mac.map(|mac| json!({"overlay.network/vtep-mac": format!("02:00:00:00:00:{mac:02x}")}));
            let object = json!({
                "metadata": {"name": name, "annotations": annotations},
                "spec": {"podCIDRs": subnets},
                "status": {"addresses": internal},
            });
            let (name, node) = KubeNode::from(serde_json::from_value(object).unwrap()).unwrap();
            (name, KubeNode { created, ..node })
        };
        nodes.into_iter().enumerate().map(made).collect()
    })
}

proptest! {
    #[test]
    fn all_agents_come_to_one_result(nodes in nodes()) {
        let surveys: Vec<_> = nodes.keys().map(|own| (own, Survey::new(&nodes, own, None, &cidrs()))).collect();
        let mut lists = surveys.iter().filter_map(|(own, survey)| Some((*own, survey.nodes.as_ref().ok()?)));
        let Some((_, first)) = lists.next() else { return Ok(()) };
        for (own, snapshot) in lists {
            prop_assert_eq!(snapshot.nodes(), first.nodes());
            prop_assert_eq!(&snapshot.own().name, own);
        }
        for (own, survey) in &surveys {
            prop_assert_eq!(&survey.findings, &surveys[0].1.findings);
            let listed = first.nodes().iter().any(|node| node.name == **own);
            prop_assert_eq!(survey.nodes.is_ok(), listed, "{}: {:?}", own, survey.nodes);
        }
        // Who is left out, or a family of his, is named.
        for (name, node) in &nodes {
            let listed = first.nodes().iter().find(|listed| listed.name == *name);
            for family in crate::family::Family::ALL {
                let said = node.subnets.get(family).is_some() && !node.addresses.is_empty();
                let taken = listed.is_some_and(|listed| listed.subnets.get(family).is_some());
                let found = survey_names(&surveys[0].1, name);
                prop_assert!(!said || taken || found, "{}: {}", name, family);
            }
        }
        // Both ends of a tunnel are of one family, and each is where the other sends to.
        for (a, b) in first.nodes().iter().flat_map(|a| first.nodes().iter().map(move |b| (a, b))) {
            for inner in crate::family::Family::ALL {
                for preferred in crate::family::Family::ALL {
                    let family = |tunnel: Option<Tunnel>| tunnel.map(|tunnel| tunnel.vtep.is_ipv4());
                    prop_assert_eq!(family(a.tunnel(inner, b, preferred)), family(b.tunnel(inner, a, preferred)));
                }
            }
        }
    }

    #[test]
    fn a_node_with_pods_is_never_left_without_its_subnets(nodes in nodes(), v6 in any::<bool>()) {
        let subnets: &[&str] = if v6 { &["10.244.100.0/24", "fd00:10:244:100::/64"] } else { &["10.244.100.0/24"] };
        let last = NodeSpec::of("n0", &["192.0.2.100"], subnets);
        let survey = Survey::new(&nodes, "n0", Some(&last), &cidrs());
        match survey.nodes {
            // The prefix lengths of all nodes together have to fit, whoever is there.
            Err(why) => prop_assert!(why.contains("table entries are needed"), "{}", why),
            Ok(snapshot) => {
                let own = snapshot.own();
                let given = nodes.get("n0").is_some_and(|node| !node.subnets.is_empty());
                prop_assert!(!own.subnets.is_empty() && !own.addresses.is_empty());
                prop_assert!(given || own.subnets == last.subnets, "{:?}", own);
            }
        }
    }
}

fn survey_names(survey: &Survey, name: &str) -> bool {
    survey.findings.iter().any(|finding| finding.node == name)
}
