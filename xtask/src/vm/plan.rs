//! What a virtual machine runs, in order. Its first process reads it as text; tests/src/vm/plan.rs is the other end.

use std::time::Duration;

use super::machine::Accelerator;

/// A program that is run, and has to succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// The test program.
    pub(super) name: &'static str,
    /// Tests whose names contain one of these are left out.
    skip: &'static [&'static str],
    /// With the kernel's own virtualisation.
    limit: Duration,
}

const fn step(name: &'static str, skip: &'static [&'static str], minutes: u64) -> Step {
    Step { name, skip, limit: Duration::from_mins(minutes) }
}

/// Packet tables and the core of the lab. What is left out needs programs or data of a developer's machine, or memory that the
/// virtual machine does not have, and tests nothing that the kernel's version matters to.
const STEPS: [Step; 7] = [
    step("programs", &[], 5),
    step("tunnel", &[], 10),
    step("trust", &[], 10),
    step("services", &["real_kube_proxy", "twenty_thousand", "table_full"], 15),
    step("ports", &["two_thousand"], 5),
    step("cni", &["two_hundred", "debians_plugins", "portmap", "bandwidth", "tuning", "is_a_bridge"], 10),
    step("survival", &[], 10),
];

/// Steps with their limits.
pub(super) struct Plan {
    steps: Vec<Step>,
    slowness: u32,
}

impl Plan {
    /// All steps, for machines that run by `accelerator`.
    pub(super) fn new(accelerator: Accelerator) -> Self {
        Self { steps: STEPS.to_vec(), slowness: accelerator.slowness() }
    }

    /// The names of the test programs.
    pub(super) fn tests(&self) -> impl Iterator<Item = &'static str> + use<> {
        STEPS.iter().map(|step| step.name)
    }

    /// When a machine that is still running must have hung.
    pub(super) fn limit(&self) -> Duration {
        let boot = Duration::from_mins(1);
        self.steps.iter().map(|step| step.limit).sum::<Duration>().saturating_add(boot) * self.slowness
    }

    /// One line for each step: name, seconds, program and arguments, with tabs between.
    pub(super) fn to_text(&self) -> String {
        let line = |step: &Step| {
            let Step { name, skip, limit } = step;
            let seconds = limit.as_secs() * u64::from(self.slowness);
            let mut line = format!("{name}\t{seconds}\t/tests/{name}\t--test-threads=2");
            for skip in *skip {
                line.push_str("\t--skip\t");
                line.push_str(skip);
            }
            line + "\n"
        };
        self.steps.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_a_line_of_fields() {
        let plan = Plan { steps: vec![step("cni", &["one", "two"], 2)], slowness: 3 };
        assert_eq!(plan.to_text(), "cni\t360\t/tests/cni\t--test-threads=2\t--skip\tone\t--skip\ttwo\n");
        assert_eq!(plan.limit(), Duration::from_mins(9));
    }

    #[test]
    fn every_step_is_a_test_program_of_the_workspace() {
        let tests = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/tests");
        for name in Plan::new(Accelerator::Kvm).tests() {
            let found = ["", "/main"].iter().any(|end| std::path::Path::new(&format!("{tests}/{name}{end}.rs")).is_file());
            assert!(found, "{name}");
        }
    }
}
