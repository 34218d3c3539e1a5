//! A run of several steps: each is announced, later ones run although an earlier one failed, and a table
//! with durations ends it.

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Passed(Duration),
    Failed(Duration),
    /// Not run, and why.
    Skipped(&'static str),
}

/// Results so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<(&'static str, Outcome)>,
}

impl Report {
    /// Runs a step; its result, or None after having printed its error.
    pub(crate) fn step<T>(&mut self, name: &'static str, work: impl FnOnce() -> Result<T>) -> Option<T> {
        eprintln!("== {name}");
        let start = Instant::now();
        let result = work();
        let time = start.elapsed();
        match result {
            Ok(value) => {
                self.rows.push((name, Outcome::Passed(time)));
                Some(value)
            }
            Err(error) => {
                eprintln!("error: {name}: {error:#}");
                self.rows.push((name, Outcome::Failed(time)));
                None
            }
        }
    }

    /// Records a step that cannot be run. That counts as a failure: it has proven nothing.
    pub(crate) fn skip(&mut self, name: &'static str, why: &'static str) {
        self.rows.push((name, Outcome::Skipped(why)));
    }

    /// Prints the table; fails unless every step passed.
    pub(crate) fn finish(self) -> Result<()> {
        eprintln!("\n{self}");
        let bad = self.rows.iter().filter(|(_, outcome)| !matches!(outcome, Outcome::Passed(_))).count();
        if bad > 0 {
            bail!("{bad} of {} steps did not pass", self.rows.len());
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, outcome) in &self.rows {
            match outcome {
                Outcome::Passed(time) => writeln!(out, "passed   {:8.1} s  {name}", time.as_secs_f64())?,
                Outcome::Failed(time) => writeln!(out, "FAILED   {:8.1} s  {name}", time.as_secs_f64())?,
                Outcome::Skipped(why) => writeln!(out, "NOT RUN  {:>8}    {name}: {why}", "")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn all_steps_passing_is_a_success() {
        let mut report = Report::default();
        assert_eq!(report.step("one", || Ok(1)), Some(1));
        report.finish().unwrap();
    }

    #[test]
    fn a_failure_does_not_stop_later_steps_but_fails_the_run() {
        let mut report = Report::default();
        assert_eq!(report.step::<()>("one", || Err(anyhow!("broken"))), None);
        assert_eq!(report.step("two", || Ok(2)), Some(2));
        let table = report.to_string();
        assert!(table.contains("FAILED") && table.contains("passed"), "{table}");
        assert_eq!(report.finish().unwrap_err().to_string(), "1 of 2 steps did not pass");
    }

    #[test]
    fn a_step_that_was_not_run_is_no_success() {
        let mut report = Report::default();
        report.skip("namespaces", "needs root");
        assert!(report.to_string().contains("namespaces: needs root"));
        assert!(report.finish().is_err());
    }
}
