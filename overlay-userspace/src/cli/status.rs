//! `overlay status`: whether this node works, and if not why; what its programs have counted.
//!
//! All of it is read from the pins and the kernel, the agent may be gone. [`problems`] has the why.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use clap::Args;
use overlay_common::{
    counter::Counter,
    maps::{Addr, AttachMode, FAMILY_V4, FAMILY_V6, Local, NODE_HOST, NODE_SELF, Node, NodeName, Subnet},
    reason::Reason,
};
use serde::{Serialize, Serializer};

use super::{
    exit::Verdict,
    flows::Pressure,
    output::{Cell, OutputArgs, Row, Text, print_object},
    told::Agent,
};
use crate::{
    cni::owner_text,
    datapath::{
        pins::Pins,
        tables::{self, Endpoints, LocalTable, NodeNames, Nodes},
    },
    mesh::PORT,
};

mod mesh;
mod problems;

use mesh::Mesh;
use problems::Problems;

/// What the command line says.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    output: OutputArgs,
    /// UDP port on which the agent measures the ways to other nodes
    #[arg(long, env = "OVERLAY_MESH_PORT", value_name = "PORT", default_value_t = PORT)]
    mesh_port: u16,
}

/// What there is to say of the node.
#[derive(Debug, Serialize)]
pub(super) struct Status {
    /// Pods can be added and reach others.
    ready: bool,
    /// What is wrong, with its remedy.
    problems: Vec<String>,
    node: String,
    /// Of this binary; in a pod, the agent's too.
    version: &'static str,
    agent: Agent,
    vtep: IpAddr,
    vni: u32,
    port: u32,
    mtu: u32,
    /// Those of the primary family.
    subnet: String,
    cluster: String,
    gateway: IpAddr,
    /// Of each family that there is, the primary one first.
    subnets: Vec<String>,
    clusters: Vec<String>,
    gateways: Vec<IpAddr>,
    attach: &'static str,
    nodes: usize,
    peers: usize,
    endpoints: usize,
    /// Who holds them; a pod has one of each family.
    pods: usize,
    pins: String,
    stack_flows: Pressure,
    paths: Counters,
    drops: Counters,
    mesh: Option<Mesh>,
}

/// Counters by name.
#[derive(Debug)]
struct Counters(Vec<Counted>);

/// What went one way, or was dropped for one reason.
#[derive(Clone, Debug)]
struct Counted {
    name: &'static str,
    counter: Counter,
    /// For people; empty where the name says it all.
    describe: &'static str,
}

impl Serialize for Counters {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|counted| (counted.name, counted)))
    }
}

impl Serialize for Counted {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Counter { packets, bytes } = self.counter;
        serializer.collect_map([("packets", packets), ("bytes", bytes)])
    }
}

impl Counted {
    fn cells(&self) -> Vec<Cell> {
        vec![self.name.into(), self.counter.packets.into(), self.counter.bytes.into(), self.describe.into()]
    }
}

/// A path.
#[derive(Serialize)]
#[serde(transparent)]
struct PathRow(Counted);

impl Row for PathRow {
    const COLUMNS: &'static [&'static str] = &["PATH", "PACKETS", "BYTES"];

    fn cells(&self) -> Vec<Cell> {
        self.0.cells()
    }
}

/// A reason.
#[derive(Serialize)]
#[serde(transparent)]
struct DropRow(Counted);

impl Row for DropRow {
    const COLUMNS: &'static [&'static str] = &["DROPPED", "PACKETS", "BYTES", "WHY"];

    fn cells(&self) -> Vec<Cell> {
        self.0.cells()
    }
}

