//! What there is of overlay on a node: one list, in the order in which it is removed.
//!
//! Without any state of its own: what is ours is known by its name and kind, its protocol number, its place or its mark;
//! a device that was renamed by what the pinned maps know of it. What cannot be looked at is a problem, and keeps nothing else
//! from being found. What is called like ours and is another's is left.

use std::{
    collections::{BTreeSet, HashSet},
    fs, io,
    path::Path,
};

use anyhow::{Context as _, anyhow};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::thing::Thing;
use crate::{
    agent::is_anchor,
    cni::{
        install::{Places, print},
        is_pod_device, owner_text,
    },
    datapath::{
        attach,
        pins::Pins,
        schema, settings,
        tables::{Endpoints, LocalTable},
    },
    host::{
        netlink::{Link, Netlink, ROUTE_PROTOCOL},
        nft::{foreign, own},
        sysctl,
    },
};

/// A node as it is found.
#[derive(Default)]
pub(super) struct Survey {
    /// What is ours.
    pub(super) things: Vec<Thing>,
    /// What could not be looked at.
    pub(super) problems: Vec<anyhow::Error>,
    /// Pods that are attached.
    pub(super) attached: usize,
}

/// Which devices are ours.
struct Devices {
    anchors: Vec<Link>,
    pods: Vec<Link>,
    others: Vec<Link>,
}

impl Survey {
    /// Looks. With `pods` their devices are among it.
    pub(super) fn new(netlink: &mut Netlink, pins: &Pins, places: &Places, pods: bool) -> Self {
        let mut survey = Self::default();
        let links = survey.look(netlink.links());
        let devices = survey.devices(pins, links);
        // First: from now on the runtime adds no pod.
        let attached = survey.attached;
        let mut files = Vec::new();
        let found = places.uninstall(|| Ok(attached), true, &mut |path| {
            files.push(Thing::File(path.to_owned()));
            Ok(())
        });
        survey.things.append(&mut files);
        survey.look(found);
        let unfinished = survey.look(places.unfinished());
        survey.things.extend(unfinished.into_iter().map(Thing::File));

        let goes = |link: &Link| Thing::Device(link.name.clone());
        if pods {
            survey.things.extend(devices.pods.iter().map(goes));
        }
        // Those of devices that go, go with them.
        let stay = devices.others.iter().chain(devices.pods.iter().filter(|_| !pods));
        for link in stay {
            if survey.look(attach::has_filters(netlink, link.index)) {
                survey.things.push(Thing::Filters { name: link.name.clone(), index: link.index });
            }
        }
        survey.things.extend(devices.anchors.iter().map(goes));
        survey.routes(netlink);
        let tables = survey.look(own::tables());
        survey.things.extend(tables.into_iter().map(|(family, name)| Thing::Table(family, name)));
        let held = survey.look(foreign::held());
        survey.things.extend(held.into_iter().map(Thing::Accepts));
        survey.settings(pins);
        survey.pins(pins);
        survey
    }

    /// What was found; nothing, where the look failed.
    fn look<T: Default>(&mut self, result: Result<T, impl Into<anyhow::Error>>) -> T {
        result.unwrap_or_else(|error| {
            self.problems.push(error.into());
            T::default()
        })
    }

