//! The plugins of containernetworking after ours, in a list as runtimes work it off. Theirs are from Debian's package
//! containernetworking-plugins.

use std::net::SocketAddr;
use std::path::Path;

use overlay_tests::lab::{Namespace, exec, overlay_binary};
use overlay_tests::traffic::tcp;
use serde_json::{Map, Value, json};

use crate::bed::{Bed, NODE, address, expect_same};

/// Where Debian has them.
const PLUGINS: &str = "/usr/lib/cni";

/// A list of plugins for one pod.
struct Chain<'a> {
    bed: &'a Bed,
    pod: &'a Namespace,
    version: &'static str,
    plugins: Vec<Value>,
    /// What the runtime offers to plugins that declare the capability.
    offers: Value,
}

impl Chain<'_> {
    /// One plugin, as libcni calls it.
    #[track_caller]
    fn call(&self, command: &str, plugin: &Value, previous: Option<&Value>) -> Value {
        let kind = plugin["type"].as_str().unwrap();
        let mut conf = plugin.clone();
        conf["cniVersion"] = json!(self.version);
        conf["name"] = json!("chained");
        let declared = plugin["capabilities"].as_object().into_iter().flat_map(Map::keys);
        let config: Map<_, _> =
            declared.filter_map(|key| Some((key.clone(), self.offers.get(key)?.clone()))).collect();
        if !config.is_empty() {
            conf["runtimeConfig"] = Value::Object(config);
        }
        if let Some(previous) = previous {
            conf["prevResult"] = previous.clone();
        }
        let binary = if kind == "overlay" { overlay_binary() } else { Path::new(PLUGINS).join(kind) };
        assert!(binary.is_file(), "{} is missing: install containernetworking-plugins", binary.display());
        let mut program = self.bed.node.namespace().command(&binary);
        program.env("CNI_COMMAND", command).env("CNI_CONTAINERID", self.pod.name());
        program.env("CNI_NETNS", self.pod.path()).env("CNI_IFNAME", "eth0").env("CNI_PATH", PLUGINS);
        let out = exec::output(&mut program, conf.to_string().as_bytes(), exec::COMMAND_LIMIT).unwrap();
        assert!(out.status.success(), "{command} of {kind}: {}{}", out.stdout, out.stderr);
        serde_json::from_str(&out.stdout).unwrap_or_default()
    }

    #[track_caller]
    fn add(&self) -> Value {
        self.plugins
            .iter()
            .fold(None, |previous, plugin| Some(self.call("ADD", plugin, previous.as_ref())))
            .unwrap()
    }

    /// CHECK of ours, with what all have made. Theirs have faults of their own: Debian's `portmap` misses an IPv6 chain
    /// that it never made, `bandwidth` crashes without a limit.
    #[track_caller]
    fn check(&self, result: &Value) {
        self.call("CHECK", &self.plugins[0], Some(result));
    }

    #[track_caller]
    fn del(&self, result: &Value) {
        for plugin in self.plugins.iter().rev() {
            self.call("DEL", plugin, Some(result));
        }
    }
}

/// Ours as the first, with these keys; `rest` after it.
fn chain<'a>(
    bed: &'a Bed,
    pod: &'a Namespace,
    version: &'static str,
    keys: Value,
    rest: &[Value],
) -> Chain<'a> {
    let mut own = json!({"type": "overlay", "pins": bed.node.pins()});
    if let (Value::Object(own), Value::Object(keys)) = (&mut own, keys) {
        own.extend(keys);
    }
    let plugins = [own].into_iter().chain(rest.iter().cloned()).collect();
    Chain { bed, pod, version, plugins, offers: json!({}) }
}

/// The parts of a snapshot that are ours: other plugins leave empty chains, and devices of their own.
fn ours(bed: &Bed) -> Value {
    let mut snapshot = bed.snapshot();
    snapshot.as_object_mut().unwrap().remove("nft");
    without_timers(&mut snapshot);
    snapshot
}

/// Those of a bridge go on by themselves.
fn without_timers(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|key, _| !key.ends_with("_timer"));
            fields.values_mut().for_each(without_timers);
        }
        Value::Array(items) => items.iter_mut().for_each(without_timers),
        _ => {}
    }
}

