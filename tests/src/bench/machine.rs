//! The machine that a run was made on, and what makes its numbers doubtful.

use std::fs;

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
    /// Load average of the last minute before the run.
    pub(crate) load_before: f64,
    /// Share of all CPU time of the run that a hypervisor gave to others.
    pub(crate) steal: f64,
}

/// A load from which on others are in the way.
const BUSY: f64 = 0.5;
/// A share of stolen time from which on they are as well.
const STOLEN: f64 = 0.01;

/// CPU time so far, in ticks: all, and stolen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CpuTime {
    all: u64,
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
        Self { all: ticks.iter().take(8).sum(), stolen: ticks.get(7).copied().unwrap_or_default() }
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
        Ok(Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processor: model.map_or("unknown", |(_, name)| name.trim()).to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            br_netfilter: crate::contenders::bridge_filter().is_some(),
            load_before: read("/proc/loadavg").split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0.0),
            steal: 0.0,
        })
    }

    /// Adds what was stolen since `start`.
    pub(crate) fn finish(&mut self, start: CpuTime) {
        let now = CpuTime::now();
        let all = now.all.saturating_sub(start.all).max(1);
        self.steal = now.stolen.saturating_sub(start.stolen) as f64 / all as f64;
    }

    /// Why the numbers are doubtful, if they are.
    pub(crate) fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        if self.load_before > BUSY {
            doubts.push(format!(
                "the load was {:.1} before the run: others were at work, and the numbers are noise",
                self.load_before
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
        assert_eq!(CpuTime::parse(stat), CpuTime { all: 36, stolen: 8 });
        assert_eq!(CpuTime::parse(""), CpuTime::default());
    }

    #[test]
    fn a_quiet_machine_raises_no_doubts() {
        let quiet = Machine { br_netfilter: true, ..Machine::default() };
        assert!(quiet.doubts().is_empty());
        assert_eq!(Machine { load_before: 3.0, steal: 0.5, ..Machine::default() }.doubts().len(), 3);
    }
}
