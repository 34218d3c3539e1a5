use serde_json::{Value, json};

use super::*;
use crate::{
    cni::{
        env::Request,
        testing::{Pod, conf, on_a_node, private_pins},
    },
    host::netns::testing::{in_fresh_netns, ip, run},
};

fn refused(node: &crate::cni::testing::TestNode, code: Code, wanted: &str) {
    let failure = node.call(&Request::Status, &conf(json!({}))).unwrap_err();
    assert_eq!(failure.code, code, "{failure}");
    assert!(failure.message.contains(wanted), "{failure}");
}

#[test]
fn a_node_that_takes_pods_says_so_in_no_words() {
    on_a_node("10.244.1.0/24", |node| {
        assert_eq!(node.call(&Request::Status, &conf(json!({}))), Ok(None));
        let failure = node.call(&Request::Status, &conf(json!({"cniVersion": "1.0.0"}))).unwrap_err();
        assert_eq!(failure.code, Code::IncompatibleVersion, "{failure}");
    });
}

#[test]
fn a_node_that_takes_none_says_why() {
    in_fresh_netns(|| {
        let pins = private_pins();
        let conf: Value = conf(json!({"pins": pins.root()}));
        let failure = status(&Conf::parse(conf.to_string().as_bytes()).unwrap()).unwrap_err();
        assert_eq!(failure.code, Code::Unavailable, "{failure}");
        assert!(failure.message.contains("LOCAL"), "{failure}");
    });
    on_a_node("10.244.1.0/29", |node| {
        node.change_local(|local| local.ready = 0);
        refused(node, Code::Unavailable, "first start");
        node.change_local(|local| local.ready = 1);

        let program = node.pins.program("to_pod");
        std::fs::rename(&program, node.pins.program("elsewhere")).unwrap();
        refused(node, Code::Unavailable, "to_pod");
        std::fs::rename(node.pins.program("elsewhere"), &program).unwrap();

        let pods: Vec<_> = (0..5).map(|_| Pod::new()).collect();
        for (number, pod) in pods.iter().enumerate() {
            assert_eq!(node.call(&Request::Status, &conf(json!({}))), Ok(None), "{number} of 5");
            node.add(&format!("c{number}"), "eth0", pod).unwrap();
        }
        refused(node, Code::Unavailable, "5 of 5");
        node.del("c3", "eth0").unwrap();
        assert_eq!(node.call(&Request::Status, &conf(json!({}))), Ok(None));
    });
}

#[test]
fn a_broken_tunnel_is_told_apart_because_it_concerns_all_pods() {
    on_a_node("10.244.1.0/24", |node| {
        ip("link set gw0 down");
        refused(node, Code::Degraded, "gw0 is down");
        ip("link set gw0 up");
        assert_eq!(node.call(&Request::Status, &conf(json!({}))), Ok(None));
        run("tc filter delete dev gw0 egress");
        refused(node, Code::Degraded, "from_host");
        ip("link delete gw0");
        refused(node, Code::Degraded, "missing");
    });
}
