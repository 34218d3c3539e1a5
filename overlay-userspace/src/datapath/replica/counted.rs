//! What a program has counted while it was asked, and so what it has done.

use aya::maps::{MapData, PerCpuArray};
use overlay_common::{
    counter::{Counter, Path},
    reason::Reason,
    wire::{PROTO_ICMP, PROTO_ICMPV6},
};

use super::{Run, syscall::Tested};
use crate::datapath::{DatapathError, pins::Pins, run::Verdict, tables};

/// Packets by index of path and reason.
pub(super) struct Counters {
    pub(super) paths: Vec<u64>,
    pub(super) drops: Vec<u64>,
}

impl Counters {
    /// Of the attached programs.
    pub(super) fn live(pins: &Pins) -> Result<Self, DatapathError> {
        let paths = tables::paths(pins)?.into_iter().map(|(_, counter)| counter.packets).collect();
        let drops = tables::drops(pins)?.into_iter().map(|(_, counter)| counter.packets).collect();
        Ok(Self { paths, drops })
    }

    /// What has been counted between the two.
    pub(super) fn since(&self, before: &Self, tested: Tested) -> Run {
        let moved = |now: &[u64], then: &[u64]| -> Vec<usize> {
            now.iter().zip(then).enumerate().filter(|(_, (now, then))| now > then).map(|(at, _)| at).collect()
        };
        let paths = moved(&self.paths, &before.paths);
        let drops = moved(&self.drops, &before.drops);
        let Tested { returned, packet, mark } = tested;
        let verdict = Verdict::of(returned);
        // Counted beside it on a busy node: not of a packet that was not dropped.
        let reason = drops.first().and_then(|at| Reason::from_index(*at as u32)).filter(|reason| {
            verdict == Verdict::Drop || *reason == Reason::PathMtu && paths.is_empty() && tells(&packet)
        });
        Run {
            verdict,
            packet,
            mark,
            paths: paths.into_iter().filter_map(|at| Path::ALL.get(at).copied()).collect(),
            reason,
        }
    }
}

/// Is this frame "fragmentation needed" or "packet too big"?
fn tells(frame: &[u8]) -> bool {
    let at = |index: usize| frame.get(index).copied();
    match (at(12), at(13)) {
        (Some(0x08), Some(0x00)) => (at(23), at(34), at(35)) == (Some(PROTO_ICMP), Some(3), Some(4)),
        (Some(0x86), Some(0xdd)) => (at(20), at(54)) == (Some(PROTO_ICMPV6), Some(2)),
        _ => false,
    }
}

/// By index, over all CPUs.
pub(super) fn packets(map: &PerCpuArray<&mut MapData, Counter>) -> Result<Vec<u64>, DatapathError> {
    let failed = |e| DatapathError::new("read the private counters", e);
    map.iter().map(|slot| Ok(slot.map_err(failed)?.iter().map(|cpu| cpu.packets).sum())).collect()
}
