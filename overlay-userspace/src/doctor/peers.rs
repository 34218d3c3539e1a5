//! Every peer, by packets through the tunnel: a small one, and one as large as pods send.
//!
//! The probes are those of the health mesh ([`crate::mesh`]), and the peers' agents answer them. Where this node's kernel knows
//! of a path that carries less, pods are told to send less ([`super::mtu`]), and so is a probe as large as fits.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use overlay_common::maps::FAMILY_V4;

use super::{
    Check, Report, Site,
    icmp::{Prober, SMALL},
    mtu,
};
use crate::{
    datapath::tables::Nodes,
    family::{Family, OfFamily as _},
    mesh::{
        self,
        ask::{ProbeError, SMALLEST, probe},
    },
};

pub(super) struct Peers;

/// How long an answer may take, and how often it is asked for.
const LIMIT: Duration = Duration::from_millis(700);
const TRIES: usize = 3;
/// Peers that are asked at a time.
const CROWD: usize = 32;

/// What came of asking a peer.
enum Outcome {
    Fine,
    NoAgent,
    /// Not even a small packet comes back.
    Dead(ProbeError),
    /// Small ones do, large ones do not.
    Small(ProbeError),
}

impl Check for Peers {
    fn name(&self) -> &'static str {
        "peers"
    }

    fn run(&self, site: &Site, report: &mut Report) -> anyhow::Result<()> {
        let Some(local) = &site.local else {
            report.skip("overlay is not installed on this node");
            return Ok(());
        };
        let mesh = site.settings.as_ref().map(|settings| &settings.mesh);
        if mesh.is_ok_and(|mesh| !mesh.enabled) {
            report.skip("the nodes answer no probes (agent.mesh.enabled)");
            return Ok(());
        }
        let port = mesh.map_or(mesh::PORT, |mesh| mesh.port);
        let own = |peer: IpAddr| local.gateway[peer.family().index()].to_ip();
        let primary = if usize::from(local.primary) == FAMILY_V4 { Family::Ipv4 } else { Family::Ipv6 };
        let order = [primary, primary.other()];
        let full = usize::try_from(local.mtu)?;
        let peers: Vec<_> = mesh::peers(&Nodes::open(&site.pins)?.entries()?, order).into_iter().collect();
        let outcomes = ask_all(&peers, |vtep, gateway| {
            let fits = || mtu::known_inner(vtep).map_or(full, |known| full.min(known));
            ask(own(gateway), SocketAddr::new(gateway, port), fits)
        });
        let reached = |vtep: &IpAddr| {
            // Without the right to ask, nothing is known.
            Some(Prober::open(vtep.family()).ok()?.ask(&[(*vtep, SMALL)]).ok()?.contains(vtep))
        };
        for (vtep, outcome) in &outcomes {
            let name = name(site, *vtep);
            match outcome {
                Outcome::Fine => {}
                Outcome::NoAgent => {
                    report
                        .warning(name, "is reached through the tunnel, but no agent answers there")
                        .evidence(format!("{vtep}: port {port} is closed"))
                        .remedy("start the agent there; its pods keep their network meanwhile");
                }
                Outcome::Dead(error) => {
                    let (underlay, remedy) = match reached(vtep) {
                        Some(true) => (
                            format!("{vtep} itself answers an echo"),
                            format!("on that node: overlay doctor; between the nodes: let UDP port {} pass", local.port),
                        ),
                        Some(false) => (
                            format!("{vtep} itself answers no echo either"),
                            "have the underlay connect the nodes: see whether that one runs, cables, routes, firewalls between".into(),
                        ),
                        None => (String::new(), "on that node: overlay doctor".into()),
                    };
                    report
                        .error(name, "does not answer through the tunnel: its pods are not reached")
                        .evidence(format!("{error}; {underlay}").trim_end_matches("; "))
                        .remedy(remedy);
                }
                Outcome::Small(error) => {
                    report
                        .error(name, "answers small packets only: large ones vanish in the tunnel")
                        .evidence(error.to_string())
                        .remedy("overlay doctor --only mtu, here and there, says what the path carries");
                }
            }
        }
        let fine = outcomes.values().filter(|outcome| matches!(outcome, Outcome::Fine)).count();
        report.saw(format!(
            "{fine} of {} peers answer packets of up to {full} bytes through the tunnel",
            peers.len()
        ));
        Ok(())
    }
}

fn name(site: &Site, vtep: IpAddr) -> String {
    let config = site.config();
    let nodes = config.as_ref().map(|config| config.nodes.nodes()).unwrap_or_default();
    let name = nodes
        .iter()
        .find(|node| node.addresses.values().any(|address| *address == vtep))
        .map(|node| node.name.clone());
    format!("peer {}", name.unwrap_or_else(|| vtep.to_string()))
}

/// All peers, some at a time.
fn ask_all(
    peers: &[(IpAddr, IpAddr)],
    ask: impl Fn(IpAddr, IpAddr) -> Outcome + Sync,
) -> BTreeMap<IpAddr, Outcome> {
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(BTreeMap::new());
    let work = || {
        while let Some((vtep, gateway)) = peers.get(next.fetch_add(1, Ordering::Relaxed)) {
            let outcome = ask(*vtep, *gateway);
            outcomes.lock().unwrap_or_else(PoisonError::into_inner).insert(*vtep, outcome);
        }
    };
    thread::scope(|scope| {
        for _ in 0..CROWD.min(peers.len()) {
            scope.spawn(work);
        }
    });
    outcomes.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// `fits` is how much, as far as is known: an attempt that is lost may be what it is learned from.
fn ask(own: IpAddr, peer: SocketAddr, fits: impl Fn() -> usize) -> Outcome {
    let attempt = |size: usize| {
        let mut result = probe(own, peer, size, LIMIT);
        for _ in 1..TRIES {
            if !matches!(result, Err(ProbeError::Lost { .. })) {
                break;
            }
            result = probe(own, peer, size, LIMIT);
        }
        result
    };
    match attempt(SMALLEST) {
        Err(ProbeError::NoAgent { .. }) => Outcome::NoAgent,
        Err(error) => Outcome::Dead(error),
        Ok(_) => {
            let mut size = fits();
            loop {
                match attempt(size) {
                    Ok(_) => return Outcome::Fine,
                    Err(_) if fits() < size => size = fits(),
                    Err(error) => return Outcome::Small(error),
                }
            }
        }
    }
}
