//! docs/troubleshooting.md and the tests: each symptom is bound to the tests that produce it and the commands that find it,
//! and whatever a test finds is explained on the page. Neither can miss the other.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use overlay_common::reason::Reason;
use overlay_tests::lab::exec;

use crate::bed::{Bed, Finding};
use crate::{
    agent, checksums, cni, drift, families, firewall, flannel, ground, mtu, nodes, peers, pins, ports,
    sysctls,
};

/// A symptom: its heading, the commands that find it, and the tests that produce it.
struct Symptom(&'static str, &'static [&'static str], &'static [fn()]);

const SYMPTOMS: &[Symptom] = &[
    Symptom(
        "Pods do not reach pods of another node",
        &["overlay doctor --only peers,drift"],
        &[
            peers::a_peer_whose_tunnel_port_is_shut_is_named_and_told_from_one_that_is_away,
            peers::a_peer_without_an_agent_is_told_from_one_that_is_not_reached,
            drift::programs_that_are_not_attached_are_found,
            drift::entries_that_are_missing_wrong_or_too_many_are_found,
            drift::an_anchor_that_was_changed_is_found,
            drift::an_anchor_that_is_down_or_gone_is_found,
        ],
    ),
    Symptom(
        "Small packets pass, large ones hang",
        &["overlay doctor --only mtu,peers"],
        &[
            mtu::a_path_that_is_narrower_than_the_device_says_is_measured,
            mtu::a_path_of_the_other_family_is_measured_by_what_its_tunnel_adds,
            mtu::a_pod_that_was_made_for_a_larger_underlay_is_named,
            mtu::a_configured_mtu_that_does_not_fit_is_named,
            peers::a_peer_that_gets_small_packets_only_is_named,
        ],
    ),
    Symptom(
        "A Service is not reached",
        &["overlay doctor --only firewall,sysctls,drift"],
        &[
            drift::rules_of_host_ports_that_are_gone_are_found,
            firewall::a_chain_of_legacy_iptables_is_named_and_opened_by_the_remedy,
            firewall::firewalld_is_told_in_its_own_words,
            firewall::dockers_chain_without_the_accepts_is_named,
            firewall::a_door_that_is_shut_for_the_tunnel_is_named_and_opened_by_the_remedy,
            sysctls::settings_that_others_have_changed_are_named_and_set_by_remedy_or_fix,
            families::what_is_gone_of_ipv6_is_named_and_put_right_by_the_remedy,
        ],
    ),
    Symptom(
        "Pods do not reach the world",
        &["overlay doctor --only drift,firewall,sysctls"],
        &[
            drift::routes_rules_and_filters_that_are_gone_are_found,
            firewall::a_chain_that_drops_is_named_and_opened_by_remedy_or_fix,
        ],
    ),
    Symptom(
        "New pods stay in ContainerCreating",
        &["overlay doctor --only cni,agent,drift"],
        &[
            cni::a_plugin_that_is_missing_is_installed_by_what_the_finding_says,
            cni::a_list_that_comes_before_overlays_is_named,
            cni::a_subnet_without_a_free_address_is_named,
            drift::a_node_that_nobody_has_published_is_found,
        ],
    ),
    Symptom(
        "A node is NotReady, or the agent does not start",
        &["overlay doctor --only kernel,bpffs,ports,agent,nodes"],
        &[
            ground::a_kernel_that_is_too_old_is_named,
            ground::a_place_for_pins_that_is_no_bpf_file_system_is_named,
            ports::a_process_that_has_the_tunnels_port_is_named_and_killed_by_the_remedy,
            ports::a_vxlan_device_that_has_the_tunnels_port_is_named_and_removed_by_the_remedy,
            ports::a_process_that_has_the_port_for_probes_is_named_and_killed_by_the_remedy,
            agent::an_agent_that_does_not_run_is_missed,
            agent::an_agent_that_is_stopped_is_named_with_what_continues_it,
            agent::an_agent_that_does_not_answer_is_named,
            agent::an_agent_that_cannot_do_all_is_named_with_what_it_cannot,
        ],
    ),
    Symptom(
        "Nodes that come, go or move are not noticed",
        &["overlay doctor --only nodes,agent,drift"],
        &[
            nodes::a_watch_that_tells_nothing_is_found_by_what_it_has_missed,
            nodes::an_api_server_that_does_not_answer_is_named_with_its_reason,
            nodes::a_node_that_contradicts_another_is_named,
        ],
    ),
    Symptom(
        "A change of the configuration has no effect",
        &["overlay doctor --only nodes,drift"],
        &[
            nodes::a_configuration_that_is_not_valid_is_named_with_its_line,
            drift::a_configuration_that_nobody_has_taken_over_is_found,
            drift::a_guard_that_is_gone_of_another_load_or_not_wanted_is_found,
        ],
    ),
    Symptom(
        "One destination is not reached",
        &["overlay trace 10.244.1.2 10.244.77.1"],
        &[what_would_become_of_a_packet_is_said_with_the_reason],
    ),
    Symptom(
        "Packets are dropped",
        &["overlay status", "overlay monitor"],
        &[a_drop_is_counted_and_shown_under_the_reason_that_the_page_explains],
    ),
    Symptom(
        "It is slow",
        &["overlay doctor --only kernel,checksums,mtu,peers", "overlay status"],
        &[ground::a_kernel_that_hides_its_types_and_one_that_does_not_compile_are_named],
    ),
    Symptom(
        "Connections stall, packets are damaged",
        &["overlay doctor --only checksums"],
        &[checksums::a_pod_that_receives_damaged_packets_is_named_while_they_come],
    ),
    Symptom(
        "DNS is slow",
        &["overlay doctor --only peers,checksums,firewall"],
        &[
            peers::a_peer_that_gets_small_packets_only_is_named,
            checksums::a_pod_that_receives_damaged_packets_is_named_while_they_come,
        ],
    ),
    Symptom(
        "One pod has lost its network",
        &["overlay doctor --only pins,drift"],
        &[
            pins::a_pod_whose_device_is_gone_gives_its_address_back_by_fix_alone,
            drift::the_ways_to_a_pod_that_were_removed_are_found,
        ],
    ),
    Symptom(
        "After an upgrade",
        &["overlay doctor --only pins,drift"],
        &[
            pins::the_pins_of_another_schema_are_named_and_go_only_when_nothing_hangs_on_them,
            pins::a_link_that_has_outlived_its_device_is_removed_by_remedy_or_fix,
            drift::programs_of_another_load_are_found,
        ],
    ),
    Symptom(
        "After a reboot",
        &["overlay doctor --only bpffs,sysctls"],
        &[
            ground::a_place_for_pins_that_is_no_bpf_file_system_is_named,
            sysctls::the_file_that_sets_it_is_named,
        ],
    ),
    Symptom(
        "After Flannel was removed",
        &["overlay doctor --only flannel,ports,cni"],
        &[
            flannel::leftovers_are_named_and_each_remedy_removes_one,
            flannel::leftovers_are_removed_only_when_asked_for_by_name,
            flannel::the_file_of_flannels_plugin_is_named_and_removed_by_the_remedy,
        ],
    ),
];

/// The last section, which is no symptom.
const REFERENCE: &str = "overlay doctor";

fn page() -> &'static str {
    static PAGE: OnceLock<String> = OnceLock::new();
    PAGE.get_or_init(|| {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/troubleshooting.md");
        std::fs::read_to_string(path).unwrap()
    })
}