    fn devices(&mut self, pins: &Pins, links: Vec<Link>) -> Devices {
        // A map that cannot be read (any more) is removed like all others; names tell most.
        let readable = schema::readable(pins).ok();
        let local = readable.as_ref().and_then(|pins| LocalTable::open(pins).ok()?.get().ok());
        let endpoints =
            readable.and_then(|pins| Endpoints::open(&pins).ok()?.entries().ok()).unwrap_or_default();
        let of_pods: HashSet<u32> = endpoints.iter().map(|(_, endpoint)| endpoint.ifindex).collect();
        let mac = local.map(|local| local.gateway_mac);
        let mut devices = Devices { anchors: Vec::new(), pods: Vec::new(), others: Vec::new() };
        for link in links {
            // Renamed, it still has its index and its MAC.
            let known = mac.is_some() && link.mac == mac;
            let outside = link.vxlan.as_ref().is_some_and(|vxlan| vxlan.collect_metadata);
            let index = local.is_some_and(|local| local.anchor_ifindex == link.index);
            if is_anchor(&link) || outside && known && index {
                devices.anchors.push(link);
            } else if link.kind.as_deref() == Some("veth")
                && (is_pod_device(&link.name) || known && of_pods.contains(&link.index))
            {
                devices.pods.push(link);
            } else {
                devices.others.push(link);
            }
        }
        // A pod has an address of each family.
        let holders: HashSet<_> = endpoints.iter().map(|(_, endpoint)| owner_text(&endpoint.owner)).collect();
        self.attached = holders.len().max(devices.pods.len());
        devices
    }

    /// Rules first: what they lead to has to be complete while they are there.
    fn routes(&mut self, netlink: &mut Netlink) {
        let mut tables = BTreeSet::from([u32::from(ROUTE_PROTOCOL)]);
        for (source, table) in self.look(netlink.source_rules()) {
            tables.insert(table);
            self.things.push(Thing::Rule { source, table });
        }
        let routes = self.look(netlink.routes(Some(ROUTE_PROTOCOL)));
        self.things.extend(routes.into_iter().map(Thing::Route));
        for table in tables.into_iter().filter_map(|table| u8::try_from(table).ok()) {
            let routes = self.look(netlink.routes_of_table(table, Some(ROUTE_PROTOCOL)));
            self.things.extend(routes.into_iter().map(|route| Thing::RouteOfTable(table, route)));
        }
    }

    fn settings(&mut self, pins: &Pins) {
        for (path, value) in self.look(settings::remembered(pins)) {
            match sysctl::get(&path) {
                Ok(now) if now != value => self.things.push(Thing::Setting { path, value }),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => self.problems.push(error.into()),
            }
        }
    }

    /// All schemas, and whatever else is in their directories.
    fn pins(&mut self, pins: &Pins) {
        let root = pins.base().unwrap_or_else(|| pins.root());
        match statfs(root) {
            Err(nix::Error::ENOENT) => return,
            Err(error) => {
                self.problems.push(anyhow!(error).context(format!("look at {}", root.display())));
                return;
            }
            Ok(stat) if stat.filesystem_type() != BPF_FS_MAGIC => {
                return self.look(print(&format!("left {}: it is not on a BPF file system", root.display())));
            }
            Ok(_) => {}
        }
        if pins.base().is_none() {
            return self.below(root);
        }
        let mut own = schema::others(pins).unwrap_or_default();
        own.push(pins.clone());
        own.sort_by_key(Pins::schema);
        for schema in own.iter().filter(|schema| schema.root().exists()) {
            self.below(schema.root());
        }
        let beside = [schema::pointer(pins), Some(settings::pin(pins))];
        for path in beside.into_iter().flatten().filter(|path| path.is_symlink() || path.exists()) {
            self.things.push(Thing::Pin(path));
        }
        // The default one is ours, whoever's another one is.
        let empties = |path: &Path| {
            let gone: Vec<_> = self.things.iter().filter_map(Thing::pinned).collect();
            fs::read_dir(path)
                .is_ok_and(|mut entries| entries.all(|e| e.is_ok_and(|e| gone.contains(&e.path().as_path()))))
        };
        if root.ends_with("overlay") && empties(root) {
            self.things.push(Thing::Directory(root.to_owned()));
        }
    }

    /// A directory: contents before what holds them.
    fn below(&mut self, directory: &Path) {
        let listed = fs::read_dir(directory).with_context(|| format!("list {}", directory.display()));
        let Some(entries) = self.look(listed.map(Some)) else { return };
        let mut entries: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        entries.sort();
        for path in entries {
            if path.is_dir() && !path.is_symlink() {
                self.below(&path);
            } else {
                self.things.push(Thing::Pin(path));
            }
        }
        self.things.push(Thing::Directory(directory.to_owned()));
    }
}
