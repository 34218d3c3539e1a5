//! What is attached where, as the kernel has it: tcx links by their pins, clsact filters by tc(8).

use std::collections::{BTreeMap, BTreeSet};

use overlay_userspace::datapath::kernel;
use serde_json::Value;

use crate::lab::{Node, exec};

/// How programs are attached: `attach` in the cluster file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// tcx links.
    Tcx,
    /// Filters.
    Clsact,
}

impl Mode {
    /// Links, where the kernel has them (Linux 6.6).
    pub fn best() -> Self {
        if kernel::has_tcx() { Self::Tcx } else { Self::Clsact }
    }

    /// As the cluster file and `overlay status` call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// Everything that is attached on a node: by place the program's name, its id and, in tcx mode, the link's id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached(BTreeMap<String, Program>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Program {
    name: String,
    id: u64,
    link: Option<u64>,
}

impl Attached {
    /// Reads it, and makes sure that it is what the mode is about: on each of our devices each program once, as a tcx
    /// link or as a filter, and none of the other kind.
    #[track_caller]
    pub fn read(node: &Node, mode: Mode) -> Self {
        assert_eq!(node.status().expect("overlay status works")["attach"], mode.name());
        let (filters, links) = (filters(node), links(node));
        let (ours, others) = match mode {
            Mode::Tcx => (links, filters),
            Mode::Clsact => (filters, links),
        };
        assert_eq!(others, BTreeMap::new(), "{}: attached in another way than {mode:?}", node.name());
        // Anchor: two, underlay: one, and two for each pod.
        let endpoints = node.show("endpoints");
        let endpoints = endpoints.as_array().expect("a list").iter();
        // One of each family.
        let pods = endpoints.map(|endpoint| endpoint["ifindex"].as_u64()).collect::<BTreeSet<_>>().len();
        assert_eq!(ours.len(), 3 + 2 * pods, "{}: {ours:#?}", node.name());
        let attached = Self(ours);
        // One load of the object at a time.
        assert_eq!(attached.programs().len(), if pods == 0 { 3 } else { 5 }, "{attached:#?}");
        attached
    }

    /// The ids of all programs.
    fn programs(&self) -> BTreeSet<u64> {
        self.0.values().map(|program| program.id).collect()
    }

    /// Everything that was attached `before` still is, by the same links, but runs programs of a newer load.
    #[track_caller]
    pub fn adopts(&self, before: &Self) {
        for (place, old) in &before.0 {
            let new = self.0.get(place).unwrap_or_else(|| panic!("nothing is attached at {place} any more"));
            assert_eq!((&new.name, new.link), (&old.name, old.link), "{place}");
        }
        assert!(self.programs().is_disjoint(&before.programs()), "{self:#?} has programs of {before:#?}");
    }
}

/// The pinned links by name.
#[track_caller]
fn links(node: &Node) -> BTreeMap<String, Program> {
    let links = node.show("links");
    let number = |link: &Value, key: &str| link[key].as_u64().unwrap_or_else(|| panic!("no {key}: {link}"));
    let links = links.as_array().expect("a list").iter().filter(|link| !link["link_id"].is_null());
    let links = links.map(|link| {
        let place = link["name"].as_str().expect("a link has a name").to_owned();
        let name = ["from_pod", "to_pod", "from_host", "from_tunnel", "from_wire"]
            .into_iter()
            .find(|name| place.ends_with(name))
            .unwrap_or_else(|| panic!("no program in {place}"));
        let (id, link) = (number(link, "program_id"), number(link, "link_id"));
        (place, Program { name: name.to_owned(), id, link: Some(link) })
    });
    links.collect()
}

/// The filters with programs on all devices of the node, by device and direction. Two in one place: a failure.
#[track_caller]
fn filters(node: &Node) -> BTreeMap<String, Program> {
    let devices = node.namespace().ip_json("link show");
    let mut filters = BTreeMap::new();
    for device in devices.as_array().expect("a list").iter().filter_map(|device| device["ifname"].as_str()) {
        for direction in ["ingress", "egress"] {
            let mut tc = node.namespace().command("tc");
            let text = exec::must(tc.args(["-json", "filter", "show", "dev", device, direction]), "");
            let shown: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
            for filter in shown.as_array().expect("a list") {
                // tc prints a line for the protocol and one for each filter.
                let Some(id) = filter["options"]["prog"]["id"].as_u64() else { continue };
                let name = filter["options"]["prog"]["name"].as_str().unwrap_or_default().to_owned();
                let before =
                    filters.insert(format!("{device} {direction}"), Program { name, id, link: None });
                assert_eq!(before, None, "{}: two filters on {device} {direction}: {text}", node.name());
            }
        }
    }
    filters
}
