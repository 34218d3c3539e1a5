//! Foreign chains as Docker, firewalls and operators make them, by the real programs.

use super::*;
use crate::host::netns::testing::{in_fresh_netns, run, run_with_input};

fn cluster() -> IpNet {
    "10.244.0.0/16".parse().unwrap()
}

fn cluster6() -> IpNet {
    "fd00:244::/48".parse().unwrap()
}

/// What a node has of the families of these ranges.
fn carried<const N: usize>(clusters: [IpNet; N], port: u16) -> Carried {
    let vtep = |net: IpNet| -> IpAddr {
        match net {
            IpNet::V4(_) => "192.0.2.1".parse().unwrap(),
            IpNet::V6(_) => "2001:db8::1".parse().unwrap(),
        }
    };
    Carried {
        clusters: ByFamily::from_values(clusters).unwrap(),
        vteps: ByFamily::from_values(clusters.map(vtep)).unwrap(),
        port,
    }
}

fn ensure(cluster: IpNet, port: u16) -> Result<Foreign, NftError> {
    super::ensure(&carried([cluster], port))
}

const PORT: u16 = 8472;

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

fn changes(forward: &Foreign) -> Vec<(String, bool)> {
    forward.chains.iter().map(|chain| (chain.to_string(), chain.changed)).collect()
}

const FROM: &str = "-A FORWARD -s 10.244.0.0/16 -m comment --comment overlay -j ACCEPT";
const TO: &str = "-A FORWARD -d 10.244.0.0/16 -m comment --comment overlay -j ACCEPT";

#[test]
fn dockers_chain_is_opened_on_top_once_and_iptables_still_reads_it() {
    in_fresh_netns(|| {
        docker();
        let before = forward_rules();
        assert_eq!(changes(&ensure(cluster(), PORT).unwrap()), [("ip filter FORWARD".into(), true)]);
        let after = forward_rules();
        assert_eq!(after[..2], [FROM, TO]);
        assert_eq!(after[2..], before);
        assert!(run("iptables-nft -L FORWARD -n -v").contains("policy DROP"));
        assert!(run("iptables-nft-save").contains(FROM));

        assert_eq!(changes(&ensure(cluster(), PORT).unwrap()), [("ip filter FORWARD".into(), false)]);
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
        ensure(cluster(), PORT).unwrap();
        let good = forward_rules();
        run("iptables-nft -D FORWARD 1");
        assert!(ensure(cluster(), PORT).unwrap().chains[0].changed);
        assert_eq!(forward_rules(), good);

        run("iptables-nft -I FORWARD -j DOCKER-USER");
        assert!(ensure(cluster(), PORT).unwrap().chains[0].changed);
        assert_eq!(forward_rules()[..3], [FROM, TO, "-A FORWARD -j DOCKER-USER"]);
        run("iptables-nft -D FORWARD -j DOCKER-USER");

        run("iptables-nft -R FORWARD 2 -d 10.244.0.0/16 -m comment --comment overlay -j DROP");
        assert!(ensure(cluster(), PORT).unwrap().chains[0].changed);
        run("iptables-nft -F FORWARD");
        assert!(ensure(cluster(), PORT).unwrap().chains[0].changed);
        assert_eq!(forward_rules(), [FROM, TO]);
    });
}

#[test]
fn accepts_of_an_earlier_cluster_cidr_are_replaced() {
    in_fresh_netns(|| {
        docker();
        ensure("10.200.0.0/14".parse().unwrap(), PORT).unwrap();
        assert!(forward_rules()[0].contains("10.200.0.0/14"));
        ensure(cluster(), PORT).unwrap();
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
        let opened = changes(&ensure(cluster(), PORT).unwrap());
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
        assert_eq!(changes(&ensure(cluster, PORT).unwrap()), [("ip6 six forward".into(), true)]);
        assert_eq!(changes(&ensure(cluster, PORT).unwrap()), [("ip6 six forward".into(), false)]);
        assert!(run("nft list table ip6 six").contains("ip6 saddr fd00:244::/56"));
    });
}

