//! Rounds: in each, everybody has a turn at everything. What is compared was measured within the same second or so, and the order
//! changes from round to round, so that neither a machine that slows down nor a neighbour in the order favours anybody.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use overlay_tests::lab::interrupt;

use crate::workloads::Sample;

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// No round begins that would probably end later.
    pub(crate) until: Instant,
    /// Rounds at most.
    pub(crate) rounds: usize,
}

/// Rounds that are made even if they take longer: fewer are no measurement.
const LEAST: usize = 3;

/// What was measured: for each cell (whatever the contenders are compared in) and contender one sample per round, in the order of
/// the rounds.
pub(crate) type Samples<Cell, Contender> = BTreeMap<(Cell, Contender), Vec<Sample>>;

/// Lets `contenders` take turns in every cell, round by round.
pub(crate) fn run<Cell: Copy + Ord, Contender: Copy + Ord>(
    limits: Limits,
    cells: &[Cell],
    contenders: &[Contender],
    mut turn: impl FnMut(Cell, Contender) -> Result<Sample>,
) -> Result<Samples<Cell, Contender>> {
    let mut samples: Samples<Cell, Contender> = BTreeMap::new();
    if cells.is_empty() {
        return Ok(samples);
    }
    let mut longest = Duration::ZERO;
    for round in 0..limits.rounds {
        let start = Instant::now();
        if round >= LEAST && start + longest > limits.until {
            break;
        }
        for &cell in cells {
            for position in 0..contenders.len() {
                interrupt::check();
                let contender = contenders[(round + position) % contenders.len()];
                samples.entry((cell, contender)).or_default().push(turn(cell, contender)?);
            }
        }
        longest = longest.max(start.elapsed());
        eprintln!("bench: round {} of at most {} took {:.1?}", round + 1, limits.rounds, start.elapsed());
    }
    Ok(samples)
}

/// The ratio of each round: what `value` says of one contender by what it says of another.
pub(crate) fn ratios(mine: &[Sample], theirs: &[Sample], value: impl Fn(&Sample) -> f64) -> Vec<f64> {
    mine.iter().zip(theirs).map(|(mine, theirs)| value(mine) / value(theirs)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(rate: f64) -> Sample {
        Sample { rate, latency: None, loss: 0.0 }
    }

    fn limits(rounds: usize, time: Duration) -> Limits {
        Limits { until: Instant::now() + time, rounds }
    }

    #[test]
    fn everybody_has_a_turn_in_every_round_and_each_begins_once() {
        let mut order = Vec::new();
        let samples = run(limits(3, Duration::from_mins(1)), &['x', 'y'], &[0, 1, 2], |cell, contender| {
            order.push((cell, contender));
            Ok(sample(f64::from(contender)))
        });
        assert!(samples.unwrap().values().all(|samples| samples.len() == 3));
        let of_x: Vec<_> = order.iter().filter(|(cell, _)| *cell == 'x').map(|(_, who)| *who).collect();
        assert_eq!(of_x, [0, 1, 2, 1, 2, 0, 2, 0, 1]);
    }

    #[test]
    fn no_round_begins_after_the_end_but_the_least_are_made() {
        let samples = run(limits(100, Duration::ZERO), &[()], &[0], |(), _| Ok(sample(1.0))).unwrap();
        assert_eq!(samples[&((), 0)].len(), LEAST);
        let samples = run(limits(1, Duration::ZERO), &[()], &[0], |(), _| Ok(sample(1.0))).unwrap();
        assert_eq!(samples[&((), 0)].len(), 1);
    }

    #[test]
    fn ratios_pair_what_belongs_to_one_round() {
        let ratios = ratios(&[sample(1.0), sample(6.0)], &[sample(2.0), sample(3.0)], |sample| sample.rate);
        assert_eq!(ratios, [0.5, 2.0]);
    }
}