/// Headings and texts of the sections.
fn sections() -> Vec<(&'static str, &'static str)> {
    page().split("\n## ").skip(1).map(|section| section.split_once('\n').unwrap()).collect()
}

/// Words without what differs from run to run: numbers, and names of pods' devices.
fn words(text: &str) -> Vec<String> {
    let plain = |word: &str| {
        if word.contains(|c: char| c.is_ascii_digit()) { "#".to_owned() } else { word.to_owned() }
    };
    text.split_whitespace().map(plain).collect()
}

/// Whether a row of the page's tables ends with what the finding says, under the same check and severity.
#[track_caller]
pub(crate) fn explains(finding: &Finding) {
    let head = [finding.check.as_str(), finding.severity.as_str()].map(str::to_owned);
    let what = words(&finding.what);
    let shown = page().lines().map(words).any(|row| row.starts_with(&head) && row.ends_with(&what));
    assert!(shown, "docs/troubleshooting.md has no row for {finding:?}");
}

#[test]
fn every_symptom_of_the_page_is_produced_and_found_by_its_command() {
    let sections = sections();
    let headings: Vec<_> = sections.iter().map(|(heading, _)| *heading).collect();
    let mut expected: Vec<_> = SYMPTOMS.iter().map(|symptom| symptom.0).collect();
    expected.push(REFERENCE);
    assert_eq!(headings, expected);
    for Symptom(heading, commands, tests) in SYMPTOMS {
        let (_, text) = sections.iter().find(|(found, _)| found == heading).unwrap();
        let shell: Vec<_> = text
            .split("```sh\n")
            .skip(1)
            .flat_map(|block| block.split("```").next().unwrap().lines())
            .map(|line| line.split('#').next().unwrap().trim())
            .collect();
        assert_eq!(shell, *commands, "{heading}");
        assert!(!tests.is_empty(), "{heading}");
    }
}

