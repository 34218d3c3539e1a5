//! The results as tables for a terminal.

use std::fmt::Write as _;

use crate::contenders::Contender;
use crate::results::{Growth, Program, Results, Row};
use crate::statistics::Estimate;

/// From this share of lost datagrams on a number is marked: it is none without loss.
const LOSS: f64 = 0.001;

/// All tables.
pub(crate) fn tables(results: &Results) -> String {
    let mut text = String::new();
    let mut rest = results.rows.as_slice();
    while let Some(first) = rest.first() {
        let same = |row: &Row| row.wire == first.wire && row.cpus == first.cpus;
        let (group, others) = rest.split_at(rest.iter().take_while(|row| same(row)).count());
        contenders(&mut text, group);
        rest = others;
    }
    if !results.scaling.is_empty() {
        scaling(&mut text, &results.scaling);
    }
    if !results.programs.is_empty() {
        programs(&mut text, &results.programs);
    }
    for note in results.machine.doubts().iter().chain(&results.notes) {
        line(&mut text, format_args!("note: {note}"));
    }
    text
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // A string takes everything.
    let _ = writeln!(text, "{arguments}");
}

/// `0.853 [0.81 0.90]`
fn interval(estimate: Option<&Estimate>) -> String {
    estimate.map_or_else(
        || "-".into(),
        |Estimate { median, low, high, .. }| format!("{median:.3} [{low:.2} {high:.2}]"),
    )
}

fn contenders(text: &mut String, rows: &[Row]) {
    let Some(first) = rows.first() else { return };
    let rounds = first.contenders.first().map_or(0, |entry| entry.ratio.rounds);
    line(
        text,
        format_args!(
            "{}, CPUs: {} — ratio to the raw wire, median of {rounds} rounds [95 % interval]",
            first.wire.to_uppercase(),
            first.cpus.name()
        ),
    );
    let mut table = Table::default();
    let others = &Contender::ALL[1..];
    let mut head = vec![String::new(), "raw wire".into()];
    head.extend(others.iter().map(|contender| contender.name().to_owned()));
    head.extend(["overlay : flannel".into(), "overlay : routed".into()]);
    table.rows.push(head);
    for row in rows {
        let entry = |who: Contender| row.contenders.iter().find(|entry| entry.contender == who);
        let absolute = entry(Contender::Wire).map_or(f64::NAN, |entry| entry.absolute);
        let precision = if absolute < 100.0 { 2 } else { 0 };
        let mut cells = vec![row.name(), format!("{absolute:.precision$} {}", row.unit)];
        cells.extend(others.iter().map(|who| {
            let lost = entry(*who).is_some_and(|entry| entry.loss >= LOSS);
            interval(entry(*who).map(|entry| &entry.ratio)) + if lost { " LOSS" } else { "" }
        }));
        cells.extend([&row.overlay_to_flannel, &row.overlay_to_routed].map(|e| interval(e.as_ref())));
        table.rows.push(cells);
    }
    table.write(text);
}

fn scaling(text: &mut String, steps: &[Growth]) {
    line(text, format_args!("Scaling (W1, one CPU) — ratio to the baseline in the same round"));
    let mut table = Table::default();
    table.rows.push(
        ["what grows", "size", "measure", "contender", "baseline", "ratio"].map(str::to_owned).to_vec(),
    );
    for step in steps {
        table.rows.push(vec![
            step.what.to_owned(),
            step.size.to_string(),
            step.measure.clone(),
            step.contender.name().to_owned(),
            step.baseline.to_owned(),
            interval(Some(&step.ratio)),
        ]);
    }
    table.write(text);
}

fn programs(text: &mut String, programs: &[Program]) {
    line(text, format_args!("Programs — one run (BPF_PROG_TEST_RUN)"));
    let mut table = Table::default();
    table.rows.push(["program", "packet", "method", "ns", "instructions"].map(str::to_owned).to_vec());
    for Program { name, packet, method, nanoseconds: ns, instructions } in programs {
        table.rows.push(vec![
            (*name).to_owned(),
            packet.clone(),
            (*method).to_owned(),
            format!("{:.0} [{:.0} {:.0}]", ns.median, ns.low, ns.high),
            instructions.map_or_else(|| "unavailable".into(), |count| format!("{count:.0}")),
        ]);
    }
    table.write(text);
}

/// Cells in columns.
#[derive(Default)]
struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Every column as wide as its widest cell; an empty line after the table.
    fn write(&self, text: &mut String) {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max()
        };
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or_default()).collect();
        for row in &self.rows {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            line(text, format_args!("  {}", cells.join("  ").trim_end()));
        }
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::sample_results;

    #[test]
    fn the_table_shows_ratios_with_their_intervals() {
        let text = tables(&sample_results());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "W2, CPUs: one — ratio to the raw wire, median of 2 rounds [95 % interval]");
        let rate: Vec<&str> = lines[2].split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
        assert_eq!(
            rate,
            [
                "udp_rr",
                "150 trips/s",
                "-",
                "-",
                "0.425 [0.40 0.45]",
                "-",
                "0.850 [0.80 0.90]",
                "2.000 [2.00 2.00]",
                "-"
            ]
        );
        assert!(
            text.contains("from_pod  UDP to a remote pod: encap  single  110 [100 120]  unavailable"),
            "{text}"
        );
        assert!(
            text.contains("nodes       10000  udp_rr   overlay    1 node    0.980 [0.97 0.99]"),
            "{text}"
        );
        assert!(text.contains("note: a note"), "{text}");
    }

    #[test]
    fn a_number_with_loss_is_marked() {
        let mut results = sample_results();
        for entry in &mut results.rows[0].contenders {
            entry.loss = 0.5;
        }
        assert!(tables(&results).contains("0.850 [0.80 0.90] LOSS"));
    }

    #[test]
    fn columns_line_up() {
        let text = tables(&sample_results());
        let column = |line: &str, what: &str| line.find(what).map(|at| line[..at].chars().count());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(column(lines[1], "overlay"), column(lines[2], "0.850"));
    }
}
