//! What was found, in the three formats: a table for people, TAP 14 and JSON for programs.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};

use clap::ValueEnum;
use serde_json::{Value, json};

use super::case::{Case, Finished, Outcome, Run};
use super::plugin::Plugin;
use super::version::Version;

/// How to print.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns
    #[default]
    Table,
    /// Test Anything Protocol, version 14
    Tap,
    /// One JSON object
    Json,
}

/// How many cases ended how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Passed.
    pub(crate) passed: usize,
    /// Failed.
    pub(crate) failed: usize,
    /// Skipped.
    pub(crate) skipped: usize,
}

/// What was asked of whom.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    /// Network name.
    pub(crate) network: &'a str,
    /// The plugins.
    pub(crate) plugins: &'a [Plugin],
    /// The versions that were spoken.
    pub(crate) versions: &'a [Version],
}

impl Counts {
    /// Counts.
    pub(crate) fn of(cases: &[Finished]) -> Self {
        cases.iter().fold(Self::default(), |mut counts, case| {
            match case.outcome {
                Outcome::Passed => counts.passed += 1,
                Outcome::Failed(_) => counts.failed += 1,
                Outcome::Skipped(_) => counts.skipped += 1,
            }
            counts
        })
    }
}

/// Whether standard output takes colours.
fn coloured() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Prints a whole report.
pub(crate) fn print(format: Format, subject: Subject<'_>, cases: &[Finished]) -> io::Result<()> {
    let text = match format {
        Format::Table => table(subject, cases, coloured()),
        Format::Tap => tap(cases),
        Format::Json => format!("{:#}\n", to_json(subject, cases)),
    };
    io::stdout().lock().write_all(text.as_bytes())
}

/// Writing into a string cannot fail; a line each.
fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    let _ = text.write_fmt(arguments);
    text.push('\n');
}

fn table(subject: Subject<'_>, cases: &[Finished], colour: bool) -> String {
    let paint = |code: &str, word: &str| {
        if colour { format!("\x1b[{code}m{word}\x1b[0m") } else { word.to_owned() }
    };
    let mut text = String::new();
    let plugins: Vec<String> =
        subject.plugins.iter().map(|plugin| plugin.path.display().to_string()).collect();
    line(
        &mut text,
        format_args!("network {}: {}; CNI {}\n", subject.network, plugins.join(", "), spoken(subject)),
    );
    let names = cases.iter().map(|case| case.name.len()).max().unwrap_or_default();
    let sections = cases.iter().map(|case| case.case.section.chars().count()).max().unwrap_or_default();
    for case in cases {
        let (mark, reason) = match &case.outcome {
            Outcome::Passed => (paint("32", "ok  "), None),
            Outcome::Failed(reason) => (paint("1;31", "FAIL"), Some(reason)),
            Outcome::Skipped(reason) => (paint("2", "skip"), Some(reason)),
        };
        let (level, section, took) = (case.case.level.as_str(), case.case.section, case.elapsed.as_millis());
        let name = &case.name;
        line(&mut text, format_args!("{mark}  {name:names$}  {level:8}  {section:sections$}  {took:>5} ms"));
        if matches!(case.outcome, Outcome::Failed(_)) {
            line(&mut text, format_args!("      “{}”", case.case.sentence));
        }
        for reason in reason.into_iter().flat_map(|reason| reason.lines()) {
            line(&mut text, format_args!("      {reason}"));
        }
    }
    let Counts { passed, failed, skipped } = Counts::of(cases);
    line(&mut text, format_args!("\n{passed} passed, {failed} failed, {skipped} skipped"));
    text
}

fn spoken(subject: Subject<'_>) -> String {
    let versions: Vec<&str> = subject.versions.iter().map(|version| version.as_str()).collect();
    if versions.is_empty() { "(no version that is known)".to_owned() } else { versions.join(", ") }
}

