//! What a virtual machine runs, in order. Its first process reads it as text; tests/src/vm/plan.rs is the other end.

use std::time::Duration;

use super::machine::Accelerator;

/// A program that is run, and has to succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// The test program.
    pub(super) name: &'static str,
    /// Tests whose names contain one of these, and options; all, where there is no name.
    tests: &'static [&'static str],
    /// With the kernel's own virtualisation.
    limit: Duration,
}

const fn step(name: &'static str, tests: &'static [&'static str], minutes: u64) -> Step {
    Step { name, tests, limit: Duration::from_mins(minutes) }
}

/// Packet tables, and of the lab what the version of a kernel can matter to: clusters with real agents, with both ways of
/// attaching, every path that a packet can take, super-packets, a peer that is the kernel's own vxlan device, Services by both kinds of
/// rules, the CNI plugin, and agents that are killed.
const STEPS: [Step; 7] = [
    step("programs", &[], 5),
    // Those that are ignored elsewhere because of what kernels lack, too.
    step("underlay", &["--include-ignored"], 3),
    step(
        "tunnel",
        &[
            "everything_holds_with_clsact_filters",
            "everything_holds_on_a_nic_wire",
            "super_packets_on_a_veth_wire",
            "kernel_vxlan_node_works_with_ours_on_a_veth_wire",
            "largest_packet_passes",
        ],
        5,
    ),
    step(
        "trust",
        &["a_pod_sends_with_its_own_addresses_only", "forged_senders_are_refused_on_every_way_in"],
        3,
    ),
    step("services", &["rules_of_the_iptables_mode", "rules_of_the_nftables_mode"], 5),
    step("cni", &["no_verb_needs_the_agent", "second_network_of_a_pod"], 3),
    step("survival", &["killed_agents_lose_nothing"], 3),
];

/// The same by emulation, ten times as slow and more: of each kind what says most about a kernel.
const EMULATED: [Step; 7] = [
    step("programs", &[], 5),
    step("underlay", &["--include-ignored"], 3),
    step(
        "tunnel",
        &[
            "--exact",
            "families::everything_holds_in_both_families",
            "families::everything_holds_in_ipv6_alone_on_a_nic_wire_with_clsact_filters",
            "flannel::kernel_vxlan_node_works_with_ours_in_both_families",
        ],
        4,
    ),
    step("trust", &["a_pod_sends_with_its_own_addresses_only"], 2),
    step("services", &["--exact", "matrix::rules_of_the_nftables_mode"], 3),
    step("cni", &["no_verb_needs_the_agent"], 2),
    step(
        "survival",
        &["--exact", "outage::killed_agents_lose_nothing_and_new_pods_start_without_them_in_both_families"],
        2,
    ),
];

/// Steps with their limits.
pub(super) struct Plan {
    steps: Vec<Step>,
    slowness: u32,
}

impl Plan {
    /// The steps for machines that run by `accelerator`.
    pub(super) fn new(accelerator: Accelerator) -> Self {
        let steps = match accelerator {
            Accelerator::Kvm => &STEPS,
            Accelerator::Tcg => &EMULATED,
        };
        Self { steps: steps.to_vec(), slowness: accelerator.slowness() }
    }

    /// The names of the test programs.
    pub(super) fn tests() -> impl Iterator<Item = &'static str> + use<> {
        STEPS.iter().map(|step| step.name)
    }

    /// When a machine that is still running must have hung.
    pub(super) fn limit(&self) -> Duration {
        let boot = Duration::from_mins(1);
        self.steps.iter().map(|step| step.limit).sum::<Duration>().saturating_add(boot) * self.slowness
    }

    /// By how much the limits of the tests themselves are longer.
    pub(super) fn patience(&self) -> String {
        format!("{}\n", self.slowness)
    }

    /// One line for each step: name, seconds, program and arguments, with tabs between.
    pub(super) fn to_text(&self) -> String {
        let line = |step: &Step| {
            let Step { name, tests, limit } = step;
            let seconds = limit.as_secs() * u64::from(self.slowness);
            let mut line = format!("{name}\t{seconds}\t/tests/{name}\t--test-threads=2");
            for test in *tests {
                line.push('\t');
                line.push_str(test);
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
        assert_eq!(plan.to_text(), "cni\t360\t/tests/cni\t--test-threads=2\tone\ttwo\n");
        assert_eq!(plan.limit(), Duration::from_mins(9));
    }

    #[test]
    fn every_step_is_a_test_program_of_the_workspace() {
        let tests = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/tests");
        for name in Plan::tests() {
            let found = ["", "/main"]
                .iter()
                .any(|end| std::path::Path::new(&format!("{tests}/{name}{end}.rs")).is_file());
            assert!(found, "{name}");
        }
        assert!(EMULATED.iter().all(|step| Plan::tests().any(|name| name == step.name)));
    }
}