#[test]
fn a_dual_stack_cluster_opens_each_chain_for_the_families_that_pass_it() {
    let base = "type filter hook forward priority 0; policy drop;";
    let both = carried([cluster6(), cluster()], PORT);
    in_fresh_netns(|| {
        nft(&format!("table inet firewall {{ chain forward {{ {base} }}; }}"));
        for iptables in ["iptables-nft", "ip6tables-nft"] {
            run(&format!("{iptables} -P FORWARD DROP"));
        }
        let names = ["inet firewall forward", "ip filter FORWARD", "ip6 filter FORWARD"];
        for changed in [true, false] {
            let mut found = changes(&super::ensure(&both).unwrap());
            found.sort();
            assert_eq!(found, names.map(|name| (name.to_owned(), changed)));
        }
        let accepts = |chain: &str| -> Vec<String> {
            let listing = run(&format!("nft -s list chain {chain}"));
            let rules = listing.lines().map(str::trim).filter(|line| line.contains("overlay"));
            rules.map(|rule| rule.split(" counter").next().unwrap().to_owned()).collect()
        };
        let v4 = ["ip saddr 10.244.0.0/16", "ip daddr 10.244.0.0/16"];
        let v6 = ["ip6 saddr fd00:244::/48", "ip6 daddr fd00:244::/48"];
        assert_eq!(accepts("inet firewall forward"), [v4, v6].concat());
        assert_eq!(
            (accepts("ip filter FORWARD"), accepts("ip6 filter FORWARD")),
            (v4.map(Into::into).into(), v6.map(Into::into).into())
        );
        let ip6tables = run("ip6tables-nft -S FORWARD");
        assert!(
            ip6tables.contains("-A FORWARD -s fd00:244::/48 -m comment --comment overlay -j ACCEPT"),
            "{ip6tables}"
        );
        // The commands say the same.
        let all = names.map(|name| held().unwrap().into_iter().find(|one| one.to_string() == name).unwrap());
        let good = run("nft -s list ruleset");
        remove().unwrap();
        for command in all.iter().flat_map(|chain| chain.commands(&both.clusters)) {
            run(&command);
        }
        assert_eq!(run("nft -s list ruleset").replace('"', ""), good.replace('"', ""));

        // A family that goes takes its accepts along, and no others.
        super::ensure(&carried([cluster()], PORT)).unwrap();
        release(Family::Ipv6).unwrap();
        assert_eq!(accepts("inet firewall forward"), v4);
        assert_eq!(
            (accepts("ip filter FORWARD"), accepts("ip6 filter FORWARD")),
            (v4.map(Into::into).into(), vec![])
        );
        remove().unwrap();
        assert_eq!(held().unwrap(), []);
    });
}

#[test]
fn a_door_is_looked_at_in_the_families_of_the_tunnel() {
    in_fresh_netns(|| {
        for family in ["ip", "ip6"] {
            nft(&format!(
                "table {family} door {{ chain inbound {{ type filter hook input priority 0; policy drop; }}; }}"
            ));
        }
        // IPv6 pods in a tunnel over IPv4, and the reverse.
        for (pods, tunnel) in [(cluster6(), cluster()), (cluster(), cluster6())] {
            let vteps = carried([tunnel], PORT).vteps;
            let found = super::ensure(&Carried { vteps, ..carried([pods], PORT) }).unwrap();
            let [warning] = found.warnings.as_slice() else { panic!("{found:?}") };
            assert_eq!(warning.chain, format!("{} door inbound", tunnel.family().nft()));
        }
    });
}

#[test]
fn accepts_are_taken_back_from_a_chain_that_no_longer_drops() {
    in_fresh_netns(|| {
        docker();
        let before = forward_rules();
        ensure(cluster(), PORT).unwrap();
        run("iptables-nft -P FORWARD ACCEPT");
        assert_eq!(ensure(cluster(), PORT).unwrap().chains, []);
        assert_eq!(forward_rules(), before);
    });
}

#[test]
fn nothing_is_created_where_nobody_filters() {
    in_fresh_netns(|| {
        assert_eq!(ensure(cluster(), PORT).unwrap(), Foreign::default());
        assert_eq!(run("nft list ruleset"), "");
    });
}

/// The skeleton of firewalld's table: the base chain accepts by policy and ends with a reject; the way there is by jumps.
const FIREWALLD: &str = "
    table inet firewalld {
        chain filter_FORWARD {
            type filter hook forward priority filter + 10; policy accept;
            ct state { established, related } accept
            ct status dnat accept
            iifname lo accept
            ct state invalid drop
            jump filter_FORWARD_POLICIES
            reject with icmpx admin-prohibited
        }
        chain filter_FORWARD_POLICIES {
            iifname eth0 oifname eth0 jump filter_FWD_public
            jump filter_FORWARD_POLICIES_post
        }
        chain filter_FWD_public { reject with icmpx admin-prohibited; }
        chain filter_FORWARD_POLICIES_post { }
    }";

