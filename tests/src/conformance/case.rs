//! What a case is, and how a table of cases becomes a list of runs.
//!
//! A case is one function with the sentence of the specification that it checks. It fails by an error, whose text says
//! what was seen; it is skipped by [`skip`].

use std::time::{Duration, Instant};

use super::suite::Suite;
use super::version::Version;

/// How a case ends early: an error is a failure, except [`Skip`].
pub(crate) type Verdict = anyhow::Result<()>;

/// How binding the sentence is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// The sentence says "must", or defines a format.
    Must,
    /// The sentence says "should", or "generally".
    Should,
    /// The sentence leaves room that today's runtimes do not leave.
    Practice,
}

impl Level {
    /// As the reports write it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Must => "must",
            Self::Should => "should",
            Self::Practice => "practice",
        }
    }
}

/// In which versions a case runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Versions {
    /// Once, in the newest version.
    Newest,
    /// In each version.
    Each,
}

/// One case.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    /// Its name: the sentence in a few words.
    pub(crate) name: &'static str,
    /// Where the sentence is.
    pub(crate) section: &'static str,
    /// The sentence, word for word.
    pub(crate) sentence: &'static str,
    /// How binding it is.
    pub(crate) level: Level,
    /// The first version that has what it is about.
    pub(crate) since: Version,
    /// In which versions it runs.
    pub(crate) versions: Versions,
    /// The check.
    pub(crate) run: fn(&Suite<'_>, Version) -> Verdict,
}

impl Case {
    const fn new(
        level: Level,
        name: &'static str,
        section: &'static str,
        sentence: &'static str,
        run: fn(&Suite<'_>, Version) -> Verdict,
    ) -> Self {
        Self { name, section, sentence, level, since: Version::V0_3_1, versions: Versions::Newest, run }
    }

    /// A case for a sentence that obliges.
    pub(crate) const fn must(
        name: &'static str,
        section: &'static str,
        sentence: &'static str,
        run: fn(&Suite<'_>, Version) -> Verdict,
    ) -> Self {
        Self::new(Level::Must, name, section, sentence, run)
    }

    /// A case for a sentence that recommends.
    pub(crate) const fn should(
        name: &'static str,
        section: &'static str,
        sentence: &'static str,
        run: fn(&Suite<'_>, Version) -> Verdict,
    ) -> Self {
        Self::new(Level::Should, name, section, sentence, run)
    }

    /// A case for what runtimes rely on.
    pub(crate) const fn practice(
        name: &'static str,
        section: &'static str,
        sentence: &'static str,
        run: fn(&Suite<'_>, Version) -> Verdict,
    ) -> Self {
        Self::new(Level::Practice, name, section, sentence, run)
    }

    /// The same in each version.
    pub(crate) const fn each(self) -> Self {
        Self { versions: Versions::Each, ..self }
    }

    /// The same, for versions from `since` on.
    pub(crate) const fn since(self, since: Version) -> Self {
        Self { since, ..self }
    }
}

/// Why a case was not judged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Skip(pub(crate) String);

/// Leaves a case without judging.
pub(crate) fn skip(reason: impl Into<String>) -> Verdict {
    Err(Skip(reason.into()).into())
}

/// How a case ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The plugin does what the sentence says.
    Passed,
    /// It does not; what was seen.
    Failed(String),
    /// Not judged; why.
    Skipped(String),
}

/// A case in one version, to be run.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    /// `<case>`, or `<case>/<version>` if the case runs in each version.
    pub(crate) name: String,
    /// The case.
    pub(crate) case: Case,
    /// The version; none if the plugins speak none that has what the case is about.
    version: Option<Version>,
}

/// A case that has been run.
#[derive(Debug, Clone)]
pub(crate) struct Finished {
    /// `<case>`, or `<case>/<version>`.
    pub(crate) name: String,
    /// The case.
    pub(crate) case: Case,
    /// How it ended.
    pub(crate) outcome: Outcome,
    /// How long it took.
    pub(crate) elapsed: Duration,
}

/// The runs of `cases` for plugins that speak `versions` (oldest first).
pub(crate) fn plan(cases: &[Case], versions: &[Version]) -> Vec<Run> {
    let runs = cases.iter().flat_map(|&case| {
        let mut fit = versions.iter().copied().filter(move |&version| version >= case.since);
        let run = move |version: Option<Version>| {
            let suffix = version.filter(|_| case.versions == Versions::Each);
            let suffix = suffix.map(|version| format!("/{version}")).unwrap_or_default();
            Run { name: format!("{}{suffix}", case.name), case, version }
        };
        match case.versions {
            Versions::Each if fit.clone().next().is_some() => fit.map(|v| run(Some(v))).collect::<Vec<_>>(),
            _ => vec![run(fit.next_back())],
        }
    });
    runs.collect()
}

impl Run {
    /// Runs it.
    pub(crate) fn execute(&self, suite: &Suite<'_>) -> Finished {
        let start = Instant::now();
        let outcome = match self.version {
            None => Outcome::Skipped(format!("the plugins claim no version from {} on", self.case.since)),
            Some(version) => match (self.case.run)(suite, version) {
                Ok(()) => Outcome::Passed,
                Err(error) => match error.downcast::<Skip>() {
                    Ok(Skip(reason)) => Outcome::Skipped(reason),
                    Err(error) => Outcome::Failed(format!("{error:#}")),
                },
            },
        };
        Finished { name: self.name.clone(), case: self.case, outcome, elapsed: start.elapsed() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(cases: &[Case], versions: &[Version]) -> Vec<String> {
        plan(cases, versions).into_iter().map(|run| run.name).collect()
    }

    #[test]
    fn cases_run_in_the_versions_that_have_what_they_are_about() {
        let ok = |_: &Suite<'_>, _| Ok(());
        let cases = [
            Case::must("a", "§5", "x", ok),
            Case::must("b", "§5", "x", ok).each(),
            Case::must("c", "§2", "x", ok).each().since(Version::V0_4_0),
            Case::must("d", "§2", "x", ok).each().since(Version::V1_1_0),
        ];
        let versions = [Version::V0_3_1, Version::V0_4_0, Version::V1_0_0];
        let expected = ["a", "b/0.3.1", "b/0.4.0", "b/1.0.0", "c/0.4.0", "c/1.0.0", "d"];
        assert_eq!(names(&cases, &versions), expected);
        let runs = plan(&cases, &versions);
        assert_eq!(runs[0].version, Some(Version::V1_0_0));
        assert_eq!(runs[6].version, None);
        assert_eq!(names(&cases, &[]), ["a", "b", "c", "d"]);
    }
}
