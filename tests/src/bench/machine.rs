//! The machine that a run was made on, and what makes its numbers doubtful.

use std::{fs, thread, time::Duration};

use anyhow::{Result, ensure};
use serde::Serialize;

/// Facts to read the numbers by.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Machine {
    /// Kernel release.
    pub(crate) kernel: String,
    /// Processor model.
    pub(crate) processor: String,
    /// CPUs that this process may use.
    pub(crate) cpus: usize,
    /// Whether Flannel's contender had `br_netfilter`.
    pub(crate) br_netfilter: bool,
    /// Share of all CPU time that was used in the second before the run: by others, since there was nothing to do yet.
    pub(crate) busy_before: f64,
    /// Share of all CPU time of the run that a hypervisor gave to others.
    pub(crate) steal: f64,
}

/// Others that use more than this share of the CPU time are in the way.
const BUSY: f64 = 0.1;
/// How long others are watched. A load average would remember the build of this very program.
const WATCH: Duration = Duration::from_secs(1);
/// A share of stolen time from which on they are as well.
const STOLEN: f64 = 0.01;

/// CPU time so far, in ticks: all, what nobody used, and stolen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CpuTime {
    all: u64,
    idle: u64,
    stolen: u64,
}

impl CpuTime {
    /// Since boot, of all CPUs.
    pub(crate) fn now() -> Self {
        Self::parse(&fs::read_to_string("/proc/stat").unwrap_or_default())
    }

    /// From the first line of `/proc/stat`, see proc(5): user nice system idle iowait irq softirq steal …, guest time being in user.
    fn parse(stat: &str) -> Self {
        let line = stat.lines().next().unwrap_or_default();
        let ticks: Vec<u64> = line.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
        let tick = |at: usize| ticks.get(at).copied().unwrap_or_default();
        Self { all: ticks.iter().take(8).sum(), idle: tick(3) + tick(4), stolen: tick(7) }
    }

    /// The share of `part` of the time since `start`.
    fn share(self, start: Self, part: impl Fn(Self) -> u64) -> f64 {
        part(self).saturating_sub(part(start)) as f64 / self.all.saturating_sub(start.all).max(1) as f64
    }
}

impl Machine {
    /// What is known before the run. Fails where a setting of the machine would make the contenders incomparable.
    pub(crate) fn examine() -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let rps = read("/proc/sys/net/core/rps_default_mask");
        ensure!(
            rps.trim().chars().all(|digit| matches!(digit, '0' | ',')),
            "new devices would steer packets to other CPUs (RPS): write 0 to net.core.rps_default_mask"
        );
        let model = read("/proc/cpuinfo");
        let model = model.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let start = CpuTime::now();
        thread::sleep(WATCH);
        let busy = CpuTime::now().share(start, |time| time.all - time.idle);
        Ok(Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processor: model.map_or("unknown", |(_, name)| name.trim()).to_owned(),
            cpus: thread::available_parallelism().map_or(1, usize::from),
            br_netfilter: crate::contenders::bridge_filter().is_some(),
            busy_before: busy,
            steal: 0.0,
        })
    }

    /// Adds what was stolen since `start`.
    pub(crate) fn finish(&mut self, start: CpuTime) {
        self.steal = CpuTime::now().share(start, |time| time.stolen);
    }

    /// Why the numbers are doubtful, if they are.
    pub(crate) fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        if self.busy_before > BUSY {
            doubts.push(format!(
                "others used {:.0} % of the CPU time before the run, and its numbers are noise",
                self.busy_before * 100.0
            ));
        }
        if self.steal > STOLEN {
            doubts.push(format!("{:.1} % of the CPU time was stolen by other guests", self.steal * 100.0));
        }
        if !self.br_netfilter {
            doubts
                .push("this kernel has no br_netfilter: Flannel's path is shorter than on a node".to_owned());
        }
        doubts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stolen_time_is_the_eighth_number() {
        let stat = "cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(CpuTime::parse(stat), CpuTime { all: 36, idle: 9, stolen: 8 });
        assert_eq!(CpuTime::parse(""), CpuTime::default());
    }

    #[test]
    fn what_is_not_idle_is_in_use() {
        let [start, end] = ["cpu  0 0 0 10 10 0 0 0\n", "cpu  5 0 0 20 20 0 0 0\n"].map(CpuTime::parse);
        assert!((end.share(start, |time| time.all - time.idle) - 0.2).abs() < 1e-9);
    }

    #[test]
    fn a_quiet_machine_raises_no_doubts() {
        let quiet = Machine { br_netfilter: true, ..Machine::default() };
        assert!(quiet.doubts().is_empty());
        assert_eq!(Machine { busy_before: 0.3, steal: 0.5, ..Machine::default() }.doubts().len(), 3);
    }
}
