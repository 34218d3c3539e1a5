//! Foreign chains as Docker, firewalls and operators make them, by the real programs.

use super::*;
use crate::host::netns::testing::{in_fresh_netns, run, run_with_input};

fn cluster() -> IpNet {
    "10.244.0.0/16".parse().unwrap()
}

fn nft(script: &str) {
    run_with_input("nft -f -", script);
}

/// The rules that Docker 27 leaves behind, with the policy that it sets.
fn docker() {
    for rule in [
        "-P FORWARD DROP",
        "-N DOCKER",
        "-N DOCKER-USER",
        "-N DOCKER-ISOLATION-STAGE-1",
        "-A DOCKER-USER -j RETURN",
        "-A FORWARD -j DOCKER-USER",
        "-A FORWARD -j DOCKER-ISOLATION-STAGE-1",
        "-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A FORWARD -o docker0 -j DOCKER",
        "-A FORWARD -i docker0 ! -o docker0 -j ACCEPT",
    ] {
        run(&format!("iptables-nft {rule}"));
    }
}

fn forward_rules() -> Vec<String> {
    run("iptables-nft -S FORWARD").lines().skip(1).map(str::to_owned).collect()
}

fn changes(forward: &Forward) -> Vec<(String, bool)> {
    forward.chains.iter().map(|chain| (chain.to_string(), chain.changed)).collect()
}

const FROM: &str = "-A FORWARD -s 10.244.0.0/16 -m comment --comment overlay -j ACCEPT";
const TO: &str = "-A FORWARD -d 10.244.0.0/16 -m comment --comment overlay -j ACCEPT";

#[test]
fn dockers_chain_is_opened_on_top_once_and_iptables_still_reads_it() {
    in_fresh_netns(|| {
        docker();
        let before = forward_rules();
        assert_eq!(changes(&ensure(cluster()).unwrap()), [("ip filter FORWARD".into(), true)]);
        let after = forward_rules();
        assert_eq!(after[..2], [FROM, TO]);
        assert_eq!(after[2..], before);
        assert!(run("iptables-nft -L FORWARD -n -v").contains("policy DROP"));
        assert!(run("iptables-nft-save").contains(FROM));

        assert_eq!(changes(&ensure(cluster()).unwrap()), [("ip filter FORWARD".into(), false)]);
        assert_eq!(forward_rules(), after);

        let removed = remove().unwrap();
        assert_eq!(removed.len(), 1);
        assert_eq!(forward_rules(), before);
        assert!(remove().unwrap().is_empty());
    });
}

#[test]
fn accepts_that_were_removed_or_moved_down_or_edited_come_back() {
    in_fresh_netns(|| {
        docker();
        ensure(cluster()).unwrap();
        let good = forward_rules();
        run("iptables-nft -D FORWARD 1");
        assert!(ensure(cluster()).unwrap().chains[0].changed);
        assert_eq!(forward_rules(), good);

        run("iptables-nft -I FORWARD -j DOCKER-USER");
        assert!(ensure(cluster()).unwrap().chains[0].changed);
        assert_eq!(forward_rules()[..3], [FROM, TO, "-A FORWARD -j DOCKER-USER"]);
        run("iptables-nft -D FORWARD -j DOCKER-USER");

        run("iptables-nft -R FORWARD 2 -d 10.244.0.0/16 -m comment --comment overlay -j DROP");
        assert!(ensure(cluster()).unwrap().chains[0].changed);
        run("iptables-nft -F FORWARD");
        assert!(ensure(cluster()).unwrap().chains[0].changed);
        assert_eq!(forward_rules(), [FROM, TO]);
    });
}

#[test]
fn accepts_of_an_earlier_cluster_cidr_are_replaced() {
    in_fresh_netns(|| {
        docker();
        ensure("10.200.0.0/14".parse().unwrap()).unwrap();
        assert!(forward_rules()[0].contains("10.200.0.0/14"));
        ensure(cluster()).unwrap();
        assert_eq!(forward_rules()[..2], [FROM, TO]);
        assert!(!forward_rules().iter().any(|rule| rule.contains("10.200.0.0/14")));
    });
}

