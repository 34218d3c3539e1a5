//! `overlay flows`: the flows that return through the node's stack, and how full their table is.

use std::{net::IpAddr, time::Duration};

use anyhow::Context as _;
use nix::time::ClockId;
use overlay_common::maps::{Flow, FlowKey, FlowKind};
use serde::Serialize;

use super::output::{Cell, OutputArgs, Row, print_list};
use crate::datapath::{DatapathError, flows::StackFlows, pins::Pins};

/// How full the table is.
#[derive(Debug, Serialize)]
pub(super) struct Pressure {
    /// Flows, without the entries for pairs of addresses.
    flows: usize,
    entries: usize,
    capacity: u32,
}

impl Pressure {
    pub(super) fn read(pins: &Pins) -> Result<Self, DatapathError> {
        let table = StackFlows::open(pins)?;
        let keys = table.keys()?;
        let flows = keys.iter().filter(|key| key.kind == FlowKind::Flow as u8).count();
        Ok(Self { flows, entries: keys.len(), capacity: table.capacity() })
    }

    pub(super) fn text(&self) -> String {
        let Self { flows, entries, capacity } = self;
        let percent = entries * 100 / (*capacity).max(1) as usize;
        format!("{flows} return through the stack, {entries} of {capacity} entries used ({percent} %)")
    }
}

/// A flow, by what its answers look like.
#[derive(Debug, Serialize)]
pub(super) struct FlowRow {
    source: IpAddr,
    source_port: u16,
    destination: IpAddr,
    destination_port: u16,
    protocol: u8,
    age_seconds: u64,
}

impl Row for FlowRow {
    const COLUMNS: &'static [&'static str] = &["PROTOCOL", "ANSWERS OF", "TO", "AGE"];

    fn cells(&self) -> Vec<Cell> {
        vec![
            protocol(self.protocol).into(),
            format!("{}:{}", self.source, self.source_port).into(),
            format!("{}:{}", self.destination, self.destination_port).into(),
            format!("{} s", self.age_seconds).into(),
        ]
    }
}

/// The name of an IP protocol, or its number.
fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        132 => "sctp".into(),
        136 => "udplite".into(),
        other => other.to_string(),
    }
}

/// All flows, by 5-tuple.
pub(super) fn list(pins: &Pins) -> anyhow::Result<Vec<FlowRow>> {
    let found = StackFlows::open(pins)?;
    let now: Duration = ClockId::CLOCK_MONOTONIC.now().context("read the monotonic clock")?.into();
    let mut flows: Vec<(FlowKey, Flow)> = Vec::new();
    for key in found.keys()?.into_iter().filter(|key| key.kind == FlowKind::Flow as u8) {
        // One that has gone meanwhile is no flow any more.
        if let Some(flow) = found.get(&key)? {
            flows.push((key, flow));
        }
    }
    flows.sort_by_key(|(key, _)| *key);
    flows.dedup_by_key(|(key, _)| *key);
    let rows = flows.iter().map(|(key, flow)| FlowRow {
        source: key.src.to_ip(),
        source_port: key.src_port,
        destination: key.dst.to_ip(),
        destination_port: key.dst_port,
        protocol: key.protocol,
        age_seconds: now.saturating_sub(Duration::from_nanos(flow.recorded_ns)).as_secs(),
    });
    Ok(rows.collect())
}

/// Prints them.
pub(super) fn run(pins: &Pins, args: OutputArgs) -> anyhow::Result<()> {
    print_list(args, &list(pins)?)
}
