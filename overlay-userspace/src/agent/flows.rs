//! Keeps `STACK_FLOWS` as large as it should be, and free of what conntrack has forgotten.
//!
//! The programs only add to the table; when it is full the kernel evicts what was not used for longest. An idle connection
//! must not be what goes while thousands of entries stand for connections that are over. So once a good part of the table
//! has been written anew, the agent asks the kernel what it still tracks and removes the rest. Without an agent the
//! eviction alone remains.

use std::{collections::HashSet, time::Duration};

use anyhow::Context as _;
use log::{debug, info};
use overlay_common::{
    counter::Path,
    flow::reversed,
    maps::{FlowKey, FlowKind, STACK_FLOWS_DEFAULT},
};

use crate::{
    datapath::{
        DatapathError,
        flows::{self, StackFlows},
        pins::Pins,
        tables,
    },
    host::{
        conntrack::{self, Tuple},
        sysctl,
    },
};

/// The limit of the kernel's connection tracking; absent until its module is loaded.
const CONNTRACK_MAX: &str = "net/netfilter/nf_conntrack_max";
/// What the table is not made larger than of itself: half a million entries are about 60 MB.
const AUTOMATIC_MAX: u32 = 524_288;
const AUTOMATIC_MIN: u32 = 16_384;
/// Where flows are not recorded at all: the smallest table that the kernel makes without rounding.
const OFF: u32 = 1024;
/// An entry as young as that may be of a connection that the list does not have yet.
const SETTLED: Duration = Duration::from_secs(10);

/// Entries that the table should have room for. `configured` is `network.stack_flows`.
///
/// Of itself it follows the limit of conntrack, with room for the entries of address pairs, and only grows.
pub(super) fn wanted(configured: Option<u32>, pinned: Option<u32>) -> u32 {
    match configured {
        Some(0) => pinned.unwrap_or(OFF),
        Some(entries) => entries,
        None => automatic(sysctl::get(CONNTRACK_MAX).ok().and_then(|limit| limit.parse().ok()))
            .max(pinned.unwrap_or(0)),
    }
}

fn automatic(conntrack_max: Option<u32>) -> u32 {
    let connections = conntrack_max.unwrap_or(STACK_FLOWS_DEFAULT as u32);
    connections.saturating_add(connections / 4).clamp(AUTOMATIC_MIN, AUTOMATIC_MAX)
}

/// A table of another size is on its way to take the place of the pinned one.
pub(super) struct Growth {
    before: StackFlows,
}

impl Growth {
    /// Sets the pinned table aside if it has another size: the next load makes a new one.
    pub(super) fn begin(pins: &Pins, wanted: u32) -> Result<Option<Self>, DatapathError> {
        match flows::pinned_capacity(pins)? {
            Some(found) if found != wanted => {
                info!("flows of the stack: room for {wanted} entries, was {found}");
                let before = StackFlows::open(pins)?;
                flows::unpin(pins)?;
                Ok(Some(Self { before }))
            }
            _ => Ok(None),
        }
    }

    /// Copies once more, what programs that still ran have recorded in the old table; and lets go of that.
    pub(super) fn end(self, pins: &Pins) -> Result<(), DatapathError> {
        self.copy(pins)?;
        info!("flows of the stack: all programs use the new table");
        Ok(())
    }

    /// Copies what the old table has, before the programs change over.
    pub(super) fn copy(&self, pins: &Pins) -> Result<(), DatapathError> {
        StackFlows::open(pins)?.adopt(&self.before)
    }
}

/// Removes what is over.
#[derive(Default)]
pub(super) struct Sweep {
    /// What the programs had recorded in all when it was swept last.
    recorded: u64,
}

impl Sweep {
    /// Sweeps when a quarter of the table has been written since the last time.
    pub(super) fn run(&mut self, pins: &Pins) -> anyhow::Result<()> {
        let recorded = tables::paths(pins)?
            .into_iter()
            .find_map(|(path, counter)| (path == Path::FlowRecorded).then_some(counter.packets))
            .unwrap_or(0);
        let mut table = StackFlows::open(pins)?;
        if recorded.saturating_sub(self.recorded) < u64::from(table.capacity() / 4) {
            return Ok(());
        }
        let keys = table.keys()?;
        let settled = now()?.saturating_sub(SETTLED).as_nanos() as u64;
        let tracked = tracked()?;
        let mut removed = 0_usize;
        for key in keys.iter().filter(|key| !tracked.contains(key)) {
            if table.get(key)?.is_some_and(|flow| flow.recorded_ns < settled) {
                table.remove(key)?;
                removed += 1;
            }
        }
        self.recorded = recorded;
        debug!(
            "flows of the stack: removed {removed} of {} entries, nobody tracks them any more",
            keys.len()
        );
        Ok(())
    }
}

/// What entries of tracked connections look like: one for each direction, and the pairs of their addresses.
fn tracked() -> anyhow::Result<HashSet<FlowKey>> {
    let mut tracked = HashSet::new();
    conntrack::list(|tuple| {
        let flow = key(&tuple);
        let pair = FlowKey { src_port: 0, dst_port: 0, protocol: 0, kind: FlowKind::Pair as u8, ..flow };
        tracked.extend([flow, pair, reversed(pair)]);
    })?;
    Ok(tracked)
}

fn key(tuple: &Tuple) -> FlowKey {
    FlowKey {
        src: tuple.src.into(),
        dst: tuple.dst.into(),
        src_port: tuple.src_port,
        dst_port: tuple.dst_port,
        protocol: tuple.protocol,
        kind: FlowKind::Flow as u8,
        reserved: [0; 2],
    }
}

/// The clock of `bpf_ktime_get_ns`.
fn now() -> anyhow::Result<Duration> {
    nix::time::ClockId::CLOCK_MONOTONIC.now().map(Duration::from).context("read the monotonic clock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_follows_conntrack_within_bounds() {
        assert_eq!(automatic(Some(131_072)), 163_840);
        assert_eq!(automatic(Some(1)), AUTOMATIC_MIN);
        assert_eq!(automatic(Some(u32::MAX)), AUTOMATIC_MAX);
        assert_eq!(automatic(None), 327_680);
    }

    #[test]
    fn a_setting_decides_and_without_one_the_table_only_grows() {
        assert_eq!(wanted(Some(5_000), Some(9_000)), 5_000);
        assert_eq!(wanted(Some(0), Some(9_000)), 9_000);
        assert_eq!(wanted(Some(0), None), OFF);
        assert_eq!(wanted(None, Some(10_000_000)), 10_000_000);
        assert!(wanted(None, Some(5)) >= AUTOMATIC_MIN);
    }
}
