//! How long ADD and DEL take, from fork to exit, by the suite's own clock; a number of networks side by side.
//!
//! The networks take turns, call by call, so that what else the machine does hits all of them alike. No threshold and
//! no verdict: numbers for people to compare.

use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::container::Attached;
use super::report::Format;
use super::signal;
use super::suite::{IFNAME, Suite};

mod sample;

use sample::Sample;

/// What to measure.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Pairs of ADD and DEL per row.
    pub(crate) rounds: usize,
    /// How many containers of each network are on the node, the measured one included; ascending.
    pub(crate) populations: Vec<usize>,
}

/// One line of the table.
#[derive(Debug)]
struct Row {
    network: String,
    population: usize,
    verb: &'static str,
    sample: Sample,
}

/// Measures `suites` side by side and prints the numbers.
pub(crate) fn run(plan: &Plan, suites: &[Suite<'_>], format: Format) -> Result<()> {
    let mut rows = Vec::new();
    // Kept: containers that only are there. Attachments before containers, so that they are dropped first.
    let (mut attached, mut containers): (Vec<Attached<'_>>, Vec<_>) = (Vec::new(), Vec::new());
    for &population in &plan.populations {
        // The measured one is the last.
        while containers.len() < population.saturating_sub(1) * suites.len() {
            ensure!(!signal::requested(), "interrupted");
            for suite in suites {
                let container = suite.container()?;
                let version = suite.newest().context("the plugins claim no version that is known")?;
                attached.push(suite.attach(version, &container, IFNAME)?);
                containers.push(container);
            }
        }
        rows.extend(measure(plan.rounds, population, suites)?);
    }
    drop(attached);
    let text = match format {
        Format::Json => format!("{:#}\n", to_json(plan, &rows)),
        Format::Table => table(&rows),
        Format::Tap => anyhow::bail!("numbers are no test results: --bench has no TAP, take table or json"),
    };
    io::Write::write_all(&mut io::stdout(), text.as_bytes()).context("print the table")
}

/// `rounds` pairs of ADD and DEL of each network.
fn measure(rounds: usize, population: usize, suites: &[Suite<'_>]) -> Result<Vec<Row>> {
    let mut times: Vec<[Vec<Duration>; 2]> = vec![[Vec::new(), Vec::new()]; suites.len()];
    for round in 0..rounds {
        ensure!(!signal::requested(), "interrupted");
        for turn in 0..suites.len() {
            // Each network is first as often as the others: the first finds the caches as the last has left them.
            let at = (turn + round) % suites.len();
            let (Some(suite), Some([adds, dels])) = (suites.get(at), times.get_mut(at)) else { continue };
            let version = suite.newest().context("the plugins claim no version that is known")?;
            let container = suite.container()?;
            let target = container.target(IFNAME);
            let (result, took) = suite.add(version, &target)?;
            adds.push(took);
            dels.push(suite.del(version, &target, Some(&result))?);
        }
    }
    let rows = suites.iter().zip(times).flat_map(|(suite, [adds, dels])| {
        let row = |verb, times| Row {
            network: suite.network.name.clone(),
            population,
            verb,
            sample: Sample::new(times),
        };
        [row("ADD", adds), row("DEL", dels)]
    });
    Ok(rows.collect())
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.network.chars().count()).max().unwrap_or_default().max(7);
    let mut text = format!(
        "{:width$}  {:>10}  verb  {:>6}  {:>8}  {:>8}  {:>8}  {:>8}\n",
        "network", "containers", "calls", "min ms", "p50 ms", "p99 ms", "max ms"
    );
    for Row { network, population, verb, sample } in rows {
        let [min, p50, p99, max] = [0, 50, 99, 100].map(|p| milliseconds(sample.percentile(p)));
        let calls = sample.len();
        // Writing into a string cannot fail.
        let _ = writeln!(
            text,
            "{network:width$}  {population:>10}  {verb:4}  {calls:>6}  {min:>8.2}  {p50:>8.2}  {p99:>8.2}  {max:>8.2}"
        );
    }
    text
}

fn to_json(plan: &Plan, rows: &[Row]) -> Value {
    let rows = rows.iter().map(|Row { network, population, verb, sample }| {
        let [min, p50, p99, max] = [0, 50, 99, 100].map(|p| milliseconds(sample.percentile(p)));
        json!({
            "network": network, "containers": population, "verb": verb, "calls": sample.len(),
            "min_ms": min, "p50_ms": p50, "p99_ms": p99, "max_ms": max,
        })
    });
    json!({ "rounds": plan.rounds, "rows": rows.collect::<Value>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_line_per_row() {
        let times = (1..=100).map(Duration::from_millis).collect();
        let row = Row { network: "n".to_owned(), population: 200, verb: "ADD", sample: Sample::new(times) };
        let text = table(&[row]);
        let last: Vec<&str> = text.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(last, ["n", "200", "ADD", "100", "1.00", "50.00", "99.00", "100.00"]);
    }
}
