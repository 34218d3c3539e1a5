use super::*;
use crate::family::Family;

const GOOD: &str = r#"
    node = "n1"
    [network]
    cidr = "10.244.0.0/16"
    [[nodes]]
    name = "n1"
    address = "192.0.2.1"
    subnet = "10.244.1.0/24"
    [[nodes]]
    name = "n2"
    address = "192.0.2.2"
    subnet = "10.244.2.0/24"
    vtep_mac = "02:aa:00:00:00:01"
"#;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("overlay.toml"), None)
}

#[track_caller]
fn refused(text: &str, wanted: &str) {
    let message = parse(text).unwrap_err().to_string();
    assert!(message.starts_with("overlay.toml: "), "{message}");
    assert!(message.contains(wanted), "{message:?} does not say {wanted:?}");
    assert_eq!(message.lines().count(), 1, "{message}");
}

#[test]
fn a_small_file_gets_the_documented_defaults() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.node, "n1");
    let Network {
        cidrs,
        underlay,
        vni,
        port,
        mtu,
        interface,
        masquerade,
        no_masquerade,
        masquerade_to_nodes,
        attach,
        stack_flows,
        xdp,
    } = config.network;
    assert_eq!(
        (cidrs.to_string().as_str(), vni, port, mtu, interface),
        ("10.244.0.0/16", 1, 8472, None, None)
    );
    assert_eq!((underlay, underlay.preferred()), (Outer::Auto, Family::Ipv4));
    assert!(masquerade && no_masquerade.is_empty() && !masquerade_to_nodes);
    assert_eq!((attach, stack_flows, xdp), (Attach::Auto, None, Xdp::Off));
    assert_eq!(config.nodes.peers().next().unwrap().vtep_macs.v4, Some([2, 0xaa, 0, 0, 0, 1]));
}

#[test]
fn the_name_given_by_the_caller_wins() {
    assert_eq!(Config::parse(GOOD, Path::new("x"), Some("n2")).unwrap().node, "n2");
}

#[test]
fn mistakes_are_named_with_their_place() {
    refused("node = ", "line 1, column 8: ");
    refused("\nnode = \"n1", "line 2, column ");
    refused("[network]\ncidr = 7\n", "line 2, column 8: ");
    refused(&GOOD.replace("vtep_mac", "vtep-mac"), "unknown field `vtep-mac`");
    refused(&GOOD.replace("[network]", "[network]\nmtu = \"x\""), "mtu");
    refused(&GOOD.replace("10.244.0.0/16", "10.244.1.0/16"), "write 10.244.0.0/16");
    refused(
        &GOOD.replace("10.244.0.0/16", "fd00::/48"),
        "subnet 10.244.1.0/24 is IPv4, the pod network is not",
    );
    refused("[network]\ncidr = []\n", "line 2, column 8: network.cidr is an empty list");
    refused("[network]\ncidr = [\"10.244.0.0/16\", 7]\n", "line 2, column ");
    refused(
        &GOOD.replace("\"10.244.0.0/16\"", "[\"10.244.0.0/16\", \"10.245.0.0/16\"]"),
        "network.cidr has two IPv4 ranges",
    );
    refused(&GOOD.replace("10.244.0.0/16", "fe80::/64"), "network.cidr fe80::/64 cannot be a pod network");
    refused(&GOOD.replace("[network]", "[network]\nunderlay = \"v6\""), "unknown variant `v6`");
    refused(&GOOD.replace("[network]", "[network]\nvni = 16777216"), "16777215");
    refused(&GOOD.replace("[network]", "[network]\nvni = 0"), "network.vni 0");
    refused(&GOOD.replace("[network]", "[network]\nport = 0"), "network.port 0");
    refused(&GOOD.replace("[network]", "[network]\nmtu = 500"), "576");
    refused(&GOOD.replace("[network]", "[network]\nstack_flows = 7"), "network.stack_flows 7");
    refused(&GOOD.replace("[network]", "[network]\nxdp = \"generic\""), "unknown variant `generic`");
    let never = |net: &str| GOOD.replace("[network]", &format!("[network]\nno_masquerade = [\"{net}\"]"));
    refused(
        &never("192.168.1.0/16"),
        "network.no_masquerade 192.168.1.0/16 has host bits set: write 192.168.0.0/16",
    );
    refused(&never("fd00::/48"), "no_masquerade fd00::/48 is IPv6, network.cidr has no range of IPv6");
    refused(&never("0.0.0.0/0"), "write masquerade = false instead");
    refused(&never("192.168.0.0"), "no_masquerade");
    let nodes_only = GOOD.replace("[network]", "[network]\nmasquerade = false\nmasquerade_to_nodes = true");
    refused(&nodes_only, "masquerade_to_nodes needs network.masquerade");
    refused(&GOOD.replace("02:aa", "03:aa"), "n2: vtep_mac");
    refused(&GOOD.replace("02:aa", "2:aa"), "n2: vtep_mac");
    refused(&GOOD.replace("\"n1\"\n    [network]", "\"nx\"\n    [network]"), "nx");
}

