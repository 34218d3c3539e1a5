//! What growth costs: nodes and endpoints in the maps, recorded flows of the stack, and flows of pods.
//!
//! One pair of nodes for each size, so that nothing has to be changed between turns. The maps are filled with entries that no packet asks
//! for: what a larger table costs those that are there.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use ipnet::Ipv4Net;
use overlay_common::maps::{Endpoint, Flow, FlowKey, NODES_MAX, Node as NodeEntry, Owner};
use overlay_tests::lab::{Lab, Network, WireMode};
use overlay_tests::traffic::vxlan::udp_frame;
use overlay_userspace::datapath::{
    flows::StackFlows,
    pins::Pins,
    tables::{Endpoints, Nodes},
};

use crate::contenders::{self, Contender, Pair, Site};
use crate::far::Far;
use crate::placement::Placement;
use crate::programs;
use crate::results::Growth;
use crate::rounds::{self, Limits, Samples};
use crate::sockets::{OneWay, Receiver, Sockets};
use crate::statistics::{Estimate, estimate};
use crate::workloads::{self, Sample, Turn, Workload};

/// What a pair of nodes has in its maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Size {
    /// One peer, the pods that are measured, no recorded flow.
    Base,
    /// As the base, but the programs were loaded with `stack_flows = 0`.
    FlowsOff,
    /// Recorded flows of the stack.
    Recorded(usize),
    /// Nodes.
    Nodes(usize),
    /// Endpoints.
    Endpoints(usize),
}

const SIZES: [Size; 9] = [
    Size::Base,
    Size::FlowsOff,
    Size::Recorded(1),
    Size::Recorded(100_000),
    Size::Nodes(100),
    Size::Nodes(1_000),
    Size::Nodes(10_000),
    Size::Endpoints(250),
    Size::Endpoints(5_000),
];

/// Room for recorded flows where there are many, and where there are few.
const MANY_FLOWS: u32 = 262_144;
const FEW_FLOWS: u32 = 4_096;

/// Flows of a contender, one way.
const FLOWS: [usize; 4] = [1, 100, 1_000, 10_000];

/// Destinations of a turn of single runs.
const SPREAD: usize = 2_000;

/// What is measured of the sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Measure {
    Workload(Workload),
    /// Encapsulations for another node each, without a wire.
    Spread,
}

impl Measure {
    const ALL: [Self; 3] = [Self::Workload(Workload::UdpRr), Self::Workload(Workload::Udp64), Self::Spread];

    const fn name(self) -> &'static str {
        match self {
            Self::Workload(workload) => workload.name(),
            Self::Spread => "encap, any node",
        }
    }
}

impl Size {
    /// What grows, and how far.
    const fn describe(self) -> (&'static str, usize) {
        match self {
            Self::Base => ("nothing", 0),
            Self::FlowsOff => ("flows of the stack switched off", 0),
            Self::Recorded(flows) => ("recorded flows of the stack", flows),
            Self::Nodes(nodes) => ("nodes", nodes),
            Self::Endpoints(endpoints) => ("endpoints", endpoints),
        }
    }

    fn network(self) -> Network {
        let flows = match self {
            Self::FlowsOff => 0,
            Self::Recorded(flows) if flows > FEW_FLOWS as usize => MANY_FLOWS,
            _ => FEW_FLOWS,
        };
        // Room for ten thousand subnets.
        let cidr = Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8);
        Network { cidr: cidr.into(), stack_flows: Some(flows), ..Network::default() }
    }
}

/// Subnets of the two nodes, apart from what the maps are filled with.
const SUBNETS: [Ipv4Net; 2] = [
    Ipv4Net::new_assert(Ipv4Addr::new(10, 254, 1, 0), 24),
    Ipv4Net::new_assert(Ipv4Addr::new(10, 254, 2, 0), 24),
];

/// The subnet of the node with this number.
fn subnet(number: usize) -> Ipv4Addr {
    let [.., high, low] = (number as u32).to_be_bytes();
    Ipv4Addr::new(10, high, low, 0)
}

