//! Measured times, and their percentiles by nearest rank: every percentile is a time that was measured.

use std::time::Duration;

/// Measured times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sample {
    sorted: Vec<Duration>,
}

impl Sample {
    pub(super) fn new(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self { sorted: times }
    }

    pub(super) fn len(&self) -> usize {
        self.sorted.len()
    }

    /// The smallest time that at least `percent` of 100 times do not exceed; 0 gives the shortest. Of no times: zero.
    pub(super) fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.sorted.len() * percent).div_ceil(100);
        self.sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(milliseconds: &[u64]) -> Sample {
        Sample::new(milliseconds.iter().copied().map(Duration::from_millis).collect())
    }

    #[test]
    fn percentiles_are_by_nearest_rank() {
        // The example of the method's definition: 15, 20, 35, 40, 50.
        let five = sample(&[40, 15, 50, 35, 20]);
        for (percent, expected) in [(0, 15), (5, 15), (30, 20), (40, 20), (50, 35), (99, 50), (100, 50)] {
            assert_eq!(five.percentile(percent), Duration::from_millis(expected), "p{percent}");
        }
    }

    #[test]
    fn p99_of_a_hundred_is_the_second_longest() {
        let hundred: Vec<u64> = (1..=100).collect();
        assert_eq!(sample(&hundred).percentile(99), Duration::from_millis(99));
        assert_eq!(sample(&hundred).percentile(50), Duration::from_millis(50));
    }

    #[test]
    fn one_time_is_every_percentile_and_none_is_zero() {
        assert_eq!(sample(&[7]).percentile(1), Duration::from_millis(7));
        assert_eq!(sample(&[7]).percentile(99), Duration::from_millis(7));
        assert_eq!(sample(&[]).percentile(50), Duration::ZERO);
    }
}
