//! `overlay flows`: the flows that return through the node's stack, and how full their table is.

use std::time::Duration;

use anyhow::Context as _;
use nix::time::ClockId;
use overlay_common::maps::{Flow, FlowKey, FlowKind};
use serde_json::{Value, json};

use super::{Output, print_json, table};
use crate::datapath::{DatapathError, flows::StackFlows, pins::Pins};

/// How full the table is.
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

    pub(super) fn json(&self) -> Value {
        json!({ "flows": self.flows, "entries": self.entries, "capacity": self.capacity })
    }

    pub(super) fn text(&self) -> String {
        let Self { flows, entries, capacity } = self;
        let percent = entries * 100 / (*capacity).max(1) as usize;
        format!("{flows} return through the stack, {entries} of {capacity} entries used ({percent} %)")
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

/// `overlay flows`.
pub(in crate::cli) fn flows(pins: &Pins, output: Output) -> anyhow::Result<()> {
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
    let age = |flow: &Flow| now.saturating_sub(Duration::from_nanos(flow.recorded_ns)).as_secs();
    if output == Output::Json {
        let rows = flows.iter().map(|(key, flow)| {
            json!({
                "source": key.src.to_ip(),
                "source_port": key.src_port,
                "destination": key.dst.to_ip(),
                "destination_port": key.dst_port,
                "protocol": key.protocol,
                "age_seconds": age(flow),
            })
        });
        return print_json(&rows.collect());
    }
    let rows: Vec<_> = flows
        .iter()
        .map(|(key, flow)| {
            vec![
                protocol(key.protocol),
                format!("{}:{}", key.src.to_ip(), key.src_port),
                format!("{}:{}", key.dst.to_ip(), key.dst_port),
                format!("{} s", age(flow)),
            ]
        })
        .collect();
    table(&["PROTOCOL", "ANSWERS OF", "TO", "AGE"], &rows)?;
    Ok(())
}
