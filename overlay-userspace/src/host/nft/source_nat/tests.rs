//! The script, and that what is loaded stays what it says.

use super::*;
use crate::host::netns::testing::{in_fresh_netns, run};

fn example() -> SourceNat {
    SourceNat {
        subnets: vec!["10.244.1.0/24".parse().unwrap()],
        cluster: "10.244.0.0/16".parse().unwrap(),
        anchor: "overlay.1".into(),
        masquerade: Some(Masquerade {
            nodes: ["192.168.50.2", "192.168.50.1"].map(|node| node.parse().unwrap()).into(),
            never: vec![],
            port: 8472,
        }),
    }
}

/// The example with another masquerade.
fn with(change: impl FnOnce(&mut Masquerade)) -> SourceNat {
    let mut nat = example();
    change(nat.masquerade.as_mut().unwrap());
    nat
}

fn nets<const N: usize>(texts: [&str; N]) -> Vec<IpNet> {
    texts.map(|text| text.parse().unwrap()).into()
}

/// The same in the other family.
fn example6() -> SourceNat {
    SourceNat {
        subnets: nets(["fd00:244:0:1::/64"]),
        cluster: "fd00:244::/48".parse().unwrap(),
        anchor: "overlay.1".into(),
        masquerade: Some(Masquerade {
            nodes: ["2001:db8::2", "2001:db8::1"].map(|node| node.parse().unwrap()).into(),
            never: nets(["2001:db8::/32"]),
            port: 8472,
        }),
    }
}

fn listing() -> String {
    run("nft -s list table ip overlay")
}

#[test]
fn script_is_as_agreed() {
    let nat = with(|masquerade| masquerade.never = nets(["192.168.0.0/16"]));
    let expected = r#"add table ip overlay
delete table ip overlay
table ip overlay {
	set nodes {
		type ipv4_addr
		elements = { 192.168.50.1, 192.168.50.2 }
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr != { 10.244.1.0/24 } return
		ip daddr 10.244.0.0/16 return
		oifname "overlay.1" return
		ip daddr 224.0.0.0/4 return
		udp dport 8472 return comment "tunnel"
		ip daddr != @nodes ip daddr { 192.168.0.0/16 } return
		masquerade fully-random
	}
	chain services {
		type nat hook postrouting priority srcnat + 10; policy accept;
		ct status dnat ip saddr 10.244.0.0/16 ip saddr != { 10.244.1.0/24 } oifname "overlay.1" masquerade fully-random comment "relayed"
		ct status dnat ip saddr 10.244.0.0/16 ip daddr 10.244.0.0/16 meta l4proto { tcp, udp, sctp } snat to :1024-32767 fully-random comment "DIGEST"
	}
}
"#;
    assert_eq!(render(&nat), expected.replace("DIGEST", &digest(&body(&nat))));
    let default = render(&example());
    assert!(!default.contains("192.168."), "{default}");
}

#[test]
fn the_script_of_ipv6_says_the_same_of_ipv6() {
    let expected = r#"add table ip6 overlay
delete table ip6 overlay
table ip6 overlay {
	set nodes {
		type ipv6_addr
		elements = { 2001:db8::1, 2001:db8::2 }
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip6 saddr != { fd00:244:0:1::/64 } return
		ip6 daddr fd00:244::/48 return
		oifname "overlay.1" return
		ip6 daddr ff00::/8 return
		udp dport 8472 return comment "tunnel"
		ip6 daddr != @nodes ip6 daddr { 2001:db8::/32 } return
		masquerade fully-random
	}
	chain services {
		type nat hook postrouting priority srcnat + 10; policy accept;
		ct status dnat ip6 saddr fd00:244::/48 ip6 saddr != { fd00:244:0:1::/64 } oifname "overlay.1" masquerade fully-random comment "relayed"
		ct status dnat ip6 saddr fd00:244::/48 ip6 daddr fd00:244::/48 meta l4proto { tcp, udp, sctp } snat to :1024-32767 fully-random comment "DIGEST"
	}
}
"#;
    let nat = example6();
    assert_eq!(render(&nat), expected.replace("DIGEST", &digest(&body(&nat))));
}

#[test]
fn the_tables_of_the_families_come_and_go_independently() {
    in_fresh_netns(|| {
        let all = [example(), example6()];
        for nat in &all {
            assert!(ensure(nat).unwrap());
            assert!(!ensure(nat).unwrap());
        }
        run("nft flush chain ip6 overlay services");
        assert!(is_loaded(&all[0]).unwrap() && !is_loaded(&all[1]).unwrap());
        assert!(ensure(&all[1]).unwrap());
        assert!(remove(Family::Ipv4).unwrap());
        assert!(is_loaded(&all[1]).unwrap());
        assert!(remove(Family::Ipv6).unwrap() && !remove(Family::Ipv6).unwrap());
        assert_eq!(run("nft list tables"), "");
    });
}

#[test]
fn without_masquerade_only_services_are_translated() {
    let services = render(&example());
    let services = &services[services.find("\tchain services").unwrap()..services.rfind(" comment").unwrap()];
    let nat = SourceNat { masquerade: None, ..example() };
    let script = render(&nat);
    let expected =
        format!("add table ip overlay\ndelete table ip overlay\ntable ip overlay {{\n{services} comment");
    assert!(script.starts_with(&expected), "{script}");
    in_fresh_netns(|| {
        ensure(&example()).unwrap();
        assert!(ensure(&nat).unwrap());
        assert!(!ensure(&nat).unwrap());
        let listing = listing();
        assert!(!listing.contains("postrouting {") && !listing.contains("set nodes"), "{listing}");
    });
}

