//! One thing of overlay on a node: what it is called, and how it is removed. The same words whether it would be removed or was.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use anyhow::anyhow;
use ipnet::IpNet;

use crate::{
    datapath::attach,
    family::Family,
    host::{
        netlink::{Netlink, Route},
        nft::{
            foreign::{self, DropChain},
            own,
        },
        sysctl,
    },
};

/// Something to remove. Removing what has gone already is success: some go with others.
pub(super) enum Thing {
    /// A file on disk.
    File(PathBuf),
    Device(String),
    /// Programs attached by filters.
    Filters {
        name: String,
        index: u32,
    },
    Rule {
        source: IpNet,
        table: u32,
    },
    Route(Route),
    RouteOfTable(u8, Route),
    /// One of ours.
    Table(Family, &'static str),
    /// Rules of ours in a chain of others.
    Accepts(DropChain),
    /// A map, a program, a link, or whatever else is in a directory of pins.
    Pin(PathBuf),
    Directory(PathBuf),
    /// A kernel setting that is to be again what it was.
    Setting {
        path: String,
        value: String,
    },
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Device(name) => write!(f, "device {name}"),
            Self::Filters { name, .. } => write!(f, "tc filters of {name}"),
            Self::Rule { source, table } => write!(f, "rule from {source} to table {table}"),
            Self::Route(route) => write!(f, "route {route}"),
            Self::RouteOfTable(table, route) => write!(f, "route {route} in table {table}"),
            Self::Table(family, name) => write!(f, "nft table {} {name}", family.nft()),
            Self::Accepts(chain) => write!(f, "accepts in chain {chain}"),
            Self::Pin(path) => write!(f, "pin {}", path.display()),
            Self::Directory(path) => write!(f, "directory {}", path.display()),
            Self::Setting { path, value } => write!(f, "setting {path}, back to {value}"),
        }
    }
}

impl Thing {
    /// Its path, if it is pinned or a directory of pins.
    pub(super) fn pinned(&self) -> Option<&Path> {
        match self {
            Self::Pin(path) | Self::Directory(path) => Some(path),
            _ => None,
        }
    }

    pub(super) fn remove(&self, netlink: &mut Netlink) -> anyhow::Result<()> {
        match self {
            Self::File(path) | Self::Pin(path) => gone(fs::remove_file(path)),
            Self::Directory(path) => gone(fs::remove_dir(path)),
            Self::Device(name) => Ok(netlink.delete_link(name).map(drop)?),
            Self::Filters { name, index } => match attach::remove_filters(netlink, *index) {
                // The device has gone since.
                Err(_) if netlink.link(name)?.is_none() => Ok(()),
                other => Ok(other?),
            },
            Self::Rule { source, table } => Ok(netlink.delete_source_rule(*source, *table)?),
            Self::Route(route) => Ok(netlink.delete_route(route).map(drop)?),
            Self::RouteOfTable(table, route) => Ok(netlink.delete_route_in((*table).into(), route)?),
            Self::Table(family, name) => Ok(own::remove(*family, name).map(drop)?),
            Self::Accepts(chain) => Ok(foreign::remove_from(chain)?),
            Self::Setting { path, value } => match sysctl::set(path, value) {
                // Of a device that is no more.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                other => Ok(other?),
            },
        }
    }
}

fn gone(result: io::Result<()>) -> anyhow::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(anyhow!(error)),
        _ => Ok(()),
    }
}
