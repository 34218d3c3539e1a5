//! The host's side of IPv6: what somebody has taken away of it is found as it is of IPv4, and by the same checks.

use overlay_tests::lab::{Docker, Listed, Network, Node, exec, nets};
use overlay_userspace::family::Family;

use crate::bed::{configure, doctor, follow, lan};

#[test]
pub(crate) fn what_is_gone_of_ipv6_is_named_and_put_right_by_the_remedy() {
    let (lab, lan) = lan();
    let node = Node::builder_of(
        "a",
        nets(&["192.0.2.1/24", "2001:db8::1/64"]),
        nets(&["10.244.1.0/24", "fd00:10:244:1::/64"]),
    )
    .docker(Docker::Down)
    .on_lan(&lab, &lan);
    let cidr = Listed::ordered(&nets(&["10.244.0.0/16", "fd00:10:244::/56"]), Family::Ipv4);
    configure(&lab, &[&node], Network { cidr, ..Network::default() }, "");
    node.start_agent();
    node.stop_agent();
    let host = node.namespace();
    let only = |checks: &str| doctor(&lab, &node, &["--only", checks]);
    only("sysctls,firewall,drift,mtu").expect_fine();

    let settings = [
        ("net/ipv6/conf/all/forwarding", "0"),
        ("net/ipv6/conf/overlay.1/forwarding", "0"),
        ("net/ipv6/conf/overlay.1/disable_ipv6", "1"),
    ];
    for (path, value) in settings {
        host.sysctl(path, value);
        let finding = only("sysctls").expect(&[("sysctls", path)]).pop().unwrap();
        follow(&lab, &node, &finding);
        only("sysctls").expect_fine();
    }
    // IPv6 was off there for a moment, and what the device had of it is gone.
    let drift = only("drift");
    let objects: Vec<_> = drift.problems().iter().map(|finding| finding.object.as_str()).collect();
    assert_eq!(objects, ["overlay.1", "route fd00:10:244::/56 metric 1024"], "{drift:?}");
    assert!(doctor(&lab, &node, &["--only", "drift", "--fix"]).problems().is_empty());

    host.ip("-6 route add default via fe80::1 dev eth0 proto ra expires 1800");
    host.sysctl("net/ipv6/conf/eth0/accept_ra", "1");
    let finding = only("sysctls").expect(&[("sysctls", "net/ipv6/conf/eth0/accept_ra")]).pop().unwrap();
    follow(&lab, &node, &finding);
    only("sysctls").expect_fine();

    host.ip("-6 rule del from fd00:10:244:1::/64 table 79");
    exec::must(host.command("nft").args(["delete", "table", "ip6", "overlay"]), "");
    only("drift")
        .expect(&[("drift", "rule from fd00:10:244:1::/64 to table 79"), ("drift", "nft table ip6 overlay")]);
    assert!(doctor(&lab, &node, &["--only", "drift", "--fix"]).problems().is_empty());

    exec::must(host.command("ip6tables-nft").args(["-P", "FORWARD", "DROP"]), "");
    exec::must(host.command("ip6tables-nft").args(["-F", "FORWARD"]), "");
    let finding = only("firewall").expect(&[("firewall", "chain ip6 filter FORWARD")]).pop().unwrap();
    assert!(finding.remedy.contains("ip6 saddr fd00:10:244::/56"), "{finding:?}");
    follow(&lab, &node, &finding);
    only("firewall").expect_fine();
}
