//! `overlay status`: whether this node works, and what its programs have counted.

use std::net::IpAddr;

use overlay_common::{
    counter::Counter,
    maps::{AttachMode, FAMILY_V4, NODE_HOST, NODE_SELF},
    reason::Reason,
};
use serde::{Serialize, Serializer};

use super::{
    exit::Verdict,
    flows::Pressure,
    output::{Cell, OutputArgs, Row, Text, print_object},
};
use crate::datapath::{
    pins::Pins,
    tables::{self, Endpoints, LocalTable, Nodes},
};

/// What the pins say of the node.
#[derive(Debug, Serialize)]
struct Status {
    ready: bool,
    node: String,
    vtep: IpAddr,
    vni: u32,
    port: u32,
    mtu: u32,
    subnet: String,
    gateway: IpAddr,
    attach: &'static str,
    peers: usize,
    endpoints: usize,
    pins: String,
    stack_flows: Pressure,
    paths: Counters,
    drops: Counters,
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

fn name(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

impl Status {
    fn read(pins: &Pins) -> anyhow::Result<Self> {
        let local = LocalTable::open(pins)?.get()?;
        let nodes = Nodes::open(pins)?.entries()?;
        let peers = nodes.iter().filter(|(_, n)| n.flags & (NODE_HOST | NODE_SELF) == NODE_HOST).count();
        let subnet = local.subnet[FAMILY_V4];
        let paths = tables::paths(pins)?;
        let paths =
            paths.into_iter().map(|(path, counter)| Counted { name: path.name(), counter, describe: "" });
        let drops = tables::drops(pins)?;
        let drop = |(reason, counter): (Reason, Counter)| Counted {
            name: reason.name(),
            counter,
            describe: reason.describe(),
        };
        Ok(Self {
            ready: local.ready == 1,
            node: name(&local.node_name),
            vtep: local.vtep.to_ip(),
            vni: local.vni,
            port: local.port,
            mtu: local.mtu,
            subnet: format!("{}/{}", subnet.addr.to_ip(), subnet.prefix_len),
            gateway: local.gateway[FAMILY_V4].to_ip(),
            attach: match AttachMode::from_index(local.attach_mode) {
                Some(AttachMode::Tcx) => "tcx",
                Some(AttachMode::Clsact) => "clsact",
                Some(AttachMode::Auto) => "auto",
                None => "unknown",
            },
            peers,
            endpoints: Endpoints::open(pins)?.entries()?.len(),
            pins: pins.root().display().to_string(),
            stack_flows: Pressure::read(pins)?,
            paths: Counters(paths.collect()),
            drops: Counters(drops.into_iter().map(drop).collect()),
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
        let pods =
            format!("{} in {}, gateway {}, MTU {}", self.endpoints, self.subnet, self.gateway, self.mtu);
        text.facts(vec![
            ("node", node),
            ("tunnel", format!("{} port {} VNI {}", self.vtep, self.port, self.vni).into()),
            ("pods", pods.into()),
            ("peers", self.peers.into()),
            ("flows", self.stack_flows.text().into()),
            ("attached", format!("{by}, pins in {}", self.pins).into()),
        ])?;
        if !self.ready {
            text.line("the agent has not completed its first start on this node: its log says why")?;
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
pub(super) fn run(pins: &Pins, args: OutputArgs) -> anyhow::Result<Verdict> {
    let status = Status::read(pins)?;
    print_object(args, &status, |text| status.print(text))?;
    Ok(if status.ready { Verdict::Fine } else { Verdict::Wrong })
}