fn name(local: &Local) -> String {
    let bytes = local.node_name.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

/// Families in their order.
fn order(local: &Local) -> [usize; 2] {
    let primary = usize::from(local.primary);
    if primary == FAMILY_V6 { [FAMILY_V6, FAMILY_V4] } else { [FAMILY_V4, FAMILY_V6] }
}

fn range(subnet: Subnet) -> String {
    format!("{}/{}", subnet.addr.to_ip(), subnet.prefix_len)
}

/// How many nodes there are, with this one if `own`.
///
/// A node may have an address of each family. Both lead to the one that its tunnel goes to; where it is not overlay, each to
/// itself. One that is known by its addresses alone is as many as there are tunnels to it.
fn count(nodes: &[(Addr, Node)], names: &HashMap<Addr, NodeName>, own: bool) -> usize {
    let hosts = nodes.iter().filter(|(_, node)| node.flags & NODE_HOST != 0);
    let meant = hosts.filter(|(_, node)| own || node.flags & NODE_SELF == 0);
    let key = |vtep: Addr| names.get(&vtep).map(|name| name.as_str().to_owned()).ok_or(vtep);
    meant.map(|(_, node)| key(node.vtep)).collect::<HashSet<_>>().len()
}

impl Status {
    /// Reads it.
    pub(super) fn read(pins: &Pins, mesh_port: u16) -> anyhow::Result<Self> {
        let local = LocalTable::open(pins)?.get()?;
        let nodes = Nodes::open(pins)?.entries()?;
        let names: HashMap<_, _> = NodeNames::all(pins)?.into_iter().collect();
        let count = |own| count(&nodes, &names, own);
        let (hosts, peers) = (count(true), count(false));
        let Problems { node: node_problems, pods } = Problems::look(pins, &local);
        let ranges = |of: &[Subnet; 2]| -> Vec<String> {
            let there = order(&local).into_iter().map(|family| of[family]).filter(|net| net.prefix_len != 0);
            there.map(range).collect()
        };
        let (subnets, clusters) = (ranges(&local.subnet), ranges(&local.cluster));
        let with_subnet = order(&local).into_iter().filter(|family| local.subnet[*family].prefix_len != 0);
        let gateways: Vec<_> = with_subnet.map(|family| local.gateway[family].to_ip()).collect();
        // Before the first start there is none.
        let gateway = gateways.first().copied().unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
        let first = |all: &[String]| all.first().cloned().unwrap_or_default();
        let endpoints = Endpoints::open(pins)?.entries()?;
        let holders: HashSet<_> = endpoints.iter().map(|(_, endpoint)| owner_text(&endpoint.owner)).collect();
        let paths = tables::paths(pins)?;
        let path = |(path, counter): (overlay_common::counter::Path, _)| Counted {
            name: path.name(),
            counter,
            describe: "",
        };
        let drops = tables::drops(pins)?;
        let drop = |(reason, counter): (Reason, Counter)| Counted {
            name: reason.name(),
            counter,
            describe: reason.describe(),
        };
        Ok(Self {
            ready: node_problems.is_empty(),
            problems: node_problems.into_iter().chain(pods).collect(),
            node: name(&local),
            version: env!("CARGO_PKG_VERSION"),
            agent: Agent::find(pins),
            vtep: local.vtep.to_ip(),
            vni: local.vni,
            port: local.port,
            mtu: local.mtu,
            subnet: first(&subnets),
            cluster: first(&clusters),
            gateway,
            subnets,
            clusters,
            gateways,
            attach: match AttachMode::from_index(local.attach_mode) {
                Some(AttachMode::Tcx) => "tcx",
                Some(AttachMode::Clsact) => "clsact",
                Some(AttachMode::Auto) => "auto",
                None => "unknown",
            },
            nodes: hosts,
            peers,
            endpoints: endpoints.len(),
            pods: holders.len(),
            pins: pins.root().display().to_string(),
            stack_flows: Pressure::read(pins)?,
            paths: Counters(paths.into_iter().map(path).collect()),
            drops: Counters(drops.into_iter().map(drop).collect()),
            mesh: Mesh::read(gateway, mesh_port),
        })
    }

    fn print(&self, text: &mut Text<'_>) -> std::io::Result<()> {
        let by = match self.attach {
            "auto" => "by tcx, pods by clsact".to_owned(),
            attach => format!("by {attach}"),
        };
        let node = &self.node;
        let node = if self.ready {
            Cell::good(format_args!("{node} (ready)"))
        } else {
            Cell::bad(format_args!("{node} (not ready)"))
        };
        let agent = match (&self.agent, self.agent.pid) {
            (Agent { source: Some(source), .. }, Some(pid)) => {
                format!("running, process {pid}, nodes from {source}").into()
            }
            (_, Some(pid)) => format!("running, process {pid}").into(),
            (_, None) => Cell::bad("not running: what is pinned works on, nothing follows changes"),
        };
        let gateways: Vec<_> = self.gateways.iter().map(ToString::to_string).collect();
        let (subnets, gateways) = (self.subnets.join(" and "), gateways.join(" and "));
        let pods = format!("{} in {subnets}, gateway {gateways}, MTU {}", self.pods, self.mtu);
        let mut facts = vec![("node", node)];
        facts.extend(self.problems.iter().map(|problem| ("problem", Cell::bad(problem))));
        facts.extend([
            ("agent", agent),
            ("tunnel", format!("{} port {} VNI {}", self.vtep, self.port, self.vni).into()),
            ("pods", pods.into()),
            ("cluster", format!("{} nodes in {}", self.nodes, self.clusters.join(" and ")).into()),
            ("peers", self.peers.into()),
            ("mesh", Mesh::summary(self.mesh.as_ref())),
            ("flows", self.stack_flows.text().into()),
            ("attached", format!("{by}, pins in {}", self.pins).into()),
        ]);
        text.facts(facts)?;
        if let Some(mesh) = &self.mesh {
            mesh.print(text)?;
        }
        text.gap()?;
        text.rows(&self.paths.0.iter().cloned().map(PathRow).collect::<Vec<_>>())?;
        let drops = self.drops.0.iter().filter(|counted| counted.counter.packets > 0);
        let drops: Vec<_> = drops.cloned().map(DropRow).collect();
        if drops.is_empty() {
            return Ok(());
        }
        text.gap()?;
        text.rows(&drops)
    }
}

/// Prints it.
pub(super) fn run(pins: &Pins, args: StatusArgs) -> anyhow::Result<Verdict> {
    let StatusArgs { output, mesh_port } = args;
    let status = Status::read(pins, mesh_port)?;
    print_object(output, &status, |text| status.print(text))?;
    Ok(if status.problems.is_empty() { Verdict::Fine } else { Verdict::Wrong })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_of_two_addresses_is_one_whether_its_tunnels_go_to_one_or_to_both() {
        let addr = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        let host = |address: &str, vtep: &str, flags: u8| {
            let node = Node { vtep: addr(vtep), flags: flags | NODE_HOST, ..bytemuck::Zeroable::zeroed() };
            (addr(address), node)
        };
        let mut nodes = vec![
            host("192.0.2.1", "192.0.2.1", NODE_SELF),
            host("2001:db8::1", "192.0.2.1", NODE_SELF),
            host("192.0.2.2", "192.0.2.2", 0),
            host("2001:db8::2", "192.0.2.2", 0),
            // Not overlay: a device for each family.
            host("192.0.2.3", "192.0.2.3", 0),
            host("2001:db8::3", "2001:db8::3", 0),
        ];
        nodes.push((addr("10.244.3.0"), Node { flags: 0, ..nodes[4].1 }));
        let name = |text: &str| NodeName::new(text);
        let mut names: HashMap<_, _> =
            [("192.0.2.1", "a"), ("192.0.2.2", "b")].map(|(vtep, node)| (addr(vtep), name(node))).into();
        assert_eq!((count(&nodes, &names, true), count(&nodes, &names, false)), (4, 3), "two nobody knows");
        names.extend(["192.0.2.3", "2001:db8::3"].map(|vtep| (addr(vtep), name("c"))));
        assert_eq!((count(&nodes, &names, true), count(&nodes, &names, false)), (3, 2));
    }
}
