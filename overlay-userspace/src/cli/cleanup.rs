//! `overlay cleanup`: removes every trace of the agent and of the CNI plugin from a node.
//!
//! Idempotent. What there is, is listed first ([`survey`]); a dry run prints that list, and the real one goes through it. What
//! cannot be removed does not keep the rest from being removed; all of it is said in the end. Nothing is
//! taken from a node that an agent works on, which would put it back, or that has pods, which would lose their network
//! without notice, unless that is asked for.

use std::fs;

use anyhow::{Context as _, anyhow, bail, ensure};
use clap::Args;
use nix::fcntl::Flock;

use crate::{
    agent::lock,
    cni::install::{Places, print},
    datapath::{
        kernel,
        pins::Pins,
        schema::{self, lock::Closed},
    },
    host::netlink::Netlink,
};

mod survey;
mod thing;

use survey::Survey;

#[derive(Debug, Args)]
pub(super) struct Cleanup {
    #[command(flatten)]
    places: Places,
    /// Show what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// Also remove the devices of the pods that are attached: they lose their network
    #[arg(long)]
    pods: bool,
    /// Go on although pods are attached: they lose their network, and keep their devices
    #[arg(long)]
    force: bool,
}

impl Cleanup {
    pub(super) fn run(&self, pins: &Pins) -> anyhow::Result<()> {
        kernel::check_privileges()?;
        // To look does no harm.
        let _locks = if self.dry_run { None } else { Some(keep_others_away(pins)?) };
        let mut netlink = Netlink::open()?;
        let Survey { things, mut problems, attached } =
            Survey::new(&mut netlink, pins, &self.places, self.pods);
        let consent = attached == 0 || self.pods || self.force;
        ensure!(
            consent || self.dry_run,
            "{attached} pods are attached: drain the node and repeat, or add --pods to remove their devices, or --force to \
             leave those"
        );
        for thing in things {
            let done = if self.dry_run {
                print(&format!("would remove {thing}"))
            } else {
                let removed = thing.remove(&mut netlink).with_context(|| format!("remove {thing}"));
                removed.and_then(|()| print(&format!("removed {thing}")))
            };
            problems.extend(done.err());
        }
        if !problems.is_empty() {
            let problems: Vec<_> = problems.iter().map(|problem| format!("{problem:#}")).collect();
            let what = if self.dry_run { "not all could be looked at" } else { "not all could be removed" };
            bail!("{what}: {}", problems.join("; "));
        }
        if !consent {
            print("pods are attached: this will need --pods or --force")?;
        }
        Ok(())
    }
}

/// The locks of the namespace and of all pins, and the one that keeps calls of the CNI plugin out.
type Locks = (Vec<Flock<fs::File>>, Option<Closed>);

fn keep_others_away(pins: &Pins) -> anyhow::Result<Locks> {
    let namespace = lock::namespace()?
        .ok_or_else(|| anyhow!("an overlay agent is running in this network namespace: stop it first"))?;
    let mut locks = vec![namespace];
    let mut schemas = schema::others(pins)?;
    schemas.push(pins.clone());
    for schema in schemas.iter().filter(|schema| schema.root().exists()) {
        let root = schema.root();
        locks.push(lock::pins(schema)?.ok_or_else(|| {
            anyhow!("an overlay agent is running with the pins in {}: stop it first", root.display())
        })?);
    }
    let closed = match schema::in_force(pins)? {
        Some(found) => schema::lock::close(&found)?,
        None => None,
    };
    Ok((locks, closed))
}