#[test]
fn firewalld_ends_with_a_reject_behind_which_nothing_passes() {
    in_fresh_netns(|| {
        nft(FIREWALLD);
        let before = run("nft -s list table inet firewalld");
        let found = ensure(cluster(), PORT).unwrap();
        assert_eq!(changes(&found), [("inet firewalld filter_FORWARD".into(), true)]);
        for chain in ["filter_FORWARD", "filter_FORWARD_POLICIES", "filter_FORWARD_POLICIES_post"] {
            assert!(found.examined.contains(&("firewalld".into(), chain.into())), "{found:?}");
        }
        assert_eq!(found.warnings, []);
        let chain = run("nft -s list chain inet firewalld filter_FORWARD");
        let rules: Vec<_> = chain.lines().map(str::trim).skip(3).take(2).collect();
        assert_eq!(
            rules,
            ["saddr", "daddr"]
                .map(|side| format!("ip {side} 10.244.0.0/16 counter accept comment \"overlay\""))
        );
        assert_eq!(
            changes(&ensure(cluster(), PORT).unwrap()),
            [("inet firewalld filter_FORWARD".into(), false)]
        );
        // As a reload does: all rules of all chains anew.
        nft(&format!("flush table inet firewalld; {FIREWALLD}"));
        assert_eq!(
            changes(&ensure(cluster(), PORT).unwrap()),
            [("inet firewalld filter_FORWARD".into(), true)]
        );
        assert_eq!(held().unwrap().len(), 1);
        remove().unwrap();
        assert_eq!(run("nft -s list table inet firewalld"), before);
        assert_eq!(held().unwrap(), []);
    });
}

#[test]
fn a_chain_is_opened_for_what_drops_without_a_condition_only() {
    in_fresh_netns(|| {
        let base = "type filter hook forward priority 0; policy";
        nft(&format!(
            "table ip t {{
                chain ends {{ log prefix \"end\" counter drop; }}
                chain jumps {{ {base} accept; jump ends; }}
                chain goes {{ {base} accept; goto ends; accept; }}
                chain limits {{ {base} accept; limit rate 3/second drop; }}
                chain accepts {{ {base} drop; ip ttl 1 drop; counter accept; }}
                chain before {{ type filter hook prerouting priority raw; policy drop; udp dport {{ 22, 8000-9000 }} accept; }}
            }}
            table ip sleeping {{ flags dormant; chain forward {{ {base} drop; }}; }}"
        ));
        run("iptables-nft -A FORWARD -m comment --comment end -j REJECT --reject-with icmp-host-prohibited");
        let found = ensure(cluster(), PORT).unwrap();
        let mut chains: Vec<_> = found.chains.iter().map(ToString::to_string).collect();
        chains.sort();
        assert_eq!(chains, ["ip filter FORWARD", "ip t before", "ip t goes", "ip t jumps"]);
        assert_eq!(forward_rules()[..2], [FROM, TO]);
        assert_eq!(found.warnings, []);
        assert!(!run("nft list table ip sleeping").contains("accept"));
    });
}

/// firewalld 2.1 and later own their table.
#[test]
fn a_table_that_a_process_owns_is_named_with_the_remedy_and_stops_nothing_else() {
    use std::io::{BufRead as _, BufReader, Write as _};
    in_fresh_netns(|| {
        let mut owner = std::process::Command::new("nft")
            .arg("-i")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = owner.stdin.take().unwrap();
        let chain = "type filter hook forward priority 10; policy drop;";
        write!(
            stdin,
            "add table inet firewalld {{ flags owner; }}\n\
             add chain inet firewalld filter_FORWARD {{ {chain} }}\n\
             list tables\n"
        )
        .unwrap();
        stdin.flush().unwrap();
        let stdout = BufReader::new(owner.stdout.take().unwrap());
        stdout.lines().map(Result::unwrap).find(|line| line.contains("table inet firewalld")).unwrap();
        docker();
        let found = ensure(cluster(), PORT);
        drop(stdin);
        owner.wait().unwrap();
        let found = found.unwrap();
        assert_eq!(changes(&found), [("ip filter FORWARD".into(), true)]);
        let [warning] = found.warnings.as_slice() else { panic!("{found:?}") };
        let warning = warning.to_string();
        assert!(
            warning.starts_with(
                "chain inet firewalld filter_FORWARD drops what the stack forwards for pods, and cannot be changed: "
            ),
            "{warning}"
        );
        assert!(warning.contains("Operation not permitted"), "{warning}");
        assert!(warning.ends_with(
            "firewall-cmd --permanent --zone=trusted --add-source=10.244.0.0/16; firewall-cmd --reload"
        ));
    });
}

