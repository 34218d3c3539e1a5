//! What a virtual machine said: lines of its first process (tests/src/vm/main.rs) around the output of each step, and the kernel's log.

use std::fmt;

/// What marks lines of the first process.
const MARK: &str = "@vm ";
/// What the kernel says when something is wrong with it. Other lines are no reason for a failure.
const ALARMS: [&str; 9] = [
    "WARNING: ",
    "BUG: ",
    "Oops: ",
    "Kernel panic",
    "general protection fault",
    "RCU detected",
    "rcu_preempt detected stalls",
    "blocked for more than",
    "possible recursive locking",
];

/// A step that has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) name: String,
    pub(super) passed: u32,
    pub(super) ignored: u32,
    pub(super) failed: Vec<String>,
    seconds: u32,
    /// What is wrong beside failed tests.
    trouble: Option<String>,
}

impl Step {
    /// Whether it has proven anything, and that all is well.
    pub(super) fn is_good(&self) -> bool {
        self.failed.is_empty() && self.trouble.is_none()
    }
}

impl fmt::Display for Step {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, passed, failed, seconds, trouble, .. } = self;
        write!(out, "{name}: {passed} passed, {} failed, in {seconds} s", failed.len())?;
        if let Some(trouble) = trouble {
            write!(out, " ({trouble})")?;
        }
        failed.iter().try_for_each(|test| write!(out, "\n    FAILED {test}"))
    }
}

/// Everything about one boot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// In overlay's own words: what the kernel has and lacks.
    pub(super) features: Vec<String>,
    /// The line with which overlay has refused to run.
    pub(super) refusal: Option<String>,
    pub(super) steps: Vec<Step>,
    /// What is wrong with the machine.
    pub(super) trouble: Vec<String>,
}

impl Outcome {
    /// Reads what tests and kernel have said so far.
    pub(super) fn read(tests: &str, console: &str) -> Self {
        let mut outcome = Self::default();
        let mut step = Step::default();
        let mut done = false;
        for line in tests.lines().map(str::trim_end) {
            let Some(said) = line.strip_prefix(MARK) else {
                step.hear(line);
                continue;
            };
            let (verb, rest) = said.split_once(' ').unwrap_or((said, ""));
            match verb {
                "feature" => outcome.features.push(rest.to_owned()),
                "refused" => outcome.refusal = Some(rest.to_owned()),
                "begin" => step = Step { name: rest.to_owned(), ..Step::default() },
                "end" => {
                    step.end(rest);
                    outcome.steps.push(std::mem::take(&mut step));
                }
                "done" => done = true,
                _ => outcome.trouble.push(rest.to_owned()),
            }
        }
        if !done {
            let at = if step.name.is_empty() { String::new() } else { format!(" in {}", step.name) };
            outcome.trouble.push(format!("it ended early{at}"));
        }
        let alarms = console.lines().filter(|line| ALARMS.iter().any(|alarm| line.contains(alarm)));
        outcome.trouble.extend(alarms.map(|line| format!("the kernel says: {}", line.trim_end())));
        outcome
    }

    /// Whether everything that should have been proven was.
    pub(super) fn is_good(&self) -> bool {
        self.trouble.is_empty()
            && self.steps.iter().all(Step::is_good)
            && self.steps.is_empty() == self.refusal.is_some()
    }
}

impl Step {
    /// A line of a test program (libtest's own format).
    fn hear(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("test result: ") {
            let count = |what: &str| {
                let field = rest.split("; ").find_map(|field| field.strip_suffix(what))?;
                field.rsplit(' ').next()?.parse::<u32>().ok()
            };
            self.passed += count(" passed").unwrap_or(0);
            self.ignored += count(" ignored").unwrap_or(0);
        } else if let Some(test) =
            line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.failed.push(test.to_owned());
        }
    }

    /// `<exit status> <seconds>`: what the first process says of the program's end.
    fn end(&mut self, said: &str) {
        let (status, seconds) = said.rsplit_once(' ').unwrap_or((said, "0"));
        self.seconds = seconds.parse().unwrap_or(0);
        if status != "exit 0" && self.failed.is_empty() {
            self.trouble = Some(status.to_owned());
        } else if self.passed == 0 && self.failed.is_empty() {
            self.trouble = Some("no test was run".into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "@vm feature tcx links: no (Linux 6.6)\n@vm begin programs\r\nrunning 2 tests\n\
                        test a ... ok\ntest b ... ok\n\n\
                        test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out\n\
                        @vm end exit 0 7\n@vm done\n";

    #[test]
    fn a_run_in_which_all_passed_is_good() {
        let outcome = Outcome::read(GOOD, "[    0.0] clocksource: tsc\n");
        assert!(outcome.is_good(), "{outcome:?}");
        assert_eq!(outcome.steps[0].to_string(), "programs: 2 passed, 0 failed, in 7 s");
        assert_eq!(outcome.steps[0].ignored, 1);
        assert_eq!(outcome.features, ["tcx links: no (Linux 6.6)"]);
    }

    #[test]
    fn a_failed_test_is_named() {
        let text = GOOD.replace("test b ... ok", "test x::b ... FAILED").replace("exit 0", "exit 101");
        let outcome = Outcome::read(&text, "");
        assert!(!outcome.is_good());
        assert_eq!(outcome.steps[0].failed, ["x::b"]);
    }

    #[test]
    fn a_machine_that_ended_early_or_ran_nothing_is_not_good() {
        let early = Outcome::read(GOOD.split("test b").next().unwrap(), "");
        assert_eq!(early.trouble, ["it ended early in programs"]);
        let nothing = Outcome::read("@vm begin programs\n@vm end exit 0 1\n@vm done\n", "");
        assert!(!nothing.is_good(), "{nothing:?}");
        assert!(!Outcome::read("@vm done\n", "").is_good());
        let killed = Outcome::read("@vm begin a\n@vm end killed after 60 s 60\n@vm done\n", "");
        assert!(killed.steps[0].to_string().contains("killed after 60 s"), "{killed:?}");
    }

    #[test]
    fn an_alarm_of_the_kernel_is_a_failure() {
        let outcome = Outcome::read(GOOD, "[   12.3] WARNING: CPU: 0 PID: 77 at net/core/skbuff.c:5000\n");
        assert!(!outcome.is_good());
        assert!(outcome.trouble[0].contains("skbuff.c"), "{outcome:?}");
    }

    #[test]
    fn a_kernel_that_is_refused_runs_nothing() {
        let outcome = Outcome::read("@vm refused kernel 5.10 is too old\n@vm done\n", "");
        assert!(outcome.is_good(), "{outcome:?}");
        assert_eq!(outcome.refusal.as_deref(), Some("kernel 5.10 is too old"));
    }
}
