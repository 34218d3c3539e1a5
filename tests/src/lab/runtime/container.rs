//! What tests do with a container, whichever runtime made it, and with a pod of the lab beside it.
//!
//! Each runs a server that tells a client which address it sees: an exchange over TCP in which both ends are programs in
//! containers, and the client's address is on record.

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ipnet::Ipv4Net;

use super::{Daemon, Entrance, LIMIT, append, record};
use crate::lab::{Lab, Pod, exec, sweep, within};

/// Port of the server in every container.
const PORT: u16 = 80;

/// How long a server may take to listen after its start.
const START_LIMIT: Duration = Duration::from_secs(5);

/// The server: tells each client its address, and hangs up.
pub(super) const SERVER: [&str; 3] =
    ["socat", "TCP4-LISTEN:80,reuseaddr,fork", "SYSTEM:echo $SOCAT_PEERADDR"];

/// Something with an address on the pod network in which programs can be run.
pub trait Peer {
    /// For messages: what it is, and where.
    fn label(&self) -> &str;

    /// Its address.
    fn addr(&self) -> Ipv4Addr;

    /// A program in it.
    fn command(&self, words: &[&str]) -> Command;

    /// Runs a program in it; gives the standard output.
    ///
    /// Errors: it cannot be run, or fails; with its standard error.
    fn run(&self, words: &[&str]) -> Result<String> {
        let out = exec::output(&mut self.command(words), b"", LIMIT)?;
        ensure!(
            out.status.success(),
            "{} in {}: {}: {}{}",
            words.join(" "),
            self.label(),
            out.status,
            out.stdout,
            out.stderr
        );
        Ok(out.stdout)
    }

    /// One echo request to this address.
    fn ping(&self, address: Ipv4Addr) -> Result<()> {
        self.run(&["ping", "-c", "1", "-W", "2", &address.to_string()]).map(drop)
    }

    /// One exchange over TCP with the server at this address; gives the address that the server saw.
    fn ask(&self, address: Ipv4Addr) -> Result<Ipv4Addr> {
        let server = format!("TCP4:{address}:{PORT},connect-timeout=3");
        let text = self.run(&["socat", "-u", "-T", "3", &server, "-"])?;
        text.trim().parse().with_context(|| format!("the server at {address} answers {text:?}"))
    }

    /// IPv4 addresses of its device, as it sees them itself.
    fn addresses_of(&self, device: &str) -> Result<Vec<Ipv4Net>> {
        let text = self.run(&["ip", "-o", "-4", "addr", "show", "dev", device])?;
        // "2: eth0    inet 10.244.1.5/32 scope global eth0\ …"
        let mut words = text.split_whitespace();
        let mut found = Vec::new();
        while words.any(|word| word == "inet") {
            found.push(words.next().unwrap_or_default().parse().with_context(|| text.clone())?);
        }
        Ok(found)
    }
}

/// A running container.
#[derive(Debug)]
pub struct Container {
    label: String,
    addr: Ipv4Addr,
    entrance: Entrance,
    exec: Exec,
}

/// How a runtime runs another program in a container of this name.
#[derive(Debug)]
pub(super) enum Exec {
    Podman(String),
    /// containerd wants a name for each program as well: they are numbered.
    Ctr(String, AtomicU32),
}

impl Container {
    /// A container that was started with [`SERVER`]; waits until that listens.
    #[track_caller]
    pub(super) fn new(label: String, entrance: Entrance, exec: Exec) -> Self {
        let mut container = Self { label, addr: Ipv4Addr::UNSPECIFIED, entrance, exec };
        within(START_LIMIT, "a container answers itself", || {
            // Programs can be run in it before the plugin is done.
            let Ok(addresses) = container.addresses_of("eth0") else { return false };
            assert!(addresses.len() <= 1, "{} has {addresses:?} at eth0", container.label);
            let Some(address) = addresses.first() else { return false };
            container.addr = address.addr();
            container.ask(container.addr).is_ok_and(|seen| seen == container.addr)
        });
        container
    }
}

impl Peer for Container {
    fn label(&self) -> &str {
        &self.label
    }

    fn addr(&self) -> Ipv4Addr {
        self.addr
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = match &self.exec {
            Exec::Podman(name) => {
                let mut command = self.entrance.command("podman");
                command.args(["exec", name]);
                command
            }
            Exec::Ctr(name, counter) => {
                let id = format!("exec{}", counter.fetch_add(1, Ordering::Relaxed));
                let mut command = self.entrance.command("ctr");
                command.args(["task", "exec", "--exec-id", &id, name]);
                command
            }
        };
        command.args(words);
        command
    }
}

/// A pod of the lab that runs the same server.
#[derive(Debug)]
pub struct PodServer {
    label: String,
    pod: Pod,
    _server: Daemon,
}

impl PodServer {
    /// Starts the server in `pod`; waits until it listens.
    #[track_caller]
    pub fn start(lab: &Lab, pod: Pod) -> Self {
        let label = format!("pod {} on {}", pod.name(), pod.node());
        let name = pod.namespace().name().to_owned();
        let mut command = pod.namespace().command(SERVER[0]);
        command.args(&SERVER[1..]);
        let log = append(&lab.dir().join(format!("server-{name}.log")));
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("duplicate log descriptor")).stderr(log);
        let child = exec::spawn_tied(command).unwrap_or_else(|error| panic!("cannot start socat: {error}"));
        let record = record(&sweep::processes_dir(lab.dir()), &format!("server-{name}"), &child);
        let server = Self { label, pod, _server: Daemon { child, record } };
        within(START_LIMIT, "a server that answers", || server.ask(server.addr()).is_ok());
        server
    }

    /// The pod.
    pub fn pod(&self) -> &Pod {
        &self.pod
    }
}

impl Peer for PodServer {
    fn label(&self) -> &str {
        &self.label
    }

    fn addr(&self) -> Ipv4Addr {
        self.pod.addr()
    }

    fn command(&self, words: &[&str]) -> Command {
        let (program, arguments) = words.split_first().expect("a program");
        let mut command = self.pod.namespace().command(program);
        command.args(arguments);
        command
    }
}
