//! Several containers at the same time (§3 "Lifecycle & Ordering").

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context as _, Result, ensure};

use crate::case::{Case, Verdict};
use crate::container::{Attached, Container};
use crate::suite::{IFNAME, Suite};
use crate::version::Version;

/// How many containers.
const CONTAINERS: usize = 16;

/// How many at a time.
const WORKERS: usize = 8;

const CONCURRENT: &str = "Plugins must handle being executed concurrently across different containers. If necessary, \
                          they must implement locking on shared resources (e.g. IPAM databases).";

pub(super) const CASES: &[Case] = &[
    Case::must("parallel-adds-give-unique-addresses", "§3 Lifecycle & Ordering", CONCURRENT, adds),
    Case::must("parallel-dels-leave-nothing-behind", "§3 Lifecycle & Ordering", CONCURRENT, dels),
    Case::must(
        "parallel-adds-and-dels-do-not-disturb-each-other",
        "§3 Lifecycle & Ordering",
        CONCURRENT,
        mixed,
    ),
];

/// Does `work` for all `items` over [`WORKERS`] threads; the results are in the order of the items.
fn spread<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut done = Vec::new();
        while let Some((index, item)) = {
            let index = next.fetch_add(1, Ordering::Relaxed);
            items.get(index).map(|item| (index, item))
        } {
            done.push((index, work(item)));
        }
        done
    };
    let mut results = BTreeMap::new();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(worker)).collect();
        for worker in workers {
            let done = worker.join().map_err(|_| anyhow::anyhow!("a worker has panicked"))?;
            results.extend(done);
        }
        anyhow::Ok(())
    })?;
    results.into_values().collect()
}

fn containers(suite: &Suite<'_>) -> Result<Vec<Container>> {
    (0..CONTAINERS).map(|_| suite.container()).collect()
}

fn add_all<'s>(
    suite: &'s Suite<'_>,
    version: Version,
    containers: &[Container],
) -> Result<Vec<Attached<'s>>> {
    spread(containers, |container| suite.attach(version, container, IFNAME))
}

fn del_all(suite: &Suite<'_>, version: Version, attached: &mut [Attached<'_>]) -> Verdict {
    spread(attached, |one| suite.del(version, &one.target, Some(&one.result)))?;
    attached.iter_mut().for_each(Attached::released);
    Ok(())
}

fn adds(suite: &Suite<'_>, version: Version) -> Verdict {
    let containers = containers(suite)?;
    let attached = add_all(suite, version, &containers)?;
    let mut holders = BTreeMap::new();
    for (container, one) in containers.iter().zip(&attached) {
        one.must_work(container)?;
        for address in one.addresses()? {
            let other = holders.insert(address.addr(), container.name());
            ensure!(other.is_none(), "{} and {other:?} both have {}", container.name(), address.addr());
        }
    }
    Ok(())
}

fn dels(suite: &Suite<'_>, version: Version) -> Verdict {
    let before = suite.state()?;
    let containers = containers(suite)?;
    let mut attached = add_all(suite, version, &containers)?;
    del_all(suite, version, &mut attached)?;
    before.must_be_back(suite.host)
}

fn mixed(suite: &Suite<'_>, version: Version) -> Verdict {
    let before = suite.state()?;
    let containers = containers(suite)?;
    spread(&containers, |container| {
        for _ in 0..2 {
            let mut attached = suite.attach(version, container, IFNAME)?;
            attached.must_work(container)?;
            attached.del().context("DEL while others are ADDed")?;
        }
        Ok(())
    })?;
    before.must_be_back(suite.host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_spread_and_results_stay_in_order() {
        let items: Vec<usize> = (0..100).collect();
        assert_eq!(spread(&items, |item| Ok(item * 2)).unwrap()[99], 198);
        let error = spread(&items, |item| if *item == 50 { anyhow::bail!("fifty") } else { Ok(()) });
        assert_eq!(error.unwrap_err().to_string(), "fifty");
    }
}
