//! The file does not describe this node.

use std::fs;

use overlay_tests::lab::{AgentOptions, Network};

use crate::bed::Bed;

#[test]
fn a_missing_file() {
    let bed = Bed::new();
    for path in [bed.lab.dir().join("missing.toml"), bed.lab.dir().join("missing/overlay.toml")] {
        let options = AgentOptions { config: Some(path.clone()), ..AgentOptions::default() };
        let path = path.display().to_string();
        bed.refuses(bed.node.agent_command(&options), &["read ", &path, "No such file", "--config"]);
    }
}

#[test]
fn a_file_that_makes_no_sense() {
    let bed = Bed::new();
    let good = bed.text(&Network::default());
    let cases: [(String, &[&str]); 9] = [
        (format!("{good}\n[[nodes\n"), &["line ", "[[nodes"]),
        (good.replace("vni", "vnid"), &["line 3", "unknown field `vnid`", "expected one of"]),
        (good.replace("port = 8472", "port = 70000"), &["line 4", "70000", "u16"]),
        (good.replace("\"a\"", "\"z\""), &["node a is not in the list", "add it", "--node"]),
        (
            good.replace("10.244.2.0/24", "10.244.0.0/22"),
            &["nodes b (10.244.0.0/22) and a (10.244.1.0/24) overlap"],
        ),
        (good.replace("192.0.2.2", "192.0.2.1"), &["nodes a and b have the same address 192.0.2.1"]),
        (
            good.replace("10.244.2.0/24", "10.250.2.0/24"),
            &["node b", "10.250.2.0/24 is not inside", "network.cidr"],
        ),
        (good.replace("10.244.2.0/24", "10.244.2.0/31"), &["node b", "too small", "30 or less"]),
        (String::new(), &["missing field `network`"]),
    ];
    for (text, words) in cases {
        fs::write(bed.lab.cluster_file(), text).unwrap();
        let path = bed.lab.cluster_file().display().to_string();
        bed.refuses(bed.agent(), &[words, &[&path]].concat());
    }
}

#[test]
fn a_file_that_does_not_fit_the_machine() {
    let bed = Bed::new();
    let with = |network: Network, words: &[&str]| {
        bed.write(&network);
        bed.refuses(bed.agent(), words);
    };
    let default = Network::default;
    with(
        Network { mtu: Some(1451), ..default() },
        &["mtu 1451", "too large", "eth0 carries 1500 bytes", "set network.mtu to 1450 or less"],
    );
    with(Network { mtu: Some(100), ..default() }, &["network.mtu 100 is outside 576"]);
    with(
        Network { interface: Some("eth7".into()), ..default() },
        &["no interface eth7", "correct network.interface"],
    );
    let text = bed.text(&default()).replace("192.0.2.1\"", "192.0.2.77\"");
    fs::write(bed.lab.cluster_file(), text).unwrap();
    bed.refuses(
        bed.agent(),
        &["no interface holds the node's address 192.0.2.77", "eth0 192.0.2.1", "correct the node's address"],
    );
}
