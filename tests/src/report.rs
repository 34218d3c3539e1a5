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

    /// The rows as an aligned table.
    pub fn to_table(&self, colour: bool) -> String {
        let width = self.rows.iter().map(|row| row.name.chars().count()).max().unwrap_or_default();
        let mut text = String::new();
        for row in &self.rows {
            let (code, mark) = if row.ok { ("32", "ok  ") } else { ("1;31", "FAIL") };
            let mark = if colour { format!("\x1b[{code}m{mark}\x1b[0m") } else { mark.to_owned() };
            let mut lines = row.seen.lines();
            let name = format!("{:width$}", row.name);
            text += format!("{mark}  {name}  {}", lines.next().unwrap_or_default()).trim_end();
            text.push('\n');
            for line in lines {
                text.extend([" ".repeat(width + 8).as_str(), line, "\n"]);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, ok: bool, seen: &str) -> Row {
        Row { name: name.into(), ok, seen: seen.into() }
    }

    #[test]
    fn table_aligns_what_was_seen() {
        let report = Report { rows: vec![row("a → b", true, "one\ntwo"), row("longer", false, "three")] };
        let expected = "ok    a → b   one\n              two\nFAIL  longer  three\n";
        assert_eq!(report.to_table(false), expected);
    }

    #[test]
    fn one_failed_row_or_none_at_all_is_not_ok() {
        assert!(!Report::default().ok());
        assert!(Report { rows: vec![row("a", true, "")] }.ok());
        assert!(!Report { rows: vec![row("a", true, ""), row("b", false, "")] }.ok());
    }
}
