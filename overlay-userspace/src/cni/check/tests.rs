use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::*;
use crate::{
    cni::{
        env::Request,
        testing::{GATEWAY, Pod, TestNode, attachment, conf, on_a_node, request_add},
    },
    datapath::tables::LocalTable,
    host::netns::testing::{ip, run},
};

struct Checked<'a> {
    node: &'a TestNode,
    pod: Pod,
    result: Value,
    device: String,
}

impl<'a> Checked<'a> {
    fn new(node: &'a TestNode, keys: Value) -> Self {
        let pod = Pod::new();
        let result = node.call(&request_add("c", "eth0", &pod), &conf(keys)).unwrap().unwrap();
        let device = result["interfaces"][0]["name"].as_str().unwrap().to_owned();
        Self { node, pod, result, device }
    }

    fn check(&self) -> Result<Option<Value>, Failure> {
        self.check_with(json!({"prevResult": self.result}))
    }

    fn check_with(&self, keys: Value) -> Result<Option<Value>, Failure> {
        let request = Request::Check { attachment: attachment("c", "eth0"), netns: self.pod.path() };
        self.node.call(&request, &conf(keys))
    }

    #[track_caller]
    fn finds(&self, wanted: &str) {
        let failure = self.check().expect_err(wanted);
        assert_eq!(failure.code, Code::Unsound, "{failure}");
        assert!(failure.message.contains(wanted), "{wanted}: {failure}");
        assert!(failure.details.contains("create it anew"), "{failure}");
    }

    fn inside(&self, command: &str) {
        self.pod.run(|| ip(command));
    }

    fn outside(&self, command: &str) {
        ip(&command.replace("DEV", &self.device));
    }
}

#[test]
fn a_pod_is_sound_right_after_it_was_added() {
    on_a_node("10.244.1.0/24", |node| {
        for (keys, version) in
            [(json!({}), "1.1.0"), (json!({"attach": "tcx", "cniVersion": "0.4.0"}), "0.4.0")]
        {
            let checked = Checked::new(node, keys);
            let keys = json!({"cniVersion": version, "prevResult": checked.result});
            assert_eq!(checked.check_with(keys), Ok(None));
            node.del("c", "eth0").unwrap();
        }
    });
}

#[test]
fn each_thing_that_is_missing_or_different_is_named() {
    on_a_node("10.244.1.0/24", |node| {
        let checked = Checked::new(node, json!({}));
        let (address, device) = ("10.244.1.2", checked.device.clone());
        let inside = |spoil: &str, mend: &str, wanted: &str| {
            checked.inside(spoil);
            checked.finds(wanted);
            checked.inside(mend);
            assert_eq!(checked.check(), Ok(None), "{mend}");
        };
        // Another one keeps the kernel from removing all that belongs to IPv4 with the last.
        checked.inside("address add 192.0.2.5/32 dev eth0");
        inside("address delete 10.244.1.2/32 dev eth0", "address add 10.244.1.2/32 dev eth0", address);
        let default = format!("default via {GATEWAY} dev eth0 onlink");
        inside("route delete default", &format!("route add {default}"), "route to 0.0.0.0/0");
        inside(
            &format!("route delete {GATEWAY}"),
            &format!("route add {GATEWAY} dev eth0 scope link"),
            "route to 10.244.1.1/32",
        );
        let neighbour = format!("neighbour replace {GATEWAY} lladdr 0a:6f:c0:00:02:01 dev eth0");
        inside(&format!("neighbour delete {GATEWAY} dev eth0"), &neighbour, "neighbour entry of the gateway");
        inside(
            &format!("neighbour replace {GATEWAY} lladdr 02:00:00:00:00:99 dev eth0"),
            &neighbour,
            "02:00:00:00:00:99 instead of 0a:6f:c0:00:02:01",
        );
        inside("link set eth0 mtu 1500", "link set eth0 mtu 1450", "MTU 1500, 1450");
        // A new MAC also costs the device its neighbours.
        checked.inside("link set eth0 address 02:00:00:00:00:99");
        checked.finds("capability `mac`");
        checked.inside("link set eth0 address 0a:58:0a:f4:01:02");
        checked.inside(&neighbour);

        let outside = |spoil: &str, mend: &str, wanted: &str| {
            checked.outside(spoil);
            checked.finds(wanted);
            checked.outside(mend);
            assert_eq!(checked.check(), Ok(None), "{mend}");
        };
        let route = format!("route add {address} dev DEV");
        outside(&format!("route delete {address}"), &route, "route 10.244.1.2/32");
        let neighbour = format!("neighbour replace {address} lladdr 0a:58:0a:f4:01:02 dev DEV");
        outside(&format!("neighbour delete {address} dev DEV"), &neighbour, "neighbour entry of 10.244.1.2");
        outside("link set DEV mtu 1400", "link set DEV mtu 1450", "MTU 1400 instead of 1450");
        checked.outside("link set DEV address 02:00:00:00:00:99");
        checked.finds("02:00:00:00:00:99 instead of 0a:6f:c0:00:02:01");
        checked.outside("link set DEV address 0a:6f:c0:00:02:01");
        checked.outside(&neighbour);
        outside("link set gw0 down", "link set gw0 up", "gw0 is down");
        checked.outside("link set DEV down");
        checked.finds(&format!("{device} is down"));
        checked.outside("link set DEV up");
        checked.outside(&route);
        checked.outside(&neighbour);
        checked.pod.run(|| ip("link set eth0 down"));
        checked.finds("the pod's eth0 is down");
        checked.finds("has no carrier");
    });
}

