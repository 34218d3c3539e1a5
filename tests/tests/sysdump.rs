//! `overlay sysdump`: what is in it, that it comes from broken nodes as well, and that no secret does.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests panic, in helper functions as well, to keep the line number"
)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use overlay_tests::lab::{AgentOptions, Cluster, exec};
use overlay_tests::traffic::tcp;
use serde_json::{Value, json};

/// It runs a dozen programs.
const LIMIT: Duration = Duration::from_mins(1);

/// Runs it, and gives its files by name, without the directory that they are all in.
#[track_caller]
fn dump(mut command: Command, dir: &Path) -> BTreeMap<String, String> {
    let archive = dir.join("dump.tar.gz");
    command.arg("-f").arg(&archive);
    let out = exec::output(&mut command, b"", LIMIT).unwrap();
    assert!(out.status.success(), "{}{}", out.stdout, out.stderr);
    assert!(out.stdout.starts_with(&format!("{}: ", archive.display())), "{}", out.stdout);
    assert_eq!(fs::metadata(&archive).unwrap().permissions().mode() & 0o777, 0o600);
    let into = dir.join("unpacked");
    fs::create_dir(&into).unwrap();
    exec::must(Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(&into), "");
    let roots: Vec<_> = fs::read_dir(&into).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(roots.len(), 1, "one directory: {roots:?}");
    let mut files = BTreeMap::new();
    read(&roots[0], "", &mut files);
    fs::remove_dir_all(&into).unwrap();
    fs::remove_file(&archive).unwrap();
    files
}

fn read(dir: &Path, prefix: &str, files: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{prefix}{}", path.file_name().unwrap().to_str().unwrap());
        if path.is_dir() {
            read(&path, &format!("{name}/"), files);
        } else {
            files.insert(name, fs::read_to_string(&path).unwrap());
        }
    }
}

#[track_caller]
fn parsed(files: &BTreeMap<String, String>, name: &str) -> Value {
    let text = files.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", files.keys()));
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{name}: {error}: {text}"))
}

/// What must be nowhere.
const SECRETS: [&str; 9] = [
    "planted-token-in-kubeconfig",
    "cGxhbnRlZC1rZXktaW4ta3ViZWNvbmZpZw",
    "planted-bearer-in-env",
    "planted-password-of-another-plugin",
    "planted-comment-in-config",
    "planted-bearer-in-log",
    "planted-key-in-log",
    "planted-agent-kubeconfig",
    "planted password with spaces",
];

