//! `kubectl overlay status`: a row for each node.

use serde::Serialize;
use serde_json::Value;

use super::access::{Access, Agent};
use crate::cli::{
    exit::Verdict,
    output::{Cell, OutputArgs, Row, print_list},
};

/// A node as its own `overlay status` describes it; `null` where that says nothing.
#[derive(Debug, Default, Serialize)]
struct NodeRow {
    node: String,
    ready: Option<bool>,
    version: Option<String>,
    endpoints: Option<u64>,
    peers: Option<u64>,
    /// Packets, for all reasons.
    drops: Option<u64>,
    /// To the peer that is the farthest away, where the agents measure that.
    worst_latency_seconds: Option<f64>,
    /// Peers that do not answer.
    peers_lost: Option<u64>,
    problems: Vec<String>,
    /// Why there is no answer.
    error: Option<String>,
}

impl NodeRow {
    fn read(node: &str, status: &Value) -> Self {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let drops = status["drops"].as_object();
        let peers = status["mesh"]["peers"].as_array();
        let latencies = peers.map(|peers| peers.iter().filter_map(|peer| peer["latency_seconds"].as_f64()));
        let problems = status["problems"].as_array().into_iter().flatten();
        Self {
            node: node.to_owned(),
            ready: status["ready"].as_bool(),
            version: text(&status["version"]),
            endpoints: status["endpoints"].as_u64(),
            peers: status["peers"].as_u64(),
            drops: drops.map(|drops| drops.values().filter_map(|drop| drop["packets"].as_u64()).sum()),
            worst_latency_seconds: latencies.and_then(|all| all.reduce(f64::max)),
            peers_lost: status["mesh"]["lost"].as_u64(),
            problems: problems.filter_map(text).collect(),
            error: None,
        }
    }

    fn is_well(&self) -> bool {
        self.ready == Some(true) && self.problems.is_empty() && self.error.is_none()
    }
}

impl Row for NodeRow {
    const COLUMNS: &'static [&'static str] =
        &["NODE", "READY", "VERSION", "PODS", "PEERS", "DROPS", "LATENCY", "PROBLEM"];

    fn cells(&self) -> Vec<Cell> {
        let number = |number: Option<u64>| number.map_or("-".into(), Cell::from);
        let ready = match self.ready {
            Some(true) => Cell::good("yes"),
            Some(false) => Cell::bad("no"),
            None => Cell::bad("?"),
        };
        let latency = self.worst_latency_seconds.map(|worst| format!("{:.2} ms", worst * 1000.0));
        let lost = self.peers_lost.filter(|lost| *lost > 0).map(|lost| format!("{lost} lost"));
        let latency: Vec<_> = latency.into_iter().chain(lost).collect();
        let problem = match (&self.error, self.problems.as_slice()) {
            (Some(error), _) => error.clone(),
            (None, []) => String::new(),
            (None, [one]) => one.clone(),
            (None, [first, rest @ ..]) => format!("{first} (and {} more)", rest.len()),
        };
        vec![
            (&self.node).into(),
            ready,
            self.version.as_deref().unwrap_or("-").into(),
            number(self.endpoints),
            number(self.peers),
            number(self.drops),
            if latency.is_empty() { "-".into() } else { latency.join(", ").into() },
            Cell::bad(problem),
        ]
    }
}

/// Asks all and prints it.
pub(super) fn run(access: &Access, agents: &[Agent], args: OutputArgs) -> anyhow::Result<Verdict> {
    let command = ["status", "-o", "json"].map(str::to_owned);
    let answers = access.ask_all(agents, &command);
    let rows: Vec<_> = agents
        .iter()
        .zip(answers)
        .map(|(agent, answer)| {
            // Also with status 3: not ready is an answer.
            let read = answer.and_then(|output| {
                serde_json::from_slice(&output.stdout).map_err(|_| anyhow::anyhow!("{}", output.complaint()))
            });
            match read {
                Ok(status) => NodeRow::read(&agent.node, &status),
                Err(error) => NodeRow {
                    node: agent.node.clone(),
                    error: Some(format!("{error:#}")),
                    ..NodeRow::default()
                },
            }
        })
        .collect();
    print_list(args, &rows)?;
    Ok(if rows.iter().all(NodeRow::is_well) { Verdict::Fine } else { Verdict::Wrong })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_has_the_sum_of_drops_and_the_worst_of_latencies() {
        let status = json!({
            "ready": true, "version": "1.2.3", "endpoints": 4, "peers": 2, "problems": [],
            "drops": { "vni": { "packets": 3 }, "ecn": { "packets": 4 } },
            "mesh": { "lost": 1, "peers": [{ "latency_seconds": 0.001 }, { "latency_seconds": 0.25 }, { "latency_seconds": null }] },
        });
        let row = NodeRow::read("n", &status);
        assert_eq!((row.drops, row.worst_latency_seconds, row.peers_lost), (Some(7), Some(0.25), Some(1)));
        let cells = ["n", "yes", "1.2.3", "4", "2", "7", "250.00 ms, 1 lost", ""];
        assert_eq!(row.cells().iter().map(Cell::text).collect::<Vec<_>>(), cells);
        assert!(row.is_well());
    }

    #[test]
    fn what_an_earlier_version_does_not_say_is_not_made_up() {
        let row = NodeRow::read("n", &json!({ "ready": false, "problems": ["a", "b"] }));
        let cells = ["n", "no", "-", "-", "-", "-", "-", "a (and 1 more)"];
        assert_eq!(row.cells().iter().map(Cell::text).collect::<Vec<_>>(), cells);
        assert!(!row.is_well());
    }
}