/// TAP 14: <https://testanything.org/tap-version-14-specification.html>
fn tap(cases: &[Finished]) -> String {
    let mut text = String::new();
    line(&mut text, format_args!("TAP version 14\n1..{}", cases.len()));
    for (number, case) in (1..).zip(cases) {
        let name = &case.name;
        match &case.outcome {
            Outcome::Passed => line(&mut text, format_args!("ok {number} - {name}")),
            Outcome::Skipped(reason) => {
                let reason = reason.replace('\n', " ").replace('\\', "\\\\").replace('#', "\\#");
                line(&mut text, format_args!("ok {number} - {name} # SKIP {reason}"));
            }
            Outcome::Failed(reason) => {
                line(&mut text, format_args!("not ok {number} - {name}\n  ---"));
                // JSON is YAML: strings need no other quoting.
                for (key, value) in [
                    ("message", reason.as_str()),
                    ("level", case.case.level.as_str()),
                    ("section", case.case.section),
                    ("sentence", case.case.sentence),
                ] {
                    line(&mut text, format_args!("  {key}: {}", json!(value)));
                }
                line(&mut text, format_args!("  duration_ms: {}\n  ...", case.elapsed.as_millis()));
            }
        }
    }
    text
}

fn to_json(subject: Subject<'_>, cases: &[Finished]) -> Value {
    let Counts { passed, failed, skipped } = Counts::of(cases);
    let plugins = subject.plugins.iter().map(|plugin| json!({ "type": plugin.kind, "path": plugin.path }));
    let cases = cases.iter().map(|finished| {
        let Case { section, sentence, level, .. } = finished.case;
        let (outcome, reason) = match &finished.outcome {
            Outcome::Passed => ("passed", None),
            Outcome::Failed(reason) => ("failed", Some(reason)),
            Outcome::Skipped(reason) => ("skipped", Some(reason)),
        };
        json!({
            "name": finished.name,
            "outcome": outcome,
            "reason": reason,
            "level": level.as_str(),
            "section": section,
            "sentence": sentence,
            "milliseconds": finished.elapsed.as_secs_f64() * 1e3,
        })
    });
    json!({
        "network": subject.network,
        "plugins": plugins.collect::<Value>(),
        "versions": subject.versions.iter().map(|version| version.as_str()).collect::<Value>(),
        "counts": { "passed": passed, "failed": failed, "skipped": skipped },
        "cases": cases.collect::<Value>(),
    })
}

/// The cases without their outcome, for `--list`.
pub(crate) fn list(runs: &[Run]) -> String {
    let mut text = String::new();
    for Run { name, case, .. } in runs {
        let Case { section, sentence, level, since, .. } = case;
        let since = if *since == Version::V0_3_1 { String::new() } else { format!(", since {since}") };
        line(&mut text, format_args!("{name}  ({}, {section}{since})\n    “{sentence}”", level.as_str()));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn finished(name: &str, outcome: Outcome) -> Finished {
        let case = Case::must("some-case", "§5 Error", "A \"sentence\".", |_, _| Ok(()));
        Finished { name: name.to_owned(), case, outcome, elapsed: Duration::from_millis(12) }
    }

    fn three() -> Vec<Finished> {
        vec![
            finished("one", Outcome::Passed),
            finished("two/1.0.0", Outcome::Failed("seen:\n\"x\"".to_owned())),
            finished("three", Outcome::Skipped("no #1 here".to_owned())),
        ]
    }

    const SUBJECT: Subject<'_> = Subject { network: "n", plugins: &[], versions: &[Version::V1_0_0] };

    #[test]
    fn tap_follows_version_14() {
        let expected = "TAP version 14\n1..3\nok 1 - one\nnot ok 2 - two/1.0.0\n  ---\n  message: \
                        \"seen:\\n\\\"x\\\"\"\n  level: \"must\"\n  section: \"§5 Error\"\n  sentence: \"A \
                        \\\"sentence\\\".\"\n  duration_ms: 12\n  ...\nok 3 - three # SKIP no \\#1 here\n";
        assert_eq!(tap(&three()), expected);
    }

    #[test]
    fn the_table_is_aligned_and_counts() {
        let text = table(SUBJECT, &three(), false);
        assert!(text.contains("ok    one        must      §5 Error     12 ms\n"), "{text}");
        assert!(
            text.contains("FAIL  two/1.0.0  must      §5 Error     12 ms\n      “A \"sentence\".”\n"),
            "{text}"
        );
        assert!(text.ends_with("\n1 passed, 1 failed, 1 skipped\n"), "{text}");
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn json_has_every_case() {
        let json = to_json(SUBJECT, &three());
        assert_eq!(json["counts"], json!({"passed": 1, "failed": 1, "skipped": 1}));
        assert_eq!(json["cases"][1]["reason"], "seen:\n\"x\"");
        assert_eq!(json["cases"][0]["reason"], Value::Null);
        assert_eq!(json["versions"], json!(["1.0.0"]));
    }
}
