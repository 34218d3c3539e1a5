//! MTU: the underlay's, the pods', and what the paths between nodes really carry.
//!
//! A path that carries less than tunnel packets may have is an error where packets vanish on it. Where the kernel of this node
//! knows (from the route, the device, or what a router has said, also to the echoes of this check), the programs tell pods,
//! and connections find their size: that is a warning.

use std::{collections::HashMap, net::IpAddr};

use super::{
    Check, Report, Site,
    icmp::{Prober, SMALL},
};
use crate::{
    datapath::tables::Endpoints,
    family::{Family, OfFamily as _},
    host::{
        netlink::{Netlink, Traveller, Way},
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
            paths(&mut netlink, outer, &peers, mtu, report)?;
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
fn paths(
    netlink: &mut Netlink,
    outer: Family,
    peers: &HashMap<IpAddr, &str>,
    mtu: u32,
    report: &mut Report,
) -> anyhow::Result<()> {
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
        let (object, size) = (
            format!("path to {name}"),
            format!("carries {carried} bytes, tunnel packets have up to {needed}"),
        );
        let echoes = format!(
            "{peer} answers an echo of {carried} bytes, and none of {}, that must not be cut up",
            carried + 1
        );
        let wider = format!("have the path carry {needed} bytes");
        let less = format!(
            "set network.mtu = {fits} on all nodes (the least that any of them says) and make the pods anew"
        );
        match known(netlink, peer)?.filter(|known| *known <= u32::from(carried)) {
            Some(known) => report
                .warning(object, format!("{size}: senders are told, which costs each a first try"))
                .evidence(format!("{echoes}; the kernel of this node knows of {known} (ip route get {peer})"))
                .remedy(format!("none is needed; to save the tries {wider}, or {less}")),
            None => report
                .error(object, format!("{size}: large packets vanish"))
                .evidence(echoes)
                .remedy(format!("{wider}; or {less}")),
        };
    }
    report.saw(format!("{} of {} paths carry {needed} bytes", all.len(), peers.len()));
    let unknown = silent.len() - narrow.len();
    if unknown > 0 {
        report.saw(format!("{unknown} peers answer no echo, so that nothing is known of their paths"));
    }
    Ok(())
}

/// What the kernel takes for the MTU of the path to a peer, in bytes: that is what the programs go by.
fn known(netlink: &mut Netlink, peer: IpAddr) -> anyhow::Result<Option<u32>> {
    let way = netlink.way(Traveller { src: None, dst: peer, iif: None, transport: None })?;
    let Way::Out { oif, mtu, .. } = way else { return Ok(None) };
    if mtu.is_some() {
        return Ok(mtu);
    }
    Ok(netlink.links()?.into_iter().find(|link| link.index == oif).map(|link| link.mtu))
}

/// What that leaves for a pod's packet to the peer with this tunnel address; `None` where there is no way, or the kernel does not say.
pub(super) fn known_inner(vtep: IpAddr) -> Option<usize> {
    let known = known(&mut Netlink::open().ok()?, vtep).ok()??;
    usize::try_from(known.saturating_sub(overhead(vtep.family()))).ok()
}
