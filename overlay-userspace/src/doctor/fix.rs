//! What `--fix` does.
//!
//! Without being asked for more, only what is overlay's own: its settings of the kernel, its pins that nobody owns, and
//! whatever a pass of the agent puts right, by the agent that runs or, where none does, by the same code in this process.
//! What Flannel has left takes `--fix=flannel`. Nobody else's devices, rules, files or processes are touched, and nothing
//! of a node on which overlay was never set up.

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use clap::ValueEnum;
use overlay_common::maps::{Addr, Endpoint};
use serde::Serialize;

use super::{Site, flannel::Leftover};
use crate::{
    agent::{self, drift},
    cni::owner_text,
    datapath::{
        pins::{self, Pins},
        tables::Endpoints,
    },
    host::{netlink::Netlink, sysctl},
    ports::HostPorts,
};

/// Twice the longest time between two passes of an agent, and some for the pass.
const AGENT: Duration = Duration::from_secs(15);

/// Between two looks at what the agent does.
const PAUSE: Duration = Duration::from_millis(200);

/// What one is willing to have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scope {
    /// What is overlay's own
    Own,
    /// Also what Flannel has left on the node
    Flannel,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fix {
    /// Write a kernel setting, by its path below `/proc/sys`.
    Setting { path: String, value: &'static str },
    /// One pass of the agent.
    Pass,
    /// Remove the pin of a link whose device is gone.
    Link(String),
    /// Give back the address of a pod whose device is gone.
    Endpoint(Addr, Box<Endpoint>),
    /// Remove the pins of another schema.
    Pins(PathBuf),
    /// Remove what Flannel has left.
    Flannel(Leftover),
}

impl Fix {
    /// What has to be asked for to have it done.
    pub(crate) fn scope(&self) -> Scope {
        match self {
            Self::Flannel(_) => Scope::Flannel,
            _ => Scope::Own,
        }
    }

    /// What it does, in words.
    pub(crate) fn text(&self, site: &Site) -> String {
        match self {
            Self::Setting { path, value } => format!("set {path} = {value}"),
            Self::Pass => match site.agent {
                Some(pid) => format!("wait for a pass of the agent (process {pid})"),
                None => "make one pass of the agent".into(),
            },
            Self::Link(name) => format!("remove the pin {}", site.pins.link(name).display()),
            Self::Endpoint(address, endpoint) => {
                let (container, ifname) = owner_text(&endpoint.owner);
                format!("give back the address {} of {ifname} of container {container}", address.to_ip())
            }
            Self::Pins(directory) => format!("remove the pins in {}", directory.display()),
            Self::Flannel(leftover) => format!("remove {leftover}"),
        }
    }

    /// Does it.
    pub(crate) fn apply(&self, site: &Site) -> anyhow::Result<()> {
        match self {
            Self::Setting { path, value } => Ok(sysctl::set(path, value)?),
            Self::Pass => pass(site),
            Self::Link(name) => Ok(site.pins.remove_link(name)?),
            Self::Endpoint(address, endpoint) => give_back(&site.pins, *address, endpoint),
            Self::Pins(directory) => Ok(pins::remove(directory)?),
            Self::Flannel(leftover) => leftover.remove(),
        }
    }
}

fn pass(site: &Site) -> anyhow::Result<()> {
    let config = site.config().context("the configuration is not known: correct it first")?;
    let Some(pid) = site.agent else {
        let problems = agent::pass(&site.pins, config)?;
        let problems: Vec<_> = problems.iter().map(|problem| format!("{problem:#}")).collect();
        ensure!(problems.is_empty(), "not all could be put right: {}", problems.join("; "));
        return Ok(());
    };
    let deadline = Instant::now() + AGENT;
    loop {
        let left = drift::look(&site.pins, &config)?;
        let Some(first) = left.first() else { return Ok(()) };
        if Instant::now() > deadline {
            bail!(
                "the agent (process {pid}) has not put it right within {} s, {} {} the first: see its log, and restart it",
                AGENT.as_secs(),
                first.object,
                first.what
            );
        }
        thread::sleep(PAUSE);
    }
}

/// Only if it is still held by the same owner, without a device.
fn give_back(pins: &Pins, address: Addr, endpoint: &Endpoint) -> anyhow::Result<()> {
    let mut endpoints = Endpoints::open(pins)?;
    let held = endpoints.get(address)?.filter(|held| held.owner == endpoint.owner);
    let Some(held) = held.filter(|held| held.ifindex == endpoint.ifindex) else { return Ok(()) };
    if Netlink::open()?.link_by_index(held.ifindex)?.is_some() {
        return Ok(());
    }
    // Before the address, as a DEL does: no rule leads to one that somebody else may have.
    HostPorts::lock(pins)?.release(&endpoint.owner)?;
    endpoints.release(address)?;
    Ok(())
}