#[test]
fn digest_follows_every_input() {
    let base = example();
    let variants = [
        SourceNat { subnets: nets(["10.244.2.0/24"]), ..base.clone() },
        SourceNat { cluster: "10.0.0.0/8".parse().unwrap(), ..base.clone() },
        SourceNat { anchor: "overlay.7".into(), ..base.clone() },
        SourceNat { masquerade: None, ..base.clone() },
        with(|masquerade| masquerade.port = 4789),
        with(|masquerade| masquerade.never = nets(["192.0.2.0/24"])),
    ];
    for variant in variants {
        assert_ne!(digest(&body(&variant)), digest(&body(&base)), "{variant:?}");
    }
    let never = |masquerade: &mut Masquerade| masquerade.never = nets(["192.168.0.0/16"]);
    let fewer = |masquerade: &mut Masquerade| {
        never(masquerade);
        masquerade.nodes.pop_last();
    };
    assert_ne!(digest(&body(&with(never))), digest(&body(&with(fewer))));
}

#[test]
fn destinations_never_masqueraded_may_overlap() {
    in_fresh_netns(|| {
        let nat = with(|masquerade| {
            masquerade.never =
                nets(["192.168.0.0/16", "192.168.7.0/24", "198.51.100.1/32", "192.169.0.0/16"]);
        });
        assert!(ensure(&nat).unwrap());
        assert!(!ensure(&nat).unwrap());
        let listing = listing();
        assert!(listing.contains("ip daddr { 192.168.0.0/15, 198.51.100.1 } return"), "{listing}");
    });
}

#[test]
fn loaded_once_and_replaced_only_when_the_input_changes() {
    in_fresh_netns(|| {
        let mut wanted = with(|masquerade| masquerade.never = nets(["192.168.0.0/16"]));
        assert!(ensure(&wanted).unwrap());
        let handles = run("nft -a list table ip overlay");
        assert!(!ensure(&wanted).unwrap());
        assert_eq!(run("nft -a list table ip overlay"), handles);
        wanted.masquerade.as_mut().unwrap().nodes.insert("192.168.50.3".parse().unwrap());
        assert!(ensure(&wanted).unwrap());
        assert!(listing().contains("192.168.50.3"));
        assert!(!ensure(&wanted).unwrap());
    });
}

#[test]
fn tampering_of_any_kind_is_repaired() {
    in_fresh_netns(|| {
        let wanted = with(|masquerade| masquerade.never = nets(["192.168.0.0/16"]));
        ensure(&wanted).unwrap();
        let good = listing();
        for tampering in [
            "nft flush chain ip overlay postrouting",
            "nft flush chain ip overlay services",
            "nft delete table ip overlay",
            "nft delete element ip overlay nodes { 192.168.50.2 }",
            "nft insert rule ip overlay postrouting accept",
            "nft add rule ip overlay postrouting accept",
            "nft add rule ip overlay services accept",
            "nft add chain ip overlay extra",
        ] {
            run(tampering);
            assert!(ensure(&wanted).unwrap(), "{tampering}");
            assert_eq!(listing(), good, "{tampering}");
        }
    });
}

#[test]
fn nodes_that_come_and_go_change_nothing_without_destinations_never_masqueraded() {
    in_fresh_netns(|| {
        assert!(ensure(&example()).unwrap());
        assert!(!ensure(&with(|masquerade| masquerade.nodes.clear())).unwrap());
        let never = with(|masquerade| masquerade.never = nets(["192.168.0.0/16"]));
        assert!(ensure(&never).unwrap());
        assert!(ensure(&SourceNat { masquerade: None, ..never }).unwrap());
    });
}

#[test]
fn nodes_and_subnets_may_be_none_or_several() {
    in_fresh_netns(|| {
        let none = with(|masquerade| {
            masquerade.nodes.clear();
            masquerade.never = nets(["192.168.0.0/16"]);
        });
        let none = SourceNat { subnets: vec![], ..none };
        assert!(ensure(&none).unwrap());
        assert!(!ensure(&none).unwrap());
        let several = SourceNat { subnets: nets(["10.244.1.0/24", "10.244.7.0/24"]), ..none };
        assert!(ensure(&several).unwrap());
        assert!(!ensure(&several).unwrap());
        assert!(listing().contains("10.244.7.0/24"));
    });
}

#[test]
fn other_tables_are_left_alone_and_removal_is_idempotent() {
    in_fresh_netns(|| {
        run("nft add table ip nat");
        run("nft add table inet overlay");
        ensure(&example()).unwrap();
        assert!(remove(Family::Ipv4).unwrap());
        assert!(!remove(Family::Ipv4).unwrap());
        assert_eq!(run("nft list tables"), "table ip nat\ntable inet overlay\n");
    });
}

#[test]
fn the_rule_for_a_destination_is_the_one_that_the_kernel_would_apply() {
    in_fresh_netns(|| {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let never = nets(["172.16.0.0/12", "192.168.7.0/24"]);
        for (nat, outside, inside) in [
            (
                with(|masquerade| masquerade.never = never),
                "198.51.100.7",
                ["172.16.9.9", "192.168.7.1", "10.244.3.3"],
            ),
            (example6(), "2001:db9::7", ["2001:db8::7", "2001:db8:9::1", "fd00:244:0:3::3"]),
        ] {
            assert_eq!(rule_for(address(outside)).unwrap(), None, "without a table");
            ensure(&nat).unwrap();
            assert!(rule_for(address(outside)).unwrap().unwrap().starts_with("masquerade"));
            for dst in inside {
                assert_eq!(rule_for(address(dst)).unwrap(), None, "{dst:?}");
            }
        }
    });
}
