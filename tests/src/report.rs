//! What was proven, as rows: a table for people, JSON for programs.

use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;

/// One thing proven, or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// What was to be shown.
    pub name: String,
    /// Whether it was.
    pub ok: bool,
    /// What was seen; lines, if it is about several pairs.
    pub seen: String,
}

/// All rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The rows, in the order of their proof.
    pub rows: Vec<Row>,
}

impl Report {
    /// Whether no row failed. A report without rows has proven nothing.
    pub fn ok(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(|row| row.ok)
    }

    /// The rows as a JSON array of `{name, ok, seen}`.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(&self.rows).expect("rows are plain strings and flags")
    }

    /// The rows as a table: what was seen below each name, in aligned columns (which two spaces set apart).
    pub fn to_table(&self, colour: bool) -> String {
        let mut text = String::new();
        for row in &self.rows {
            let (code, mark) = if row.ok { ("32", "ok  ") } else { ("1;31", "FAIL") };
            let mark = if colour { format!("\x1b[{code}m{mark}\x1b[0m") } else { mark.to_owned() };
            text.extend([&mark, "  ", &row.name, "\n"]);
            for line in aligned(&row.seen) {
                text.extend(["        ", &line, "\n"]);
            }
        }
        text
    }

    /// Prints the table on standard output, coloured if that is a terminal and `NO_COLOR` is not set.
    pub fn print_table(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let colour = out.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        out.write_all(self.to_table(colour).as_bytes())
    }
}

/// The lines of a text with every column, but the last of a line, as wide as its widest cell.
fn aligned(text: &str) -> Vec<String> {
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split("  ").collect()).collect();
    let width = |column: usize| {
        let cells = lines.iter().filter(|cells| column + 1 < cells.len()).map(|cells| cells[column]);
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..lines.iter().map(Vec::len).max().unwrap_or_default()).map(width).collect();
    let pad = |cells: &Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    lines.iter().map(pad).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, ok: bool, seen: &str) -> Row {
        Row { name: name.into(), ok, seen: seen.into() }
    }

    #[test]
    fn table_aligns_what_was_seen() {
        let report = Report {
            rows: vec![row("first", true, "a → b  one  1\nlonger  two  2"), row("second", false, "x")],
        };
        let expected =
            "ok    first\n        a → b   one  1\n        longer  two  2\nFAIL  second\n        x\n";
        assert_eq!(report.to_table(false), expected);
    }

    #[test]
    fn one_failed_row_or_none_at_all_is_not_ok() {
        assert!(!Report::default().ok());
        assert!(Report { rows: vec![row("a", true, "")] }.ok());
        assert!(!Report { rows: vec![row("a", true, ""), row("b", false, "")] }.ok());
    }
}
