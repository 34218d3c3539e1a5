//! Foreign chains that drop what is the pods'.

use overlay_tests::lab::exec;

use crate::bed::Bed;

const CLOSED: &str = "table inet closed {
    chain forward { type filter hook forward priority filter; policy drop; }
}
";

#[test]
pub(crate) fn a_chain_that_drops_is_named_and_opened_by_remedy_or_fix() {
    let bed = Bed::start();
    bed.a.stop_agent();
    let host = bed.a.namespace();
    exec::must(host.command("nft").args(["-f", "-"]), CLOSED);
    let wanted = [("agent", "agent"), ("firewall", "chain inet closed forward")];
    let finding = bed.doctor(&[]).expect(&wanted).pop().unwrap();
    assert!(
        finding.remedy.starts_with("nft insert rule inet closed forward ip daddr 10.244.0.0/16"),
        "{finding:?}"
    );
    bed.follow(&finding);
    bed.doctor(&["--only", "firewall"]).expect_fine();

    bed.run("nft flush chain inet closed forward");
    bed.doctor(&["--only", "firewall"]).expect(&wanted[1..]);
    let seen = bed.doctor(&["--only", "firewall", "--fix"]);
    seen.expect_fine();
    assert_eq!(seen.did, "did make one pass of the agent\n");
    let rules = bed.run("nft list chain inet closed forward");
    assert_eq!(rules.matches("comment \"overlay\"").count(), 2, "{rules}");
    bed.expect_traffic();
}

#[test]
pub(crate) fn dockers_chain_without_the_accepts_is_named() {
    let bed = Bed::start();
    bed.a.stop_agent();
    bed.run("iptables-nft -S FORWARD | grep overlay | sed s/-A/-D/ | while read r; do iptables-nft $r; done");
    let seen = bed.doctor(&["--only", "firewall"]);
    let finding = &seen.expect(&[("firewall", "chain ip filter FORWARD")])[0];
    bed.follow(finding);
    bed.doctor(&["--only", "firewall"]).expect_fine();
    bed.a.start_agent();
    bed.doctor(&["--only", "firewall"]).expect_fine();
}

#[test]
pub(crate) fn a_door_that_is_shut_for_the_tunnel_is_named_and_opened_by_the_remedy() {
    let bed = Bed::start();
    let script = "table inet hard {
        chain input { type filter hook input priority filter; policy drop; ct state established accept; icmp type echo-request accept; icmp type echo-reply accept; }
    }";
    exec::must(bed.a.namespace().command("nft").args(["-f", "-"]), script);
    let seen = bed.doctor(&[]);
    // What comes by the tunnel for this node itself is the kernel's to decapsulate.
    let finding = &seen.expect(&[("firewall", "chain inet hard input"), ("peers", "peer b")])[0];
    assert_eq!(finding.remedy, "nft insert rule inet hard input udp dport 8472 accept");
    assert_eq!((finding.severity.as_str(), finding.fix.as_deref()), ("warning", None));
    bed.follow(finding);
    bed.doctor(&[]).expect_fine();
}

#[test]
pub(crate) fn a_chain_of_legacy_iptables_is_named_and_opened_by_the_remedy() {
    let bed = Bed::start();
    bed.a.stop_agent();
    bed.run("iptables-legacy -P FORWARD DROP");
    let object = "chain legacy iptables filter FORWARD";
    let finding = &bed.doctor(&["--only", "firewall"]).expect(&[("firewall", object)])[0];
    assert!(finding.remedy.starts_with("iptables-legacy -I FORWARD -d 10.244.0.0/16"), "{finding:?}");
    bed.follow(finding);
    bed.doctor(&["--only", "firewall"]).expect_fine();
    bed.a.start_agent();
    bed.doctor(&["--only", "firewall"]).expect_fine();
}

#[test]
pub(crate) fn firewalld_is_told_in_its_own_words() {
    let bed = Bed::start();
    bed.a.stop_agent();
    let script = "table inet firewalld {
        chain filter_FORWARD { type filter hook forward priority filter + 10; policy accept; ct state established accept; reject; }
    }";
    exec::must(bed.a.namespace().command("nft").args(["-f", "-"]), script);
    let object = "chain inet firewalld filter_FORWARD";
    let finding = &bed.doctor(&["--only", "firewall"]).expect(&[("firewall", object)])[0];
    let said = "firewall-cmd --permanent --zone=trusted --add-source=10.244.0.0/16 && firewall-cmd --reload";
    assert_eq!(finding.remedy, said);
    bed.doctor(&["--only", "firewall", "--fix"]).expect_fine();
}
