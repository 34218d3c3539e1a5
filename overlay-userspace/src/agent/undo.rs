//! Taking back what a start that failed has made: pins, anchor device and routes that were not there before it.
//!
//! Nothing that was there before is touched, so that an agent that fails on a node with pods leaves them their network.

use std::{
    collections::HashSet,
    fmt::Display,
    fs, io,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use log::warn;

use crate::{
    datapath::pins::{self, Pins},
    host::netlink::{Netlink, NetlinkError, ROUTE_PROTOCOL, Route},
};

/// What is there before a start.
pub(super) struct Before {
    root: PathBuf,
    /// The topmost directory on the way to the pins that does not exist.
    absent: Option<PathBuf>,
    pinned: HashSet<PathBuf>,
    links: HashSet<String>,
    routes: Vec<Route>,
    rules: Vec<(IpNet, u32)>,
}

impl Before {
    /// Reads it.
    pub(super) fn read(pins: &Pins) -> Result<Self, NetlinkError> {
        let mut netlink = Netlink::open()?;
        let root = pins.root().to_owned();
        Ok(Self {
            absent: root.ancestors().take_while(|dir| !dir.exists()).last().map(Path::to_owned),
            pinned: below(&root).into_iter().collect(),
            links: netlink.links()?.into_iter().map(|link| link.name).collect(),
            routes: netlink.routes(Some(ROUTE_PROTOCOL))?,
            rules: netlink.source_rules()?,
            root,
        })
    }

    /// Removes what was not there: `anchor`, by name, among it. What fails is logged and does not stop the rest.
    pub(super) fn restore(&self, anchor: &str) {
        match &self.absent {
            Some(directory) => report(&directory.display(), pins::remove(directory)),
            None => {
                for path in below(&self.root).iter().filter(|path| !self.pinned.contains(*path)) {
                    report(&path.display(), remove(path));
                }
            }
        }
        let mut netlink = match Netlink::open() {
            Ok(netlink) => netlink,
            Err(e) => return report::<()>(&anchor, Err(e)),
        };
        if !self.links.contains(anchor) {
            report(&anchor, netlink.delete_link(anchor));
        }
        for (source, table) in netlink.source_rules().unwrap_or_default() {
            if !self.rules.contains(&(source, table)) {
                report(&format_args!("rule from {source}"), netlink.delete_source_rule(source, table));
            }
        }
        // The routes through the anchor have gone with it.
        let routes = netlink.routes(Some(ROUTE_PROTOCOL)).unwrap_or_default();
        for route in routes.iter().filter(|route| !self.routes.contains(route)) {
            report(&route, netlink.delete_route(route));
        }
    }
}

fn report<T>(what: &dyn Display, result: Result<T, impl Display>) {
    if let Err(error) = result {
        warn!("take back {what}: {error}");
    }
}

/// Everything below a directory, contents before the directories that hold them.
fn below(directory: &Path) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            paths.extend(below(&path));
        }
        paths.push(path);
    }
    paths
}

fn remove(path: &Path) -> io::Result<()> {
    if path.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netns::testing::{in_fresh_netns, ip, run};

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("overlay-undo-{name}-{}", std::process::id()))
    }

    #[test]
    fn what_was_not_there_goes_and_what_was_stays() {
        let root = scratch("adopted");
        fs::create_dir_all(root.join("maps")).unwrap();
        fs::write(root.join("maps/NODES"), "").unwrap();
        in_fresh_netns(|| {
            ip("link add d0 up type veth peer name d0p");
            ip("route add unreachable 10.244.1.0/24 proto 79");
            ip("route add unreachable fd00:244:0:1::/64 proto 79");
            ip("-6 rule add from fd00:244:0:7::/64 table 79 proto 79");
            let before = Before::read(&Pins::new(&root)).unwrap();
            ip("link add overlay.1 up type veth peer name p");
            ip("link add other type veth peer name q");
            ip("route add 10.244.0.0/16 dev overlay.1 proto 79");
            ip("route add 10.244.7.0/24 dev d0 proto 79");
            ip("route add fd00:244:0:7::/64 dev d0 proto 79");
            for source in ["10.244.1.0/24", "fd00:244:0:1::/64"] {
                let mut netlink = Netlink::open().unwrap();
                netlink.add_source_rule(source.parse::<IpNet>().unwrap(), 79_u32).unwrap();
            }
            fs::create_dir(root.join("links")).unwrap();
            fs::write(root.join("links/wire_3_from_wire"), "").unwrap();
            fs::write(root.join("maps/LOCAL"), "").unwrap();
            before.restore("overlay.1");

            let links = run("ip -br link");
            assert!(!links.contains("overlay.1") && links.contains("other"), "{links}");
            assert_eq!(run("ip route show proto 79").trim_end(), "unreachable 10.244.1.0/24");
            let left = run("ip -6 route show proto 79");
            assert!(
                left.starts_with("unreachable fd00:244:0:1::/64 ") && left.lines().count() == 1,
                "{left}"
            );
            let rules =
                ["-4", "-6"].map(|flag| run(&format!("ip {flag} rule show")).matches("lookup 79").count());
            assert_eq!(rules, [0, 1]);
        });
        assert_eq!(below(&root), [root.join("maps/NODES"), root.join("maps")]);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_root_that_was_not_there_goes_with_its_new_parents() {
        let base = scratch("fresh");
        fs::create_dir(&base).unwrap();
        let root = base.join("overlay/v1");
        in_fresh_netns(|| {
            let before = Before::read(&Pins::new(&root)).unwrap();
            fs::create_dir_all(root.join("maps")).unwrap();
            fs::write(root.join("maps/NODES"), "").unwrap();
            before.restore("overlay.1");
        });
        assert_eq!(below(&base), Vec::<PathBuf>::new());
        fs::remove_dir(base).unwrap();
    }
}
