//! `overlay doctor`: prints what is wrong with the node, and does what is safe about it where asked to.

use clap::{Args, builder::PossibleValuesParser};

use super::{
    exit::Verdict,
    output::{Cell, OutputArgs, Row, Text, print_object},
    settings::SettingsArgs,
};
use crate::{
    datapath::pins::Pins,
    doctor::{self, CHECKS, Finding, Scope, Severity, Site},
};

/// What the command takes.
#[derive(Debug, Args)]
pub(super) struct Doctor {
    #[command(flatten)]
    output: OutputArgs,
    /// Make only these checks
    #[arg(long, value_name = "CHECK", value_delimiter = ',',
          value_parser = PossibleValuesParser::new(CHECKS.iter().map(|check| check.name())))]
    only: Vec<String>,
    /// Put right what is overlay's own; `flannel` also removes what Flannel has left
    #[arg(long, value_name = "SCOPE", num_args = 0..=1, default_missing_value = "own", require_equals = true)]
    fix: Option<Scope>,
    /// Say what `--fix` would do, and do nothing
    #[arg(long, requires = "fix")]
    dry_run: bool,
    // As the agent was given them.
    #[command(flatten)]
    settings: SettingsArgs,
}

impl Row for Finding {
    const COLUMNS: &'static [&'static str] = &["CHECK", "SEVERITY", "OBJECT", "WHAT"];
    const WIDE: &'static [&'static str] = &["EVIDENCE", "REMEDY"];

    fn cells(&self) -> Vec<Cell> {
        let severity = match self.severity {
            Severity::Ok => Cell::good(self.severity.name()),
            Severity::Skipped => self.severity.name().into(),
            Severity::Warning | Severity::Error => Cell::bad(self.severity.name()),
        };
        vec![self.check.into(), severity, (&self.object).into(), (&self.what).into()]
    }

    fn wide_cells(&self) -> Vec<Cell> {
        vec![(&self.evidence).into(), (&self.remedy).into()]
    }
}

/// Runs the checks, and prints what they have found.
pub(super) fn run(pins: Pins, args: Doctor) -> anyhow::Result<Verdict> {
    let Doctor { output, only, fix, dry_run, settings } = args;
    let (config, overrides) = settings.split();
    let mut site = Site::read(pins, config, &overrides)?;
    let mut findings = doctor::examine(&site, &only);
    let mut failed = false;
    if let Some(scope) = fix {
        let scopes: &[Scope] = match scope {
            Scope::Own => &[Scope::Own],
            Scope::Flannel => &[Scope::Own, Scope::Flannel],
        };
        let fixes = doctor::fixes(&findings, scopes);
        for fix in &fixes {
            let text = fix.text(&site);
            // What was done is no part of the list.
            if dry_run {
                eprintln!("would {text}");
            } else if let Err(error) = fix.apply(&site) {
                failed = true;
                eprintln!("could not {text}: {error:#}");
            } else {
                eprintln!("did {text}");
            }
        }
        if !dry_run && !fixes.is_empty() {
            site = site.again(&overrides)?;
            findings = doctor::examine(&site, &only);
        }
    }
    print_object(output, &findings, |text| print(text, &findings))?;
    let wrong = failed || findings.iter().any(|finding| finding.severity == Severity::Error);
    Ok(if wrong { Verdict::Wrong } else { Verdict::Fine })
}

/// The table, then what there is to say of each finding: evidence and remedy may be long.
fn print(text: &mut Text<'_>, findings: &[Finding]) -> std::io::Result<()> {
    text.rows(findings)?;
    if text.is_wide() {
        return Ok(());
    }
    for finding in findings.iter().filter(|finding| finding.severity >= Severity::Warning) {
        text.gap()?;
        text.line(format!("{}: {} {}", finding.check, finding.object, finding.what))?;
        let mut facts =
            vec![("  evidence", Cell::from(&finding.evidence)), ("  remedy", (&finding.remedy).into())];
        if let Some(scope) = finding.fix {
            let fix = match scope {
                Scope::Own => "--fix",
                Scope::Flannel => "--fix=flannel",
            };
            facts.push(("  fix", format!("overlay doctor --only {} {fix}", finding.check).into()));
        }
        text.facts(facts)?;
    }
    Ok(())
}