#[test]
fn a_port_of_the_node_leads_to_a_pod_by_portmap_as_well() {
    let bed = Bed::start();
    let pod = bed.sandbox("p");
    let before = ours(&bed);
    let rest =
        [json!({"type": "portmap", "capabilities": {"portMappings": true}}), json!({"type": "firewall"})];
    for version in ["0.4.0", "1.0.0"] {
        let mut chain = chain(&bed, &pod, version, json!({}), &rest);
        chain.offers = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
        let result = chain.add();
        chain.check(&result);
        let listen: SocketAddr = format!("{}:80", address(&result)).parse().unwrap();
        let dial = |address: &str| format!("{address}:8080").parse::<SocketAddr>().unwrap();
        let seen = tcp::exchange_through(&bed.beside, &pod, listen, dial(NODE)).unwrap();
        assert!(seen.same_address(), "{seen:?}");
        let node = bed.node.namespace();
        for (client, address) in [(node, NODE), (node, "127.0.0.1"), (&pod, NODE)] {
            tcp::exchange_through(client, &pod, listen, dial(address))
                .unwrap_or_else(|error| panic!("{} to {address}: {error:#}", client.name()));
        }
        // The runtime has told overlay of no port.
        assert_eq!(bed.node.show("ports"), json!([]));
        chain.del(&result);
        expect_same(&ours(&bed), &before, version);
    }
}

#[test]
fn bandwidth_finds_its_place_where_overlay_is_told_of_it() {
    let bed = Bed::start();
    let pod = bed.sandbox("p");
    let before = ours(&bed);
    let bandwidth = json!({"bandwidth": true});
    let rest = [json!({"type": "bandwidth", "capabilities": bandwidth})];
    let limits = json!({"ingressRate": 80_000_000, "ingressBurst": 80_000_000, "egressRate": 80_000_000, "egressBurst": 80_000_000});
    // By the capability, by a key, and without a limit there is nothing to be told.
    for (keys, offers) in [
        (json!({"capabilities": bandwidth}), json!({"bandwidth": limits})),
        (json!({"attach": "tcx"}), json!({"bandwidth": limits})),
        (json!({}), json!({})),
    ] {
        let mut chain = chain(&bed, &pod, "1.0.0", keys, &rest);
        chain.offers = offers;
        let result = chain.add();
        chain.check(&result);
        let at = SocketAddr::new(address(&result).parse().unwrap(), 0);
        assert!(tcp::exchange(bed.node.namespace(), &pod, at).unwrap().same_address());
        chain.del(&result);
        expect_same(&ours(&bed), &before, "after DEL");
    }
}

#[test]
fn what_tuning_changes_is_no_fault() {
    let bed = Bed::start();
    let pod = bed.sandbox("p");
    let before = ours(&bed);
    let tuning =
        json!({"type": "tuning", "mtu": 1400, "promisc": true, "sysctl": {"net.core.somaxconn": "500"}});
    let chain = chain(&bed, &pod, "1.0.0", json!({}), &[tuning]);
    let result = chain.add();
    chain.check(&result);
    assert_eq!(pod.ip_json("link show dev eth0")[0]["mtu"], 1400);
    let at = SocketAddr::new(address(&result).parse().unwrap(), 0);
    assert!(tcp::exchange(bed.node.namespace(), &pod, at).unwrap().same_address());
    chain.del(&result);
    expect_same(&ours(&bed), &before, "after DEL");
}

#[test]
fn a_pod_whose_first_network_is_a_bridge_gets_ours_as_its_second() {
    let bed = Bed::start();
    let pod = bed.sandbox("p");
    let data = bed.lab.dir().join("host-local");
    let bridge = json!({
        "type": "bridge", "bridge": "cni0", "isGateway": true,
        "ipam": {
            "type": "host-local", "dataDir": data, "ranges": [[{"subnet": "203.0.113.0/24"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    });
    let first = Chain { bed: &bed, pod: &pod, version: "1.0.0", plugins: vec![bridge], offers: json!({}) };
    let bridged = first.add();
    let before = ours(&bed);
    let second = |command: &str, keys: Value| {
        let mut call = bed.call(command, &pod, keys);
        call.ifname = "net1".to_owned();
        bed.node.cni(&call).unwrap_or_else(|error| panic!("{command} of net1: {error}"))
    };
    let result = second("ADD", json!({}));
    assert_eq!(result["routes"][0]["dst"], "10.244.0.0/16", "the default route stays the first network's");
    second("CHECK", json!({"prevResult": result}));
    let at = SocketAddr::new(address(&result).parse().unwrap(), 0);
    assert!(tcp::exchange(bed.node.namespace(), &pod, at).unwrap().same_address());
    second("DEL", json!({"prevResult": result}));
    expect_same(&ours(&bed), &before, "after DEL");
    first.del(&bridged);
}
