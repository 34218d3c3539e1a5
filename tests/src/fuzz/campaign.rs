//! Runs packets, checks them one by one and their counters by batches, and makes a finding as small as it gets.

use std::{collections::BTreeMap, fmt};

use anyhow::{Context as _, Result};

use overlay_common::{counter::Path, reason::Hook};
use overlay_userspace::datapath::{
    run::{Context, Runner},
    tables,
};

use crate::{
    bed::Bed,
    judge::{Fate, hex, judge},
    make::{LEAST, Maker, Packet},
};

/// Packets between two looks at the counters.
pub(crate) const BATCH: usize = 256;
/// Attempts to make a finding smaller.
const SHRINKS: usize = 4000;

/// A packet that was not treated as it should be.
pub(crate) struct Finding {
    pub(crate) packet: Packet,
    pub(crate) what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Packet { hook, bytes, gso, .. } = &self.packet;
        writeln!(out, "{}: {}", hook.name(), self.what)?;
        writeln!(out, "packet of {} bytes: {}", bytes.len(), hex(bytes))?;
        let gso = gso.map_or_else(String::new, |(size, segments)| format!(" --gso {size},{segments}"));
        write!(out, "again: fuzz-programs --hook {} --packet {}{gso}", hook.name(), hex(bytes))
    }
}

/// One hook's packets.
pub(crate) struct Campaign<'a> {
    bed: &'a Bed,
    runner: Runner,
    hook: Hook,
    before: Counts,
    /// How often each form has occurred.
    pub(crate) seen: BTreeMap<&'static str, u64>,
}

/// Counters, by index.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Counts {
    paths: Vec<(Path, u64)>,
    drops: Vec<(&'static str, u64)>,
}

impl Counts {
    fn read(bed: &Bed) -> Result<Self> {
        let paths =
            tables::paths(&bed.pins)?.into_iter().map(|(path, count)| (path, count.packets)).collect();
        let drops = tables::drops(&bed.pins)?
            .into_iter()
            .map(|(reason, count)| (reason.name(), count.packets))
            .collect();
        Ok(Self { paths, drops })
    }

    fn dropped(&self) -> u64 {
        self.drops.iter().map(|(_, packets)| packets).sum()
    }
}

/// Counted beside the packet's own path.
const BESIDE: [Path; 3] = [Path::ReturnsToStack, Path::FlowRecorded, Path::FlowNotRecorded];

impl<'a> Campaign<'a> {
    pub(crate) fn new(bed: &'a Bed, hook: Hook) -> Result<Self> {
        let runner = Runner::open(&bed.pins, hook)?;
        Ok(Self { bed, runner, hook, before: Counts::read(bed)?, seen: BTreeMap::new() })
    }

    /// Runs a batch; the first finding, as small as it gets.
    pub(crate) fn batch(&mut self, maker: &mut Maker) -> Result<Option<Finding>> {
        // Other hooks count in the same maps.
        self.before = Counts::read(self.bed)?;
        let mut packets = Vec::with_capacity(BATCH);
        let mut fates = Vec::with_capacity(BATCH);
        for _ in 0..BATCH {
            let packet = maker.packet(self.hook);
            match self.one(&packet)? {
                Ok(fate) => fates.push(fate),
                Err(what) => return Ok(Some(self.shrunk(packet, what)?)),
            }
            packets.push(packet);
        }
        let Err(what) = self.account(&fates)? else { return Ok(None) };
        for packet in packets {
            if let Err(what) = self.alone(&packet)? {
                return Ok(Some(self.shrunk(packet, what)?));
            }
        }
        // It depends on what was before: the batch is all there is to say.
        let packet = maker.packet(self.hook);
        Ok(Some(Finding { packet, what: format!("{what} (by a batch, but by none of its packets alone)") }))
    }

    /// Runs a packet: what became of it, or what is wrong with that.
    fn one(&self, packet: &Packet) -> Result<Result<Fate, String>> {
        let context = Context { ifindex: packet.device, gso: packet.gso };
        let (verdict, out) = match self.runner.run(&packet.bytes, context) {
            Ok(ran) => ran,
            // Newer kernels run nothing on a packet that ends within its IP header.
            Err(error) if error.errno() == Some(libc::EINVAL) => return Ok(Ok(Fate::NotRun)),
            Err(error) => return Err(error).with_context(|| format!("run {}", hex(&packet.bytes))),
        };
        Ok(judge(self.bed, packet, verdict, &out))
    }