#[test]
fn every_dropping_forward_chain_of_the_family_is_opened_and_no_other() {
    in_fresh_netns(|| {
        // `fwd` is a keyword of nft's language.
        nft("table inet firewall {
                chain first { type filter hook forward priority 0; policy drop; ct state invalid drop; }
                chain polite { type filter hook forward priority 10; policy accept; }
                chain inbound { type filter hook input priority 0; policy drop; }
             }
             table ip6 six { chain forward { type filter hook forward priority 0; policy drop; }; }
             table ip overlay { chain forward { type filter hook forward priority 0; policy drop; }; }");
        let keyword = r#"{ "nftables": [ { "add": { "chain": { "family": "inet", "table": "firewall",
            "name": "fwd", "type": "filter", "hook": "forward", "prio": 20, "policy": "drop" } } } ] }"#;
        run_with_input("nft -j -f -", keyword);
        let opened = changes(&ensure(cluster()).unwrap());
        assert_eq!(opened, [("inet firewall first".into(), true), ("inet firewall fwd".into(), true)]);
        let listing = run("nft -s list table inet firewall");
        assert_eq!(listing.matches("comment \"overlay\"").count(), 4, "{listing}");
        assert!(!run("nft list table ip6 six").contains("comment"));
        assert!(!run("nft list table ip overlay").contains("comment"));
        assert_eq!(remove().unwrap().len(), 2);
        assert!(run("nft list table inet firewall").contains("ct state invalid drop"));
    });
}

#[test]
fn an_ipv6_cluster_opens_ipv6_chains() {
    in_fresh_netns(|| {
        nft("table ip6 six { chain forward { type filter hook forward priority 0; policy drop; }; }");
        let cluster = "fd00:244::/56".parse().unwrap();
        assert_eq!(changes(&ensure(cluster).unwrap()), [("ip6 six forward".into(), true)]);
        assert_eq!(changes(&ensure(cluster).unwrap()), [("ip6 six forward".into(), false)]);
        assert!(run("nft list table ip6 six").contains("ip6 saddr fd00:244::/56"));
    });
}

#[test]
fn accepts_are_taken_back_from_a_chain_that_no_longer_drops() {
    in_fresh_netns(|| {
        docker();
        let before = forward_rules();
        ensure(cluster()).unwrap();
        run("iptables-nft -P FORWARD ACCEPT");
        assert_eq!(ensure(cluster()).unwrap().chains, []);
        assert_eq!(forward_rules(), before);
    });
}

#[test]
fn nothing_is_created_where_nobody_filters() {
    in_fresh_netns(|| {
        assert_eq!(ensure(cluster()).unwrap(), Forward::default());
        assert_eq!(run("nft list ruleset"), "");
    });
}

#[test]
fn legacy_drop_is_reported_with_a_remedy_until_it_is_followed() {
    let rules = "-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n";
    let warning = legacy_warning(rules, cluster()).unwrap();
    assert!(warning.ends_with(
        "run: iptables-legacy -I FORWARD -s 10.244.0.0/16 -j ACCEPT; \
         iptables-legacy -I FORWARD -d 10.244.0.0/16 -j ACCEPT"
    ));
    let half = format!("{rules}-A FORWARD -s 10.244.0.0/16 -j ACCEPT\n");
    assert!(legacy_warning(&half, cluster()).unwrap().contains("run: iptables-legacy -I FORWARD -d "));
    let followed = format!("{half}-A FORWARD -d 10.244.0.0/16 -j ACCEPT\n");
    assert_eq!(legacy_warning(&followed, cluster()), None);
    assert_eq!(legacy_warning("-P FORWARD ACCEPT\n", cluster()), None);
}

#[test]
fn legacy_chain_of_this_namespace_is_found_and_not_edited() {
    in_fresh_netns(|| {
        // Kernels without legacy iptables (CONFIG_NETFILTER_XTABLES_LEGACY) have nothing to find.
        let set = std::process::Command::new("iptables-legacy").args(["-P", "FORWARD", "DROP"]).output();
        if !set.is_ok_and(|output| output.status.success()) {
            return;
        }
        let before = run("iptables-legacy -S");
        let forward = ensure(cluster()).unwrap();
        assert_eq!(forward.chains, []);
        assert!(forward.warnings[0].contains("legacy iptables drops"), "{forward:?}");
        assert_eq!(run("iptables-legacy -S"), before);
    });
}
