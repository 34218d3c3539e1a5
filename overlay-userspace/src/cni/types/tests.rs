use super::{
    result::{Added, AddedIp},
    *,
};

fn conf(text: &str) -> Conf {
    Conf::parse(text.as_bytes()).unwrap()
}

fn added() -> Added {
    Added {
        device: "ov0123456789a".into(),
        gateway_mac: [0x0a, 0x6f, 192, 0, 2, 1],
        ifname: "eth0".into(),
        mac: [0x0a, 0x58, 10, 244, 1, 5],
        mtu: 1450,
        sandbox: "/run/netns/p".into(),
        ips: vec![AddedIp {
            address: "10.244.1.5".parse().unwrap(),
            gateway: "10.244.1.1".parse().unwrap(),
            routes: vec!["0.0.0.0/0".parse().unwrap()],
        }],
    }
}

fn six() -> AddedIp {
    AddedIp {
        address: "fd00:244:0:1::5".parse().unwrap(),
        gateway: "fd00:244:0:1::1".parse().unwrap(),
        routes: vec!["::/0".parse().unwrap()],
    }
}

fn result_of(text: &str) -> Value {
    let conf = conf(text);
    let previous = conf.previous().unwrap();
    result::result(&added(), &conf, previous)
}

#[track_caller]
fn refused(text: &str, code: Code, wanted: &str) {
    let failure = Conf::parse(text.as_bytes()).map(|_| ()).unwrap_err();
    assert_eq!(failure.code, code, "{failure}");
    assert!(failure.message.contains(wanted), "{failure}");
}

#[test]
fn a_configuration_without_our_keys_gets_the_default_pins() {
    let conf = conf(
        r#"{"cniVersion":"1.0.0","name":"overlay","type":"overlay","capabilities":{"x":true},"runtimeConfig":{}}"#,
    );
    assert_eq!(conf.version, Version::V1_0_0);
    assert_eq!(conf.pins.root(), Pins::default().root());
}

