use overlay_common::maps::Endpoint;
use serde_json::{Value, json};

use super::*;
use crate::{
    cni::{
        env::Request,
        testing::{Pod, TestNode, conf, device, on_a_node, private_pins},
    },
    host::netns::testing::{in_fresh_netns, ip},
};

fn collect(node: &TestNode, valid: &[(&str, &str)]) -> Result<Option<Value>, Failure> {
    let list: Vec<_> =
        valid.iter().map(|(id, ifname)| json!({"containerID": id, "ifname": ifname})).collect();
    node.call(&Request::Gc, &conf(json!({"cni.dev/valid-attachments": list})))
}

#[test]
fn what_is_not_in_the_list_goes_and_only_that() {
    on_a_node("10.244.1.0/24", |node| {
        let (one, two) = (Pod::new(), Pod::new());
        node.add("one", "eth0", &one).unwrap();
        let with_one = node.state();
        node.add("one", "net1", &one).unwrap();
        node.add("two", "eth0", &two).unwrap();
        let with_all = node.state();
        let all = [("one", "eth0"), ("one", "net1"), ("two", "eth0"), ("unknown", "eth0")];
        assert_eq!(collect(node, &all), Ok(None));
        assert_eq!(node.state(), with_all);
        assert_eq!(collect(node, &[("one", "eth0")]), Ok(None));
        assert_eq!(node.state(), with_one);
        assert!(one.has("eth0") && !one.has("net1") && !two.has("eth0"));
        one.ping("10.244.1.1");
        assert_eq!(collect(node, &[]), Ok(None));
        assert!(node.entries().is_empty() && !one.has("eth0"));
    });
}

#[test]
fn what_another_network_has_made_stays() {
    on_a_node("10.244.1.0/24", |node| {
        let pod = Pod::new();
        node.add_with("c", "net1", &pod, json!({"name": "other"})).unwrap();
        let before = node.state();
        node.add("c", "eth0", &pod).unwrap();
        assert_eq!(collect(node, &[]), Ok(None));
        assert_eq!(node.state(), before);
        assert!(pod.has("net1") && !pod.has("eth0"));
    });
}

#[test]
fn leftovers_of_killed_calls_go_whatever_stage_they_had_reached() {
    on_a_node("10.244.1.0/24", |node| {
        let before = node.state();
        let long = "c".repeat(100);
        for id in ["c", &long] {
            let pod = Pod::new();
            let device_of = node.add_with(id, "eth0", &pod, json!({"attach": "tcx"})).unwrap().device;
            assert_eq!(device_of, device(id, "eth0"));
            let (address, endpoint) = node.entries()[0];
            let mut endpoints = Endpoints::open(&node.pins).unwrap();
            endpoints.update(address, Endpoint { ifindex: 0, ..endpoint }).unwrap();
            assert_eq!(collect(node, &[]), Ok(None));
            assert_eq!(node.state(), before);

            // A lease alone.
            endpoints.lease(address, Endpoint { ifindex: 0, ..endpoint }).unwrap();
            assert_eq!(collect(node, &[]), Ok(None));
            assert_eq!(node.state(), before);

            // A device that vanished with its namespace: the pins of its links are left.
            node.add_with(id, "eth0", &pod, json!({"attach": "tcx"})).unwrap();
            ip(&format!("link delete {device_of}"));
            endpoints.release(node.entries()[0].0).unwrap();
            assert_eq!(node.pins.links().unwrap().len(), 2);
            assert_eq!(collect(node, &[]), Ok(None));
            assert_eq!(node.state(), before);
        }
    });
}

#[test]
fn without_a_list_or_with_a_strange_one_nothing_is_touched() {
    on_a_node("10.244.1.0/24", |node| {
        let pod = Pod::new();
        node.add("c", "eth0", &pod).unwrap();
        let before = node.state();
        for keys in [json!({}), json!({"cni.dev/valid-attachments": [{"containerID": "c"}]})] {
            let failure = node.call(&Request::Gc, &conf(keys)).unwrap_err();
            assert_eq!(failure.code, Code::InvalidConfig, "{failure}");
        }
        assert_eq!(node.state(), before);
    });
}

#[test]
fn a_node_without_pins_has_no_garbage() {
    in_fresh_netns(|| {
        let pins = private_pins();
        let conf = conf(json!({"pins": pins.root(), "cni.dev/valid-attachments": []}));
        assert_eq!(gc(&Conf::parse(conf.to_string().as_bytes()).unwrap()), Ok(()));
    });
}
