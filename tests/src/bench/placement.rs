//! Which CPU a thread of the load generator runs on. A veth pair hands a packet to the other end on the CPU that sends it, softirqs
//! included; so pinning the threads pins the whole path.

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// How threads are spread over CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Placement {
    /// Everything on the first CPU: throughput is then the inverse of what a unit of work costs in all
    One,
    /// Clients on the first CPU, servers on the second
    Two,
    /// As the scheduler likes
    Free,
}

/// Which end of a connection a thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Sends requests.
    Client,
    /// Answers them, or takes what is sent.
    Server,
}

impl Placement {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::One, Self::Two, Self::Free];

    /// As the command line spells it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Two => "two",
            Self::Free => "free",
        }
    }

    /// The CPU of a thread in this role, counted from 0; `None`: any.
    const fn cpu(self, role: Role) -> Option<usize> {
        match (self, role) {
            (Self::One, _) | (Self::Two, Role::Client) => Some(0),
            (Self::Two, Role::Server) => Some(1),
            (Self::Free, _) => None,
        }
    }

    /// Moves the calling thread to its place, for good.
    pub(crate) fn pin(self, role: Role) -> Result<()> {
        let Some(cpu) = self.cpu(role) else { return Ok(()) };
        let mut cpus = CpuSet::new();
        cpus.set(cpu).context("name a cpu")?;
        sched_setaffinity(Pid::from_raw(0), &cpus)
            .with_context(|| format!("run on cpu {cpu}: choose other places with --cpus"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_share_a_cpu_only_where_all_do() {
        assert_eq!(Placement::One.cpu(Role::Client), Placement::One.cpu(Role::Server));
        assert_ne!(Placement::Two.cpu(Role::Client), Placement::Two.cpu(Role::Server));
        assert_eq!(Placement::Free.cpu(Role::Client), None);
    }
}
