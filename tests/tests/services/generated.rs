//! The generated rules of the iptables mode are those that the real kube-proxy writes.

use std::collections::{BTreeMap, BTreeSet};

use overlay_tests::lab::services::{KubeBinaries, Proxy, ProxyMode, ProxyNode};
use overlay_tests::lab::{Namespace, exec};

use crate::bed::{Bed, Ground, Kind};

/// The rules in chains of Kubernetes, and the jumps there. Chains that are named after a hash have names that tell what they are
/// for; the API server's own Service is left out.
#[track_caller]
fn rules(namespace: &Namespace) -> BTreeSet<String> {
    let mut rules = BTreeSet::new();
    for table in ["filter", "nat"] {
        let text = exec::must(namespace.command("iptables-nft-save").args(["-t", table]), "");
        let lines = text.lines().filter(|line| line.starts_with("-A ") && line.contains("KUBE-"));
        let lines: Vec<&str> = lines.filter(|line| !line.contains("default/kubernetes:")).collect();
        let names = names(&lines);
        rules.extend(lines.iter().map(|line| {
            let words = line.split(' ').map(|word| names.get(word).map_or(word, String::as_str));
            format!("{table} {}", words.collect::<Vec<_>>().join(" "))
        }));
    }
    rules
}

/// What each hashed chain is for: `SEP default/all:tcp 10.244.0.3:8010`.
fn names<'a>(lines: &[&'a str]) -> BTreeMap<&'a str, String> {
    let mut names = BTreeMap::new();
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        let after = |mark: &str| words.iter().position(|word| *word == mark).map(|at| words[at + 1]);
        let comment = after("--comment").unwrap_or_default().trim_matches('"');
        if let Some(to) = after("--to-destination") {
            names.insert(words[1], format!("<SEP {comment} {to}>"));
        }
        for (chain, from) in [("SVC", "KUBE-SERVICES"), ("XLB", "KUBE-NODEPORTS")] {
            let target = after("-j").filter(|target| target.starts_with(&format!("KUBE-{chain}-")));
            if let Some(target) = target.filter(|_| words[1] == from) {
                names.insert(target, format!("<{chain} {comment}>"));
            }
        }
    }
    names
}

#[test]
fn rules_of_the_iptables_mode_are_those_of_the_real_kube_proxy() {
    let Some(binaries) = KubeBinaries::find() else { return };
    let bed = Bed::start(Ground::Overlay(Box::default()), &ProxyMode::Real(binaries), Kind::PLAIN);
    let lab = bed.cluster().lab();
    let (cluster, somewhere) = (bed.cluster().network().cidr.expect(bed.family), lab.namespace("generated"));
    let node =
        ProxyNode { name: "cp".to_owned(), namespace: somewhere.clone(), address: bed.node("cp").addr };
    let api = (&somewhere, bed.node("cp").addr);
    let mut generated = Proxy::start(lab, &ProxyMode::Iptables, vec![node], cluster, api);
    generated.apply(&bed.services());
    let (real, ours) = (rules(&bed.node("cp").namespace), rules(&somewhere));
    let (missing, surplus): (Vec<_>, Vec<_>) =
        (real.difference(&ours).collect(), ours.difference(&real).collect());
    assert!(missing.is_empty() && surplus.is_empty(), "missing: {missing:#?}\nsurplus: {surplus:#?}");
    assert!(real.len() > 100, "{} rules", real.len());
}
