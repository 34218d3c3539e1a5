//! A histogram of latencies, as Prometheus wants one.

use std::time::Duration;

/// Upper bounds of the buckets, in microseconds: from a LAN's to another continent's.
pub(crate) const BOUNDS: [u64; 12] =
    [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000];

/// Counts of latencies since the start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Histogram {
    /// Not cumulative; the last one is for what is longer than all bounds.
    counts: [u64; BOUNDS.len() + 1],
    sum: Duration,
}

impl Histogram {
    /// Counts one.
    pub(crate) fn add(&mut self, latency: Duration) {
        let at = BOUNDS.iter().position(|bound| latency <= Duration::from_micros(*bound));
        if let Some(count) = self.counts.get_mut(at.unwrap_or(BOUNDS.len())) {
            *count += 1;
        }
        self.sum += latency;
    }

    /// How many are at most as long as each bound, in seconds; then how many there are, and their sum.
    pub(crate) fn cumulative(&self) -> (Vec<(f64, u64)>, u64, Duration) {
        let mut below = 0;
        let mut buckets = Vec::with_capacity(BOUNDS.len());
        for (bound, count) in BOUNDS.iter().zip(self.counts) {
            below += count;
            buckets.push((Duration::from_micros(*bound).as_secs_f64(), below));
        }
        (buckets, self.counts.iter().sum(), self.sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_bounds_belong_to_them() {
        let mut histogram = Histogram::default();
        for micros in [100, 101, 600, 2_000_000] {
            histogram.add(Duration::from_micros(micros));
        }
        let (buckets, count, sum) = histogram.cumulative();
        assert_eq!(buckets[..4], [(0.0001, 1), (0.00025, 2), (0.0005, 2), (0.001, 3)]);
        assert_eq!((buckets.last().copied(), count), (Some((1.0, 3)), 4));
        assert_eq!(sum, Duration::from_micros(2_000_801));
    }
}
