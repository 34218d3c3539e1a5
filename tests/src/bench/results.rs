//! The results, as they are printed, drawn and written as JSON.

use overlay_tests::lab::WireMode;
use serde::Serialize;

use crate::contenders::{Contender, wire_name};
use crate::machine::Machine;
use crate::placement::Placement;
use crate::rounds::{Samples, ratios};
use crate::statistics::{Estimate, estimate, median};
use crate::workloads::{Latency, Sample, Workload};

/// Everything that one run found.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    /// Where it ran.
    pub(crate) machine: Machine,
    /// Length of a turn in milliseconds.
    pub(crate) turn_ms: u128,
    /// Contenders beside the wire.
    pub(crate) rows: Vec<Row>,
    /// What overlay costs when its maps grow, and all when flows do.
    pub(crate) scaling: Vec<Growth>,
    /// What a run of a program costs.
    pub(crate) programs: Vec<Program>,
    /// What could not be measured, and why.
    pub(crate) notes: Vec<String>,
}

/// One workload (or one quantile of its times) in one wire mode and placement.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    /// `w1`, `w2`.
    pub(crate) wire: &'static str,
    /// Where the threads ran.
    pub(crate) cpus: Placement,
    /// The workload.
    pub(crate) workload: Workload,
    /// A quantile of the time of a round trip; else the row is about the rate.
    pub(crate) quantile: Option<&'static str>,
    /// The unit of `absolute`.
    pub(crate) unit: &'static str,
    /// Of each contender.
    pub(crate) contenders: Vec<Entry>,
    /// overlay by Flannel's path in the same round.
    pub(crate) overlay_to_flannel: Option<Estimate>,
    /// overlay by plainly routed pods in the same round.
    pub(crate) overlay_to_routed: Option<Estimate>,
}

/// What one contender reached.
#[derive(Debug, Serialize)]
pub(crate) struct Entry {
    /// Which.
    pub(crate) contender: Contender,
    /// The median over all rounds, in the row's unit. Context: it is this machine's.
    pub(crate) absolute: f64,
    /// Divided by the raw wire of the same round. Of times, less is better.
    pub(crate) ratio: Estimate,
    /// The largest share of datagrams that a turn lost.
    pub(crate) loss: f64,
}

/// One step of something that grows.
#[derive(Debug, Serialize)]
pub(crate) struct Growth {
    /// What grows.
    pub(crate) what: &'static str,
    /// How far.
    pub(crate) size: usize,
    /// What is measured: a rate, or the median of times (`p50`), of which less is better.
    pub(crate) measure: String,
    /// Of whom.
    pub(crate) contender: Contender,
    /// Compared with what, in the same round.
    pub(crate) baseline: &'static str,
    /// Divided by the baseline.
    pub(crate) ratio: Estimate,
}

/// One program on one kind of packet.
#[derive(Debug, Serialize)]
pub(crate) struct Program {
    /// Its name.
    #[serde(rename = "program")]
    pub(crate) name: &'static str,
    /// The packet, and what becomes of it.
    pub(crate) packet: String,
    /// `repeat` (the packet stays what it is; many runs in one call) or `single` (each run has a call and a packet of its own).
    pub(crate) method: &'static str,
    /// Nanoseconds of a run.
    pub(crate) nanoseconds: Estimate,
    /// Instructions of a run, where the processor's counters can be read.
    pub(crate) instructions: Option<f64>,
}

/// What the contenders are compared in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cell {
    /// Whether the wire is like a NIC's (false sorts first: W1, then W2).
    pub(crate) nic: bool,
    /// Where the threads run.
    pub(crate) cpus: Placement,
    /// The workload.
    pub(crate) workload: Workload,
}

impl Cell {
    /// The wire mode.
    pub(crate) const fn mode(self) -> WireMode {
        if self.nic { WireMode::Nic } else { WireMode::Veth }
    }
}

/// The rows of one cell: the rate, and the quantiles where there are any.
pub(crate) fn rows(cell: Cell, samples: &Samples<Cell, Contender>) -> Vec<Row> {
    let of_wire = samples.get(&(cell, Contender::Wire)).map(Vec::as_slice).unwrap_or_default();
    let quantiles = match cell.workload {
        _ if of_wire.iter().all(|sample| sample.latency.is_none()) => 0,
        // Of many datagrams together; only the median says something that the rate does not. With a CPU of its own the receiver
        // keeps up, so that there is hardly ever a window to wait for.
        Workload::Udp64 | Workload::Udp512 | Workload::Udp1400 => usize::from(cell.cpus == Placement::One),
        _ => Latency::NAMES.len(),
    };
    let mut rows = Vec::new();
    rows.extend(row(cell, samples, None));
    rows.extend((0..quantiles).filter_map(|index| row(cell, samples, Some(index))));
    rows
}

