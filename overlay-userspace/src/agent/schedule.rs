//! When the next pass is due, and how much it has to look at.
//!
//! Events ask for a pass soon, failures for one later. Neither can make the agent busy: after a failure, and while passes
//! follow each other for long, events are answered once a second.

use std::time::Duration;

use tokio::time::Instant;

use super::reconcile::Scope;

/// Everything is looked at this often, whatever happens or does not.
pub(super) const RESYNC: Duration = Duration::from_secs(5);

/// Changes come in bursts; one pass serves them all. What forks programs waits longer.
const SETTLE: Duration = Duration::from_millis(50);
const SETTLE_EVERYTHING: Duration = Duration::from_millis(150);
const SETTLE_PODS: Duration = Duration::from_millis(500);

/// A pass that failed is tried again, soon and then less so.
const RETRY: [Duration; 4] =
    [Duration::from_millis(200), Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(5)];

/// Events are answered this late when passes fail, or when more than [`BURST`] have come close upon each other: somebody
/// undoes what the agent does, or the node is very busy.
const CALM: Duration = Duration::from_secs(1);
const BURST: u32 = 20;

/// The schedule.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    due: Option<(Instant, Scope)>,
    last: Option<Instant>,
    /// Passes that followed each other within twice [`CALM`].
    streak: u32,
    /// Passes that failed since one did not.
    failures: usize,
    /// The pass that is under way, and what the last one took that looked at everything.
    began: Option<(Instant, Scope)>,
    took: Duration,
}

impl Schedule {
    /// Asks for a pass at once.
    pub(super) fn now(&mut self, scope: Scope) {
        self.at(Instant::now(), scope);
    }

    /// Asks for a pass because something has changed.
    pub(super) fn event(&mut self, scope: Scope) {
        self.at(Instant::now() + self.patience(scope), scope);
    }

    fn patience(&self, scope: Scope) -> Duration {
        match scope {
            // With thousands of nodes such a pass takes a second: not one for each that comes in a row.
            Scope::Everything => self.settle(scope).max((self.took * 2).min(CALM * 2)),
            Scope::Pods | Scope::Network => self.settle(scope),
        }
    }

    fn settle(&self, scope: Scope) -> Duration {
        let settle = match scope {
            Scope::Pods => SETTLE_PODS,
            Scope::Network => SETTLE,
            Scope::Everything => SETTLE_EVERYTHING,
        };
        if self.streak > BURST {
            return CALM;
        }
        match self.failures.checked_sub(1) {
            None => settle,
            Some(index) => RETRY.get(index).copied().unwrap_or(CALM).clamp(settle, CALM),
        }
    }

    /// The earliest time and the widest scope of all that ask win.
    fn at(&mut self, at: Instant, scope: Scope) {
        self.due = Some(self.due.map_or((at, scope), |(old, other)| (old.min(at), other.max(scope))));
    }

    /// Waits for the next pass; for ever when nobody has asked. Cancel-safe.
    pub(super) async fn due(&mut self) -> Scope {
        let Some((at, scope)) = self.due else { return std::future::pending().await };
        tokio::time::sleep_until(at).await;
        self.due = None;
        self.begun(Instant::now());
        self.began = Some((Instant::now(), scope));
        scope
    }

    fn begun(&mut self, now: Instant) {
        let close = self.last.is_some_and(|last| now.saturating_duration_since(last) <= CALM * 2);
        self.streak = if close { self.streak.saturating_add(1) } else { 0 };
        self.last = Some(now);
    }

    /// The pass that was due has done all that it should.
    pub(super) fn succeeded(&mut self) {
        self.ended();
        self.failures = 0;
    }

    fn ended(&mut self) {
        if let Some((began, Scope::Everything)) = self.began.take() {
            self.took = began.elapsed();
        }
    }

    /// It has not: asks for another one.
    pub(super) fn failed(&mut self) {
        self.ended();
        let wait = RETRY.get(self.failures).copied().unwrap_or(RESYNC);
        self.failures = self.failures.saturating_add(1);
        self.at(Instant::now() + wait, Scope::Everything);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_runtime(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
    }

    #[test]
    fn the_earliest_time_and_the_widest_scope_win() {
        in_runtime(async {
            let mut schedule = Schedule::default();
            let start = Instant::now();
            schedule.at(start + Duration::from_millis(30), Scope::Network);
            schedule.at(start + Duration::from_secs(9), Scope::Everything);
            assert_eq!(schedule.due().await, Scope::Everything);
            assert!((30..1000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
            assert!(tokio::time::timeout(SETTLE, schedule.due()).await.is_err(), "nobody has asked");
        });
    }

    #[test]
    fn a_dropped_wait_forgets_nothing() {
        in_runtime(async {
            let mut schedule = Schedule::default();
            schedule.event(Scope::Network);
            assert!(tokio::time::timeout(SETTLE / 5, schedule.due()).await.is_err());
            assert_eq!(schedule.due().await, Scope::Network);
        });
    }

    #[test]
    fn events_wait_longer_after_failures_but_never_long() {
        in_runtime(async {
            let mut schedule = Schedule::default();
            assert_eq!(schedule.patience(Scope::Network), SETTLE);
            for expected in [200, 500, 1000, 1000, 1000, 1000] {
                schedule.failed();
                assert_eq!(schedule.patience(Scope::Network), Duration::from_millis(expected));
            }
            schedule.succeeded();
            assert_eq!(schedule.patience(Scope::Everything), SETTLE_EVERYTHING);
        });
    }

    #[test]
    fn passes_that_take_long_become_rare() {
        let mut schedule = Schedule { took: Duration::from_millis(20), ..Schedule::default() };
        assert_eq!(schedule.patience(Scope::Everything), SETTLE_EVERYTHING);
        schedule.took = Duration::from_millis(700);
        assert_eq!(schedule.patience(Scope::Everything), Duration::from_millis(1400));
        assert_eq!(schedule.patience(Scope::Network), SETTLE);
        schedule.took = Duration::from_mins(1);
        assert_eq!(schedule.patience(Scope::Everything), CALM * 2);
    }

    #[test]
    fn passes_without_end_become_rare_until_it_is_quiet() {
        let mut schedule = Schedule::default();
        let mut now = Instant::now();
        let mut passes = 0;
        let end = now + Duration::from_mins(1);
        // Each pass causes the event that asks for the next one.
        while now < end {
            schedule.begun(now);
            now += schedule.patience(Scope::Network);
            passes += 1;
        }
        assert!((60..90).contains(&passes), "{passes} passes in a minute");
        schedule.begun(now + CALM * 3);
        assert_eq!(schedule.patience(Scope::Network), SETTLE);
    }
}