/// Measures overlay with each size of its maps, beside the smallest.
pub(crate) fn maps(far: &Rc<Far>, lab: &Lab, limits: Limits, turn: Duration) -> Result<Vec<Growth>> {
    let mut built = Vec::new();
    for (index, size) in SIZES.into_iter().enumerate() {
        let name = format!("size{index}");
        let nodes = contenders::wire(lab, &name, WireMode::Veth);
        let pair = contenders::overlay(lab, &nodes, &name, size.network(), SUBNETS)?;
        fill(&pair, size)?;
        let (way, _) = pair.ways();
        contenders::settle(&way.client);
        contenders::settle(&way.server);
        let packets = spread(&pair, size)?;
        let device = programs::ifindex(&pair.nodes[0], &pair.pods[0].host_device())?;
        built.push((size, Sockets::open(far, &way)?, pair, packets, device));
    }
    let turn = Turn { length: turn, placement: Placement::One };
    let samples = rounds::run(limits, &Measure::ALL, &SIZES, |measure, size| {
        let (_, sockets, pair, packets, device) =
            built.iter().find(|(built, ..)| *built == size).context("a size was not built")?;
        match measure {
            Measure::Workload(workload) => workload.run(sockets, turn),
            Measure::Spread => {
                let nanoseconds = programs::spread(&pair.nodes[0], *device, packets)?;
                Ok(Sample { rate: 1e9 / nanoseconds, latency: None, loss: 0.0 })
            }
        }
    })?;
    Ok(growth(&samples))
}

fn growth(samples: &Samples<Measure, Size>) -> Vec<Growth> {
    let mut growth = Vec::new();
    for size in &SIZES[1..] {
        for measure in Measure::ALL {
            let of = |size| samples.get(&(measure, size)).map(Vec::as_slice).unwrap_or_default();
            let (what, number) = size.describe();
            growth.extend(beside(of(*size), of(Size::Base), measure.name()).map(|(measure, ratio)| Growth {
                what,
                size: number,
                measure,
                contender: Contender::Overlay,
                baseline: "1 peer, no flow",
                ratio,
            }));
        }
    }
    growth
}

/// The ratio of rates, and that of times where there are any; both with the name of what is measured.
fn beside(mine: &[Sample], base: &[Sample], measure: &str) -> impl Iterator<Item = (String, Estimate)> {
    let rate = estimate(&rounds::ratios(mine, base, |sample| sample.rate));
    let p50 = rounds::ratios(mine, base, Sample::p50);
    let p50 = p50.iter().all(|ratio| ratio.is_finite()).then(|| estimate(&p50)).flatten();
    [(measure.to_owned(), rate), (format!("{measure} p50"), p50)]
        .into_iter()
        .filter_map(|(name, estimate)| Some((name, estimate?)))
}

/// Fills the maps of both nodes.
fn fill(pair: &Pair, size: Size) -> Result<()> {
    for (node, peer) in [(0, 1), (1, 0)].map(|(node, peer)| (&pair.nodes[node], &pair.nodes[peer])) {
        let pins = Pins::new(node.pins());
        // Entries for the node itself and its peer are there: subnet and address of each.
        match size {
            Size::Base | Size::FlowsOff => {}
            Size::Nodes(count) => {
                let mut nodes = Nodes::open(&pins)?;
                let entry = NodeEntry {
                    vtep: peer.address().into(),
                    vtep_mac: [2, 0, 0, 0, 0, 1],
                    prefix_len: 24,
                    ..NodeEntry::default()
                };
                debug_assert!(count < NODES_MAX);
                for number in 1..count {
                    nodes.set(subnet(number).into(), entry)?;
                }
            }
            Size::Endpoints(count) => {
                let mut endpoints = Endpoints::open(&pins)?;
                let owner = Owner { container: [b'x'; 64], ifname: [0; 16] };
                let entry = Endpoint { ifindex: 0, network: 0, mac: [0; 6], gateway_mac: [0; 6], owner };
                for number in 3..count {
                    let [.., high, low] = (number as u32).to_be_bytes();
                    endpoints.lease(Ipv4Addr::new(10, 253, high, low).into(), entry)?;
                }
            }
            Size::Recorded(count) => {
                let mut flows = StackFlows::open(&pins)?;
                for number in 0..count {
                    let [_, a, b, c] = (number as u32).to_be_bytes();
                    let key = FlowKey {
                        src: Ipv4Addr::new(10, 200 + a, b, c).into(),
                        dst: Ipv4Addr::new(10, 254, 1, 200).into(),
                        src_port: 80,
                        dst_port: 40_000,
                        protocol: 17,
                        ..FlowKey::default()
                    };
                    flows.record(&key, Flow { recorded_ns: u64::MAX })?;
                }
            }
        }
    }
    Ok(())
}

