use std::{
    os::unix::fs::PermissionsExt as _,
    sync::atomic::{AtomicU32, Ordering},
};

use clap::Parser;
use serde_json::{Value, json};

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    action: Action,
}

/// Two directories, removed at the end.
struct Dirs(PathBuf);

impl Drop for Dirs {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Dirs {
    fn new() -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        Self(std::env::temp_dir().join(format!("overlay-install-{}-{number}", std::process::id())))
    }

    fn bin(&self, name: &str) -> PathBuf {
        self.0.join("bin").join(name)
    }

    fn conf(&self, name: &str) -> PathBuf {
        self.0.join("net.d").join(name)
    }

    fn run(&self, words: &str) -> anyhow::Result<()> {
        self.run_with(words, &Pins::default())
    }

    fn run_with(&self, words: &str, pins: &Pins) -> anyhow::Result<()> {
        let (bin, conf) = (self.bin(""), self.conf(""));
        let words = ["overlay"].into_iter().chain(words.split_whitespace());
        let dirs = ["--bin-dir", bin.to_str().unwrap(), "--conf-dir", conf.to_str().unwrap()];
        run(&Cli::try_parse_from(words.chain(dirs))?.action, pins)
    }

    fn list(&self) -> Value {
        serde_json::from_slice(&fs::read(self.conf("10-overlay.conflist")).unwrap()).unwrap()
    }

