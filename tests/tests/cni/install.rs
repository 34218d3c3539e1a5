//! `overlay cni install` and `uninstall`, through the binary.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use overlay_tests::lab::{exec, overlay_binary};
use serde_json::{Value, json};

use crate::bed::Bed;

struct Places<'a> {
    bed: &'a Bed,
    root: PathBuf,
}

impl<'a> Places<'a> {
    fn new(bed: &'a Bed) -> Self {
        Self { bed, root: bed.lab.dir().join("cni") }
    }

    #[track_caller]
    fn run(&self, verb: &str, arguments: &[&str]) -> exec::Output {
        let mut command = self.bed.node.overlay(&["cni", verb]);
        command.arg("--bin-dir").arg(self.root.join("bin")).arg("--conf-dir").arg(self.root.join("net.d"));
        exec::output(command.args(arguments), b"", exec::COMMAND_LIMIT).unwrap()
    }

    fn list(&self) -> PathBuf {
        self.root.join("net.d/10-overlay.conflist")
    }
}

#[test]
fn what_is_installed_is_a_plugin_that_works_and_leaves_with_its_last_pod() {
    let bed = Bed::start();
    let places = Places::new(&bed);
    let binary = places.root.join("bin/overlay");
    let out = places.run("install", &[]);
    assert!(out.status.success(), "{}", out.stderr);
    assert_eq!(fs::read(&binary).unwrap(), fs::read(overlay_binary()).unwrap());
    let list: Value = serde_json::from_slice(&fs::read(places.list()).unwrap()).unwrap();
    assert_eq!(
        list["plugins"],
        json!([{"type": "overlay", "pins": bed.node.pins(), "capabilities": {"portMappings": true}}])
    );

    // By its name in the directory of plugins, without arguments.
    let mut version = Command::new(&binary);
    let answer = exec::must(version.env("CNI_COMMAND", "VERSION"), r#"{"cniVersion":"1.0.0"}"#);
    assert_eq!(serde_json::from_str::<Value>(&answer).unwrap()["cniVersion"], "1.0.0");

    let again = places.run("install", &[]);
    assert_eq!(again.stdout.matches("unchanged").count(), 2, "{}", again.stdout);

    let pod = bed.sandbox("p");
    bed.must("ADD", &pod, json!({}));
    let out = places.run("uninstall", &[]);
    assert!(!out.status.success());
    assert!(out.stderr.contains("1 pods are attached"), "{}", out.stderr);
    assert!(binary.exists() && !places.list().exists());
    bed.must("DEL", &pod, json!({}));
    let out = places.run("uninstall", &[]);
    assert!(out.status.success(), "{}", out.stderr);
    assert!(!binary.exists());
}

#[test]
fn an_earlier_configuration_is_warned_of_and_left_alone() {
    let bed = Bed::start();
    let places = Places::new(&bed);
    fs::create_dir_all(places.root.join("net.d")).unwrap();
    let earlier = places.root.join("net.d/05-flannel.conflist");
    fs::write(&earlier, "{}").unwrap();
    fs::write(places.root.join("net.d/87-podman.conflist"), "{}").unwrap();
    let out = places.run("install", &[]);
    assert!(out.status.success(), "{}", out.stderr);
    assert!(
        out.stderr.contains("05-flannel.conflist") && !out.stderr.contains("87-podman"),
        "{}",
        out.stderr
    );
    assert_eq!(fs::read_to_string(&earlier).unwrap(), "{}");
}

#[test]
fn a_chain_of_debians_plugins_is_installed_in_a_version_that_all_speak() {
    let bed = Bed::start();
    let places = Places::new(&bed);
    fs::create_dir_all(places.root.join("bin")).unwrap();
    for plugin in ["portmap", "bandwidth"] {
        fs::copy(format!("/usr/lib/cni/{plugin}"), places.root.join("bin").join(plugin)).unwrap();
    }
    let out = places.run("install", &["--chain", "portmap,bandwidth"]);
    assert!(out.status.success(), "{}", out.stderr);
    let list: Value = serde_json::from_slice(&fs::read(places.list()).unwrap()).unwrap();
    let kinds: Vec<_> = list["plugins"].as_array().unwrap().iter().map(|p| p["type"].clone()).collect();
    assert_eq!(kinds, ["overlay", "portmap", "bandwidth"]);
    assert_eq!(list["cniVersion"], "1.0.0");
}