#[test]
fn the_pin_root_can_be_given() {
    let conf = conf(r#"{"cniVersion":"0.3.1","name":"n","pins":"/sys/fs/bpf/n1"}"#);
    assert_eq!(conf.pins.root().to_str(), Some("/sys/fs/bpf/n1"));
}

#[test]
fn what_is_wrong_with_a_configuration_is_told_by_its_code() {
    refused("", Code::Decode, "EOF");
    refused("{", Code::Decode, "EOF");
    refused("[]", Code::Decode, "not a JSON object");
    refused(r#""x""#, Code::Decode, "not a JSON object");
    refused(&"[".repeat(10_000), Code::Decode, "recursion");
    refused(r#"{"cniVersion":1}"#, Code::InvalidConfig, "string");
    refused(r#"{"name":"n"}"#, Code::IncompatibleVersion, "no cniVersion");
    refused(r#"{"cniVersion":"0.2.0","name":"n"}"#, Code::IncompatibleVersion, "0.3.1, 0.4.0, 1.0.0, 1.1.0");
    refused(r#"{"cniVersion":"2.0.0","name":"n"}"#, Code::IncompatibleVersion, "2.0.0");
    refused(r#"{"cniVersion":"1.0.0"}"#, Code::InvalidConfig, "name");
    refused(r#"{"cniVersion":"1.0.0","name":"a/b"}"#, Code::InvalidConfig, "a/b");
    refused(r#"{"cniVersion":"1.0.0","name":""}"#, Code::InvalidConfig, "name");
    refused(r#"{"cniVersion":"1.0.0","name":"n","pins":"x"}"#, Code::InvalidConfig, "absolute");
    refused(r#"{"cniVersion":"1.0.0","name":"n","pins":5}"#, Code::InvalidConfig, "string");
}

#[test]
fn version_1_0_0_has_interfaces_addresses_and_routes() {
    assert_eq!(
        result_of(r#"{"cniVersion":"1.0.0","name":"n"}"#),
        json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                {"name": "ov0123456789a", "mac": "0a:6f:c0:00:02:01"},
                {"name": "eth0", "mac": "0a:58:0a:f4:01:05", "sandbox": "/run/netns/p"},
            ],
            "ips": [{"address": "10.244.1.5/32", "gateway": "10.244.1.1", "interface": 1}],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.244.1.1"}],
            "dns": {},
        })
    );
}

#[test]
fn each_family_has_its_address_and_its_routes_in_the_order_in_which_they_were_made() {
    for version in Version::ALL {
        let conf = conf(&json!({"cniVersion": version.as_str(), "name": "n"}).to_string());
        let ip = |number: &str, address: &str, gateway: &str| {
            let mut ip = json!({"address": address, "gateway": gateway, "interface": 1});
            if version < Version::V1_0_0 {
                ip["version"] = number.into();
            }
            ip
        };
        let mut ips =
            vec![ip("4", "10.244.1.5/32", "10.244.1.1"), ip("6", "fd00:244:0:1::5/128", "fd00:244:0:1::1")];
        let mut routes = vec![
            json!({"dst": "0.0.0.0/0", "gw": "10.244.1.1"}),
            json!({"dst": "::/0", "gw": "fd00:244:0:1::1"}),
        ];
        let mut added = added();
        added.ips.push(six());
        for _ in 0..2 {
            let result = result::result(&added, &conf, Previous::default());
            assert_eq!((&result["ips"], &result["routes"]), (&json!(ips), &json!(routes)));
            assert_eq!(result["interfaces"].as_array().unwrap().len(), 2);
            added.ips.reverse();
            ips.reverse();
            routes.reverse();
        }
        let alone = Added { ips: vec![six()], ..added };
        let result = result::result(&alone, &conf, Previous::default());
        assert_eq!((&result["ips"], &result["routes"]), (&json!(ips[1..]), &json!(routes[1..])));
    }
}

#[test]
fn older_versions_name_the_family_and_the_newest_the_mtu() {
    for version in Version::ALL {
        let result = result_of(&json!({"cniVersion": version.as_str(), "name": "n"}).to_string());
        assert_eq!(result["cniVersion"], version.as_str());
        let old = version < Version::V1_0_0;
        assert_eq!(result["ips"][0].get("version"), old.then_some(&json!("4")));
        let newest = version == Version::V1_1_0;
        for interface in 0..2 {
            assert_eq!(result["interfaces"][interface].get("mtu"), newest.then_some(&json!(1450)));
        }
    }
}

#[test]
fn dns_of_the_configuration_is_passed_through() {
    let result =
        result_of(r#"{"cniVersion":"1.0.0","name":"n","dns":{"nameservers":["10.96.0.10"],"search":["a"]}}"#);
    assert_eq!(result["dns"], json!({"nameservers": ["10.96.0.10"], "search": ["a"]}));
}

#[test]
fn a_previous_result_is_kept_and_added_to() {
    let result = result_of(
        &json!({
            "cniVersion": "1.0.0",
            "name": "n",
            "prevResult": {
                "cniVersion": "1.0.0",
                "interfaces": [{"name": "lo", "x": 1}, {"name": "net0"}],
                "ips": [{"address": "192.0.2.5/24", "interface": 1}],
                "dns": {"domain": "d"},
                "custom": true,
            },
        })
        .to_string(),
    );
    let names: Vec<_> = result["interfaces"].as_array().unwrap().iter().map(|i| i["name"].clone()).collect();
    assert_eq!(names, ["lo", "net0", "ov0123456789a", "eth0"]);
    assert_eq!(result["interfaces"][0]["x"], 1);
    assert_eq!(result["ips"][0], json!({"address": "192.0.2.5/24", "interface": 1}));
    assert_eq!(result["ips"][1]["interface"], 3);
    assert_eq!(result["routes"].as_array().unwrap().len(), 1);
    assert_eq!(result["dns"], json!({"domain": "d"}));
    assert_eq!(result["custom"], true);
}

#[test]
fn a_malformed_previous_result_is_refused_where_it_is_needed_and_only_there() {
    for previous in
        [json!([]), json!("x"), json!({"interfaces": {}}), json!({"ips": 1}), json!({"routes": "r"})]
    {
        let text = json!({"cniVersion": "1.0.0", "name": "n", "prevResult": previous}).to_string();
        let failure = conf(&text).previous().unwrap_err();
        assert_eq!(failure.code, Code::InvalidConfig);
        assert!(failure.message.contains("prevResult"), "{failure}");
    }
    for previous in [json!(null), json!({}), json!({"interfaces": null})] {
        let text = json!({"cniVersion": "1.0.0", "name": "n", "prevResult": previous}).to_string();
        assert!(conf(&text).previous().is_ok());
    }
}

#[test]
fn the_version_answer_echoes_what_is_spoken_and_else_the_newest() {
    let answer = |stdin: &str| versions(Version::asked_for(stdin.as_bytes()));
    let all = json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    assert_eq!(answer(r#"{"cniVersion":"0.4.0"}"#), json!({"cniVersion": "0.4.0", "supportedVersions": all}));
    for stdin in ["", "{}", "nonsense", r#"{"cniVersion":"9.9.9"}"#, r#"{"cniVersion":{}}"#] {
        assert_eq!(answer(stdin), json!({"cniVersion": "1.1.0", "supportedVersions": all}), "{stdin}");
    }
}

#[test]
fn verbs_belong_to_the_versions_that_have_them() {
    let at = |version: &str| conf(&json!({"cniVersion": version, "name": "n"}).to_string());
    for (since, verb, allowed) in [
        (Version::V0_4_0, "CHECK", ["0.4.0", "1.0.0", "1.1.0"].as_slice()),
        (Version::V1_1_0, "GC", &["1.1.0"]),
    ] {
        for version in Version::ALL.map(Version::as_str) {
            let result = at(version).since(since, verb);
            assert_eq!(result.is_ok(), allowed.contains(&version), "{verb} {version}");
            if let Err(failure) = result {
                assert_eq!(failure.code, Code::IncompatibleVersion);
                assert!(failure.message.contains(verb) && failure.message.contains(version), "{failure}");
            }
        }
    }
}

#[test]
fn the_list_of_attachments_goes_by_either_name() {
    let list = |keys: Value| {
        let mut text = json!({"cniVersion": "1.1.0", "name": "n"});
        text.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        conf(&text.to_string()).valid_attachments()
    };
    let items = json!([{"containerID": "c", "ifname": "eth0", "other": 1}]);
    let expected = vec![Attachment::new("c".into(), "eth0".into()).unwrap()];
    assert_eq!(list(json!({"cni.dev/valid-attachments": items})).unwrap(), expected);
    assert_eq!(list(json!({"cni.dev/attachments": items})).unwrap(), expected);
    let both = json!({"cni.dev/valid-attachments": items, "cni.dev/attachments": []});
    assert_eq!(list(both).unwrap(), expected);
    for none in [json!([]), json!(null)] {
        assert_eq!(list(json!({"cni.dev/valid-attachments": none})).unwrap(), []);
    }
    for (bad, wanted) in [
        (json!({}), "missing"),
        (json!({"cni.dev/valid-attachments": {}}), "array"),
        (json!({"cni.dev/valid-attachments": ["c"]}), "containerID"),
        (json!({"cni.dev/valid-attachments": [{"containerID": "c"}]}), "ifname"),
        (json!({"cni.dev/valid-attachments": [{"containerID": "-", "ifname": "eth0"}]}), "invalid"),
    ] {
        let failure = list(bad).unwrap_err();
        assert_eq!(failure.code, Code::InvalidConfig);
        assert!(failure.message.contains(wanted), "{failure}");
    }
}

#[test]
fn networks_are_told_apart_by_their_names() {
    let tag = |name: &str| conf(&json!({"cniVersion": "1.1.0", "name": name}).to_string()).network;
    assert_eq!(tag("a"), tag("a"));
    assert_ne!(tag("a"), tag("b"));
}