#[test]
fn a_closed_door_for_the_tunnel_is_named_and_left_closed() {
    in_fresh_netns(|| {
        nft("table inet firewall {
                chain inbound { type filter hook input priority 0; policy drop; tcp dport 22 accept; }
             }");
        let before = run("nft list ruleset");
        let warnings = ensure(cluster(), PORT).unwrap().warnings;
        let warnings: Vec<_> = warnings.iter().map(ToString::to_string).collect();
        assert!(
            warnings[0].starts_with("chain inet firewall inbound (input) drops by default"),
            "{warnings:?}"
        );
        assert!(warnings[0].ends_with("run: nft insert rule inet firewall inbound udp dport 8472 accept"));
        assert_eq!(run("nft list ruleset"), before);
        for rule in ["udp dport 8472 accept", "udp dport { 53, 8472 } accept", "udp dport 8000-9000 accept"] {
            run("nft flush chain inet firewall inbound");
            run(&format!("nft add rule inet firewall inbound {rule}"));
            assert_eq!(ensure(cluster(), PORT).unwrap().warnings, [], "{rule}");
            assert_eq!(ensure(cluster(), 4789).unwrap().warnings.len(), 1, "{rule}");
        }
    });
}

#[test]
fn the_legacy_chain_is_opened_on_top_once_and_closed_again() {
    for (program, cluster) in [("iptables", cluster()), ("ip6tables", cluster6())] {
        in_fresh_netns(|| {
            let legacy = |arguments: &str| run(&format!("{program}-legacy {arguments}"));
            // Kernels without legacy iptables (CONFIG_NETFILTER_XTABLES_LEGACY) have nothing to find.
            let set = std::process::Command::new(format!("{program}-legacy"))
                .args(["-P", "FORWARD", "DROP"])
                .output();
            if !set.is_ok_and(|output| output.status.success()) {
                return;
            }
            let accepts = ["-s", "-d"]
                .map(|side| format!("-A FORWARD {side} {cluster} -m comment --comment overlay -j ACCEPT"));
            legacy("-N DOCKER-USER");
            legacy("-A FORWARD -j DOCKER-USER");
            let rules =
                || -> Vec<String> { legacy("-S FORWARD").lines().skip(1).map(str::to_owned).collect() };
            let before = rules();
            let name = format!("legacy {program} filter FORWARD");
            assert_eq!(changes(&ensure(cluster, PORT).unwrap()), [(name.clone(), true)]);
            assert_eq!(rules(), [&accepts[0], &accepts[1], "-A FORWARD -j DOCKER-USER"]);
            assert_eq!(changes(&ensure(cluster, PORT).unwrap()), [(name.clone(), false)]);
            legacy("-I FORWARD -i eth9 -j DROP");
            assert_eq!(changes(&ensure(cluster, PORT).unwrap()), [(name.clone(), true)]);
            assert_eq!(rules()[..3], [&accepts[0], &accepts[1], "-A FORWARD -i eth9 -j DROP"]);
            legacy("-D FORWARD -i eth9 -j DROP");
            assert_eq!(held().unwrap().len(), 1);
            assert_eq!(remove().unwrap()[0].to_string(), name);
            assert_eq!(rules(), before);
            assert!(remove().unwrap().is_empty());
            // Not by policy, but in the end.
            legacy("-P FORWARD ACCEPT");
            assert!(ensure(cluster, PORT).unwrap().chains.is_empty());
            legacy("-A FORWARD -j REJECT");
            assert_eq!(changes(&ensure(cluster, PORT).unwrap()), [(name, true)]);
            legacy("-D FORWARD -j REJECT");
            assert!(ensure(cluster, PORT).unwrap().chains.is_empty());
            assert_eq!(rules(), before);
        });
    }
}
