//! The agent as a service: what it tells the service manager, and the unit that systemd runs it by.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests panic, in helper functions as well, to keep the line number"
)]

mod systemd;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use overlay_tests::lab::{AgentOptions, Cluster, Node, exec, overlay_binary, within};

/// What an answer may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

/// What the agent is told to be watched with: it has to tell of itself three times in it.
const WATCHDOG: Duration = Duration::from_millis(900);

/// A service manager's end of `NOTIFY_SOCKET`.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    #[track_caller]
    fn listen(path: PathBuf) -> Self {
        let socket = UnixDatagram::bind(&path).unwrap();
        Self { socket, path }
    }

    /// The next message; `None` when there is none in time.
    #[track_caller]
    fn next(&self, limit: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(limit)).unwrap();
        let mut buffer = [0; 4096];
        match self.socket.recv(&mut buffer) {
            Ok(length) => Some(String::from_utf8_lossy(&buffer[..length]).trim_end().to_owned()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => panic!("receive: {error}"),
        }
    }

    /// Waits for a message that begins so; gives all up to it.
    #[track_caller]
    fn wait_for(&self, begin: &str) -> Vec<String> {
        let deadline = Instant::now() + LIMIT;
        let mut before = Vec::new();
        while Instant::now() < deadline {
            if let Some(message) = self.next(Duration::from_millis(100)) {
                let found = message.starts_with(begin);
                before.push(message);
                if found {
                    return before;
                }
            }
        }
        panic!("no {begin} after {LIMIT:?}, but {before:?}")
    }

    fn drain(&self) {
        while self.next(Duration::from_millis(1)).is_some() {}
    }
}

/// A directory with an `nft` that waits while `hold` exists, and says so in `waits`; otherwise it is the real one.
#[track_caller]
fn slow_nft(dir: &Path) -> (PathBuf, PathBuf, String) {
    let bin = dir.join("bin");
    fs::create_dir(&bin).unwrap();
    let (hold, waits) = (dir.join("hold"), dir.join("waits"));
    let real = exec::must(Command::new("sh").args(["-c", "command -v nft"]), "");
    let script = format!(
        "#!/bin/sh\nwhile [ -e {hold} ]; do : > {waits}; sleep 0.05; done\nexec {real} \"$@\"\n",
        hold = hold.display(),
        waits = waits.display(),
        real = real.trim()
    );
    let path = bin.join("nft");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let search = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    (hold, waits, search)
}

#[test]
fn the_manager_hears_that_it_is_ready_that_its_loop_turns_and_that_it_stops() {
    let cluster = Cluster::builder().start();
    let node = cluster.node("w1");
    node.stop_agent();
    let dir = cluster.lab().dir();
    let manager = Manager::listen(dir.join("notify"));
    let (hold, waits, search) = slow_nft(dir);
    let options = AgentOptions {
        env: vec![
            ("NOTIFY_SOCKET".into(), manager.path.display().to_string()),
            ("WATCHDOG_USEC".into(), WATCHDOG.as_micros().to_string()),
            ("PATH".into(), search),
        ],
        ..AgentOptions::default()
    };
    node.spawn_agent(&options);
    let first = manager.wait_for("READY=1");
    let status = node.status().expect("a ready node has a status");
    assert_eq!(status["ready"], true, "ready is said of a node that is: {first:?} {status}");
    let status = manager.wait_for("STATUS=").pop().unwrap();
    assert_eq!(status, "STATUS=node w1 is ready, 3 nodes are known");
    for _ in 0..3 {
        manager.wait_for("WATCHDOG=1");
    }

    // Held up in a pass, by a program that it waits for.
    fs::write(&hold, "").unwrap();
    exec::must(node.namespace().command("nft").args(["delete", "table", "ip", "overlay"]), "");
    within(LIMIT, "a pass that is held up", || waits.exists());
    manager.drain();
    let silent = manager.next(WATCHDOG * 2);
    assert_eq!(silent, None, "a loop that does not turn feeds no watchdog");
    fs::remove_file(&hold).unwrap();
    manager.wait_for("WATCHDOG=1");

    // What goes wrong is told as well.
    node.namespace().ip(&format!("link set dev {} down", Node::DEVICE));
    node.namespace().ip(&format!("addr flush dev {}", Node::DEVICE));
    manager.wait_for("STATUS=node w1 is ready, 3 nodes are known, but: ");

    node.kill_agent(Signal::SIGTERM);
    manager.wait_for("STOPPING=1");
}

#[test]
fn without_a_manager_the_agent_runs_alike_and_with_a_deaf_one_it_says_so_once() {
    let cluster = Cluster::builder().start();
    let node = cluster.node("w1");
    node.stop_agent();
    let log = node.log_mark();
    let options = AgentOptions {
        env: vec![
            ("NOTIFY_SOCKET".into(), cluster.lab().dir().join("nobody").display().to_string()),
            ("WATCHDOG_USEC".into(), "30000".into()),
        ],
        ..AgentOptions::default()
    };
    node.start_agent_with(&options);
    log.wait_for("cannot tell the service manager: ", LIMIT);
    let status = |node: &Node| node.status().unwrap()["ready"] == true;
    assert!(status(node));
    node.stop_agent();
    assert_eq!(node.log().matches("cannot tell the service manager").count(), 1);
}

/// The unit, with the binary under test and without the names of pages that are not installed here.
#[track_caller]
fn unit(dir: &Path) -> PathBuf {
    let text = include_str!("../../../deploy/systemd/overlay.service");
    assert_eq!(text.matches("/usr/local/bin/overlay ").count(), 2);
    let text = text.replace("/usr/local/bin/overlay", &overlay_binary().display().to_string());
    let text: Vec<_> = text.lines().filter(|line| !line.starts_with("Documentation=")).collect();
    let path = dir.join("overlay.service");
    fs::write(&path, text.join("\n")).unwrap();
    path
}

/// A directory of this test's own.
struct Scratch(PathBuf);

impl Scratch {
    #[track_caller]
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("overlay-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn systemd_takes_the_unit_and_finds_little_exposure() {
    let dir = Scratch::new("unit");
    let path = unit(&dir.0);
    let analyze = |arguments: &[&str]| {
        let mut command = Command::new("systemd-analyze");
        command.args(arguments).arg(&path).env("SYSTEMD_COLORS", "0");
        exec::output(&mut command, b"", LIMIT).unwrap()
    };
    let verified = analyze(&["verify", "--man=no"]);
    assert!(
        verified.status.success() && verified.stderr.is_empty(),
        "{}{}",
        verified.stdout,
        verified.stderr
    );
    // In tenths: what a root service with the administration of the network can come down to.
    let security = analyze(&["security", "--offline=true", "--no-pager", "--threshold=30"]);
    assert!(security.status.success(), "{}{}", security.stdout, security.stderr);
    assert!(security.stdout.contains("Overall exposure level"), "{}", security.stdout);
}

#[test]
fn the_unit_grants_what_the_manifest_grants() {
    let unit = include_str!("../../../deploy/systemd/overlay.service");
    let manifest = include_str!("../../../deploy/overlay-capabilities.yaml");
    let mut granted: Vec<_> = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="))
        .unwrap()
        .split(' ')
        .map(|name| name.strip_prefix("CAP_").unwrap().to_owned())
        .collect();
    granted.sort();
    let (_, add) = manifest.split_once("add: [").unwrap();
    let add = add.split(']').next().unwrap();
    let expected: Vec<_> = add.split(", ").map(|name| name.trim_matches('"').to_owned()).collect();
    assert_eq!(granted, expected);
}
