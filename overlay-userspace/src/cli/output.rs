//! What the commands print: lists and single objects as text for people, as JSON and as YAML.
//!
//! A command describes its rows ([`Row`]) or its object (`serde::Serialize`); how they look is decided here alone. JSON and
//! YAML have the same fields, which docs/cli.md names and which stay. Text is aligned; it has colours on a terminal
//! only, and not where `NO_COLOR` is set (`anstream` decides). Nothing is cut when standard output is no terminal, and on
//! a terminal only the ids of containers are, which `-o wide` shows in full. A reader that goes away ends the command
//! quietly, as `head` does.

use std::{
    fmt::Display,
    io::{self, IsTerminal as _, Write},
};

use anstyle::{AnsiColor, Style};
use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde::Serialize;

/// How to print: a part of every command that shows something.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct OutputArgs {
    /// How to print
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub(super) output: Format,
    /// Leave out the headings of tables
    #[arg(long)]
    no_headers: bool,
}

/// What [`OutputArgs`] offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Aligned columns
    Table,
    /// More columns, ids in full
    Wide,
    /// JSON, with all fields
    Json,
    /// YAML, with the same fields
    Yaml,
}

/// A row of a list. Its fields as `Serialize` names them are what machines get.
pub(super) trait Row: Serialize {
    /// Headings, in capitals.
    const COLUMNS: &'static [&'static str];
    /// Headings of what `-o wide` shows behind them.
    const WIDE: &'static [&'static str] = &[];

    /// A cell for each of `COLUMNS`.
    fn cells(&self) -> Vec<Cell>;

    /// A cell for each of `WIDE`.
    fn wide_cells(&self) -> Vec<Cell> {
        Vec::new()
    }
}

/// A cell of a table; anything that can be displayed is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    text: String,
    style: Style,
    /// Its first characters are enough to know it by.
    is_id: bool,
}

/// How much of an id is shown on a terminal; as much as `crictl` shows.
const ID: usize = 13;

impl<T: Display> From<T> for Cell {
    fn from(text: T) -> Self {
        // Names come from files and maps that others write: none of them moves the cursor.
        let text = text.to_string().replace(char::is_control, "\u{fffd}");
        Self { text, style: Style::new(), is_id: false }
    }
}

impl Cell {
    /// All is well.
    pub(super) fn good(text: impl Display) -> Self {
        Self::coloured(text, AnsiColor::Green)
    }

    /// Something to look at.
    pub(super) fn bad(text: impl Display) -> Self {
        Self::coloured(text, AnsiColor::Red)
    }

    /// The id of a container.
    pub(super) fn id(text: impl Display) -> Self {
        Self { is_id: true, ..text.into() }
    }

    fn coloured(text: impl Display, colour: AnsiColor) -> Self {
        Self { style: colour.on_default(), ..text.into() }
    }

    fn heading(text: &str) -> Self {
        Self { style: Style::new().bold(), ..text.into() }
    }

    fn shortened(mut self) -> Self {
        if self.is_id {
            self.text = self.text.chars().take(ID).collect();
        }
        self
    }
}

/// Prints a list.
pub(super) fn print_list<R: Row>(args: OutputArgs, rows: &[R]) -> anyhow::Result<()> {
    print_object(args, &rows, |text| text.rows(rows))
}

/// Prints something that is not a list: `text` is how people see it.
pub(super) fn print_object<T: Serialize>(
    args: OutputArgs,
    object: &T,
    text: impl FnOnce(&mut Text<'_>) -> io::Result<()>,
) -> anyhow::Result<()> {
    let stdout = io::stdout();
    let mut buffer = Vec::new();
    write(&mut buffer, args, stdout.is_terminal(), object, text).context("describe what was found")?;
    let mut out = anstream::AutoStream::auto(stdout.lock());
    let printed = out.write_all(&buffer).and_then(|()| out.flush());
    match printed {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed.context("write to standard output"),
    }
}

fn write<T: Serialize>(
    out: &mut dyn Write,
    args: OutputArgs,
    terminal: bool,
    object: &T,
    text: impl FnOnce(&mut Text<'_>) -> io::Result<()>,
) -> io::Result<()> {
    match args.output {
        Format::Table | Format::Wide => text(&mut Text { out, args, terminal }),
        Format::Json => {
            serde_json::to_writer_pretty(&mut *out, object)?;
            writeln!(out)
        }
        Format::Yaml => {
            let yaml = serde_saphyr::to_string(object).map_err(io::Error::other)?;
            out.write_all(yaml.as_bytes())
        }
    }
}

/// Where the text for people goes.
pub(super) struct Text<'a> {
    out: &'a mut dyn Write,
    args: OutputArgs,
    terminal: bool,
}

impl Text<'_> {
    /// More than the default is asked for.
    pub(super) fn is_wide(&self) -> bool {
        self.args.output == Format::Wide
    }

    /// A line as it is.
    pub(super) fn line(&mut self, line: impl Into<Cell>) -> io::Result<()> {
        self.aligned(vec![vec![line.into()]])
    }

    /// An empty line.
    pub(super) fn gap(&mut self) -> io::Result<()> {
        writeln!(self.out)
    }

    /// A table.
    pub(super) fn rows<R: Row>(&mut self, rows: &[R]) -> io::Result<()> {
        let wide = self.is_wide();
        let headings = R::COLUMNS.iter().chain(R::WIDE.iter().filter(|_| wide));
        let cells = rows.iter().map(|row| {
            let mut cells = row.cells();
            if wide {
                cells.extend(row.wide_cells());
            }
            cells
        });
        let headings = (!self.args.no_headers).then(|| headings.copied().map(Cell::heading).collect());
        self.aligned(headings.into_iter().chain(cells).collect())
    }

    /// Lines of a name and what there is to say of it.
    pub(super) fn facts(&mut self, facts: Vec<(&str, Cell)>) -> io::Result<()> {
        self.aligned(facts.into_iter().map(|(name, fact)| vec![Cell::from(name), fact]).collect())
    }

    /// Columns as wide as their widest cell, two spaces apart.
    fn aligned(&mut self, rows: Vec<Vec<Cell>>) -> io::Result<()> {
        let shorten = self.terminal && !self.is_wide();
        let rows: Vec<Vec<Cell>> = if shorten {
            rows.into_iter().map(|row| row.into_iter().map(Cell::shortened).collect()).collect()
        } else {
            rows
        };
        let width = |cell: &Cell| cell.text.chars().count();
        let mut widths: Vec<usize> = Vec::new();
        for row in &rows {
            widths.resize(widths.len().max(row.len()), 0);
            for (widest, cell) in widths.iter_mut().zip(row) {
                *widest = (*widest).max(width(cell));
            }
        }
        for row in &rows {
            // The last cell with something in it ends the line.
            let last = row.iter().rposition(|cell| !cell.text.is_empty());
            let shown = row.iter().zip(&widths).take(last.map_or(0, |last| last + 1));
            for (index, (cell, widest)) in shown.enumerate() {
                let Cell { text, style, .. } = cell;
                write!(self.out, "{style}{text}{style:#}")?;
                if Some(index) != last {
                    write!(self.out, "{:1$}", "", widest - width(cell) + 2)?;
                }
            }
            writeln!(self.out)?;
        }
        Ok(())
    }
}