#[test]
fn everything_is_in_it_and_no_secret_is() {
    let cluster = Cluster::builder().start();
    let (lab, cp) = (cluster.lab().dir(), cluster.node("cp"));
    let pod = cluster.add_pod("cp", "a");
    let far = cluster.add_pod("w1", "a");
    tcp::exchange(pod.namespace(), far.namespace(), (far.addr(), 0).into()).unwrap();

    cp.stop_agent();
    let conf = lab.join("net.d");
    fs::create_dir(&conf).unwrap();
    let other = json!({
        "cniVersion": "1.0.0", "name": "other",
        "plugins": [{"type": "other", "datastore": {"password": SECRETS[3]}, "note": SECRETS[8]}],
    });
    fs::write(conf.join("05-other.conflist"), other.to_string()).unwrap();
    let kubeconfig = |name: &str, token: &str| {
        let path = lab.join(name);
        let text =
            format!("users:\n- name: u\n  user:\n    token: {token}\n    client-key-data: {}\n", SECRETS[1]);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let text = fs::read_to_string(cluster.lab().cluster_file()).unwrap();
    let config = lab.join("secretive.toml");
    let cni = format!("[cni]\nconf = \"{}\"\n", conf.display());
    fs::write(&config, format!("# {}\n{text}\n{cni}", SECRETS[4])).unwrap();
    cp.start_agent_with(&AgentOptions {
        config: Some(config),
        args: vec!["--health".into(), "127.0.0.1:9879".into()],
        env: vec![("KUBECONFIG".into(), kubeconfig("agents", SECRETS[7]))],
        ..AgentOptions::default()
    });
    let log = format!(
        "{}Authorization: Bearer {}\n-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\nafter the key\n\
         password: '{}'\nGET /x?k={} {} {}\n",
        cp.log(),
        SECRETS[5],
        SECRETS[6],
        SECRETS[8],
        SECRETS[0],
        SECRETS[7],
        SECRETS[2]
    );
    // The agent appends to it.
    fs::write(cp.log_path(), log).unwrap();

    let mut command = cp.overlay(&["sysdump"]);
    command.env("KUBECONFIG", kubeconfig("own", SECRETS[0])).env("MY_API_TOKEN", SECRETS[2]);
    let files = dump(command, lab);
    for (name, text) in &files {
        for secret in SECRETS {
            assert!(!text.contains(secret), "{secret} is in {name}: {text}");
        }
    }
    // They would have been: the files that they were in are here.
    let log = &files["agent/log.txt"];
    assert!(log.contains("cp is ready") && log.contains("after the key"), "{log}");
    assert_eq!(log.matches("[removed]").count(), 6, "{log}");
    let lists = parsed(&files, "cni/configurations.json");
    assert_eq!((&lists[0]["file"], &lists[0]["types"]), (&json!("05-other.conflist"), &json!(["other"])));

    let configuration = parsed(&files, "configuration.json");
    assert_eq!(configuration["network"]["cidr"], json!(["10.244.0.0/16"]));
    assert_eq!(configuration["source"]["nodes"].as_array().unwrap().len(), 3);
    assert_eq!(parsed(&files, "status.json")["ready"], true);
    assert_eq!(parsed(&files, "agent.json")["pid"], cp.agent_pid().unwrap());
    for name in ["nodes", "endpoints", "ports", "flows", "programs"] {
        assert_eq!(parsed(&files, &format!("{name}.json")), cp.show(name), "{name}");
    }
    let pinned = parsed(&files, "maps.json");
    let pinned: Vec<_> =
        pinned.as_array().unwrap().iter().map(|map| map["name"].as_str().unwrap().to_owned()).collect();
    let maps = fs::read_dir(cp.pins().join("maps")).unwrap();
    let mut maps: Vec<_> = maps.map(|map| map.unwrap().file_name().into_string().unwrap()).collect();
    maps.sort();
    assert_eq!(pinned, maps);
    let address = format!("{:08x}", pod.addr().to_bits());
    let leases = parsed(&files, "maps/ENDPOINTS.json");
    assert_eq!(leases.as_array().unwrap().len(), 1);
    assert!(leases[0]["key"].as_str().unwrap().ends_with(&address), "{leases}");
    assert_eq!(files["agent/healthz.txt"], "ok\n");
    assert_eq!(files["agent/readyz.txt"], "ok\n");
    assert_eq!(parsed(&files, "kernel/sysctls.json")["net/ipv4/ip_forward"], "1");
    assert!(files["network/nft-ruleset.txt"].contains("table ip overlay"));
    let links = parsed(&files, "network/ip-link.json");
    assert!(links.as_array().unwrap().iter().any(|link| link["ifname"] == "overlay.1"), "{links}");
    for part in ["# links", "overlay.1", "# routes", "10.244.0.0/16", "# neighbours"] {
        assert!(files["network/netlink.txt"].contains(part), "{part}");
    }
}

#[test]
fn what_cannot_be_had_is_an_error_file_each() {
    let cluster = Cluster::builder().start();
    let (lab, cp) = (cluster.lab().dir(), cluster.node("cp"));
    cp.stop_agent();
    fs::remove_file(cp.pins().join("maps/NODES")).unwrap();
    let mut command = cp.overlay(&["sysdump"]);
    command.env("PATH", "/nonexistent");
    let files = dump(command, lab);
    for (name, said) in [
        ("status.json", "NODES does not exist"),
        ("nodes.json", "NODES does not exist"),
        ("maps/NODES.json", "NODES does not exist"),
        ("network/nft-ruleset.txt", "run nft"),
        ("network/ip-link.json", "run ip"),
        ("agent/metrics.txt", "no agent"),
        ("agent/log.txt", "kubectl overlay sysdump"),
    ] {
        let error = files
            .get(&format!("{name}.error"))
            .unwrap_or_else(|| panic!("no {name}.error: {:?}", files.keys()));
        assert!(error.contains(said) && error.lines().count() == 1, "{name}: {error}");
        assert!(!files.contains_key(name), "{name} is there as well");
    }
    // The rest is there all the same.
    assert_eq!(parsed(&files, "endpoints.json"), json!([]));
    assert!(files["network/netlink.txt"].contains("overlay.1"));
    assert_eq!(parsed(&files, "version.json")["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn a_configuration_that_is_wrong_is_not_quoted() {
    let cluster = Cluster::builder().start();
    let (lab, cp) = (cluster.lab().dir(), cluster.node("cp"));
    let config = lab.join("typo.toml");
    let good = fs::read_to_string(cluster.lab().cluster_file()).unwrap();
    cp.stop_agent();
    fs::write(&config, &good).unwrap();
    cp.start_agent_with(&AgentOptions { config: Some(config.clone()), ..AgentOptions::default() });
    fs::write(&config, format!("tokn = \"planted-in-a-typo\"\n{good}")).unwrap();
    let files = dump(cp.overlay(&["sysdump"]), lab);
    let error = &files["configuration.json.error"];
    assert!(error.contains("line 1") && error.contains("tokn"), "{error}");
    for (name, text) in files.iter().filter(|(name, _)| *name != "agent/log.txt") {
        assert!(!text.contains("planted-in-a-typo"), "{name}: {text}");
    }
}

#[test]
fn an_archive_that_cannot_be_written_leaves_nothing() {
    let cluster = Cluster::builder().start();
    let cp = cluster.node("cp");
    let target = cluster.lab().dir().join("no-such-directory/dump.tar.gz");
    let mut command = cp.overlay(&["sysdump"]);
    let out = exec::output(command.arg("-f").arg(&target), b"", LIMIT).unwrap();
    assert_eq!((out.status.code(), out.stderr.lines().count()), (Some(1), 1), "{}", out.stderr);
    assert!(out.stderr.contains("create ") && !target.exists(), "{}", out.stderr);
}