#[test]
fn every_check_is_described_and_every_row_is_of_a_check() {
    let bed = Bed::start();
    let all = bed.doctor(&[]);
    let checks: BTreeSet<_> = all.findings.iter().map(|finding| finding.check.as_str()).collect();
    let (_, reference) = *sections().last().unwrap();
    let described: BTreeSet<_> =
        reference.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert_eq!(described, checks);
    let mut rows = 0;
    for row in page().split("```text\n").skip(1).flat_map(|block| block.split("```").next().unwrap().lines())
    {
        let Some(check) = row.split_whitespace().next().filter(|word| word.chars().all(char::is_lowercase))
        else {
            continue;
        };
        if row.starts_with("overlay ") {
            continue;
        }
        assert!(checks.contains(check), "{row}");
        rows += 1;
    }
    assert!(rows > 40, "{rows}");
}

#[test]
fn every_reason_of_a_drop_is_explained_and_no_other() {
    let (_, text) = *sections().iter().find(|(heading, _)| *heading == "Packets are dropped").unwrap();
    let rows: Vec<Vec<_>> = text
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect();
    let reasons: Vec<_> = rows.iter().map(|row| (row[0].trim_matches('`'), row[1])).collect();
    assert_eq!(reasons, Reason::ALL.map(|reason| (reason.name(), reason.describe())));
    assert!(rows.iter().all(|row| row.len() == 3 && row[2].len() > 20), "{rows:#?}");
}

#[test]
pub(crate) fn a_drop_is_counted_and_shown_under_the_reason_that_the_page_explains() {
    let bed = Bed::start();
    let pod = bed.pod_a.namespace();
    pod.ip("addr add 10.244.1.99/32 dev lo");
    let mut monitor = bed.a.overlay(&["monitor", "-o", "json"]);
    monitor.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut monitor = Running(exec::spawn_tied(monitor).unwrap());
    let lines = BufReader::new(monitor.0.stdout.take().expect("a pipe")).lines();
    let send = || {
        let mut ping = pod.command("ping");
        ping.args(["-c", "1", "-W", "1", "-I", "10.244.1.99", &bed.pod_b.addr().to_string()]);
        let out = exec::output(&mut ping, b"", exec::COMMAND_LIMIT).unwrap();
        assert!(!out.status.success(), "{out:?}");
    };
    // Until the monitor listens, and has said so.
    let seen = AtomicBool::new(false);
    let said = thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..20 {
                if !seen.load(Ordering::Relaxed) {
                    send();
                }
            }
        });
        let said = lines.map_while(Result::ok).find(|line| line.contains("pod_source_address"));
        seen.store(true, Ordering::Relaxed);
        said
    });
    assert!(said.is_some_and(|line| line.contains("10.244.1.99")));
    let status = exec::must(&mut bed.a.overlay(&["status"]), "");
    let row = status.lines().find(|line| line.starts_with("pod_source_address ")).expect(&status);
    let (_, text) = *sections().iter().find(|(heading, _)| *heading == "Packets are dropped").unwrap();
    assert!(text.lines().any(|line| words(line) == words(row)), "{row}");
}

/// Killed when the test ends, however it does.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
pub(crate) fn what_would_become_of_a_packet_is_said_with_the_reason() {
    let bed = Bed::start();
    let (_, text) =
        *sections().iter().find(|(heading, _)| *heading == "One destination is not reached").unwrap();
    let (pod, known) = (bed.pod_a.addr().to_string(), bed.pod_b.addr().to_string());
    for (destination, status) in [("10.244.77.1", 3), (&*known, 0)] {
        let out = exec::output(&mut bed.a.overlay(&["trace", &pod, destination]), b"", exec::COMMAND_LIMIT)
            .unwrap();
        assert_eq!(out.status.code(), Some(status), "{out:?}");
        let verdict = out.stdout.lines().find(|line| line.starts_with("=> ")).expect(&out.stdout);
        assert!(text.lines().any(|line| words(line) == words(verdict)), "{verdict}");
    }
}