/// A MAC address as people write it.
pub(super) fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Pod {
        address: &'static str,
        container: &'static str,
        ready: bool,
    }

    impl Row for Pod {
        const COLUMNS: &'static [&'static str] = &["ADDRESS", "CONTAINER"];
        const WIDE: &'static [&'static str] = &["STATE"];

        fn cells(&self) -> Vec<Cell> {
            vec![self.address.into(), Cell::id(self.container)]
        }

        fn wide_cells(&self) -> Vec<Cell> {
            vec![if self.ready { Cell::good("ready") } else { Cell::bad("incomplete") }]
        }
    }

    const PODS: [Pod; 2] = [
        Pod { address: "10.244.1.10", container: "0123456789abcdef0123", ready: true },
        Pod { address: "no", container: "", ready: false },
    ];

    fn printed(output: Format, no_headers: bool, terminal: bool) -> String {
        let mut out = Vec::new();
        let args = OutputArgs { output, no_headers };
        write(&mut out, args, terminal, &PODS, |text| text.rows(&PODS)).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// As where there are no colours.
    fn plain(output: Format, no_headers: bool, terminal: bool) -> String {
        anstream::adapter::strip_str(&printed(output, no_headers, terminal)).to_string()
    }

    #[test]
    fn columns_are_aligned_and_lines_end_with_their_last_cell() {
        let table = "ADDRESS      CONTAINER\n10.244.1.10  0123456789abcdef0123\nno\n";
        assert_eq!(plain(Format::Table, false, false), table);
        let table =
            "10.244.1.10  0123456789abcdef0123  ready\nno                                 incomplete\n";
        assert_eq!(plain(Format::Wide, true, false), table);
    }

    #[test]
    fn ids_are_cut_on_a_terminal_only_and_not_where_all_is_asked_for() {
        assert!(plain(Format::Table, false, true).contains("0123456789abc\n"));
        for text in [plain(Format::Table, false, false), plain(Format::Wide, false, true)] {
            assert!(text.contains("0123456789abcdef0123"), "{text}");
        }
    }

    #[test]
    fn colours_do_not_change_the_alignment() {
        let text = printed(Format::Wide, false, true);
        assert!(text.contains("\u{1b}[32mready"), "{text:?}");
        assert_eq!(
            plain(Format::Wide, true, true),
            "10.244.1.10  0123456789abcdef0123  ready\nno                                 incomplete\n"
        );
    }

    #[test]
    fn machines_get_all_fields_in_either_format() {
        let json: serde_json::Value = serde_json::from_str(&printed(Format::Json, false, true)).unwrap();
        assert_eq!(json[0]["container"], "0123456789abcdef0123");
        let yaml: serde_json::Value = serde_saphyr::from_str(&printed(Format::Yaml, true, true)).unwrap();
        assert_eq!(yaml, json);
    }

    #[test]
    fn yaml_keeps_strings_strings() {
        let tricky =
            ["yes", "null", "12", "1e3", "0x1f", "a: b", "- a", "#", "", " a", "1:2", "10.244.1.0/24", "~"];
        let args = OutputArgs { output: Format::Yaml, no_headers: false };
        let mut out = Vec::new();
        write(&mut out, args, false, &tricky, |_| Ok(())).unwrap();
        let back: Vec<serde_json::Value> = serde_saphyr::from_str(&String::from_utf8(out).unwrap()).unwrap();
        assert_eq!(back, tricky.map(serde_json::Value::from));
    }

    #[test]
    fn names_do_not_move_the_cursor() {
        let mut out = Vec::new();
        let args = OutputArgs { output: Format::Table, no_headers: false };
        write(&mut out, args, true, &(), |text| text.line("a\u{1b}[2Jb\nc")).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "a\u{fffd}[2Jb\u{fffd}c\n");
    }
}
