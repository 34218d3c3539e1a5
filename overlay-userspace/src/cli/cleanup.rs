//! `overlay cleanup`: removes every trace of the agent and of the CNI plugin from a node.
//!
//! Idempotent, and without any state of its own: what is ours is known by its name, its protocol number, its place or
//! its mark. What cannot be removed does not keep the rest from being removed; all of it is said in the end. Nothing is
//! taken from a node that an agent works on, which would put it back, or that has pods, which would lose their network
//! without notice, unless that is asked for.
//!
//! Kernel settings stay: what `ip_forward` was before, nobody has noted.

use std::{collections::BTreeSet, fmt::Display, fs, io};

use anyhow::{Context as _, anyhow, bail, ensure};
use clap::Args;
use nix::fcntl::Flock;

use crate::{
    agent::{is_anchor, lock},
    cni::{
        install::{self, Places, print},
        is_pod_device,
    },
    datapath::{
        attach, kernel,
        pins::{self, Pins},
    },
    host::{
        netlink::{Link, Netlink, ROUTE_PROTOCOL},
        nft::{foreign, own},
    },
};

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
        let _locks = if self.dry_run { None } else { Some(keep_agents_away(pins)?) };
        let mut netlink = Netlink::open()?;
        let links = netlink.links()?;
        let pods: Vec<_> = links.iter().filter(|link| is_pod(link)).collect();
        // A map that cannot be read (any more) is removed like all others; the devices tell of pods as well.
        let attached = install::attached(pins).unwrap_or_default().max(pods.len());
        ensure!(
            attached == 0 || self.pods || self.force || self.dry_run,
            "{attached} pods are attached: drain the node and repeat, or add --pods to remove their devices, or --force to \
             leave those"
        );
        let mut sweep = Sweep { dry_run: self.dry_run, problems: Vec::new() };
        // First: from now on the runtime adds no pod.
        let uninstalled = self.places.uninstall(|| Ok(attached), true, &mut |path| {
            sweep.remove(path.display(), || Ok(fs::remove_file(path)?));
            Ok(())
        });
        sweep.look(uninstalled);
        if self.pods {
            for link in &pods {
                sweep.remove(format_args!("device {}", link.name), || {
                    Ok(netlink.delete_link(&link.name).map(drop)?)
                });
            }
        }
        sweep.filters(&mut netlink, &links, self.pods);
        for link in links.iter().filter(|link| is_anchor(link)) {
            sweep.remove(format_args!("device {}", link.name), || {
                Ok(netlink.delete_link(&link.name).map(drop)?)
            });
        }
        sweep.routes(&mut netlink);
        sweep.packet_filter();
        sweep.pins(pins);
        sweep.result(attached > 0 && !self.pods && !self.force)
    }
}

/// The locks of the namespace and, where there are any, of the pins.
type Locks = (Flock<fs::File>, Option<Flock<fs::File>>);

fn keep_agents_away(pins: &Pins) -> anyhow::Result<Locks> {
    let namespace = lock::namespace()?
        .ok_or_else(|| anyhow!("an overlay agent is running in this network namespace: stop it first"))?;
    if !pins.root().exists() {
        return Ok((namespace, None));
    }
    let root = pins.root();
    let pins = lock::pins(pins)?.ok_or_else(|| {
        anyhow!("an overlay agent is running with the pins in {}: stop it first", root.display())
    })?;
    Ok((namespace, Some(pins)))
}

fn is_pod(link: &Link) -> bool {
    link.kind.as_deref() == Some("veth") && is_pod_device(&link.name)
}

/// Removes one thing after the other, or says what it would.
struct Sweep {
    dry_run: bool,
    problems: Vec<anyhow::Error>,
}

impl Sweep {
    fn remove(&mut self, what: impl Display, act: impl FnOnce() -> anyhow::Result<()>) {
        let done = if self.dry_run {
            print(&format!("would remove {what}"))
        } else {
            act().with_context(|| format!("remove {what}")).and_then(|()| print(&format!("removed {what}")))
        };
        self.look(done);
    }

    /// What was found; nothing, where the look failed.
    fn look<T: Default>(&mut self, result: Result<T, impl Into<anyhow::Error>>) -> T {
        result.unwrap_or_else(|error| {
            self.problems.push(error.into());
            T::default()
        })
    }

    /// Programs attached by clsact; those of links that are pinned go with the pins.
    fn filters(&mut self, netlink: &mut Netlink, links: &[Link], pods_are_gone: bool) {
        for link in links.iter().filter(|link| !(is_anchor(link) || pods_are_gone && is_pod(link))) {
            if self.look(attach::has_filters(netlink, link.index)) {
                self.remove(format_args!("tc filters of {}", link.name), || {
                    Ok(attach::remove_filters(netlink, link.index)?)
                });
            }
        }
    }

    /// Rules first: what they lead to has to be complete while they are there.
    fn routes(&mut self, netlink: &mut Netlink) {
        let mut tables = BTreeSet::from([u32::from(ROUTE_PROTOCOL)]);
        for (source, table) in self.look(netlink.source_rules()) {
            tables.insert(table);
            self.remove(format_args!("rule from {source} to table {table}"), || {
                Ok(netlink.delete_source_rule(source, table)?)
            });
        }
        for route in self.look(netlink.routes(Some(ROUTE_PROTOCOL))) {
            self.remove(format_args!("route {route}"), || Ok(netlink.delete_route(&route).map(drop)?));
        }
        for table in tables.into_iter().filter_map(|table| u8::try_from(table).ok()) {
            for route in self.look(netlink.routes_of_table(table, Some(ROUTE_PROTOCOL))) {
                self.remove(format_args!("route {route} in table {table}"), || {
                    Ok(netlink.delete_route_in(table.into(), &route)?)
                });
            }
        }
    }

    fn packet_filter(&mut self) {
        for table in self.look(own::tables()) {
            self.remove(format_args!("nft table ip {table}"), || Ok(own::remove(table).map(drop)?));
        }
        let held = self.look(foreign::held());
        for chain in &held {
            self.remove(format_args!("accepts in chain {chain}"), || Ok(foreign::remove_from(chain)?));
        }
    }

    fn pins(&mut self, pins: &Pins) {
        let root = pins.root();
        if !root.exists() {
            return;
        }
        self.remove(format_args!("pins in {}", root.display()), || Ok(pins::remove(root)?));
        // That of the default, for all schemas.
        let Some(parent) = root.parent().filter(|parent| parent.ends_with("overlay")) else { return };
        match fs::remove_dir(parent) {
            _ if self.dry_run => {}
            Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => {
                self.problems.push(anyhow!(error).context(format!("remove {}", parent.display())));
            }
            _ => {}
        }
    }

    fn result(self, needs_consent: bool) -> anyhow::Result<()> {
        if !self.problems.is_empty() {
            let problems: Vec<_> = self.problems.iter().map(|problem| format!("{problem:#}")).collect();
            bail!("not all could be removed: {}", problems.join("; "));
        }
        if needs_consent {
            print("pods are attached: this will need --pods or --force")?;
        }
        Ok(())
    }
}
