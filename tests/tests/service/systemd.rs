//! The unit as systemd runs it: a systemd of Debian's as process 1 of namespaces of its own, in the network of a node of the
//! lab, with the unit as it is delivered, but for a shorter watchdog (`boot.sh`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use overlay_tests::lab::{Cluster, Node, exec, overlay_binary, within};
use overlay_tests::traffic::steady::{Pods, Steady, connected};

/// What starting, a restart by the watchdog and stopping may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(40);

/// Bits of the capabilities that the unit grants (include/uapi/linux/capability.h).
const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;
const PERFMON: u64 = 1 << 38;
const BPF: u64 = 1 << 39;

/// Where control groups are, and whether they are the unified ones; else those of systemd alone.
fn control_groups() -> (PathBuf, bool) {
    let [unified, own] = ["/sys/fs/cgroup", "/sys/fs/cgroup/systemd"].map(PathBuf::from);
    if unified.join("cgroup.controllers").exists() { (unified, true) } else { (own, false) }
}

/// A booted systemd; with it ends all that it has started.
struct Manager {
    child: Child,
    /// Process 1, as it is called outside.
    init: i32,
    group: PathBuf,
    log: PathBuf,
}

impl Manager {
    #[track_caller]
    fn boot(cluster: &Cluster, node: &Node) -> Self {
        let lab = cluster.lab();
        let dir = lab.dir().join("systemd");
        fs::create_dir(&dir).unwrap();
        let log = lab.dir().join("systemd.log");
        let (groups, unified) = control_groups();
        let group = groups.join(format!("overlay-{}", lab.id()));
        fs::create_dir(&group).unwrap_or_else(|error| panic!("make {}: {error}", group.display()));
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        // The namespace of control groups begins where the process is that makes it.
        let script = "echo $$ > \"$GROUP\"/cgroup.procs && exec unshare --mount --pid --ipc --uts --cgroup --fork --kill-child \
                      --mount-proc --propagation private sh \"$BOOT\"";
        let mut command = node.namespace().command("sh");
        command.args(["-ec", script]);
        command.env("GROUP", &group).env("BOOT", here.join("tests/service/boot.sh"));
        command.env("UNIT", here.join("../deploy/systemd/overlay.service")).env("BINARY", overlay_binary());
        command.env("CONFIG", lab.cluster_file()).env("BPF", lab.dir().join("bpf")).env("DIR", &dir);
        let pins = node.pins().strip_prefix(lab.dir().join("bpf")).unwrap();
        command.env("PINS", Path::new("/sys/fs/bpf").join(pins)).env("NODE", node.name());
        command.env("UNIFIED", u8::from(unified).to_string());
        let file = fs::File::create(&log).unwrap();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        let child = exec::spawn_tied(command).unwrap();
        let mut manager = Self { child, init: 0, group, log };
        within(LIMIT, "systemd answers", || manager.answers());
        manager
    }

    /// Whether process 1 is there, and takes orders.
    fn answers(&mut self) -> bool {
        let pid = self.child.id();
        let ended = self.child.try_wait().unwrap();
        assert!(ended.is_none(), "systemd has ended: {ended:?}\n{}", self.said());
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let Some(init) = children.split_whitespace().next().and_then(|pid| pid.parse().ok()) else {
            return false;
        };
        self.init = init;
        self.run(&["systemctl", "is-system-running"]).stdout.trim() == "running"
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// A command among what it sees.
    #[track_caller]
    fn run(&self, command: &[&str]) -> exec::Output {
        let mut inside = std::process::Command::new("nsenter");
        inside.args(["-t", &self.init.to_string(), "-m", "-n", "-p"]).args(command);
        exec::output(&mut inside, b"", LIMIT).unwrap()
    }

    #[track_caller]
    fn systemctl(&self, arguments: &[&str]) {
        let out = self.run(&[&["systemctl"][..], arguments].concat());
        assert!(out.status.success(), "systemctl {}: {out:?}\n{}", arguments.join(" "), self.said());
    }

    /// A property of the service.
    #[track_caller]
    fn property(&self, name: &str) -> String {
        let out = self.run(&["systemctl", "show", "overlay", "--value", "-p", name]);
        assert!(out.status.success(), "{out:?}");
        out.stdout.trim().to_owned()
    }

    #[track_caller]
    fn wait_for(&self, state: &str, restarts: &str) {
        let is = || self.property("ActiveState") == state && self.property("NRestarts") == restarts;
        within(LIMIT, &format!("the service is {state} after {restarts} restarts"), is);
    }

    /// What `/proc/PID/status` of the agent says under a name.
    #[track_caller]
    fn of_agent(&self, name: &str) -> String {
        let path = format!("/proc/{}/status", self.property("MainPID"));
        let text = self.run(&["cat", &path]).stdout;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).trim().to_owned()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // With it process 1, and with that all others of its namespace.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let mut groups = vec![self.group.clone()];
        let mut at = 0;
        while let Some(group) = groups.get(at).cloned() {
            let below = fs::read_dir(&group).into_iter().flatten().flatten();
            groups.extend(below.filter(|entry| entry.path().is_dir()).map(|entry| entry.path()));
            at += 1;
        }
        for group in groups.iter().rev() {
            // Processes that have just been killed may be in it for a moment.
            for _ in 0..100 {
                if fs::remove_dir(group).is_ok() || !group.exists() {
                    break;
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

#[test]
fn systemd_starts_the_agent_watches_it_and_stops_it_and_pods_notice_nothing() {
    let cluster = Cluster::builder().start();
    let pods = Pods::new(&cluster);
    let node = cluster.node("cp");
    let steady = Steady::start(&cluster, &pods, true);
    let before = node.show("endpoints");
    node.stop_agent();

    let manager = Manager::boot(&cluster, node);
    manager.wait_for("active", "0");
    assert_eq!(manager.property("SubState"), "running");
    assert_eq!(manager.property("StatusText"), "node cp is ready, 3 nodes are known");
    assert_eq!(node.status().unwrap()["ready"], true);
    // What it may.
    let granted = NET_ADMIN | NET_RAW | PERFMON | BPF;
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        assert_eq!(u64::from_str_radix(&manager.of_agent(set), 16).unwrap(), granted, "{set}");
    }
    assert_eq!(manager.of_agent("NoNewPrivs"), "1");
    assert_eq!(manager.of_agent("Seccomp"), "2", "calls are filtered");

    // It repairs from within the sandbox: the rule for Services with nodes behind them, which no packet here takes.
    let rules = || exec::must(node.namespace().command("ip").args(["rule", "show", "table", "79"]), "");
    let rule = rules();
    assert!(!rule.is_empty());
    node.namespace().ip("rule del from 10.244.0.0/24 table 79");
    within(LIMIT, "the rule is back", || rules() == rule);

    let pid = manager.property("MainPID");
    manager.systemctl(&["kill", "--kill-whom=main", "--signal=STOP", "overlay"]);
    within(LIMIT, "the watchdog bites", || manager.property("Result") == "watchdog");
    manager.wait_for("active", "1");
    assert_ne!(manager.property("MainPID"), pid);
    assert_eq!(node.status().unwrap()["ready"], true);

    manager.systemctl(&["restart", "overlay"]);
    manager.wait_for("active", "0");
    manager.systemctl(&["stop", "overlay"]);
    manager.wait_for("inactive", "0");
    assert_eq!(manager.property("Result"), "success");
    assert_eq!(node.show("endpoints"), before);
    steady.lost_nothing();
    drop(manager);
    node.start_agent();
    connected(&cluster, &cluster.add_pod("cp", "new"), &pods.all());
}
