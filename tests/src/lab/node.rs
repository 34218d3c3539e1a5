//! A node: a namespace on the underlay with what a real node has (forwarding, a default route, Docker's remains),
//! its agent, and its pods.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::Ipv4Net;
use nix::sys::signal::Signal;
use serde_json::Value;

use super::agent::{self, Agent, AgentOptions, Build};
use super::{Docker, DockerState, Lab, Lan, Link, Namespace, NodeEntry, exec};

/// How long `overlay status` may take.
const STATUS_LIMIT: Duration = Duration::from_secs(5);

/// What the parts of a node share: the node itself, its pods and its agent.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) name: String,
    pub(super) namespace: Namespace,
    pub(super) pins: PathBuf,
    lab_dir: PathBuf,
    builds: Mutex<Builds>,
}

/// What the agent and the command line, and what the CNI plugin are of.
#[derive(Debug)]
struct Builds {
    agent: Build,
    /// The one under test if not said.
    plugin: Option<PathBuf>,
}

/// A node of the cluster.
#[derive(Debug)]
pub struct Node {
    site: Arc<Site>,
    address: Ipv4Addr,
    subnet: Ipv4Net,
    agent: Mutex<Option<Agent>>,
}

/// What a node is made of; [`Node::builder`].
#[derive(Debug, Clone)]
pub struct NodeBuilder {
    name: String,
    underlay: Ipv4Net,
    gateway: Option<Ipv4Addr>,
    subnet: Ipv4Net,
    docker: Docker,
    build: Build,
}

impl NodeBuilder {
    /// Which build agent, command line and plugin are of at first; the one under test if not said.
    #[must_use]
    pub fn build(mut self, build: Build) -> Self {
        self.build = build;
        self
    }

    /// The router that the default route of the node leads to; without it the node has none.
    #[must_use]
    pub fn gateway(mut self, gateway: Ipv4Addr) -> Self {
        self.gateway = Some(gateway);
        self
    }

    /// What Docker left on the node; [`Docker::Down`] if not said.
    #[must_use]
    pub fn docker(mut self, docker: Docker) -> Self {
        self.docker = docker;
        self
    }

    /// Makes the node with its `eth0` on `lan`.
    #[track_caller]
    pub fn on_lan(self, lab: &Lab, lan: &Lan) -> Node {
        let namespace = lab.namespace(&self.name);
        lan.attach(&namespace, Node::DEVICE);
        self.finish(lab, namespace)
    }

    /// Makes the node with its `eth0` connected to a new device `peer_dev` of `peer`.
    #[track_caller]
    pub fn wired_to(self, lab: &Lab, link: Link, peer: &Namespace, peer_dev: &str) -> Node {
        let namespace = lab.namespace(&self.name);
        link.connect(&namespace, Node::DEVICE, peer, peer_dev);
        self.finish(lab, namespace)
    }

    /// Makes the node of a namespace that has its `eth0` already.
    #[track_caller]
    pub fn in_namespace(self, lab: &Lab, namespace: &Namespace) -> Node {
        self.finish(lab, namespace.clone())
    }

    #[track_caller]
    fn finish(self, lab: &Lab, namespace: Namespace) -> Node {
        namespace.ip(&format!("addr add {} dev {}", self.underlay, Node::DEVICE));
        if let Some(gateway) = self.gateway {
            namespace.ip(&format!("route add default via {gateway}"));
        }
        namespace.sysctl("net.ipv4.ip_forward", "1");
        self.docker.install(&namespace);
        let pins = lab.dir().join("bpf").join(&self.name);
        fs::create_dir(&pins).unwrap_or_else(|error| panic!("cannot make {}: {error}", pins.display()));
        let site = Site {
            name: self.name,
            namespace,
            pins: pins.join(format!("v{}", self.build.schema())),
            lab_dir: lab.dir().to_owned(),
            builds: Mutex::new(Builds {
                agent: self.build,
                plugin: (self.build != Build::Own).then(|| self.build.binary()),
            }),
        };
        Node {
            site: Arc::new(site),
            address: self.underlay.addr(),
            subnet: self.subnet,
            agent: Mutex::new(None),
        }
    }
}

