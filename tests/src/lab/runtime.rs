//! Container runtimes on a node of the lab: podman with its CNI backend, and containerd, both as Debian packages them.
//!
//! They run in the node's network namespace, and in pid and mount namespaces of their own ([`Runtimes::start`]): their
//! `/run`, `/var/lib`, `/opt` and changes to `/etc` are the node's alone, cgroups are read-only. Nothing is
//! taken from or written to the machine's own container storage and CNI configuration, no daemon of the machine is
//! talked to, no registry is asked. Whatever a runtime started ends with the pid namespace, whose pid 1 ends with the
//! process of the test; the mounts go with the last process.
//!
//! crun runs the containers, without cgroups: the only state that it would leave on the machine.

mod container;
mod containerd;
mod files;
mod podman;

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::sweep::{self, Process};
use super::{Lab, Namespace, Node, exec, interrupt, overlay_binary};

pub use container::{Container, Peer, PodServer};
pub use containerd::{Attended, Containerd};
pub use podman::Podman;

/// How long one command of a runtime may take. On an idle machine none needs a second.
const LIMIT: Duration = Duration::from_secs(20);

/// The network of [`Runtimes`], as runtimes know it.
pub const NETWORK: &str = "overlay";

/// The root file system of every container: the machine's, with changes of its own (see node.sh). Containers of one
/// node share it.
const ROOTFS: &str = "/var/lib/rootfs";

/// Where runtimes look for network configurations.
const CONF_DIR: &str = "/etc/cni/net.d";

/// The place of container runtimes on one node. Dropping it kills all that was started in it.
#[derive(Debug)]
pub struct Runtimes {
    node: String,
    entrance: Entrance,
    /// Files of this node's runtimes on the machine, below the lab's directory.
    dir: PathBuf,
    processes: PathBuf,
    init: Child,
    record: PathBuf,
}

impl Runtimes {
    /// Makes the place, with [`NETWORK`] configured: the plugin `overlay` alone, for the pins of `node`.
    #[track_caller]
    pub fn start(lab: &Lab, node: &Node) -> Self {
        interrupt::check();
        let dir = lab.dir().join(format!("runtimes-{}", node.name()));
        files::lay_out(&dir.join("root"), &conflist(NETWORK, "1.0.0", &[plugin(node.pins())]))
            .unwrap_or_else(|error| panic!("cannot write below {}: {error}", dir.display()));

        // Propagation `slave`: what is unmounted on the machine must not live on here.
        let mut command = node.namespace().command("unshare");
        command.args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--propagation",
            "slave",
        ]);
        command.args(["--", "sh", "-c", include_str!("runtime/node.sh"), "sh"]);
        command.args([lab.dir(), &dir, &overlay_binary()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(append(&dir.join("init.log")));
        let init = exec::spawn_tied(command).unwrap_or_else(|error| panic!("cannot start unshare: {error}"));
        let processes = sweep::processes_dir(lab.dir());
        let record = record(&processes, &format!("runtimes-{}", node.name()), &init);
        let entrance = Entrance { namespace: node.namespace().clone(), init: init.id() };
        let mut runtimes = Self { node: node.name().to_owned(), entrance, dir, processes, init, record };
        runtimes.wait_ready();
        runtimes
    }

    #[track_caller]
    fn wait_ready(&mut self) {
        let mut line = String::new();
        // Ends with the line, or with the script.
        let stdout = self.init.stdout.take().expect("a piped standard output");
        let read = BufReader::new(stdout).read_line(&mut line);
        assert!(
            read.is_ok() && line == "ready\n",
            "cannot set up the runtimes of {}: {}",
            self.node,
            self.log("init")
        );
    }

    /// Adds a network; runtimes take it from the next container on.
    #[track_caller]
    pub fn add_network(&self, conflist: &Value) {
        let name = conflist["name"].as_str().expect("a network has a name");
        let path = format!("{CONF_DIR}/{name}.conflist");
        let mut command = self.command("sh");
        // Runtimes read what they find under this suffix: it must be whole.
        command.args(["-c", r#"cat >"$0.new" && mv "$0.new" "$0""#, &path]);
        exec::must(&mut command, &conflist.to_string());
    }

    /// A program in the node's network namespace and in the namespaces of its runtimes.
    pub fn command(&self, program: &str) -> Command {
        self.entrance.command(program)
    }

    /// podman on this node.
    pub fn podman(&self) -> Podman<'_> {
        Podman::new(self)
    }

    /// Starts containerd on this node.
    #[track_caller]
    pub fn containerd(&self) -> Containerd<'_> {
        Containerd::start(self)
    }

    /// Starts a daemon whose output goes to a log of this name.
    #[track_caller]
    fn spawn(&self, mut command: Command, name: &str) -> Daemon {
        let log = append(&self.log_path(name));
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("duplicate log descriptor")).stderr(log);
        let child = exec::spawn_tied(command).unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let record = record(&self.processes, &format!("{}-{name}", self.node), &child);
        Daemon { child, record }
    }

    fn log_path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.log_path(name)).unwrap_or_default()
    }
}

impl Drop for Runtimes {
    fn drop(&mut self) {
        // Takes pid 1 along, and that everything in the pid namespace.
        let _ = self.init.kill();
        let _ = self.init.wait();
        let _ = fs::remove_file(&self.record);
    }
}

/// The way into the namespaces of a node's runtimes.
#[derive(Debug, Clone)]
struct Entrance {
    namespace: Namespace,
    /// The parent of pid 1: like its child in everything but the pid namespace.
    init: u32,
}

impl Entrance {
    fn command(&self, program: &str) -> Command {
        let mut command = self.namespace.command("nsenter");
        for (option, name) in [("--mount", "mnt"), ("--pid", "pid_for_children")] {
            command.arg(format!("{option}=/proc/{}/ns/{name}", self.init));
        }
        command.args(["--", program]);
        command
    }
}

/// A child that dies with the test, or before. Where it is `nsenter`, what that started dies with pid 1.
#[derive(Debug)]
struct Daemon {
    child: Child,
    record: PathBuf,
}

impl Daemon {
    /// Whether it ended within `limit`.
    fn ends_within(&mut self, limit: Duration) -> bool {
        exec::wait_until(&mut self.child, Instant::now() + limit).expect("wait for child").is_some()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.record);
    }
}

/// A network configuration list.
pub fn conflist(name: &str, version: &str, plugins: &[Value]) -> Value {
    json!({ "cniVersion": version, "name": name, "plugins": plugins })
}

/// The plugin under test, for the datapath pinned at `pins`, as an element of a list.
pub fn plugin(pins: &Path) -> Value {
    json!({ "type": "overlay", "pins": pins, "capabilities": { "portMappings": true } })
}

#[track_caller]
fn append(path: &Path) -> File {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()))
}

/// Notes a child for the sweep of abandoned labs.
#[track_caller]
fn record(processes: &Path, name: &str, child: &Child) -> PathBuf {
    let path = processes.join(name);
    // A process that is gone already needs no record.
    if let Some(process) = Process::of(child.id().cast_signed()) {
        process.record(&path).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    }
    path
}