#[test]
fn programs_settings_and_entries_are_looked_at() {
    on_a_node("10.244.1.0/24", |node| {
        let checked = Checked::new(node, json!({}));
        let device = &checked.device;
        run(&format!("sysctl -qw net.ipv4.conf.{device}.forwarding=0"));
        checked.finds("forwarding");
        run(&format!("sysctl -qw net.ipv4.conf.{device}.forwarding=1"));
        run(&format!("tc filter delete dev {device} egress"));
        checked.finds("to_pod is not attached");
        run(&format!("tc qdisc delete dev {device} clsact"));
        checked.finds("from_pod is not attached");
        node.del("c", "eth0").unwrap();

        let checked = Checked::new(node, json!({"attach": "tcx"}));
        let pin = |hook: &str| node.pins.link(&format!("pod_{}_{hook}", checked.device));
        std::fs::remove_file(pin("from_pod")).unwrap();
        // The kernel lets go of what was pinned after a grace period.
        let deadline = Instant::now() + Duration::from_secs(5);
        while checked.check().is_ok() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        checked.finds("from_pod is not attached");
        // A pin that outlives its device proves nothing: another device gets the name.
        ip(&format!("link delete {}", checked.device));
        checked.finds(&format!("device {} is missing", checked.device));
        ip(&format!("link add {} type veth peer name other", checked.device));
        checked.finds("to_pod is not attached");
        checked.finds("has device index");
        checked.finds("the pod's eth0 is missing");
        checked.inside("link add eth0 type veth peer name other");
        checked.finds("not the other end");
        assert!(pin("to_pod").exists());
        node.del("c", "eth0").unwrap();

        checked.inside("link delete eth0");
        let checked = Checked::new(node, json!({}));
        let mut endpoints = Endpoints::open(&node.pins).unwrap();
        let (address, endpoint) = node.entries()[0];
        endpoints.update(address, Endpoint { ifindex: 0, ..endpoint }).unwrap();
        checked.finds("incomplete");
        endpoints.release(address).unwrap();
        checked.finds("the endpoint entry of 10.244.1.4 is missing");
        endpoints.lease("10.244.1.77".parse::<IpAddr>().unwrap().into(), endpoint).unwrap();
        checked.finds("its address is 10.244.1.77, prevResult says 10.244.1.4");
    });
}

#[test]
fn what_later_plugins_may_change_is_no_finding() {
    on_a_node("10.244.1.0/24", |node| {
        let mut checked = Checked::new(node, json!({}));
        checked.inside("address add 192.0.2.5/24 dev eth0");
        checked.inside("link set eth0 mtu 1400");
        checked.inside("route add 198.51.100.0/24 dev eth0");
        // As `sbr` does it.
        checked.inside("route delete default");
        checked.inside(&format!("route add default via {GATEWAY} dev eth0 onlink table 100"));
        run(&format!("tc qdisc add dev {} root tbf rate 1gbit burst 1mb latency 25ms", checked.device));
        checked.result["interfaces"].as_array_mut().unwrap().push(json!({"name": "ifb0"}));
        checked.result["routes"]
            .as_array_mut()
            .unwrap()
            .push(json!({"dst": "203.0.113.0/24", "gw": "192.0.2.1"}));
        assert_eq!(checked.check(), Ok(None));
        // A smaller MTU of new pods is a fault of the old ones only where theirs is larger.
        let mut table = LocalTable::open(&node.pins).unwrap();
        let local = table.get().unwrap();
        table.set(&overlay_common::maps::Local { mtu: 1400, ..local }).unwrap();
        assert_eq!(checked.check(), Ok(None));
    });
}

#[test]
fn calls_that_cannot_be_answered_are_refused() {
    on_a_node("10.244.1.0/24", |node| {
        let checked = Checked::new(node, json!({}));
        let refused = |keys: Value, code: Code| {
            let failure = checked.check_with(keys).unwrap_err();
            assert_eq!(failure.code, code, "{failure}");
        };
        refused(json!({}), Code::InvalidConfig);
        refused(json!({"cniVersion": "0.3.1", "prevResult": checked.result}), Code::IncompatibleVersion);
        let attachment = attachment("c", "eth0");
        let missing = Request::Check { attachment, netns: "/run/netns/overlay-test-missing".into() };
        let failure = node.call(&missing, &conf(json!({"prevResult": checked.result}))).unwrap_err();
        assert_eq!(failure.code, Code::InvalidNetns, "{failure}");
        node.del("c", "eth0").unwrap();
        refused(json!({"prevResult": checked.result}), Code::UnknownContainer);
    });
}
