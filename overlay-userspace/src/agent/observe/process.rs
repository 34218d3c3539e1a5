//! What the kernel says of this process (proc(5)): metrics that every exporter has.

use std::fs;

use nix::unistd::{SysconfVar, sysconf};

/// The numbers.
#[derive(Debug)]
pub(super) struct Process {
    /// CPU time of the process and of the children that it has waited for (`nft`), in seconds.
    pub(super) cpu: f64,
    /// Resident memory in bytes.
    pub(super) memory: u64,
    /// When it was started, in seconds since 1970.
    pub(super) started: f64,
    pub(super) descriptors: usize,
}

impl Process {
    /// `None` where /proc is not what it is on Linux.
    pub(super) fn read() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The name before may have anything in it.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let ticks = sysconf(SysconfVar::CLK_TCK).ok()?? as f64;
        let page = sysconf(SysconfVar::PAGE_SIZE).ok()??.cast_unsigned();
        let boot = fs::read_to_string("/proc/stat").ok()?;
        let boot: u64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.parse().ok()?;
        let cpu = [14, 15, 16, 17].into_iter().map(field).sum::<Option<u64>>()?;
        Some(Self {
            cpu: cpu as f64 / ticks,
            memory: field(24)? * page,
            started: boot as f64 + field(22)? as f64 / ticks,
            descriptors: fs::read_dir("/proc/self/fd").ok()?.count(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Process;

    #[test]
    fn this_process_has_memory_and_has_been_started() {
        let process = Process::read().unwrap();
        assert!(process.memory > 1 << 20 && process.descriptors > 3, "{process:?}");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!(process.started < now + 1.0 && now - process.started < 3600.0, "{process:?} {now}");
    }
}