    /// A plugin that speaks these versions.
    fn plugin(&self, name: &str, versions: &Value) {
        fs::create_dir_all(self.bin("")).unwrap();
        let answer = json!({"cniVersion": "0.3.1", "supportedVersions": versions});
        fs::write(self.bin(name), format!("#!/bin/sh\ncat >/dev/null\necho '{answer}'\n")).unwrap();
        fs::set_permissions(self.bin(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn names(&self) -> Vec<String> {
        let dirs = ["bin", "net.d"].map(|dir| fs::read_dir(self.0.join(dir)).unwrap());
        let mut names: Vec<_> = dirs
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}

#[test]
fn binary_and_list_are_put_in_place_and_nothing_else() {
    let dirs = Dirs::new();
    dirs.run("install").unwrap();
    assert_eq!(dirs.names(), ["10-overlay.conflist", "overlay"]);
    assert_eq!(fs::read(dirs.bin("overlay")).unwrap(), fs::read(SELF).unwrap());
    assert_eq!(fs::metadata(dirs.bin("overlay")).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(dirs.conf("10-overlay.conflist")).unwrap().mode() & 0o7777, 0o644);
    let versions = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
    let expected = json!({"cniVersion": "1.0.0", "cniVersions": versions, "name": "overlay", "plugins": [{"type": "overlay"}]});
    assert_eq!(dirs.list(), expected);
}

#[test]
fn what_is_there_already_is_not_written_again_and_what_differs_is() {
    let dirs = Dirs::new();
    dirs.run("install").unwrap();
    let files = [dirs.bin("overlay"), dirs.conf("10-overlay.conflist")];
    let before = files.each_ref().map(|path| inode(path));
    dirs.run("install").unwrap();
    assert_eq!(files.each_ref().map(|path| inode(path)), before);

    fs::write(&files[0], b"an older one").unwrap();
    dirs.run_with("install --cni-version 0.4.0", &Pins::new("/sys/fs/bpf/other")).unwrap();
    assert_eq!(fs::read(&files[0]).unwrap(), fs::read(SELF).unwrap());
    let list = dirs.list();
    assert_eq!((&list["cniVersion"], &list["cniVersions"]), (&json!("0.4.0"), &json!(["0.3.1", "0.4.0"])));
    assert_eq!(list["plugins"][0]["pins"], "/sys/fs/bpf/other");
    assert_eq!(dirs.names(), ["10-overlay.conflist", "overlay"]);
}

#[test]
fn the_list_speaks_what_all_its_plugins_speak() {
    let dirs = Dirs::new();
    dirs.plugin("portmap", &json!(["0.3.1", "0.4.0", "1.0.0"]));
    dirs.plugin("bandwidth", &json!(["0.1.0", "0.4.0", "1.0.0", "9.0.0"]));
    dirs.run("install --chain portmap,bandwidth").unwrap();
    let list = dirs.list();
    assert_eq!(list["cniVersions"], json!(["0.4.0", "1.0.0"]));
    assert_eq!(
        list["plugins"],
        json!([
            {"type": "overlay", "capabilities": {"bandwidth": true}},
            {"type": "portmap", "capabilities": {"portMappings": true}},
            {"type": "bandwidth", "capabilities": {"bandwidth": true}},
        ])
    );
    let error = dirs.run("install --chain portmap --cni-version 1.1.0").unwrap_err();
    assert!(error.to_string().contains("portmap does not speak CNI 1.1.0"), "{error}");
    dirs.plugin("tuning", &json!(["9.0.0"]));
    assert!(dirs.run("install --chain tuning").unwrap_err().to_string().contains("no common version"));
    assert_eq!(dirs.list(), list);
}

#[test]
fn a_plugin_that_is_not_there_is_named_before_anything_is_written() {
    let dirs = Dirs::new();
    let error = dirs.run("install --chain portmap").unwrap_err();
    assert!(format!("{error:#}").contains("bin/portmap"), "{error:#}");
    assert!(!dirs.0.exists());
}

#[test]
fn files_of_others_stay_and_are_no_place_for_ours() {
    let dirs = Dirs::new();
    fs::create_dir_all(dirs.conf("")).unwrap();
    let other = r#"{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"bridge"}]}"#;
    for name in ["05-bridge.conflist", "10-overlay.conflist", "99-x.conf"] {
        fs::write(dirs.conf(name), other).unwrap();
    }
    let error = dirs.run("install").unwrap_err();
    assert!(error.to_string().contains("10-overlay.conflist is not a configuration of overlay"), "{error}");
    assert!(!dirs.bin("overlay").exists());
    dirs.run("install --name 00-overlay.conflist").unwrap();
    dirs.run("uninstall").unwrap();
    // The list of another name needs it.
    assert!(dirs.bin("overlay").exists() && dirs.conf("10-overlay.conflist").exists());
    dirs.run("uninstall --name 00-overlay.conflist").unwrap();
    assert_eq!(dirs.names(), ["05-bridge.conflist", "10-overlay.conflist", "99-x.conf"]);
    for name in ["x.json", "../x.conflist", ".x.conflist", ""] {
        assert!(dirs.run(&format!("install --name={name}")).is_err(), "{name}");
    }
}

#[test]
fn only_our_binary_is_removed_and_missing_files_are_fine() {
    let dirs = Dirs::new();
    dirs.run("uninstall").unwrap();
    dirs.run("install").unwrap();
    // Another build of it.
    let mut file = OpenOptions::new().append(true).open(dirs.bin("overlay")).unwrap();
    file.write_all(b"more").unwrap();
    drop(file);
    dirs.run("uninstall").unwrap();
    assert!(dirs.names().is_empty());
    fs::write(dirs.bin("overlay"), b"#!/bin/sh\n").unwrap();
    dirs.run("uninstall").unwrap();
    assert_eq!(dirs.names(), ["overlay"]);
}

#[test]
fn what_a_killed_installation_left_is_removed_by_the_next() {
    let dirs = Dirs::new();
    dirs.run("install").unwrap();
    // No process has this id: /proc/sys/kernel/pid_max is 2^22 at most.
    fs::write(dirs.bin(".overlay-install-99999999"), b"part").unwrap();
    fs::remove_file(dirs.bin("overlay")).unwrap();
    dirs.run("install").unwrap();
    assert_eq!(dirs.names(), ["10-overlay.conflist", "overlay"]);
}

#[test]
fn a_running_binary_is_replaced_under_its_feet() {
    let dirs = Dirs::new();
    fs::create_dir_all(dirs.bin("")).unwrap();
    fs::copy("/bin/sleep", dirs.bin("overlay")).unwrap();
    let mut running = std::process::Command::new(dirs.bin("overlay")).arg("60").spawn().unwrap();
    let result = dirs.run("install");
    let still_running = running.try_wait().unwrap().is_none();
    running.kill().unwrap();
    running.wait().unwrap();
    result.unwrap();
    assert!(still_running);
    assert_eq!(fs::read(dirs.bin("overlay")).unwrap(), fs::read(SELF).unwrap());
}
