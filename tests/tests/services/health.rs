//! What must not be counted anywhere while all goes well.

use anyhow::{Result, ensure};
use overlay_tests::traffic::conntrack::Trouble;
use overlay_tests::traffic::counters::Counters;
use overlay_tests::traffic::drops::Drops;

use crate::bed::Bed;

/// Protocol counters that tell of answers that somebody did not expect: a reset sent, a connection reset, a datagram that no socket
/// wanted.
const COUNTERS: [&str; 3] = ["Tcp.OutRsts", "Tcp.EstabResets", "Udp.NoPorts"];

/// A snapshot of all namespaces.
pub(crate) struct Health {
    conntrack: Vec<Trouble>,
    drops: Vec<Drops>,
    counters: Vec<Counters>,
}

impl Health {
    #[track_caller]
    pub(crate) fn read(bed: &Bed) -> Self {
        Self {
            conntrack: bed.nodes().iter().map(|node| Trouble::read(&node.namespace)).collect(),
            drops: bed.overlay_nodes().iter().map(Drops::read).collect(),
            counters: bed.places().map(|place| Counters::read(&place.namespace)).collect(),
        }
    }

    /// Errors: something was counted since then, but for the protocol counters and reasons of drops `moves`.
    #[track_caller]
    pub(crate) fn unchanged(&self, bed: &Bed, moves: &[&str]) -> Result<()> {
        let now = Self::read(bed);
        let mut found = Vec::new();
        for ((node, now), before) in bed.nodes().iter().zip(&now.conntrack).zip(&self.conntrack) {
            for (name, count) in now.since(before) {
                found.push(format!("{}: conntrack {name} +{count}", node.name));
            }
        }
        for ((node, now), before) in bed.overlay_nodes().iter().zip(&now.drops).zip(&self.drops) {
            for (reason, count) in now.since(before) {
                if moves.contains(&reason.as_str()) {
                    continue;
                }
                found.push(format!("{}: overlay dropped {reason} +{count}", node.name()));
            }
        }
        for ((place, now), before) in bed.places().zip(&now.counters).zip(&self.counters) {
            for name in COUNTERS.iter().filter(|name| !moves.contains(name)) {
                let count = now.get(name) - before.get(name);
                if count > 0 {
                    found.push(format!("{}: {name} +{count}", place.name));
                }
            }
        }
        ensure!(found.is_empty(), "{}", found.join(", "));
        Ok(())
    }
}