impl Node {
    /// The underlay device of every node.
    pub const DEVICE: &'static str = "eth0";

    /// The anchor device that the agent makes.
    pub const ANCHOR: &'static str = "overlay.1";

    /// A node `name` with the address and prefix length `underlay`, whose pods live in `subnet`.
    pub fn builder(name: &str, underlay: Ipv4Net, subnet: Ipv4Net) -> NodeBuilder {
        let (gateway, docker, build) = (None, Docker::default(), Build::Own);
        NodeBuilder { name: name.to_owned(), underlay, gateway, subnet, docker, build }
    }

    /// Its name in the cluster.
    pub fn name(&self) -> &str {
        &self.site.name
    }

    /// Its host namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.site.namespace
    }

    /// Its underlay address, the VTEP.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The subnet of its pods.
    pub fn subnet(&self) -> Ipv4Net {
        self.subnet
    }

    /// Its gateway address: the first host address of the subnet.
    pub fn gateway_address(&self) -> Ipv4Addr {
        self.subnet.hosts().next().expect("a node subnet has host addresses")
    }

    /// Its pin root, as `--pins` takes it.
    pub fn pins(&self) -> &Path {
        &self.site.pins
    }

    /// The pins of a build.
    pub fn pins_of(&self, build: Build) -> PathBuf {
        self.site.pins.with_file_name(format!("v{}", build.schema()))
    }

    /// From now on agents and commands are of this build.
    pub fn use_agent(&self, build: Build) {
        self.site.builds().agent = build;
    }

    /// From now on the CNI plugin is of this build.
    pub fn use_plugin(&self, build: Build) {
        self.use_plugin_at(&build.binary());
    }

    /// From now on the CNI plugin is this file.
    pub fn use_plugin_at(&self, path: &Path) {
        self.site.builds().plugin = Some(path.to_owned());
    }

    /// Its row in the cluster file.
    pub fn entry(&self) -> NodeEntry {
        NodeEntry { name: self.name().to_owned(), address: self.address, subnet: self.subnet, vtep_mac: None }
    }

    /// Docker's traces as the kernel shows them now.
    #[track_caller]
    pub fn docker_state(&self) -> DockerState {
        DockerState::read(self.namespace())
    }

    /// The MAC of the anchor device, which a peer without an overlay agent has to send to.
    #[track_caller]
    pub fn vtep_mac(&self) -> String {
        let link = self.namespace().ip_json(&format!("link show dev {}", Self::ANCHOR));
        link[0]["address"].as_str().expect("the anchor device has a MAC").to_owned()
    }

    /// `overlay <arguments>` in the node's namespace, for the node's pin root.
    #[track_caller]
    pub fn overlay(&self, arguments: &[&str]) -> Command {
        self.site.overlay(arguments)
    }

    /// Starts the agent and waits until it is ready; gives the time that it took.
    #[track_caller]
    pub fn start_agent(&self) -> Duration {
        self.start_agent_with(&AgentOptions::default())
    }

    /// As [`Node::start_agent`], with other options.
    #[track_caller]
    pub fn start_agent_with(&self, options: &AgentOptions) -> Duration {
        self.spawn_agent(options);
        self.wait_agent_ready()
    }

    /// Starts the agent and does not wait.
    #[track_caller]
    pub fn spawn_agent(&self, options: &AgentOptions) {
        let mut slot = self.agent();
        assert!(slot.is_none(), "the agent of {} is running", self.name());
        *slot = Some(Agent::spawn(
            self.agent_command(options),
            self.name(),
            &self.site.lab_dir,
            &self.log_path(),
        ));
    }

    /// The command that [`Node::spawn_agent`] starts, for tests that expect it to refuse.
    #[track_caller]
    pub fn agent_command(&self, options: &AgentOptions) -> Command {
        let shared = self.site.lab_dir.join("overlay.toml");
        let mut command = self.overlay(&["agent", "--node", self.name()]);
        command.arg("--config").arg(options.config.as_ref().unwrap_or(&shared));
        command.arg("--pins").arg(self.pins());
        command.env("OVERLAY_MESH", options.mesh.to_string());
        command.args(&options.args).envs(options.env.iter().map(|(key, value)| (key, value)));
        command
    }

    /// Waits until the agent says that it is ready.
    #[track_caller]
    pub fn wait_agent_ready(&self) -> Duration {
        let mut slot = self.agent();
        let agent = slot.as_mut().unwrap_or_else(|| panic!("{} has no agent", self.name()));
        agent.wait_ready(self.name(), &self.log_path(), || {
            self.status().is_some_and(|status| status["ready"] == Value::Bool(true))
        })
    }

    /// What `overlay status -o json` says; `None` while it fails.
    #[track_caller]
    pub fn status(&self) -> Option<Value> {
        let mut command = self.overlay(&["status", "-o", "json"]);
        command.arg("--pins").arg(self.pins());
        let out = exec::output(&mut command, b"", STATUS_LIMIT);
        let out = out.unwrap_or_else(|error| panic!("cannot run overlay status on {}: {error}", self.name()));
        serde_json::from_str(&out.stdout).ok()
    }

    /// What `overlay <what> -o json` prints: `nodes`, `endpoints`, `ports`, `links`.
    #[track_caller]
    pub fn show(&self, what: &str) -> Value {
        let text = exec::must(&mut self.overlay(&[what, "-o", "json"]), "");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("overlay {what} -o json: {error}: {text}"))
    }

    /// Ends the agent by `signal`, SIGKILL say, and waits until it is gone.
    #[track_caller]
    pub fn kill_agent(&self, signal: Signal) -> ExitStatus {
        let agent = self.agent().take();
        agent.unwrap_or_else(|| panic!("{} has no agent", self.name())).end(signal)
    }

    /// Asks the agent to end (SIGTERM); it has to end by itself, with status 0.
    #[track_caller]
    pub fn stop_agent(&self) {
        let status = self.kill_agent(Signal::SIGTERM);
        assert!(
            !agent::killed_by(status, Signal::SIGTERM),
            "the agent of {} does not handle SIGTERM",
            self.name()
        );
        assert!(status.success(), "the agent of {} stopped with {status}", self.name());
    }

    /// Stops the agent and starts it again; gives the time until it was ready.
    #[track_caller]
    pub fn restart_agent(&self) -> Duration {
        self.stop_agent();
        self.start_agent()
    }

    /// The process id of the running agent.
    pub fn agent_pid(&self) -> Option<i32> {
        self.agent().as_ref().map(|agent| agent.pid().as_raw())
    }

    /// Where the agent logs to, over all its restarts.
    pub fn log_path(&self) -> PathBuf {
        self.site.lab_dir.join(format!("{}.log", self.name()))
    }

    /// What the agent has logged so far, over all its restarts.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    pub(super) fn site(&self) -> &Arc<Site> {
        &self.site
    }

    fn agent(&self) -> MutexGuard<'_, Option<Agent>> {
        // A panic while it was held leaves a process to kill, and nothing else.
        self.agent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Site {
    #[track_caller]
    pub(super) fn overlay(&self, arguments: &[&str]) -> Command {
        let mut command = self.namespace.command(self.builds().agent.binary());
        command.args(arguments).env("OVERLAY_PINS", &self.pins).env("NODE_NAME", &self.name);
        command
    }

    fn builds(&self) -> MutexGuard<'_, Builds> {
        self.builds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The binary of the CNI plugin.
    #[track_caller]
    pub(super) fn plugin(&self) -> PathBuf {
        self.builds().plugin.clone().unwrap_or_else(|| Build::Own.binary())
    }
}