const DUAL: &str = r#"
    node = "n1"
    [network]
    cidr = ["fd00:10:244::/48", "10.244.0.0/16"]
    underlay = "ipv6"
    no_masquerade = ["192.168.0.0/16", "fd00:99::/32"]
    [[nodes]]
    name = "n1"
    address = ["192.0.2.1", "2001:db8::1"]
    subnet = ["fd00:10:244:1::/64", "10.244.1.0/24"]
    [[nodes]]
    name = "n2"
    address = "2001:db8::2"
    subnet = ["10.244.2.0/24"]
    [[nodes]]
    name = "n3"
    address = ["2001:db8::3", "192.0.2.3"]
    subnet = "10.244.3.0/24"
    vtep_mac = ["02:00:00:00:00:06", "02:00:00:00:00:04"]
"#;

#[test]
fn lists_have_one_of_each_family_in_any_order() {
    let config = parse(DUAL).unwrap();
    assert_eq!(config.network.cidrs.primary(), Family::Ipv6);
    assert_eq!(config.network.underlay.preferred(), Family::Ipv6);
    let [n1, n2, n3] = config.nodes.nodes() else { panic!("{:?}", config.nodes) };
    assert_eq!(n1.addresses.to_string(), "192.0.2.1, 2001:db8::1");
    assert_eq!(n1.subnets.to_string(), "10.244.1.0/24, fd00:10:244:1::/64");
    assert_eq!((n2.addresses.is_dual(), n2.subnets.is_dual()), (false, false));
    assert_eq!(n3.vtep_macs, ByFamily { v4: Some([2, 0, 0, 0, 0, 4]), v6: Some([2, 0, 0, 0, 0, 6]) });
    let one = parse(&DUAL.replace("[\"02:00:00:00:00:06\", \"02:00:00:00:00:04\"]", "\"02:00:00:00:00:07\""))
        .unwrap();
    let mac = Some([2, 0, 0, 0, 0, 7]);
    assert_eq!(one.nodes.nodes()[2].vtep_macs, ByFamily { v4: mac, v6: mac });
}

#[test]
fn mistakes_in_lists_are_named() {
    let with = |from: &str, to: &str, wanted: &str| refused(&DUAL.replace(from, to), wanted);
    with(
        "\"192.0.2.1\", \"2001:db8::1\"",
        "\"192.0.2.1\", \"192.0.2.9\"",
        "n1: address 192.0.2.9 is the second of IPv4",
    );
    with("\"fd00:10:244:1::/64\", ", "\"10.244.9.0/24\", ", "n1: subnet 10.244.1.0/24 is the second of IPv4");
    with("[\"10.244.2.0/24\"]", "[]", "node n2 has no subnet");
    with("\"2001:db8::2\"", "[]", "node n2 has no tunnel address");
    with(", \"02:00:00:00:00:04\"]", ", \"02\"]", "n3: vtep_mac \"02\" is no unicast MAC");
    with(
        "[\"02:00:00:00:00:06\", ",
        "[\"02:00:00:00:00:06\", \"02:00:00:00:00:05\", ",
        "n3: 3 of vtep_mac for 2 of address",
    );
    with("\"192.0.2.1\",", "\"here\",", "in `address = [");
    with("underlay", "mtu = 1279\n    underlay", "network.mtu 1279 is too small for IPv6, which needs 1280");
    assert!(parse(&DUAL.replace("underlay", "mtu = 1280\n    underlay")).is_ok());
}

#[test]
fn a_missing_file_is_named() {
    let error = anyhow::Error::from(
        Settings::load(Path::new("/nonexistent/overlay.toml"), &Overrides::default()).unwrap_err(),
    );
    assert_eq!(
        format!("{error:#}"),
        "read /nonexistent/overlay.toml: No such file or directory (os error 2); \
         write it, or name another file with --config"
    );
}

const KUBERNETES: &str = r#"
    source = "kubernetes"
    node = "n1"
    [network]
    cidr = "10.244.0.0/16"
"#;

fn settings(text: &str) -> Result<Settings, ConfigError> {
    Settings::parse(text, Path::new("overlay.toml"), &Overrides::default())
}

#[test]
fn a_file_for_kubernetes_needs_no_more_than_the_range() {
    let settings = settings(KUBERNETES).unwrap();
    assert_eq!(settings.source, Source::Kubernetes(Kubernetes::default()));
    assert_eq!((settings.health, settings.cni.install), (None, false));
    assert_eq!(settings.cni.bin, Path::new("/opt/cni/bin"));
    assert_eq!(settings.cni.conf, Path::new("/etc/cni/net.d"));
}

