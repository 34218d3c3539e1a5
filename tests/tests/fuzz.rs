//! The fuzzer of the loaded programs, for a bounded number of packets: finds nothing, reaches what it is for, and says what to do
//! about a packet.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests panic, to keep the line number")]

use std::{
    collections::BTreeMap,
    process::{Command, Output},
};

const SEED: &str = "1";
/// Some seconds.
const PACKETS: &str = "30000";

fn fuzz(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fuzz-programs")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn nothing_is_found_and_every_path_is_reached() {
    let output = fuzz(&["--seed", SEED, "--packets", PACKETS, "--seconds", "600"]);
    let (said, error) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{error}");
    let seen: BTreeMap<String, u64> = said
        .lines()
        .filter_map(|line| line.split_once(": "))
        .flat_map(|(hook, counts)| {
            counts.split_whitespace().filter_map(move |count| {
                let (name, packets) = count.split_once('=')?;
                Some((format!("{hook} {name}"), packets.parse().ok()?))
            })
        })
        .collect();
    // What finds nothing because it reaches nothing proves nothing.
    for what in [
        "from_pod local",
        "from_pod encap_native",
        "from_pod pod_to_stack",
        "from_pod returns_to_stack",
        "from_pod pod_source_address",
        "from_pod pod_source_mac",
        "from_pod pod_tunnel_port",
        "from_pod no_node",
        "from_pod path_mtu",
        "to_pod stack_to_pod",
        "to_pod flow_recorded",
        "from_host encap_native",
        "from_host encap_anchor",
        "from_host multicast",
        "from_host no_endpoint",
        "from_host path_mtu",
        "from_tunnel tunnel_key",
        "from_wire decap_native",
        "from_wire unknown_vtep",
        "from_wire inner_source",
        "from_wire ecn",
        "from_wire pod_address_on_wire",
        "xdp_wire inner_destination",
        "xdp_wire vni",
    ] {
        assert!(seen.get(what).is_some_and(|packets| *packets > 0), "{what} was not reached:\n{said}");
    }
}

#[test]
fn a_packet_is_run_again_as_a_finding_names_it() {
    // An IPv4 packet of the pod to the world, 20 bytes of header.
    let packet = "0a6fc00002010a580af401050800450000140000000040060000\
                  0af40105c6336407";
    let output = fuzz(&["--hook", "from_pod", "--packet", packet]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "By(PodToStack)\n");
    // From another pod's address.
    let forged = packet.replace("0af40105c", "0af40106c");
    assert_eq!(text(&fuzz(&["--hook", "from_pod", "--packet", &forged]).stdout), "Dropped\n");
}

#[test]
fn a_packet_that_is_none_is_refused() {
    let output = fuzz(&["--hook", "from_pod", "--packet", "0g"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stderr), "error: a packet is an even number of hexadecimal digits\n");
}
