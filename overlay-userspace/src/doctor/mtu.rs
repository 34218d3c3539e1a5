//! MTU: the underlay's, the pods', and what the paths between nodes really carry.

use std::{collections::HashMap, net::IpAddr};

use super::{
    Check, Report, Site,
    icmp::{Prober, SMALL},
};
use crate::{
    datapath::tables::Endpoints,
    family::{Family, OfFamily as _},
    host::{
        netlink::Netlink,
        underlay::{OVERHEAD_IPV4, OVERHEAD_IPV6, Underlay},
    },
};

pub(super) struct Mtu;

impl Check for Mtu {
    fn name(&self) -> &'static str {
        "mtu"
    }

    fn run(&self, site: &Site, report: &mut Report) -> anyhow::Result<()> {
        let Some(config) = site.config() else {
            report.skip("neither the underlay nor the peers are known: see the check nodes");
            return Ok(());
        };
        let mut netlink = Netlink::open()?;
        let underlay = match Underlay::find(&mut netlink, config.vtep(), config.network.interface.as_deref())
        {
            Ok(underlay) => underlay,
            Err(error) => {
                report
                    .error("underlay", "no device carries the tunnel")
                    .evidence(error.to_string())
                    .remedy("see the evidence");
                return Ok(());
            }
        };
        let device = underlay.link.name.clone();
        let mtu = match underlay.pod_mtu(config.network.mtu) {
            Ok(mtu) => mtu,
            Err(error) => {
                report
                    .error(device, "carries less than pods' packets take")
                    .evidence(error.to_string())
                    .remedy("see the evidence");
                return Ok(());
            }
        };
        report.saw(format!("pods' MTU is {mtu}, that of {device} {}", underlay.link.mtu));
        pods(site, &mut netlink, underlay.link.mtu - underlay.overhead(), report)?;
        // A peer's tunnel goes over one family, or, of a peer that is not overlay, over that of each packet.
        let (own, preferred) = (config.nodes.own(), config.network.underlay.preferred());
        for outer in Family::ALL {
            let mut peers: HashMap<IpAddr, &str> = HashMap::new();
            for (peer, inner) in
                config.nodes.peers().flat_map(|peer| own.subnets.iter().map(move |(inner, _)| (peer, inner)))
            {
                let tunnel = peer.tunnel(inner, own, preferred);
                if let Some(vtep) = tunnel.map(|tunnel| tunnel.vtep).filter(|vtep| vtep.family() == outer) {
                    peers.insert(vtep, &peer.name);
                }
            }
            paths(outer, &peers, mtu, report)?;
        }
        Ok(())
    }
}

/// Bytes that the tunnel adds to a pod's packet.
const fn overhead(outer: Family) -> u32 {
    match outer {
        Family::Ipv4 => OVERHEAD_IPV4,
        Family::Ipv6 => OVERHEAD_IPV6,
    }
}

/// Pods keep the MTU that they were made with.
fn pods(site: &Site, netlink: &mut Netlink, largest: u32, report: &mut Report) -> anyhow::Result<()> {
    if site.local.is_none() {
        return Ok(());
    }
    let links = netlink.links()?;
    for (address, endpoint) in Endpoints::open(&site.pins)?.entries()? {
        let Some(link) = links.iter().find(|link| link.index == endpoint.ifindex) else { continue };
        if link.mtu > largest {
            report
                .error(
                    format!("pod {}", address.to_ip()),
                    format!("sends packets of up to {} bytes, the tunnel carries {largest}", link.mtu),
                )
                .evidence(format!(
                    "{} has MTU {}; it was made when the underlay's was larger",
                    link.name, link.mtu
                ))
                .remedy("delete the pod, so that it is made anew");
        }
    }
    Ok(())
}

/// What paths of tunnels over this family carry, with pods that send packets of up to `mtu` bytes.
fn paths(outer: Family, peers: &HashMap<IpAddr, &str>, mtu: u32, report: &mut Report) -> anyhow::Result<()> {
    if peers.is_empty() {
        return Ok(());
    }
    let overhead = overhead(outer);
    let needed = u16::try_from(mtu + overhead).unwrap_or(u16::MAX);
    let mut prober = match Prober::open(outer) {
        Ok(prober) => prober,
        Err(error) => {
            report.saw(format!("paths were not measured, which takes CAP_NET_RAW: {error}"));
            return Ok(());
        }
    };
    let each = |length: u16| peers.keys().map(|peer| (*peer, length)).collect::<Vec<_>>();
    let all = prober.ask(&each(needed))?;
    let silent: Vec<_> = peers.keys().filter(|peer| !all.contains(*peer)).copied().collect();
    let asked: Vec<_> = silent.iter().map(|peer| (*peer, SMALL)).collect();
    let reached = if asked.is_empty() { std::collections::HashSet::new() } else { prober.ask(&asked)? };
    let narrow: Vec<_> = silent.iter().filter(|peer| reached.contains(*peer)).copied().collect();
    for (peer, carried) in prober.measure(&narrow, needed)? {
        let name = peers.get(&peer).copied().unwrap_or_default();
        let fits = u32::from(carried).saturating_sub(overhead);
        report
            .error(
                format!("path to {name}"),
                format!("carries {carried} bytes, tunnel packets have up to {needed}: large packets vanish"),
            )
            .evidence(format!("{peer} answers an echo of {carried} bytes, and none of {}, that must not be cut up", carried + 1))
            .remedy(format!(
                "have the path carry {needed} bytes; or set network.mtu = {fits} on all nodes (the least that any of them says) and make the pods anew"
            ));
    }
    report.saw(format!("{} of {} paths carry {needed} bytes", all.len(), peers.len()));
    let unknown = silent.len() - narrow.len();
    if unknown > 0 {
        report.saw(format!("{unknown} peers answer no echo, so that nothing is known of their paths"));
    }
    Ok(())
}
