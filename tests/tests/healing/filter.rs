//! What others do to forwarding and to the packet filter.

use overlay_tests::lab::{Namespace, exec};

use crate::bed::{Bed, SOON, expect_idle};

fn run(host: &Namespace, line: &str) -> String {
    let mut words = line.split_whitespace();
    exec::must(host.command(words.next().unwrap()).args(words), "")
}

fn ruleset(host: &Namespace) -> String {
    run(host, "nft -s list ruleset")
}

/// Forwarding is on, the table is there, and Docker's chain begins with the accepts.
fn whole(host: &Namespace) -> bool {
    let forward = run(host, "iptables-nft -S FORWARD");
    let rules: Vec<_> = forward.lines().filter(|line| line.starts_with("-A ")).collect();
    let accept = |index: usize, side: &str| {
        rules.get(index).is_some_and(|rule| {
            rule.contains(&format!("{side} 10.244.0.0/16")) && rule.ends_with("-j ACCEPT")
        })
    };
    host.read_sysctl("net.ipv4.ip_forward") == "1"
        && ruleset(host).contains("masquerade fully-random")
        && forward.contains("-P FORWARD DROP")
        && accept(0, "-s")
        && accept(1, "-d")
}

#[test]
fn forwarding_masquerade_and_accepts_come_back() {
    let bed = Bed::start();
    let host = bed.a.namespace();
    let accepts = "chain ip filter FORWARD drops what is forwarded: inserted accepts for 10.244.0.0/16";
    for (command, said) in [
        ("sysctl -qw net.ipv4.ip_forward=0", "set net/ipv4/ip_forward = 1"),
        ("nft delete table ip overlay", "masquerade to the world: set"),
        ("nft flush chain ip overlay postrouting", "masquerade to the world: set"),
        ("nft insert rule ip overlay postrouting accept", "masquerade to the world: set"),
        ("iptables-nft -I FORWARD -j DOCKER-USER", accepts),
        ("iptables-nft -F FORWARD", accepts),
    ] {
        let before = ruleset(host);
        let breaking = || {
            run(host, command);
        };
        let healthy = || whole(host) && !ruleset(host).contains("\t\taccept\n");
        bed.heals(SOON, command, breaking, healthy, said);
        // What others have put there stays.
        let after = ruleset(host);
        assert!(after.contains("chain DOCKER-USER"), "{command}:\n{before}\n{after}");
    }
    expect_idle(&bed.a);
}

/// dockerd at its start: the policy, a flush of its own chains, its rules on top, each a transaction of its own.
#[test]
fn a_restart_of_docker_is_survived() {
    let bed = Bed::start();
    let host = bed.a.namespace();
    let restart = || {
        for command in [
            "iptables-nft -P FORWARD ACCEPT",
            "iptables-nft -F FORWARD",
            "iptables-nft -P FORWARD DROP",
            "iptables-nft -I FORWARD -o docker0 -j DOCKER",
            "iptables-nft -I FORWARD -j DOCKER-ISOLATION-STAGE-1",
            "iptables-nft -I FORWARD -j DOCKER-USER",
        ] {
            run(host, command);
        }
    };
    bed.heals(SOON, "docker restart", restart, || whole(host), "inserted accepts for 10.244.0.0/16");
    expect_idle(&bed.a);
    let rules = run(host, "iptables-nft -S FORWARD");
    for kept in [
        "-A FORWARD -j DOCKER-USER",
        "-A FORWARD -j DOCKER-ISOLATION-STAGE-1",
        "-A FORWARD -o docker0 -j DOCKER",
    ] {
        assert!(rules.contains(kept), "{kept} is not in\n{rules}");
    }
    assert_eq!(rules.matches("10.244.0.0/16").count(), 2, "{rules}");
}

/// Somebody else's chain that drops by policy, made while the agent runs.
#[test]
fn a_new_chain_that_drops_gets_accepts() {
    let bed = Bed::start();
    let host = bed.a.namespace();
    let log = bed.a.log_mark();
    exec::must(
        host.command("nft").args(["-f", "-"]),
        "table inet firewall { chain forward { type filter hook forward priority 10; policy drop; }; }\n",
    );
    let healed = log.wait_for("chain inet firewall forward drops what is forwarded", SOON);
    println!("new chain: healed within {} ms", healed.as_millis());
    bed.expect_traffic();
    run(host, "nft delete table inet firewall");
    expect_idle(&bed.a);
}
