//! Properties of the parts that read foreign input: total, and consistent with each other.

use std::{collections::HashSet, ffi::OsString, net::Ipv4Addr, os::unix::ffi::OsStringExt as _};

use ipnet::Ipv4Net;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    env::{Attachment, Request, is_identifier},
    lease::candidates,
    owner::{device_name, owner, owner_text},
    parse,
    types::{Conf, Version, versions},
    wanted::Wanted,
};

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

fn any_subnet() -> impl Strategy<Value = Ipv4Net> {
    (any::<u32>(), 20_u8..=32).prop_map(|(bits, prefix)| Ipv4Net::new(bits.into(), prefix).unwrap().trunc())
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
        args in prop_oneof![Just(String::new()), "[A-Z]{0,4}=?[0-9a-f:.;]{0,12}", ".*"],
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
    fn an_address_is_asked_for_by_either_way_alike(bits in any::<u32>(), mac in any::<[u8; 6]>()) {
        let address = Ipv4Addr::from_bits(bits);
        let mac = [mac[0] & 0xfe | 2, mac[1], mac[2], mac[3], mac[4], mac[5]];
        let text = mac.map(|byte| format!("{byte:02x}")).join(":");
        let object = json!({"ips": [address], "mac": text});
        let wanted = Wanted { address: Some(address), mac: Some(mac) };
        prop_assert_eq!(Wanted::from_object(Some(&object), "x"), Ok(wanted));
        prop_assert_eq!(Wanted::from_args(&format!("IP={address};MAC={text}")), Ok(wanted));
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
        gateway in any::<u32>(),
        last in any::<u32>(),
        inside in any::<bool>(),
    ) {
        let within = |bits: u32| Ipv4Addr::from_bits(subnet.network().to_bits() | (bits & subnet.hostmask().to_bits()));
        let gateway = within(gateway);
        let last = if inside { within(last) } else { Ipv4Addr::from_bits(last) };
        let all: Vec<_> = candidates(subnet, gateway, last).collect();
        let distinct: HashSet<_> = all.iter().copied().collect();
        prop_assert_eq!(distinct.len(), all.len());
        let (network, broadcast) = (subnet.network(), subnet.broadcast());
        prop_assert!(all.iter().all(|a| subnet.contains(a) && ![network, broadcast, gateway].contains(a)));
        let special: HashSet<_> = [network, broadcast, gateway].into();
        prop_assert_eq!(all.len(), (1_usize << (32 - subnet.prefix_len())) - special.len());
        if distinct.contains(&last) {
            prop_assert_eq!(all.last(), Some(&last));
        }
    }
}
