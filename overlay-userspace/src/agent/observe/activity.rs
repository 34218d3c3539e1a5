//! What the agent has done and met since its start: told by the run loop, read by whoever looks.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use overlay_common::reason::Reason;

use super::text::Buckets;
use crate::agent::reconcile::Scope;

/// Upper bounds of the durations of passes, in milliseconds.
const BOUNDS: [u64; 10] = [5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 10_000];
/// Samples of the drops that are kept, and the time between two: ten minutes together.
const SAMPLES: usize = 120;
pub(super) const SAMPLING: Duration = Duration::from_secs(5);

/// Passes of one scope.
#[derive(Clone, Copy, Debug, Default)]
struct Passes {
    /// Not cumulative; the last one is for what is longer than all bounds.
    counts: [u64; BOUNDS.len() + 1],
    sum: Duration,
}

/// Packets dropped, by reason.
pub(super) type Drops = [u64; Reason::COUNT];

/// What has happened.
#[derive(Debug)]
pub(in crate::agent) struct Activity {
    passes: [Passes; 3],
    /// Passes that could not do all that they should.
    pub(super) failed: u64,
    /// What the last pass could not do.
    pub(super) problems: Vec<String>,
    /// When a pass last did all that it should.
    pub(super) succeeded: Option<Instant>,
    /// Whether the source of the nodes can be reached: nothing where the file lists them.
    pub(super) source: Option<Result<(), String>>,
    /// How old its last news were, when that was asked.
    pub(super) heard: Option<Duration>,
    /// How many packets were dropped between the samples, the youngest last.
    history: VecDeque<Drops>,
    sampled: Option<(Instant, Drops)>,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self {
            passes: [Passes::default(); 3],
            failed: 0,
            problems: Vec::new(),
            succeeded: None,
            source: None,
            heard: None,
            history: VecDeque::new(),
            sampled: None,
        }
    }

    /// A pass has ended.
    pub(in crate::agent) fn pass(&mut self, scope: Scope, took: Duration) {
        let Some(passes) = self.passes.get_mut(scope as usize) else { return };
        let at = BOUNDS.iter().position(|bound| took <= Duration::from_millis(*bound));
        if let Some(count) = passes.counts.get_mut(at.unwrap_or(BOUNDS.len())) {
            *count += 1;
        }
        passes.sum += took;
    }

    /// What the last pass could not do; nothing where it did all.
    pub(in crate::agent) fn settled(&mut self, problems: Vec<String>, now: Instant) {
        if problems.is_empty() {
            self.succeeded = Some(now);
        } else {
            self.failed += 1;
        }
        self.problems = problems;
    }

    /// Whether the API server answers, for an agent that asks it, and how long ago it last did.
    pub(in crate::agent) fn source(&mut self, source: Result<(), String>, heard: Option<Duration>) {
        self.source = Some(source);
        self.heard = heard;
    }

    /// Is it time for another sample of the drops?
    pub(super) fn wants_sample(&self, now: Instant) -> bool {
        // A little less, for a run loop that is a little early.
        self.sampled.is_none_or(|(at, _)| now.saturating_duration_since(at) >= SAMPLING * 9 / 10)
    }

    pub(super) fn sample(&mut self, drops: Drops, now: Instant) {
        if let Some((_, before)) = self.sampled {
            let mut since = drops;
            for (now, before) in since.iter_mut().zip(before) {
                *now = now.saturating_sub(before);
            }
            if self.history.len() == SAMPLES {
                self.history.pop_front();
            }
            self.history.push_back(since);
        }
        self.sampled = Some((now, drops));
    }

    /// How many packets each sample of one reason counted, the youngest last.
    pub(super) fn history(&self, reason: Reason) -> Vec<u64> {
        self.history.iter().filter_map(|drops| drops.get(reason as usize).copied()).collect()
    }

    /// The durations of passes by scope, of scopes that have had any.
    pub(super) fn durations(&self) -> Vec<(&'static str, Buckets)> {
        let scopes = [(Scope::Pods, "pods"), (Scope::Network, "network"), (Scope::Everything, "everything")];
        let buckets = |(scope, name): (Scope, &'static str)| {
            let Passes { counts, sum } = self.passes.get(scope as usize)?;
            let mut below = 0;
            let mut buckets = Vec::with_capacity(BOUNDS.len());
            for (bound, count) in BOUNDS.iter().zip(counts) {
                below += count;
                buckets.push((Duration::from_millis(*bound).as_secs_f64(), below));
            }
            let count = counts.iter().sum();
            (count > 0).then_some((name, Buckets { bounds: buckets, count, sum: sum.as_secs_f64() }))
        };
        scopes.into_iter().filter_map(buckets).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_differences_and_only_the_last_ones_are_kept() {
        let mut activity = Activity::new();
        let mut now = Instant::now();
        let mut drops = [0; Reason::COUNT];
        assert!(activity.wants_sample(now));
        for step in 0..(SAMPLES as u64 + 10) {
            activity.sample(drops, now);
            assert!(!activity.wants_sample(now));
            now += SAMPLING;
            assert!(activity.wants_sample(now));
            drops[Reason::Vni as usize] += step;
        }
        let history = activity.history(Reason::Vni);
        assert_eq!((history.len(), history.last().copied()), (SAMPLES, Some(SAMPLES as u64 + 8)));
        assert!(activity.history(Reason::Ecn).iter().all(|count| *count == 0));
    }

    #[test]
    fn passes_are_counted_by_scope_and_duration() {
        let mut activity = Activity::new();
        for millis in [1, 5, 30_000] {
            activity.pass(Scope::Everything, Duration::from_millis(millis));
        }
        let durations = activity.durations();
        let [(name, Buckets { bounds, count, sum })] = &durations[..] else { panic!("{durations:?}") };
        assert_eq!((*name, bounds[0], bounds[9], *count), ("everything", (0.005, 2), (10.0, 2), 3));
        assert!((sum - 30.006).abs() < 1e-9);
    }

    #[test]
    fn problems_are_those_of_the_last_pass() {
        let mut activity = Activity::new();
        activity.settled(vec!["a".into(), "b".into()], Instant::now());
        assert_eq!((activity.failed, activity.problems.len(), activity.succeeded), (1, 2, None));
        activity.settled(Vec::new(), Instant::now());
        assert_eq!((activity.failed, activity.problems.len()), (1, 0));
        assert!(activity.succeeded.is_some());
    }
}