    /// Runs a packet and looks at its counters as well.
    pub(crate) fn alone(&mut self, packet: &Packet) -> Result<Result<Fate, String>> {
        self.before = Counts::read(self.bed)?;
        Ok(match self.one(packet)? {
            Ok(fate) => self.account(&[fate])?.map(|()| fate),
            Err(what) => Err(what),
        })
    }

    /// Whether the counters have moved as these fates say.
    fn account(&mut self, fates: &[Fate]) -> Result<Result<(), String>> {
        let after = Counts::read(self.bed)?;
        let before = std::mem::replace(&mut self.before, after.clone());
        let count = |wanted: Fate| fates.iter().filter(|fate| **fate == wanted).count() as u64;
        *self.seen.entry("not_run").or_default() += count(Fate::NotRun);
        let dropped = after.dropped() - before.dropped();
        for ((name, was), (_, is)) in before.drops.iter().zip(&after.drops) {
            *self.seen.entry(*name).or_default() += is - was;
        }
        if dropped != count(Fate::Dropped) {
            return Ok(Err(format!("{} packets were dropped, {dropped} counted", count(Fate::Dropped))));
        }
        for ((path, was), (_, is)) in before.paths.iter().zip(&after.paths) {
            let moved = is - was;
            *self.seen.entry(path.name()).or_default() += moved;
            let wanted = count(Fate::By(*path));
            if BESIDE.contains(path) {
                if moved > fates.len() as u64 {
                    return Ok(Err(format!("{} moved by {moved} for {} packets", path.name(), fates.len())));
                }
            } else if moved != wanted {
                return Ok(Err(format!("{wanted} packets went by {}, {moved} were counted", path.name())));
            }
        }
        Ok(Ok(()))
    }

    /// Tries smaller and simpler packets for as long as one of them is a finding.
    fn shrunk(&mut self, mut packet: Packet, mut what: String) -> Result<Finding> {
        let mut tries = 0;
        loop {
            let mut smaller = None;
            for candidate in simpler(&packet) {
                tries += 1;
                if tries > SHRINKS {
                    break;
                }
                if let Err(what) = self.alone(&candidate)? {
                    smaller = Some((candidate, what));
                    break;
                }
            }
            match smaller {
                Some(found) => (packet, what) = found,
                None => return Ok(Finding { packet, what }),
            }
        }
    }
}

/// Packets that have less in them, those that have least first.
fn simpler(packet: &Packet) -> impl Iterator<Item = Packet> + '_ {
    let with = |bytes: Vec<u8>| Packet { bytes, ..packet.clone() };
    let plain = packet.gso.map(|_| Packet { gso: None, ..packet.clone() });
    let len = packet.bytes.len();
    let shorter = [len / 2, len * 3 / 4, len.saturating_sub(8), len.saturating_sub(1)];
    let shorter = shorter.into_iter().filter(move |to| (LEAST..len).contains(to));
    let shorter = shorter.map(move |to| with(packet.bytes[..to].to_vec()));
    let blank =
        [64, 16, 4, 1].into_iter().flat_map(move |size| (0..len).step_by(size).map(move |at| (at, size)));
    let blank = blank.filter_map(move |(at, size)| {
        let mut bytes = packet.bytes.clone();
        let part = bytes.get_mut(at..(at + size).min(len))?;
        if part.iter().all(|byte| *byte == 0) {
            return None;
        }
        part.fill(0);
        Some(with(bytes))
    });
    plain.into_iter().chain(shorter).chain(blank)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_simpler_is_smaller_or_blanker_and_ends() {
        let mut packet = Packet { hook: Hook::FromPod, device: 1, bytes: vec![7; 40], gso: Some((1, 1)) };
        let weight = |packet: &Packet| {
            let set = packet.bytes.iter().filter(|byte| **byte != 0).count();
            packet.bytes.len() + set + usize::from(packet.gso.is_some())
        };
        let mut rounds = 0;
        loop {
            let Some(next) = simpler(&packet).next() else { break };
            assert!(weight(&next) < weight(&packet), "{next:?}");
            packet = next;
            rounds += 1;
        }
        assert_eq!(packet, Packet { bytes: vec![0; LEAST], gso: None, ..packet.clone() });
        assert!(rounds > 2);
    }
}