/// Packets of the client's pod for nodes in no order, all different if there are as many.
fn spread(pair: &Pair, size: Size) -> Result<Vec<Vec<u8>>> {
    let from = pair.pods[0].addr();
    let macs = programs::pod_macs(&pair.nodes[0], from)?;
    let nodes = if let Size::Nodes(count) = size { count } else { 1 };
    let packet = |index: usize| {
        // A step that has no divisor in common with the number of nodes (a prime larger than that) visits all.
        let to = match nodes {
            1 => pair.pods[1].addr(),
            _ => Ipv4Addr::from(u32::from(subnet(1 + index * 10_007 % (nodes - 1))) + 9),
        };
        udp_frame(macs, SocketAddrV4::new(from, 7000), SocketAddrV4::new(to, 7000), &[0; 64])
    };
    Ok((0..SPREAD).map(packet).collect())
}

/// Measures all contenders with more and more flows, beside the wire with as many.
pub(crate) fn flows(far: &Far, sites: &[&Site], limits: Limits, turn: Duration) -> Result<Vec<Growth>> {
    let receivers = sites.iter().map(|site| Receiver::open(far, &site.far)).collect::<Result<Vec<_>>>()?;
    let contenders: Vec<Contender> = sites.iter().map(|site| site.contender).collect();
    let turn = Turn { length: turn, placement: Placement::One };
    let samples = rounds::run(limits, &FLOWS, &contenders, |flows, contender| {
        let index = contenders.iter().position(|who| *who == contender).context("no contender")?;
        // For each turn anew: all of all would be more descriptors than many a process may have.
        workloads::flows(far, &OneWay::many(&sites[index].far, receivers[index], flows)?, turn)
    })?;
    let mut growth = Vec::new();
    for flows in FLOWS {
        let of = |who| samples.get(&(flows, who)).map(Vec::as_slice).unwrap_or_default();
        let others = contenders.iter().filter(|who| **who != Contender::Wire);
        for who in others {
            let measure = Workload::Udp64.name();
            growth.extend(beside(of(*who), of(Contender::Wire), measure).map(|(measure, ratio)| Growth {
                what: "flows",
                size: flows,
                measure,
                contender: *who,
                baseline: "raw wire, as many flows",
                ratio,
            }));
        }
    }
    Ok(growth)
}

/// Descriptors that [`flows`] needs.
pub(crate) const DESCRIPTORS: usize = FLOWS[FLOWS.len() - 1];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_of_nodes_differ_and_are_not_those_of_the_pair() {
        let subnets: std::collections::HashSet<_> = (1..10_000).map(subnet).collect();
        assert_eq!(subnets.len(), 9_999);
        assert!(!SUBNETS.iter().any(|own| subnets.contains(&own.addr())));
    }

    #[test]
    fn growth_is_beside_the_base_of_the_same_round() {
        let sample = |rate| vec![Sample { rate, latency: None, loss: 0.0 }];
        let cell = Measure::Workload(Workload::UdpRr);
        let samples =
            Samples::from([((cell, Size::Base), sample(200.0)), ((cell, Size::Nodes(1_000)), sample(190.0))]);
        let growth = growth(&samples);
        assert_eq!(growth.len(), 1);
        assert_eq!((growth[0].what, growth[0].size, growth[0].ratio.median), ("nodes", 1_000, 0.95));
    }
}
