use super::*;
use crate::host::netns::testing::{in_fresh_netns, run};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn gateway(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => ip("10.244.1.1"),
        Family::Ipv6 => ip("fd00:244:0:1::1"),
    }
}

fn gateways() -> ByFamily<IpAddr> {
    ByFamily::from_values(Family::ALL.map(gateway)).unwrap()
}

/// The pod of this number.
fn pod(family: Family, number: u8) -> IpAddr {
    match family {
        Family::Ipv4 => [10, 244, 1, number].into(),
        Family::Ipv6 => ip(&format!("fd00:244:0:1::{number}")),
    }
}

fn example(family: Family, port: u16) -> Mapping {
    Mapping { address: None, protocol: PortProtocol::Tcp, port, pod: pod(family, 2), pod_port: 80 }
}

fn several(family: Family) -> [Mapping; 4] {
    let [node, other] = match family {
        Family::Ipv4 => ["192.0.2.1", "127.0.0.1"],
        Family::Ipv6 => ["2001:db8::1", "fd00:7::1"],
    };
    let example = |port| example(family, port);
    [
        example(8080),
        Mapping { address: Some(ip(node)), protocol: PortProtocol::Udp, ..example(53) },
        Mapping { protocol: PortProtocol::Sctp, pod: pod(family, 3), ..example(8080) },
        Mapping { address: Some(ip(other)), pod: pod(family, 3), ..example(8081) },
    ]
}

fn listing(family: Family) -> String {
    run(&format!("nft -s list table {} overlay-ports", family.nft()))
}

/// Runs a test for each family, each on a node of its own.
fn in_each_family(test: impl Fn(Family) + Sync) {
    for family in Family::ALL {
        in_fresh_netns(|| test(family));
    }
}

#[test]
fn mappings_come_and_go_and_what_is_loaded_is_read_back() {
    in_each_family(|family| {
        let (all, own) = (several(family), gateway(family));
        let read = || loaded(family).unwrap();
        assert_eq!(read(), None);
        add(&gateways(), &all[..2]).unwrap();
        assert!(read().unwrap().is(own, &all[..2]));
        add(&gateways(), &all[2..]).unwrap();
        let found = read().unwrap();
        assert!(found.is(own, &all) && all.iter().all(|mapping| found.has(mapping)));
        assert!(!found.is(own, &all[..3]) && !found.is(pod(family, 9), &all));
        delete(&all[..2], &all[2..]).unwrap();
        let found = read().unwrap();
        assert!(found.is(own, &all[2..]) && !found.has(&all[0]));
        replace(family, &gateways(), &all).unwrap();
        assert!(read().unwrap().is(own, &all));
        replace(family, &gateways(), &[]).unwrap();
        assert_eq!(read(), None);
        replace(family, &gateways(), &[]).unwrap();
        let other = Family::ALL.into_iter().find(|other| *other != family).unwrap();
        assert_eq!(loaded(other).unwrap(), None, "nothing was made for {other}");
    });
}

#[test]
fn a_port_that_leads_elsewhere_or_nowhere_is_an_error_and_changes_nothing() {
    in_each_family(|family| {
        let all = several(family);
        add(&gateways(), &all).unwrap();
        let before = listing(family);
        let elsewhere = Mapping { pod: pod(family, 9), ..all[0] };
        add(&gateways(), &[example(family, 9000), elsewhere]).unwrap_err();
        delete(&[all[0], example(family, 9000)], &all[1..]).unwrap_err();
        assert_eq!(listing(family), before);
        // The same again is fine.
        add(&gateways(), &all).unwrap();
        assert_eq!(listing(family), before);
    });
}

#[test]
fn tampering_of_any_kind_is_seen() {
    in_each_family(|family| {
        let all = several(family);
        replace(family, &gateways(), &all).unwrap();
        let good = listing(family);
        for tampering in [
            "flush chain ip overlay-ports prerouting",
            "delete element ip overlay-ports any { tcp . 8080 }",
            "add element ip overlay-ports any { udp . 1 : POD . 1 }",
            "add element ip overlay-ports any { icmp . 1 : POD . 1 }",
            "delete element ip overlay-ports pods { TWO }",
            "flush set ip overlay-ports hairpins",
            "insert rule ip overlay-ports lead accept",
            "add rule ip overlay-ports postrouting accept",
            "add chain ip overlay-ports extra",
            "delete table ip overlay-ports",
        ] {
            let words = tampering.replace(" ip ", &format!(" {} ", family.nft()));
            let words = words.replace("POD", &pod(family, 9).to_string());
            run(&format!("nft {}", words.replace("TWO", &pod(family, 2).to_string())));
            let read = loaded(family).unwrap();
            assert!(!read.is_some_and(|read| read.is(gateway(family), &all)), "{tampering}");
            replace(family, &gateways(), &all).unwrap();
            assert_eq!(listing(family), good, "{tampering}");
        }
    });
}

#[test]
fn thousands_are_one_transaction() {
    in_each_family(|family| {
        let mut all: Vec<_> = (1..=5000).map(|port| example(family, port)).collect();
        all[0].pod = pod(family, 3);
        add(&gateways(), &all).unwrap();
        assert!(loaded(family).unwrap().unwrap().is(gateway(family), &all));
        delete(&all[1..], &all[..1]).unwrap();
        assert!(loaded(family).unwrap().is_some_and(|table| table.has(&all[0]) && !table.has(&all[1])));
        delete(&all[..1], &[]).unwrap();
        assert_eq!(loaded(family).unwrap(), None, "the last one takes the table along");
    });
}

#[test]
fn both_families_are_one_transaction_and_each_has_a_table_of_its_own() {
    in_fresh_netns(|| {
        let [four, six] = Family::ALL.map(several);
        let both = [four, six].concat();
        add(&gateways(), &both).unwrap();
        for family in Family::ALL {
            assert!(loaded(family).unwrap().unwrap().is(gateway(family), &both), "{family}");
        }
        let before = Family::ALL.map(listing);
        // What one family refuses changes neither.
        add(&gateways(), &[example(Family::Ipv4, 9000), Mapping { pod: pod(Family::Ipv6, 9), ..six[0] }])
            .unwrap_err();
        delete(&[four[0], example(Family::Ipv6, 9000)], &both).unwrap_err();
        assert_eq!(Family::ALL.map(listing), before);
        // What is made of one leaves the other alone.
        replace(Family::Ipv6, &gateways(), &both[..5]).unwrap();
        assert_eq!(listing(Family::Ipv4), before[0]);
        assert!(loaded(Family::Ipv6).unwrap().unwrap().is(gateway(Family::Ipv6), &six[..1]));
        delete(&[four[0], four[1], six[0]], &four[2..]).unwrap();
        assert!(loaded(Family::Ipv4).unwrap().unwrap().is(gateway(Family::Ipv4), &four[2..]));
        assert_eq!(loaded(Family::Ipv6).unwrap(), None);
        // A node without the family has no table of it.
        let only = ByFamily { v4: Some(gateway(Family::Ipv4)), v6: None };
        add(&only, &six).unwrap();
        replace(Family::Ipv6, &only, &six).unwrap();
        assert_eq!(loaded(Family::Ipv6).unwrap(), None);
    });
}

#[test]
fn other_tables_are_left_alone() {
    in_each_family(|family| {
        run(&format!("nft add table {} overlay", family.nft()));
        add(&gateways(), &several(family)).unwrap();
        replace(family, &gateways(), &[]).unwrap();
        assert_eq!(run("nft list tables"), format!("table {} overlay\n", family.nft()));
    });
}
