//! What conntrack of a namespace counts of packets that it could make no sense of, or no entry for.

use std::collections::BTreeMap;

use super::counters::Counters;
use crate::lab::{Namespace, exec};

/// The counters that stay where they are while all goes well: packets in state INVALID, entries that could not be
/// inserted, packets dropped for it.
const TROUBLE: [&str; 3] = ["invalid", "insert_failed", "drop"];

/// A snapshot of these counters, summed over all CPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    counters: BTreeMap<&'static str, u64>,
    /// Redirects of IPv6 that the namespace itself has sent, as routers on a bridge do: conntrack calls each of them INVALID.
    redirects: i64,
}

impl Trouble {
    /// Reads the counters of `namespace`.
    #[track_caller]
    pub fn read(namespace: &Namespace) -> Self {
        // "cpu=0   found=0 invalid=1 insert=0 insert_failed=0 drop=0 …", a line for each CPU.
        let text = exec::must(namespace.command("conntrack").arg("-S"), "");
        let sum = |name: &&'static str| {
            let values =
                text.split_whitespace().filter_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            let numbers = values.map(|value| value.parse::<u64>().expect("conntrack -S prints numbers"));
            (*name, numbers.sum())
        };
        assert!(text.contains(" invalid="), "conntrack -S says {text:?}");
        let redirects = Counters::read(namespace).get("Icmp6OutRedirects");
        Self { counters: TROUBLE.iter().map(sum).collect(), redirects }
    }

    /// What was counted since `before`; counters that stayed are left out, and the namespace's own redirects.
    pub fn since(&self, before: &Self) -> BTreeMap<&'static str, u64> {
        let redirects = (self.redirects - before.redirects).unsigned_abs();
        let moved = self.counters.iter().map(|(name, count)| {
            let moved = count - before.counters[name];
            (*name, if *name == "invalid" { moved.saturating_sub(redirects) } else { moved })
        });
        moved.filter(|(_, count)| *count > 0).collect()
    }
}

/// Forgets every entry of `namespace` for a protocol; there has to be one.
#[track_caller]
pub fn forget(namespace: &Namespace, protocol: &str) {
    exec::must(namespace.command("conntrack").args(["-D", "-p", protocol]), "");
}
