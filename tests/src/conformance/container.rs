//! Containers: a network namespace with a name, and what is attached to it.
//!
//! Invariant: dropping removes, whatever a case ended with; first the attachment, then the namespace.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::exec;
use super::host::{self, Host};
use super::kernel::{Link, Route, View};
use super::result;
use super::suite::{Suite, Target};
use super::version::Version;

/// How long two containers may take until the first packet gets through: bridges learn, neighbours are resolved.
const CONVERGENCE: Duration = Duration::from_secs(5);

/// A container's network namespace, with `lo` down as the kernel makes it.
#[derive(Debug)]
pub(crate) struct Container {
    name: String,
    gone: bool,
}

impl Container {
    pub(super) fn create(host: &Host) -> Result<Self> {
        let name = host.new_name();
        host::tool("ip", &format!("netns add {name}"))?;
        Ok(Self { name, gone: false })
    }

    /// Its name, which is also its container id.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What a runtime would call plugins with.
    pub(crate) fn target(&self, ifname: &str) -> Target {
        Target { id: self.name.clone(), netns: Some(host::netns_path(&self.name)), ifname: ifname.to_owned() }
    }

    /// A look into it.
    pub(crate) fn view(&self) -> View<'_> {
        View::Container(&self.name)
    }

    /// The device of this name; it must be there.
    pub(crate) fn link(&self, ifname: &str) -> Result<Link> {
        let link = self.view().link(ifname)?;
        link.with_context(|| format!("the container has no interface {ifname}"))
    }

    /// Its routes through `ifname`.
    pub(crate) fn routes_by(&self, ifname: &str) -> Result<Vec<Route>> {
        Ok(self.view().routes()?.into_iter().filter(|route| route.device == ifname).collect())
    }

    /// Deletes the namespace, as a crash of the container does.
    pub(crate) fn vanish(&mut self) -> Result<()> {
        self.gone = true;
        host::tool("ip", &format!("netns delete {}", self.name)).map(drop)
    }

    /// A process that lives in the container, so that it has a namespace below `/proc`.
    pub(crate) fn process(&self) -> Result<Process> {
        let child = Command::new("ip")
            .args(["netns", "exec", &self.name, "sleep", "60"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        let process = Process(child.context("start a process in the container")?);
        // It has entered once it runs another program than `ip`.
        let start = Instant::now();
        let comm = format!("/proc/{}/comm", process.0.id());
        while std::fs::read_to_string(&comm).is_ok_and(|name| name.trim() != "sleep") {
            ensure!(start.elapsed() < CONVERGENCE, "a process in the container does not start");
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(process)
    }

    /// Sends echo requests to `address` until one is answered.
    pub(crate) fn ping(&self, address: std::net::IpAddr) -> Result<()> {
        let start = Instant::now();
        loop {
            let words = format!("netns exec {} ping -n -c 1 -W 1 {address}", self.name);
            let mut command = Command::new("ip");
            let done = exec::run(command.args(words.split(' ')), b"", CONVERGENCE).context("run ping")?;
            if done.status.success() {
                return Ok(());
            }
            if start.elapsed() > CONVERGENCE {
                let (out, err) = (done.stdout.trim(), done.stderr.trim());
                bail!("no answer from {address} to ping in {CONVERGENCE:?}: {out} {err}");
            }
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if !self.gone
            && let Err(error) = self.vanish()
        {
            eprintln!("cni-conformance: {error:#}");
        }
    }
}

/// A process in a container; killed on drop.
#[derive(Debug)]
pub(crate) struct Process(Child);

impl Process {
    /// Its network namespace.
    pub(crate) fn netns(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A container that was ADDed.
#[derive(Debug)]
pub(crate) struct Attached<'s> {
    /// Parameters of the attachment.
    pub(crate) target: Target,
    /// The result of the last plugin.
    pub(crate) result: Value,
    suite: &'s Suite<'s>,
    version: Version,
    released: bool,
}

impl<'s> Attached<'s> {
    /// ADD. If it is refused, DEL follows all the same: "A _delete_ must still be executed even if the _add_ fails."
    pub(super) fn add(suite: &'s Suite<'s>, version: Version, target: Target) -> Result<Self> {
        match suite.add(version, &target) {
            Ok((result, _)) => Ok(Self { target, result, suite, version, released: false }),
            Err(error) => {
                let _ = suite.del(version, &target, None);
                Err(error)
            }
        }
    }

    /// DEL with the result of ADD.
    pub(crate) fn del(&mut self) -> Result<Duration> {
        let elapsed = self.suite.del(self.version, &self.target, Some(&self.result))?;
        self.released = true;
        Ok(elapsed)
    }

    /// DEL will not be called on drop: it has been, in another way.
    pub(crate) fn released(&mut self) {
        self.released = true;
    }

    /// CHECK with the result of ADD.
    pub(crate) fn check(&self) -> Result<()> {
        self.suite.check(self.version, &self.target, &self.result).map(drop)
    }

    /// The addresses that the result gives to the container's interface.
    pub(crate) fn addresses(&self) -> Result<Vec<ipnet::IpNet>> {
        let sandbox = self.target.netns.as_deref().unwrap_or_default();
        result::addresses_of(&self.result, &self.target.ifname, sandbox)
    }

    /// The interface in `container`, up and with all the addresses that the result states.
    pub(crate) fn must_work(&self, container: &Container) -> Result<Link> {
        let link = container.link(&self.target.ifname)?;
        ensure!(link.up, "interface {} is down", link.name);
        for address in self.addresses()? {
            ensure!(
                link.addresses.contains(&address),
                "interface {} does not have address {address} of the result; it has {:?}",
                link.name,
                link.addresses
            );
        }
        Ok(link)
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        if !self.released {
            // Not for this attachment's case to judge.
            let _ = self.del();
        }
    }
}