#[test]
fn the_tables_beside_the_network_are_read() {
    let text = format!(
        "{KUBERNETES}\n[kubernetes]\nkubeconfig = \"/k\"\napi_server = \"https://192.0.2.10:6443\"\n\
         network_available = true\n[agent]\nhealth = \"127.0.0.1:9879\"\n[cni]\ninstall = true\nbin = \"/b\"\n\
         conf = \"/c\"\nname = \"05-x.conflist\"\nversion = \"1.0.0\"\nchain = [\"bandwidth\"]\n"
    );
    let settings = settings(&text).unwrap();
    let Source::Kubernetes(Kubernetes { kubeconfig, api_server, network_available }) = settings.source else {
        panic!("{:?}", settings.source)
    };
    assert_eq!((kubeconfig, network_available), (Some("/k".into()), true));
    assert_eq!(api_server.as_deref(), Some("https://192.0.2.10:6443"));
    assert_eq!(settings.health, Some("127.0.0.1:9879".parse().unwrap()));
    assert!(settings.cni.install);
    assert_eq!((settings.cni.bin, settings.cni.conf), ("/b".into(), "/c".into()));
    assert_eq!(
        (settings.cni.name.as_str(), settings.cni.version.as_deref()),
        ("05-x.conflist", Some("1.0.0"))
    );
    assert_eq!(settings.cni.chain.len(), 1);
}

#[test]
fn what_the_command_line_says_wins() {
    let overrides = Overrides {
        node: Some("n2".into()),
        source: Some(SourceKind::Kubernetes),
        health: Some("127.0.0.1:1".parse().unwrap()),
        mesh: Some(false),
        mesh_port: Some(9),
        install_cni: Some(true),
    };
    let text =
        "[network]\ncidr = \"10.244.0.0/16\"\n[agent]\nhealth = \"127.0.0.1:2\"\nmesh = { port = 8 }\n";
    let settings = Settings::parse(text, Path::new("x"), &overrides).unwrap();
    assert_eq!(settings.node, "n2");
    assert!(matches!(settings.source, Source::Kubernetes(_)));
    assert_eq!(settings.health, overrides.health);
    assert_eq!(settings.mesh, Mesh { enabled: false, port: 9, ..Mesh::default() });
    assert!(settings.cni.install);
}

#[test]
fn a_socket_address_may_lack_its_brackets() {
    for (text, expected) in [
        ("192.0.2.1:9879", "192.0.2.1:9879"),
        ("[2001:db8::1]:9879", "[2001:db8::1]:9879"),
        ("2001:db8::1:9879", "[2001:db8::1]:9879"),
    ] {
        assert_eq!(socket_address(text), Ok(expected.parse().unwrap()));
    }
    for bad in ["9879", "192.0.2.1", "here:9879", "2001:db8::1:99999", ""] {
        assert!(socket_address(bad).unwrap_err().contains("write it as"), "{bad}");
    }
}

#[test]
fn the_mesh_is_on_unless_it_is_switched_off() {
    let with = |more: &str| settings(&format!("{KUBERNETES}\n{more}")).map(|settings| settings.mesh);
    assert_eq!(with("").unwrap(), Mesh { enabled: true, port: 8473, rate: 10 });
    let given = with("[agent.mesh]\nenabled = false\nport = 9000\nrate = 2\n").unwrap();
    assert_eq!(given, Mesh { enabled: false, port: 9000, rate: 2 });
    for (mistake, wanted) in [
        ("port = 0", "agent.mesh.port 0"),
        ("port = 8472", "the tunnel's"),
        ("rate = 0", "enabled = false"),
        ("rate = 5000", "1 to 1000"),
        ("speed = 1", "speed"),
    ] {
        let message = with(&format!("[agent.mesh]\n{mistake}\n")).unwrap_err().to_string();
        assert!(message.contains(wanted), "{mistake}: {message}");
    }
}

#[test]
fn mistakes_in_the_other_tables_are_named() {
    let with = |more: &str| format!("{KUBERNETES}\n{more}");
    let refused = |text: String, wanted: &str| {
        let message = settings(&text).unwrap_err().to_string();
        assert!(message.contains(wanted), "{message:?} does not say {wanted:?}");
        assert_eq!(message.lines().count(), 1, "{message}");
    };
    refused(GOOD.replace("[network]", "source = \"kubernetes\"\n[network]"), "[[nodes]] and source");
    refused(GOOD.replace("[network]", "source = \"etcd\"\n[network]"), "unknown variant `etcd`");
    refused(format!("{GOOD}\n[kubernetes]\n"), "needs source = \"kubernetes\"");
    refused(with("[kubernetes]\napi_server = \"192.0.2.10:6443\""), "https://192.0.2.10:6443");
    refused(with("[kubernetes]\ntoken = \"x\""), "unknown field `token`");
    refused(with("[agent]\nhealth = \"9879\""), "health");
    refused(with("[cni]\nbin = \"opt\""), "cni.bin \"opt\" is not an absolute path");
    refused(with("[cni]\nname = \"a.conf\""), "cni.name \"a.conf\" has to end in .conflist");
    refused(with("[cni]\nversion = \"0.2.0\""), "cni.version \"0.2.0\" is none of 0.3.1, ");
    refused(with("[cni]\nchain = [\"nothing\"]"), "unknown variant `nothing`");
}
