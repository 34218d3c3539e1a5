//! Medians with confidence intervals that assume nothing about the distribution.
//!
//! The interval for a median of `n` values is that of two order statistics: the `k`-th smallest and the `k`-th largest, which enclose
//! the true median with probability `1 − 2·P(B < k)`, `B` binomial with `n` trials of one half. `k` is the largest for which that is at
//! least 95 %. (Conover, Practical Nonparametric Statistics, 3.2.)

use serde::Serialize;

/// What an interval has to cover.
const CONFIDENCE: f64 = 0.95;

/// A median and the interval that encloses the true one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Estimate {
    /// The median.
    pub(crate) median: f64,
    /// Lower end.
    pub(crate) low: f64,
    /// Upper end.
    pub(crate) high: f64,
    /// The probability that the interval covers the true median; below 0.95 only with fewer than six values.
    pub(crate) coverage: f64,
    /// How many values it was made of.
    pub(crate) rounds: usize,
}

/// The estimate from these values, in any order; `None` without any.
pub(crate) fn estimate(values: &[f64]) -> Option<Estimate> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (rank, coverage) = rank(sorted.len());
    let low = *sorted.get(rank)?;
    let high = sorted[sorted.len() - 1 - rank];
    Some(Estimate { median: middle(&sorted), low, high, coverage, rounds: sorted.len() })
}

/// The median of values in any order; NaN without any.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    middle(&sorted)
}

fn middle(sorted: &[f64]) -> f64 {
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// How many values lie outside of the interval at each end, and what it covers then.
fn rank(n: usize) -> (usize, f64) {
    // P(B = 0), then P(B = 1), …; the halves get too small for a double only where n is beyond any number of rounds.
    let mut probability = 0.5_f64.powi(i32::try_from(n).unwrap_or(i32::MAX));
    let mut below = 0.0;
    let mut best = (0, 1.0 - 2.0 * probability);
    for k in 0..n / 2 {
        below += probability;
        let coverage = 1.0 - 2.0 * below;
        if coverage < CONFIDENCE {
            break;
        }
        best = (k, coverage);
        probability *= (n - k) as f64 / (k + 1) as f64;
    }
    best
}

/// The value that `share` (0 to 1) of the values do not exceed: nearest rank. Reorders them; `None` without any.
pub(crate) fn quantile(values: &mut [u32], share: f64) -> Option<u32> {
    if values.is_empty() {
        return None;
    }
    // Between 0 and the length: neither negative nor too large.
    #[allow(clippy::cast_sign_loss, reason = "a share of a length is not negative")]
    let rank = (share * values.len() as f64).ceil() as usize;
    let index = rank.clamp(1, values.len()) - 1;
    Some(*values.select_nth_unstable(index).1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(n: usize) -> Vec<f64> {
        (1..=n).rev().map(|i| i as f64).collect()
    }

    #[test]
    fn intervals_are_those_of_published_tables() {
        // Ranks from one end, as tables of the sign test have them.
        for (n, rank, coverage) in [(6, 1, 0.96875), (10, 2, 0.978_516), (20, 6, 0.958_61), (40, 14, 0.9615)]
        {
            let is = estimate(&range(n)).unwrap();
            assert_eq!((is.low, is.high), (rank as f64, (n + 1 - rank) as f64), "{n} values");
            assert!((is.coverage - coverage).abs() < 1e-4, "{n} values: {}", is.coverage);
            assert_eq!(is.rounds, n);
        }
    }

    #[test]
    fn too_few_values_say_what_they_cover() {
        let is = estimate(&range(3)).unwrap();
        assert_eq!((is.low, is.median, is.high, is.coverage), (1.0, 2.0, 3.0, 0.75));
        assert!(estimate(&[4.0]).unwrap().coverage.abs() < 1e-9);
        assert_eq!(estimate(&[]), None);
    }

    #[test]
    fn median_of_an_even_number_lies_between_the_middle_ones() {
        assert!((median(&[4.0, 1.0, 3.0, 2.0]) - 2.5).abs() < 1e-9);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn an_interval_covers_the_true_median_as_often_as_it_says() {
        // Uniform numbers by a linear congruence; the true median is one half.
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as f64 / (1_u64 << 31) as f64
        };
        let trials = 4000;
        let covered = (0..trials)
            .filter(|_| {
                let values: Vec<f64> = (0..15).map(|_| next()).collect();
                let is = estimate(&values).unwrap();
                is.low <= 0.5 && 0.5 <= is.high
            })
            .count();
        let share = covered as f64 / f64::from(trials);
        assert!((share - estimate(&range(15)).unwrap().coverage).abs() < 0.015, "{share}");
    }

    #[test]
    fn quantiles_are_values_that_were_seen() {
        let mut values: Vec<u32> = (1..=1000).rev().collect();
        assert_eq!(quantile(&mut values, 0.5), Some(500));
        assert_eq!(quantile(&mut values, 0.999), Some(999));
        assert_eq!(quantile(&mut values, 1.0), Some(1000));
        assert_eq!(quantile(&mut [7], 0.999), Some(7));
        assert_eq!(quantile(&mut [], 0.5), None);
    }
}
