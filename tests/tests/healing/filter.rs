//! What others do to forwarding and to the packet filter.

use overlay_tests::lab::{Namespace, exec, within};

use crate::bed::{Bed, PERIOD, SOON, expect_idle};

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

/// The skeleton of firewalld's table: the policy accepts, a rule at the end rejects the rest.
const FIREWALLD: &str = "table inet firewalld {
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname lo accept
        jump filter_FORWARD_POLICIES
        reject with icmpx admin-prohibited
    }
    chain filter_FORWARD_POLICIES { }
}
";

/// Also after a reload, which flushes all chains and fills them again in one transaction.
#[test]
fn a_reject_at_the_end_of_a_chain_that_accepts_is_passed_by() {
    let bed = Bed::start();
    let host = bed.a.namespace();
    for script in [FIREWALLD.to_owned(), format!("flush table inet firewalld\n{FIREWALLD}")] {
        let log = bed.a.log_mark();
        exec::must(host.command("nft").args(["-f", "-"]), &script);
        log.wait_for("chain inet firewalld filter_FORWARD drops what is forwarded", SOON);
        bed.expect_traffic();
        expect_idle(&bed.a);
    }
    let log = bed.a.log_mark();
    run(host, "nft flush chain inet firewalld filter_FORWARD");
    run(host, "nft add rule inet firewalld filter_FORWARD_POLICIES drop");
    run(host, "nft add rule inet firewalld filter_FORWARD jump filter_FORWARD_POLICIES");
    log.wait_for("chain inet firewalld filter_FORWARD drops what is forwarded", SOON);
    bed.expect_traffic();
}

/// The kernel does not report changes of legacy iptables: the periodic look has to find them.
#[test]
fn legacy_iptables_that_drop_get_accepts() {
    let bed = Bed::start();
    let host = bed.a.namespace();
    let policy = exec::output(host.command("iptables-legacy").args(["-P", "FORWARD", "DROP"]), b"", SOON);
    if !policy.is_ok_and(|output| output.status.success()) {
        // A kernel without CONFIG_NETFILTER_XTABLES_LEGACY has nothing that drops.
        return;
    }
    run(host, "iptables-legacy -N DOCKER-USER");
    let accepts = "-A FORWARD -s 10.244.0.0/16 -m comment --comment overlay -j ACCEPT\n\
                   -A FORWARD -d 10.244.0.0/16 -m comment --comment overlay -j ACCEPT\n";
    let whole =
        || run(host, "iptables-legacy -S FORWARD").starts_with(&format!("-P FORWARD DROP\n{accepts}"));
    within(PERIOD, "accepts", whole);
    bed.expect_traffic();
    let breaking = || {
        run(host, "iptables-legacy -I FORWARD -j DOCKER-USER");
    };
    let said = "chain legacy iptables filter FORWARD drops what is forwarded";
    bed.heals(PERIOD, "a rule on top", breaking, whole, said);
    assert!(run(host, "iptables-legacy -S FORWARD").ends_with("-A FORWARD -j DOCKER-USER\n"));
    expect_idle(&bed.a);
}
