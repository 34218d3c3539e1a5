//! The verbs against a real agent: with it, without it, and with what it keeps gone.

use std::net::IpAddr;

use nix::sys::signal::Signal;
use overlay_tests::lab::{CniError, Node};
use overlay_tests::traffic::ping;
use serde_json::{Value, json};

use crate::bed::{Bed, GATEWAY, address, expect_same};

fn code(result: Result<Value, CniError>) -> (i64, String) {
    let error = result.expect_err("a refusal");
    (error.code, error.message)
}

#[test]
fn no_verb_needs_the_agent_and_each_needs_what_it_has_left() {
    let bed = Bed::start();
    let pod = bed.sandbox("p");
    bed.node.kill_agent(Signal::SIGKILL);
    assert_eq!(bed.must("STATUS", &pod, json!({})), Value::Null);
    let result = bed.must("ADD", &pod, json!({}));
    ping::ping(&pod, GATEWAY.parse::<IpAddr>().unwrap()).unwrap();
    bed.must("CHECK", &pod, json!({"prevResult": result}));

    bed.node.namespace().ip(&format!("link set dev {} down", Node::ANCHOR));
    let (number, message) = code(bed.cni("STATUS", &pod, json!({})));
    assert_eq!(number, 51, "{message}");
    let (number, message) = code(bed.cni("CHECK", &pod, json!({"prevResult": result})));
    assert_eq!(number, 106, "{message}");
    assert!(message.contains("overlay.1 is down"), "{message}");
    bed.collect(&[]).unwrap();
    assert_eq!(bed.holders(), 0);
    bed.must("DEL", &pod, json!({}));
}

#[test]
fn without_a_datapath_addition_is_to_be_tried_again_and_deletion_succeeds() {
    let bed = Bed::without_agent();
    let pod = bed.sandbox("p");
    for (verb, expected) in [("STATUS", 50), ("ADD", 11)] {
        let (number, message) = code(bed.cni(verb, &pod, json!({})));
        assert_eq!(number, expected, "{message}");
        assert!(message.contains("agent"), "{message}");
    }
    bed.must("DEL", &pod, json!({}));
    bed.collect(&[]).unwrap();
}

#[test]
fn an_addition_that_fails_names_step_and_errno_and_leaves_nothing() {
    let bed = Bed::start();
    bed.node.stop_agent();
    let pod = bed.sandbox("p");
    // The node's route to a pod has the gateway's address as its source.
    bed.node.namespace().ip(&format!("addr del {GATEWAY}/32 dev {}", Node::ANCHOR));
    let (outside, inside) = (bed.snapshot(), Bed::inside(&pod));
    let (number, message) = code(bed.cni("ADD", &pod, json!({})));
    assert_eq!(number, 103, "{message}");
    assert!(message.contains("connect the host side") && message.contains("os error 22"), "{message}");
    expect_same(&bed.snapshot(), &outside, "the node");
    expect_same(&Bed::inside(&pod), &inside, "the pod");
}

#[test]
fn a_released_address_is_not_given_out_at_once_and_a_wanted_one_is() {
    let bed = Bed::start();
    let pod = bed.sandbox("p");
    let next = |keys: Value| {
        let address = address(&bed.must("ADD", &pod, keys));
        bed.must("DEL", &pod, json!({}));
        address
    };
    let all = [next(json!({})), next(json!({})), next(json!({}))];
    assert_eq!(all, ["10.244.1.2", "10.244.1.3", "10.244.1.4"]);
    let wanted = json!({"runtimeConfig": {"ips": ["10.244.1.2"], "mac": "02:00:00:00:00:09"}});
    assert_eq!(next(wanted), "10.244.1.2");
    let mut call = bed.call("ADD", &pod, json!({}));
    call.args = "IgnoreUnknown=1;K8S_POD_NAME=p;IP=10.244.1.3".to_owned();
    assert_eq!(address(&bed.node.cni(&call).unwrap()), "10.244.1.3");
    let other = bed.sandbox("q");
    call = bed.call("ADD", &other, json!({"args": {"cni": {"ips": ["10.244.1.3"]}}}));
    let (number, message) = code(bed.node.cni(&call));
    assert_eq!(number, 105, "{message}");
    assert!(message.contains(pod.name()), "the holder is named: {message}");
}

#[test]
fn a_second_network_of_a_pod_comes_and_goes_by_itself() {
    let bed = Bed::start();
    let pod = bed.sandbox("p");
    let before = bed.snapshot();
    let second = |command: &str, keys: Value| {
        let mut call = bed.call(command, &pod, keys);
        call.ifname = "net1".to_owned();
        call.conf["name"] = json!("second");
        bed.node.cni(&call).unwrap_or_else(|error| panic!("{command} of net1: {error}"))
    };
    let first = bed.must("ADD", &pod, json!({}));
    let with_first = bed.snapshot();
    let result = second("ADD", json!({}));
    assert_ne!(address(&result), address(&first));
    assert_eq!(pod.ip_json("route show default")[0]["dev"], "eth0");
    bed.must("CHECK", &pod, json!({"prevResult": first}));
    second("CHECK", json!({"prevResult": result}));
    // The first network's runtime knows nothing of the second's attachment.
    bed.collect(&[&pod]).unwrap();
    second("CHECK", json!({"prevResult": result}));
    second("DEL", json!({"prevResult": result}));
    expect_same(&bed.snapshot(), &with_first, "without the second");
    bed.must("CHECK", &pod, json!({"prevResult": first}));
    second("ADD", json!({}));
    bed.must("DEL", &pod, json!({}));
    assert_eq!(pod.ip_json("link show dev net1")[0]["ifname"], "net1");
    second("DEL", json!({}));
    expect_same(&bed.snapshot(), &before, "without both");
}
