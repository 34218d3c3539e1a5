//! Ports that somebody else has: the tunnel's, and the one for probes.

use super::{Check, Report, Site, sockets};
use crate::{
    agent::is_anchor,
    host::{
        netlink::{Link, Netlink},
        nft::foreign::Carried,
    },
};

pub(super) struct Ports;

impl Check for Ports {
    fn name(&self) -> &'static str {
        "ports"
    }

    fn run(&self, site: &Site, report: &mut Report) -> anyhow::Result<()> {
        let Some(Carried { port, .. }) = site.carried() else {
            report.skip("the tunnel's port is not known without a configuration");
            return Ok(());
        };
        tunnel(port, report)?;
        probes(site, report)
    }
}

fn tunnel(port: u16, report: &mut Report) -> anyhow::Result<()> {
    let links = Netlink::open()?.links()?;
    let has_port = |link: &&Link| link.vxlan.as_ref().is_some_and(|vxlan| vxlan.port == port);
    let (own, foreign): (Vec<_>, Vec<_>) = links.iter().filter(has_port).partition(|link| is_anchor(link));
    for link in &foreign {
        let name = &link.name;
        report
            .error(
                format!("UDP port {port}"),
                format!("is taken by the vxlan device {name}: the agent cannot make its own"),
            )
            .evidence(format!("{name} is a vxlan device with dstport {port}"))
            .remedy(format!("ip link del {name}"));
    }
    // Who has the port has it alone; and a vxlan device's socket is its own.
    if own.is_empty() && foreign.is_empty() {
        for socket in sockets::udp(port)? {
            let (holder, remedy) = match socket.holder() {
                Some((name, pid)) => (format!("{name} (process {pid})"), format!("kill {pid}")),
                None => {
                    ("a socket that no process here holds".to_owned(), format!("ss -lunp sport = :{port}"))
                }
            };
            report
                .error(
                    format!("UDP port {port}"),
                    format!("is taken by {holder}: the agent cannot make its device"),
                )
                .evidence(format!("a socket is bound to {}:{port}", socket.address))
                .remedy(remedy);
        }
    }
    report.saw(format!("UDP port {port} is {}", if own.is_empty() { "free" } else { "the anchor device's" }));
    Ok(())
}

fn probes(site: &Site, report: &mut Report) -> anyhow::Result<()> {
    let Some(health) = site.settings.as_ref().ok().and_then(|settings| settings.health) else {
        return Ok(());
    };
    // An agent that runs has it, or would have ended.
    if site.agent.is_some() {
        report.saw(format!("TCP {health} is the agent's"));
        return Ok(());
    }
    let overlaps = |socket: &sockets::Bound| {
        let (one, other) = (socket.address, health.ip());
        one == other || one.is_unspecified() || other.is_unspecified()
    };
    for socket in sockets::listening(health.port())?.into_iter().filter(overlaps) {
        let (holder, remedy) = match socket.holder() {
            Some((name, pid)) => (format!("{name} (process {pid})"), format!("kill {pid}")),
            None => (
                "a process that cannot be seen from here".to_owned(),
                "choose another agent.health".to_owned(),
            ),
        };
        report
            .error(format!("TCP {health}"), format!("is taken by {holder}: the agent does not start"))
            .evidence(format!(
                "a socket listens on {}:{}; agent.health is {health}",
                socket.address, socket.port
            ))
            .remedy(remedy);
    }
    report.saw(format!("TCP {health} is free"));
    Ok(())
}
