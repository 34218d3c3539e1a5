use std::fs;

use serde_json::json;

use super::*;
use crate::{
    cni::{
        answer,
        env::Request,
        testing::{Pod, attachment, device, on_a_node, private_pins, request_add},
    },
    host::netns::testing::{in_fresh_netns, ip, ip_json},
};

#[test]
fn deleting_again_or_what_never_was_succeeds() {
    on_a_node("10.244.1.0/24", |node| {
        let before = node.state();
        let pod = Pod::new();
        node.add("c", "eth0", &pod).unwrap();
        for _ in 0..3 {
            node.del("c", "eth0").unwrap();
            assert_eq!(node.state(), before);
        }
        node.del("unknown", "eth0").unwrap();
        node.del(&"x".repeat(200), "eth0").unwrap();
    });
}

#[test]
fn only_the_named_attachment_is_deleted() {
    on_a_node("10.244.1.0/24", |node| {
        let (one, two) = (Pod::new(), Pod::new());
        node.add("one", "eth0", &one).unwrap();
        node.add("two", "eth0", &two).unwrap();
        let with_two = node.state();
        node.del("one", "eth1").unwrap();
        node.del("on", "eth0").unwrap();
        assert_eq!(node.state(), with_two);
        node.del("one", "eth0").unwrap();
        assert!(!one.has("eth0") && two.has("eth0"));
    });
}

#[test]
fn a_pod_whose_namespace_is_gone_is_deleted() {
    on_a_node("10.244.1.0/24", |node| {
        let before = node.state();
        let pod = Pod::new();
        node.add("c", "eth0", &pod).unwrap();
        drop(pod);
        node.del("c", "eth0").unwrap();
        assert_eq!(node.state(), before);
    });
}

#[test]
fn deleting_needs_no_ready_agent() {
    on_a_node("10.244.1.0/24", |node| {
        let before = node.state();
        let pod = Pod::new();
        node.add("c", "eth0", &pod).unwrap();
        node.change_local(|local| local.ready = 0);
        node.del("c", "eth0").unwrap();
        assert_eq!(node.state(), before);
    });
}

#[test]
fn without_pins_the_device_is_deleted_all_the_same() {
    in_fresh_netns(|| {
        let pins = private_pins();
        del(&attachment("c", "eth0"), &pins).unwrap();
        let device = device("c", "eth0");
        ip(&format!("link add {device} type veth peer name eth0"));
        let devices = || ip_json("link show").as_array().unwrap().len();
        assert_eq!(devices(), 3);
        del(&attachment("c", "eth0"), &pins).unwrap();
        assert_eq!(devices(), 1);
    });
}

#[test]
fn a_part_that_fails_is_reported_and_the_rest_is_done() {
    on_a_node("10.244.1.0/24", |node| {
        let pod = Pod::new();
        let device = node.add_with("c", "eth0", &pod, json!({"attach": "tcx"})).unwrap().device;
        // A directory cannot be removed like a pin.
        let pin = node.pins.link(&format!("pod_{device}_from_pod"));
        fs::remove_file(&pin).unwrap();
        fs::create_dir(&pin).unwrap();
        let failure = node.del("c", "eth0").unwrap_err();
        assert_eq!(failure.code, Code::Teardown, "{failure}");
        assert!(failure.message.contains("from_pod") && failure.message.contains("os error"), "{failure}");
        assert!(!pod.has("eth0"));
        assert!(node.entries().is_empty());

        fs::remove_dir(&pin).unwrap();
        node.del("c", "eth0").unwrap();
        assert!(node.pins.links().unwrap().is_empty());
    });
}

#[test]
fn a_whole_life_by_the_words_of_the_specification() {
    on_a_node("10.244.1.0/24", |node| {
        let before = node.state();
        let pod = Pod::new();
        let add = request_add("c", "eth0", &pod);
        let del = Request::Del { attachment: attachment("c", "eth0") };
        for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            let mut conf = json!({"cniVersion": version, "name": "overlay", "type": "overlay"});
            let result = answer(&add, conf.to_string().as_bytes()).unwrap().unwrap();
            assert_eq!(result["cniVersion"], version);
            assert_eq!(result["interfaces"][0]["name"], device("c", "eth0"));
            assert_eq!(result["interfaces"][1]["name"], "eth0");
            assert_eq!(result["interfaces"][1]["sandbox"], pod.path().to_str().unwrap());
            assert_eq!(result["ips"][0]["gateway"], "10.244.1.1");
            let address = result["ips"][0]["address"].as_str().unwrap().trim_end_matches("/32").to_owned();
            assert_eq!(pod.ip_json("address show dev eth0")[0]["addr_info"][0]["local"], address);
            conf["prevResult"] = result;
            assert_eq!(answer(&del, conf.to_string().as_bytes()).unwrap(), None);
            assert_eq!(node.state(), before);
        }
    });
}
