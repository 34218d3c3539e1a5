//! STATUS: would ADD work?
//!
//! Runtimes ask every few seconds: a handful of system calls, no process, and no table is read whole.

use super::{
    failure::{Code, Failure},
    lease,
    local::Node,
    types::{Conf, Version},
};
use crate::{
    datapath::{
        attach::{Device, Programs, Role},
        pins::Pins,
        tables::{Endpoints, LeaseCursor},
    },
    host::netlink::{Link, Netlink},
};

/// What the configuration alone can be refused for.
pub(super) fn judge(conf: &Conf) -> Result<(), Failure> {
    conf.since(Version::V1_1_0, "STATUS")?;
    conf.supported()
}

/// Succeeds when pods can be added.
///
/// # Errors
///
/// [`Code::Unavailable`] when they cannot; [`Code::Degraded`] when those that are there may be cut off as well.
pub(super) fn status(conf: &Conf) -> Result<(), Failure> {
    judge(conf)?;
    let unavailable = |failure: Failure| Failure { code: Code::Unavailable, ..failure };
    let node = Node::read(&conf.pins).map_err(unavailable)?;
    for hook in Role::Pod.hooks() {
        let path = conf.pins.program(hook.name());
        if !path.exists() {
            let what =
                format!("{} is missing: restart the overlay agent, which pins it anew", path.display());
            return Err(Failure::new(Code::Unavailable, what));
        }
    }
    let mut netlink = Netlink::open().map_err(|e| unavailable(e.into()))?;
    tunnel_works(&mut netlink, &conf.pins, &node).map_err(|what| {
        let message = format!("{what}; the overlay agent puts that right: is it running?");
        Failure::new(Code::Degraded, message)
    })?;

    let room = || {
        let (endpoints, cursor) = (Endpoints::open(&conf.pins)?, LeaseCursor::open(&conf.pins)?);
        match lease::full(&endpoints, &cursor, &node)? {
            None => Ok(()),
            Some(net) => Err(lease::exhausted(&endpoints, net)),
        }
    };
    room().map_err(unavailable)
}

/// Looks for what all pods of the node share; says what is missing.
pub(super) fn tunnel_works(netlink: &mut Netlink, pins: &Pins, node: &Node) -> Result<(), String> {
    let anchor = link(netlink, node.anchor)?
        .ok_or_else(|| format!("the anchor device (index {}) is missing", node.anchor))?;
    if !anchor.up {
        return Err(format!("the anchor device {} is down", anchor.name));
    }
    attached(netlink, Role::Anchor, &anchor)?;
    // The underlay's device is known by the name of its link alone; filters have none.
    let underlays: Vec<u32> = pins
        .links()
        .map_err(|e| e.to_string())?
        .iter()
        .filter_map(|name| name.strip_prefix("wire_")?.split('_').next()?.parse().ok())
        .collect();
    for index in underlays {
        let underlay =
            link(netlink, index)?.ok_or_else(|| format!("the underlay device (index {index}) is missing"))?;
        attached(netlink, Role::Wire, &underlay)?;
    }
    Ok(())
}

fn link(netlink: &mut Netlink, index: u32) -> Result<Option<Link>, String> {
    netlink.link_by_index(index).map_err(|e| e.to_string())
}

fn attached(netlink: &mut Netlink, role: Role, link: &Link) -> Result<(), String> {
    let device = Device { name: &link.name, ifindex: link.index };
    for &hook in role.hooks() {
        if !Programs::is_attached(netlink, device, hook).map_err(|e| e.to_string())? {
            return Err(format!("the program {} is not attached to {}", hook.name(), link.name));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