fn row(cell: Cell, samples: &Samples<Cell, Contender>, quantile: Option<usize>) -> Option<Row> {
    // Microseconds of a quantile, or the rate.
    let value = |sample: &Sample| match (quantile, &sample.latency) {
        (None, _) => sample.rate,
        (Some(index), Some(latency)) => f64::from(latency.quantiles[index]) / 1e3,
        (Some(_), None) => f64::NAN,
    };
    let of = |contender| samples.get(&(cell, contender)).map(Vec::as_slice);
    let wire = of(Contender::Wire)?;
    let versus = |other| estimate(&ratios(of(Contender::Overlay)?, of(other)?, value));
    let contenders = Contender::ALL.into_iter().filter_map(|contender| {
        let mine = of(contender)?;
        Some(Entry {
            contender,
            absolute: median(&mine.iter().map(value).collect::<Vec<_>>()),
            ratio: estimate(&ratios(mine, wire, value))?,
            loss: mine.iter().map(|sample| sample.loss).fold(0.0, f64::max),
        })
    });
    Some(Row {
        wire: wire_name(cell.mode()),
        cpus: cell.cpus,
        workload: cell.workload,
        quantile: quantile.map(|index| Latency::NAMES[index]),
        unit: if quantile.is_some() { "µs" } else { cell.workload.unit() },
        contenders: contenders.collect(),
        overlay_to_flannel: versus(Contender::Flannel),
        overlay_to_routed: versus(Contender::Routed),
    })
}

impl Row {
    /// Workload and quantile.
    pub(crate) fn name(&self) -> String {
        match self.quantile {
            None => self.workload.name().to_owned(),
            Some(quantile) => format!("{} {quantile}", self.workload.name()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Results with one workload of two rounds, in which overlay reaches 0.9 and 0.8 of the wire, Flannel half of that.
    pub(crate) fn sample_results() -> Results {
        let cell = Cell { nic: true, cpus: Placement::One, workload: Workload::UdpRr };
        let sample = |rate: f64| Sample {
            rate,
            latency: Some(Latency { quantiles: [10_000, 20_000, 30_000] }),
            loss: 0.0,
        };
        let samples = Samples::from([
            ((cell, Contender::Wire), vec![sample(100.0), sample(200.0)]),
            ((cell, Contender::Overlay), vec![sample(90.0), sample(160.0)]),
            ((cell, Contender::Flannel), vec![sample(45.0), sample(80.0)]),
        ]);
        let ratio = estimate(&[0.97, 0.99]).unwrap();
        Results {
            machine: Machine::default(),
            turn_ms: 5,
            rows: rows(cell, &samples),
            scaling: vec![Growth {
                what: "nodes",
                size: 10_000,
                measure: "udp_rr".into(),
                contender: Contender::Overlay,
                baseline: "1 node",
                ratio,
            }],
            programs: vec![Program {
                name: "from_pod",
                packet: "UDP to a remote pod: encap".into(),
                method: "single",
                nanoseconds: estimate(&[100.0, 120.0]).unwrap(),
                instructions: None,
            }],
            notes: vec!["a note".into()],
        }
    }

    #[test]
    fn ratios_are_medians_of_those_within_a_round() {
        let results = sample_results();
        let rate = &results.rows[0];
        let entry = |who| rate.contenders.iter().find(|entry| entry.contender == who).unwrap();
        assert!((entry(Contender::Overlay).ratio.median - 0.85).abs() < 1e-9);
        assert!((entry(Contender::Overlay).absolute - 125.0).abs() < 1e-9);
        assert!((rate.overlay_to_flannel.unwrap().median - 2.0).abs() < 1e-9);
        assert!(rate.overlay_to_routed.is_none(), "nobody was routed");
    }

    #[test]
    fn times_have_rows_of_their_own() {
        let names: Vec<_> = sample_results().rows.iter().map(Row::name).collect();
        assert_eq!(names, ["udp_rr", "udp_rr p50", "udp_rr p99", "udp_rr p99.9"]);
        let p99 = &sample_results().rows[2];
        assert_eq!((p99.unit, p99.contenders[0].absolute), ("µs", 20.0));
    }

    #[test]
    fn datagrams_have_a_median_time_where_both_ends_share_a_cpu() {
        let sample = Sample { rate: 1.0, latency: Some(Latency { quantiles: [1, 2, 3] }), loss: 0.0 };
        for (cpus, rows_of_it) in [(Placement::One, 2), (Placement::Two, 1), (Placement::Free, 1)] {
            let cell = Cell { nic: false, cpus, workload: Workload::Udp512 };
            let samples = Samples::from([((cell, Contender::Wire), vec![sample.clone()])]);
            assert_eq!(rows(cell, &samples).len(), rows_of_it, "{cpus:?}");
        }
    }

    #[test]
    fn json_has_the_documented_keys() {
        let json = serde_json::to_value(sample_results()).unwrap();
        let row = &json["rows"][0];
        assert_eq!(
            (&row["wire"], &row["cpus"], &row["workload"]),
            (&"w2".into(), &"one".into(), &"udp_rr".into())
        );
        let overlay = &row["contenders"][2];
        assert_eq!(overlay["contender"], "overlay");
        for key in ["median", "low", "high", "coverage", "rounds"] {
            assert!(overlay["ratio"][key].is_number(), "{key} in {overlay}");
        }
        assert_eq!(json["scaling"][0]["size"], 10_000);
        assert_eq!(json["programs"][0]["program"], "from_pod");
    }
}
