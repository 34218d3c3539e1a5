//! Properties of the parts that read foreign input: total, and consistent with each other.

use std::{
    collections::HashSet,
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::ffi::OsStringExt as _,
};

use ipnet::IpNet;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    env::{Attachment, Request, is_identifier},
    local::Net,
    owner::{device_name, owner, owner_text},
    parse,
    pool::{candidates, is_candidate, size},
    types::{Conf, Version, versions},
    wanted::Wanted,
};
use crate::family::ByFamily;

/// JSON of any shape, with the keys that are read among those of its objects.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop_oneof![Just("1.0.0".to_owned()), Just("0.3.1".to_owned()), Just("overlay".to_owned()), ".*"]
            .prop_map(Value::from),
    ];
    let key = prop_oneof![
        Just("cniVersion"),
        Just("name"),
        Just("pins"),
        Just("dns"),
        Just("prevResult"),
        Just("interfaces"),
        Just("ips"),
        Just("routes"),
        Just("runtimeConfig"),
        Just("args"),
        Just("cni"),
        Just("mac"),
        Just("attach"),
        Just("portMappings"),
        Just("hostPort"),
        Just("containerPort"),
        Just("protocol"),
        Just("hostIP"),
        Just("ipam"),
        Just("type"),
        Just("cni.dev/valid-attachments"),
        Just("containerID"),
        Just("ifname"),
        Just("other"),
    ];
    leaf.prop_recursive(4, 48, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(key.clone().prop_map(str::to_owned), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// A subnet of either family that is small enough to be gone through, and the addresses of these bits in it.
fn any_subnet() -> impl Strategy<Value = IpNet> {
    let v4 = (any::<u32>(), 20_u8..=32)
        .prop_map(|(bits, prefix)| (IpAddr::from(Ipv4Addr::from_bits(bits)), prefix));
    let v6 =
        (any::<u128>(), 116_u8..=128).prop_map(|(bits, prefix)| (Ipv6Addr::from_bits(bits).into(), prefix));
    prop_oneof![v4, v6].prop_map(|(address, prefix)| IpNet::new(address, prefix).unwrap().trunc())
}

fn within(subnet: IpNet, bits: u128) -> IpAddr {
    match (subnet.network(), subnet.hostmask()) {
        (IpAddr::V4(net), IpAddr::V4(host)) => {
            Ipv4Addr::from_bits(net.to_bits() | (bits as u32 & host.to_bits())).into()
        }
        (IpAddr::V6(net), IpAddr::V6(host)) => {
            Ipv6Addr::from_bits(net.to_bits() | (bits & host.to_bits())).into()
        }
        mixed => panic!("{mixed:?}"),
    }
}

proptest! {
    #[test]
    fn any_bytes_on_standard_input_get_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        let _ = Conf::parse(&bytes).map(|conf| conf.previous().is_ok());
        let answer = versions(Version::asked_for(&bytes));
        prop_assert!(answer["supportedVersions"].as_array().unwrap().contains(&answer["cniVersion"]));
    }

    #[test]
    fn any_json_on_standard_input_gets_an_answer(value in any_json()) {
        let text = value.to_string();
        let _ = versions(Version::asked_for(text.as_bytes()));
        match Conf::parse(text.as_bytes()) {
            Ok(conf) => {
                prop_assert_eq!(Some(conf.version), Version::asked_for(text.as_bytes()));
                prop_assert!(conf.pins.root().is_absolute());
                let _ = conf.previous();
            }
            Err(failure) => {
                let object = failure.to_json(Version::NEWEST.as_str());
                prop_assert!(matches!(object["code"].as_u64(), Some(1 | 6 | 7)));
                prop_assert!(!object["msg"].as_str().unwrap().is_empty());
            }
        }
    }

    #[test]
    fn unknown_keys_change_nothing(key in "[a-zA-Z./]{1,20}", value in any_json()) {
        const READ: [&str; 9] =
            ["cniVersion", "name", "pins", "dns", "prevResult", "attach", "ipam", "runtimeConfig", "args"];
        prop_assume!(!READ.contains(&key.as_str()));
        let mut conf = json!({"cniVersion": "1.0.0", "name": "n"});
        conf[key] = value;
        let conf = Conf::parse(conf.to_string().as_bytes());
        prop_assert!(conf.is_ok_and(|conf| conf.supported().is_ok() && conf.wanted() == Ok(Wanted::default())));
    }

    #[test]
    fn any_call_with_any_json_gets_an_answer(
        value in any_json(),
        version in prop_oneof![Just("0.3.1"), Just("0.4.0"), Just("1.0.0"), Just("1.1.0")],
        verb in prop_oneof![
            Just("ADD"), Just("CHECK"), Just("DEL"), Just("GC"), Just("STATUS"), Just("VERSION"), Just("X")
        ],
        args in prop_oneof![Just(String::new()), "[A-Z]{0,4}=?[0-9a-f:.;]{0,12}", "IP=[0-9a-f:.,/]{0,40}", ".*"],
    ) {
        let mut conf = value;
        if let Value::Object(conf) = &mut conf {
            conf.insert("cniVersion".into(), version.into());
            conf.insert("name".into(), "n".into());
        }
        let variable = |name: &str| match name {
            "CNI_COMMAND" => Some(verb.into()),
            "CNI_CONTAINERID" => Some("c".into()),
            "CNI_IFNAME" => Some("eth0".into()),
            "CNI_NETNS" => Some("/run/netns/p".into()),
            "CNI_ARGS" => Some(args.clone().into()),
            _ => None,
        };
        if let Err(object) = parse(variable, conf.to_string().as_bytes()) {
            prop_assert!(matches!(object["code"].as_u64(), Some(1 | 2 | 4 | 6 | 7)), "{object}");
            prop_assert!(!object["msg"].as_str().unwrap().is_empty());
        }
    }

    #[test]
    fn addresses_are_asked_for_by_either_way_alike(
        v4 in prop::option::of(any::<u32>()),
        v6 in prop::option::of(any::<u128>()),
        turned in any::<bool>(),
        mac in any::<[u8; 6]>(),
    ) {
        let v6 = v6.map(Ipv6Addr::from_bits).filter(|v6| v6.to_ipv4_mapped().is_none());
        let addresses = ByFamily { v4: v4.map(|bits| Ipv4Addr::from_bits(bits).into()), v6: v6.map(IpAddr::V6) };
        let mut list: Vec<IpAddr> = addresses.values().copied().collect();
        if turned {
            list.reverse();
        }
        let mac = [mac[0] & 0xfe | 2, mac[1], mac[2], mac[3], mac[4], mac[5]];
        let text = mac.map(|byte| format!("{byte:02x}")).join(":");
        let object = json!({"ips": list, "mac": text});
        let wanted = Wanted { addresses, mac: Some(mac) };
        prop_assert_eq!(Wanted::from_object(Some(&object), "x"), Ok(wanted));
        let list: Vec<_> = list.iter().map(ToString::to_string).collect();
        let ips = if list.is_empty() { String::new() } else { format!("IP={};", list.join(",")) };
        prop_assert_eq!(Wanted::from_args(&format!("{ips}MAC={text}")), Ok(wanted));
    }

    #[test]
    fn any_environment_gets_an_answer(
        command in prop_oneof![Just(b"ADD".to_vec()), Just(b"DEL".to_vec()), prop::collection::vec(any::<u8>(), 0..8)],
        others in prop::collection::vec(prop::option::of(prop::collection::vec(any::<u8>(), 0..80)), 4),
    ) {
        let request = Request::read(|name| {
            let index = ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS"].iter().position(|n| *n == name);
            index.map_or(Some(command.clone()), |index| others[index].clone()).map(OsString::from_vec)
        });
        match request {
            Ok(
                Request::Add { attachment, .. }
                | Request::Check { attachment, .. }
                | Request::Del { attachment },
            ) => {
                prop_assert!(is_identifier(&attachment.container));
                prop_assert!((1..=15).contains(&attachment.ifname.len()));
                prop_assert!(!attachment.ifname.contains(['/', ':', ' ']));
            }
            Ok(Request::Version) => prop_assert_eq!(command, b"VERSION"),
            Ok(Request::Gc) => prop_assert_eq!(command, b"GC"),
            Ok(Request::Status) => prop_assert_eq!(command, b"STATUS"),
            Err(failure) => prop_assert!(failure.message.contains("CNI_")),
        }
    }

    #[test]
    fn owners_are_readable_and_devices_have_valid_names(
        container in "[A-Za-z0-9][A-Za-z0-9_.-]{0,150}",
        ifname in "[a-z0-9.@-]{1,15}",
    ) {
        prop_assume!(![".", "..", "all"].contains(&ifname.as_str()));
        let attachment = Attachment::new(container.clone(), ifname.clone()).unwrap();
        let owner = owner(&attachment);
        let (text, interface) = owner_text(&owner);
        prop_assert_eq!(interface, ifname);
        if container.len() <= 64 {
            prop_assert_eq!(text, container);
        } else {
            prop_assert_eq!(&text[..40], &container[..40]);
        }
        let device = device_name(&owner);
        prop_assert_eq!(device.len(), 13);
        prop_assert!(device[2..].bytes().all(|b| b.is_ascii_hexdigit()));
    }

    #[test]
    fn each_address_of_a_pod_subnet_is_proposed_once_and_the_last_one_last(
        subnet in any_subnet(),
        gateway in any::<u128>(),
        last in any::<u128>(),
        inside in any::<bool>(),
    ) {
        let gateway = within(subnet, gateway);
        let net = Net { subnet, gateway, cluster: subnet };
        let last = if inside { within(subnet, last) } else { Ipv6Addr::from_bits(last).into() };
        let all: Vec<_> = candidates(&net, last).collect();
        let distinct: HashSet<_> = all.iter().copied().collect();
        prop_assert_eq!(distinct.len(), all.len());
        let mut special: HashSet<_> = [subnet.network(), gateway].into();
        if subnet.addr().is_ipv4() {
            special.insert(subnet.broadcast());
        }
        prop_assert!(all.iter().all(|a| subnet.contains(a) && !special.contains(a)));
        let hosts = 1_usize << (subnet.max_prefix_len() - subnet.prefix_len());
        prop_assert_eq!(all.len(), hosts - special.len());
        prop_assert_eq!(size(&net), all.len() as u128);
        prop_assert!(all.iter().all(|address| is_candidate(&net, *address)));
        prop_assert!(special.iter().all(|address| !is_candidate(&net, *address)));
        if distinct.contains(&last) {
            prop_assert_eq!(all.last(), Some(&last));
        }
    }

    #[test]
    fn a_large_subnet_goes_on_after_the_last_address(bits in any::<u128>(), prefix in 0_u8..=64, last in any::<u128>()) {
        let subnet = IpNet::new(Ipv6Addr::from_bits(bits).into(), prefix).unwrap().trunc();
        let net = Net { subnet, gateway: within(subnet, 1), cluster: subnet };
        let last = within(subnet, last);
        let next: Vec<_> = candidates(&net, last).take(3).collect();
        prop_assert!(next.iter().all(|address| subnet.contains(address) && is_candidate(&net, *address)));
        prop_assert!(next.len() == 3 && !next.contains(&last));
    }
}
